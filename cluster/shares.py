"""What each replica gets of the machines, and with how many others it shares their memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

from ..engine.config import EngineConfig
from .config import ModelConfig


class Share(NamedTuple):
    """What Ray sets aside for a replica, and how many engines share its memory with it."""

    num_cpus: float
    num_gpus: float
    sharers: int


def shares(
    models: Sequence[ModelConfig], *, num_gpus: float = 0, num_nodes: int = 1
) -> list[Share]:
    """The share of a replica of each model, of a cluster of `num_nodes` with `num_gpus` in all.

    Models that scale count with the most replicas that they may have. A replica has GPUs of its
    own where there are enough; otherwise as few as possible share one.
    Engines on CPUs share their node with those that are placed beside them when replicas are
    spread evenly. CPUs are set aside in parts, so that many replicas fit on few.
    """
    on_gpu = [bool(num_gpus) and model.engine.device != "cpu" for model in models]
    beside = [math.ceil(model.most / num_nodes) for model in models]
    num_cpus = math.floor(1000 / sum(beside)) / 1000
    on_cpu = sum(n for n, gpu in zip(beside, on_gpu, strict=True) if not gpu)
    ranks = sum(m.most * _ranks(m.engine) for m, gpu in zip(models, on_gpu, strict=True) if gpu)
    crowd = math.ceil(ranks / num_gpus) if ranks else 1
    return [
        Share(num_cpus, math.floor(100 / crowd) / 100 * _ranks(model.engine), crowd)
        if gpu
        else Share(num_cpus, 0, on_cpu)
        for model, gpu in zip(models, on_gpu, strict=True)
    ]


def shared(model: ModelConfig, sharers: int) -> ModelConfig:
    """`model` with the number of engines that share its memory, unless it states one itself."""
    if model.engine.memory_sharers is not None:
        return model
    engine = dataclasses.replace(model.engine, memory_sharers=sharers)
    return model.model_copy(update={"engine": engine})


def _ranks(engine: EngineConfig) -> int:
    return engine.tensor_parallel_size * engine.pipeline_parallel_size
