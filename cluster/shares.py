"""What each replica gets of the machines, and with how many others it shares their memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..engine.seat import num_ranks
from .config import ModelConfig


class Share(NamedTuple):
    """What Ray sets aside for a replica, and how many engines share its memory with it."""

    num_cpus: float
    num_gpus: float
    sharers: int


def shares(
    models: Sequence[ModelConfig],
    *,
    num_gpus: float = 0,
    num_nodes: int = 1,
    cpus_a_node: float = math.inf,
) -> list[Share]:
    """The share of a replica of each model, of a cluster of `num_nodes` with `num_gpus` in all.

    What `ray_actor_options` ask for stands. Else a replica has GPUs of its own where there are
    enough for the fewest replicas that there may be, otherwise as few as possible share one; one of
    several ranks never shares. Where more come than there is room for, they wait for nodes.
    Engines on CPUs share their node with those that are placed beside them when the most replicas
    that there may be are spread evenly. CPUs are set aside in parts, so that many fit on few.
    """
    on_gpu = [is_on_gpu(model, num_gpus) for model in models]
    beside = [math.ceil(model.most / num_nodes) for model in models]
    num_cpus = math.floor(1000 / sum(beside)) / 1000
    on_cpu = sum(n for n, gpu in zip(beside, on_gpu, strict=True) if not gpu)
    crowd = _crowd([m for m, gpu in zip(models, on_gpu, strict=True) if gpu], num_gpus)

    def share(model: ModelConfig, gpu: bool) -> Share:
        asked = model.ray_actor_options or {}
        cpus, gpus = asked.get("num_cpus", num_cpus), asked.get("num_gpus")
        if not gpu:
            fitting = (
                max(1, math.floor(cpus_a_node / cpus)) if "num_cpus" in asked and cpus else on_cpu
            )
            return Share(cpus, 0, int(min(on_cpu, fitting)))
        if num_ranks(model.engine) > 1:
            return Share(cpus, num_ranks(model.engine), 1)
        if gpus:
            return Share(cpus, gpus, max(1, math.floor(1 / gpus)))
        return Share(cpus, math.floor(100 / crowd) / 100, crowd)

    return [share(model, gpu) for model, gpu in zip(models, on_gpu, strict=True)]


def is_on_gpu(model: ModelConfig, num_gpus: float) -> bool:
    """Whether a model computes on GPUs in a cluster that has so many now.

    One that asks for them waits for nodes that have them.
    """
    asked = (model.ray_actor_options or {}).get("num_gpus")
    if model.engine.device == "cpu" or asked == 0:
        return False
    return bool(num_gpus or asked or model.engine.device == "cuda")


def kept(
    fresh: Sequence[Share],
    before: Sequence[Share | None],
    counts: Sequence[int],
    there: Mapping[str, float],
) -> list[Share]:
    """Of each model the share that its replicas have already, so that they may stay as they are.

    `counts` are the replicas. All are `fresh` where those before leave too little for the others.
    """
    mixed = [
        old if old is not None and bool(old.num_gpus) == bool(new.num_gpus) else new
        for old, new in zip(before, fresh, strict=True)
    ]
    cpus = sum(num * share.num_cpus for num, share in zip(counts, mixed, strict=True))
    gpus = sum(num * share.num_gpus for num, share in zip(counts, mixed, strict=True))
    fits = cpus <= there.get("CPU", 0) and gpus <= there.get("GPU", 0)
    return mixed if fits else list(fresh)


def shared(model: ModelConfig, sharers: int) -> ModelConfig:
    """`model` with the number of engines that share its memory, unless it states one itself."""
    if model.engine.memory_sharers is not None:
        return model
    engine = dataclasses.replace(model.engine, memory_sharers=sharers)
    return model.model_copy(update={"engine": engine})


def _crowd(models: Sequence[ModelConfig], num_gpus: float) -> int:
    """How many replicas of one rank must share a GPU."""
    sharing, left = 0, num_gpus
    for model in models:
        num = max(1, model.least)
        asked = (model.ray_actor_options or {}).get("num_gpus")
        if num_ranks(model.engine) > 1:
            left -= num * num_ranks(model.engine)
        elif asked:
            left -= num * asked
        else:
            sharing += num
    return max(1, math.ceil(sharing / left)) if left > 0 else 1
