"""shoal itself: `shoal serve` (with Ray) over HTTP, or its engine in process."""

from __future__ import annotations

import sys
import threading
from itertools import count
from types import SimpleNamespace

from contract import GPU_SHARE, HTTP, IN_PROCESS, Environment, Launch, Peer
from driving import Came, Generate, main


def _install(environment: Environment, device: str) -> None:
    """It is what runs this."""


def _command(launch: Launch) -> list[str]:
    command = [sys.executable, "-m", "shoal", "serve", str(launch.model), "--dtype", "bfloat16"]
    command += ["--max-model-len", str(launch.max_len), "--max-num-seqs", str(launch.max_streams)]
    if launch.device == "cpu":
        command += ["--threads", str(launch.threads)]
        command += ["--kv-cache-memory-bytes", str(launch.kv_gib << 30)]
    else:
        command += ["--gpu-memory-utilization", str(GPU_SHARE)]
    return [*command, "--port", str(launch.port), "--host", "127.0.0.1"]


def _own_driver(launch: Launch) -> list[str]:
    return [sys.executable, *launch.driver("peer_shoal.py")[1:]]


def _side(over: str) -> Peer:
    return Peer(
        name="shoal",
        distribution="shoal",
        devices=("cpu", "cuda"),
        over=over,
        install=_install,
        command=_command if over == HTTP else _own_driver,
    )


SIDES = {over: _side(over) for over in (HTTP, IN_PROCESS)}


def load(options: SimpleNamespace) -> Generate:
    from shoal.engine.config import from_keys
    from shoal.engine.engine import AsyncEngine
    from shoal.engine.request import Request, SamplingParams, Update

    keys = {
        "model": options.model,
        "dtype": "bfloat16",
        "max_model_len": options.max_len,
        "max_num_seqs": options.max_streams,
    }
    if options.device == "cpu":
        keys |= {"threads": options.threads, "kv_cache_memory_bytes": options.kv_gib << 30}
    else:
        keys["gpu_memory_utilization"] = GPU_SHARE
    engine = AsyncEngine(from_keys(keys))
    engine.start()
    numbers = count()

    def generate(prompts: list[list[int]], output_len: int, came: Came) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
        left = len(prompts)
        done = threading.Event()
        errors: list[str] = []
        rows: dict[str, int] = {}

        def sink(updates: list[Update]) -> None:
            nonlocal left
            for update in updates:
                for _ in update.tokens:
                    came(rows[update.id])
                if update.error:
                    errors.append(update.error)
                left -= update.finish is not None
            if not left:
                done.set()

        requests = [Request(id=str(next(numbers)), prompt=tuple(p), params=params) for p in prompts]
        rows.update({request.id: row for row, request in enumerate(requests)})
        for request in requests:
            engine.submit(request, sink)
        done.wait()
        if errors:
            raise RuntimeError(errors[0])

    return generate


if __name__ == "__main__":
    main(load)
