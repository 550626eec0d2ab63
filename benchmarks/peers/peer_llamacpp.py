"""llama.cpp: its C API through llama-cpp-python, all streams in one batch, in process.

For shared prefixes, what all prompts of a batch have in common with the first one of the batch
before is not computed again but copied, as llama.cpp's own server does between its slots. That
wants one cache for all sequences, in which each looks at the cells of all others too, so that
elsewhere each has a part of its own.
"""

from __future__ import annotations

import subprocess
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from contract import HERE, IN_PROCESS, Environment, Peer, Refused, environ, packages
from driving import Came, Generate, main

BATCH, UBATCH = 2048, 512
WORTH = 32


def _install(environment: Environment, device: str) -> None:
    packages(environment, "llamacpp")


def _convert(environment: Environment, checkpoint: Path) -> Path:
    made = checkpoint.with_name(checkpoint.name + ".gguf")
    if not made.exists():
        command = [environment.python, HERE / "write_gguf.py", checkpoint, made]
        done = subprocess.run(command, env=environ(), capture_output=True, text=True)
        if done.returncode:
            raise Refused(f"writing a GGUF file failed:\n{done.stderr[-2000:]}")
    return made


PEER = Peer(
    name="llamacpp",
    distribution="llama-cpp-python",
    devices=("cpu",),
    over=IN_PROCESS,
    by_prefix=True,
    install=_install,
    convert=_convert,
    command=lambda launch: launch.driver("peer_llamacpp.py"),
)


class Batch:
    """A llama_batch to be filled with (token, position, sequence, whether logits are wanted)."""

    def __init__(self, api: Any) -> None:
        self.api, self.raw = api, api.llama_batch_init(BATCH, 0, 1)

    def add(self, token: int, position: int, seq: int, wanted: bool) -> int:
        """Its place, at which its logits will be."""
        at = self.raw.n_tokens
        self.raw.token[at], self.raw.pos[at] = token, position
        self.raw.n_seq_id[at], self.raw.seq_id[at][0] = 1, seq
        self.raw.logits[at] = wanted
        self.raw.n_tokens = at + 1
        return int(at)

    @property
    def full(self) -> bool:
        """Whether it must be computed before more is added."""
        return bool(self.raw.n_tokens == BATCH)


def load(options: SimpleNamespace) -> Generate:
    import numpy as np

    api = import_module("llama_cpp")

    api.llama_backend_init()
    model = api.llama_model_load_from_file(
        str(options.model).encode(), api.llama_model_default_params()
    )
    params = api.llama_context_default_params()
    params.n_ctx = (options.max_streams + 1) * 1152
    params.n_batch, params.n_ubatch, params.n_seq_max = BATCH, UBATCH, options.max_streams + 1
    params.n_threads = params.n_threads_batch = options.threads
    params.kv_unified = options.prefix_caching
    context = api.llama_init_from_model(model, params)
    memory = api.llama_get_memory(context)
    width = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    batch = Batch(api)
    kept: list[int] = []
    spare = options.max_streams  # the sequence that keeps a prompt

    def compute() -> None:
        if api.llama_decode(context, batch.raw):
            raise RuntimeError("llama_decode failed")

    def likeliest(at: int) -> int:
        row = api.llama_get_logits_ith(context, at)
        return int(np.argmax(np.ctypeslib.as_array(row, shape=(width,))))

    def prefill(seq: int, ids: list[int], start: int, ends: dict[int, int]) -> None:
        """Add a prompt to the batch; `ends` are the places of last tokens by sequence."""
        for position in range(start, len(ids)):
            at = batch.add(ids[position], position, seq, position + 1 == len(ids))
            if position + 1 == len(ids):
                ends[seq] = at
            if batch.full:
                flush(ends)

    latest: dict[int, int] = {}
    notes: list[Came] = []

    def flush(ends: dict[int, int]) -> None:
        if batch.raw.n_tokens:
            compute()
        for seq, at in ends.items():
            latest[seq] = likeliest(at)
            notes[0](seq)
        ends.clear()
        batch.raw.n_tokens = 0

    def keep(ids: list[int]) -> None:
        api.llama_memory_seq_rm(memory, spare, -1, -1)
        api.llama_memory_seq_cp(memory, 0, spare, 0, len(ids))
        kept[:] = ids

    def generate(prompts: list[list[int]], output_len: int, came: Came) -> None:
        notes[:] = [came]
        for seq in range(options.max_streams):
            api.llama_memory_seq_rm(memory, seq, -1, -1)
        common = _common([kept, *prompts]) if options.prefix_caching else 0
        ends: dict[int, int] = {}
        for seq, ids in enumerate(prompts):
            if common:
                api.llama_memory_seq_cp(memory, spare, seq, 0, common)
            prefill(seq, ids, common, ends)
        flush(ends)
        if options.prefix_caching:
            keep(prompts[0])
        for step in range(output_len - 1):
            for seq, ids in enumerate(prompts):
                ends[seq] = batch.add(latest[seq], len(ids) + step, seq, True)
            flush(ends)

    return generate


def _common(prompts: list[list[int]]) -> int:
    """How many tokens all begin with alike, less than the shortest has; 0 if not worth a copy."""
    alike = max(0, min(map(len, prompts)) - 1)
    for position in range(alike):
        if len({ids[position] for ids in prompts}) > 1:
            alike = position
            break
    return alike if alike >= WORTH else 0


if __name__ == "__main__":
    main(load)
