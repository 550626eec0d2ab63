"""A Ray for all tests of ranks, models that ranks share unevenly, and engines driven by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from shoal.cluster.launch import private_ray
from shoal.engine.config import EngineConfig, from_keys
from shoal.engine.core.scheduler import Scheduler
from shoal.engine.executors import executor_for
from shoal.engine.loop import Loop
from shoal.engine.request import Request, Update

PLAIN: dict[str, Any] = {
    "dtype": "float32",
    "threads": 1,
    "block_size": 4,
    "max_num_seqs": 16,
    "num_gpu_blocks_override": 40,
    "max_num_batched_tokens": 24,
    "max_model_len": 128,
}
"""Few blocks and a small budget: chunks, prefix hits and preemptions come by themselves."""


class Engine:
    """A loop over an executor, of one rank or of several."""

    def __init__(self, model: Path, **keys: Any) -> None:
        self.config: EngineConfig = from_keys({"model": str(model), **PLAIN, **keys})
        self.executor: Any = executor_for(self.config)
        self.capacity = self.executor.start(self.config)
        self.lost: list[Exception] = []
        self.executor.watch(self.lost.append)
        self.scheduler = Scheduler(
            self.config,
            self.capacity,
            depth=self.executor.depth,
            resident=self.executor.resident,
        )
        self.loop = Loop(self.scheduler, self.executor)

    def run(self, requests: list[Request]) -> dict[tuple[str, int], list[Update]]:
        """All updates of each sequence."""
        found: dict[tuple[str, int], list[Update]] = {}
        for request in requests:
            self.loop.add(request)
        while self.loop.unfinished:
            for update in self.loop.step():
                found.setdefault((update.id, update.sibling), []).append(update)
        self.scheduler.verify()
        return found


@pytest.fixture(scope="session")
def ray_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Inside, this process is the driver of a Ray of its own."""
    with private_ray(tmp_path_factory.mktemp("ray")):
        yield


@pytest.fixture(scope="session")
def engine_of() -> type[Engine]:
    return Engine


@pytest.fixture(scope="session")
def uneven_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 layers of two cache groups, 2 key-value heads, a vocabulary that no rank count divides."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("uneven")
    config = Qwen2Config(
        vocab_size=131,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        use_sliding_window=True,
        sliding_window=12,
        layer_types=["full_attention", "sliding_attention"] * 2,
        eos_token_id=2,
        architectures=["Qwen2ForCausalLM"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config).to(torch.float32)
        for name, weight in model.named_parameters():
            if "norm" not in name:
                torch.nn.init.normal_(weight, 0, 0.15)
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    return _until


def _until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait for a condition."""
    import time

    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        time.sleep(0.02)
