"""One rank: loads its model, sizes its cache, runs plans, answers control calls."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import sizing
from ..config import EngineConfig
from ..executor import Capacity
from ..model.config import ModelConfig, ModelFacts, model_facts, read_config
from ..model.hub import DESCRIPTION, find_model
from ..model.load import choose_dtype, load
from ..model.mesh import Mesh
from ..model.zoo.registry import build, num_bytes
from ..plan import Plan, Result
from ..sizing import Footprint, Sizing
from .cache import allocate
from .columns import SamplingColumns
from .device import Device, pick
from .runner import Runner


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What an engine will be, known before a weight is read."""

    folder: Path
    facts: ModelFacts
    dtype: torch.dtype
    device: Device
    sizing: Sizing


def forecast(config: EngineConfig) -> Forecast:
    """Work out what fits from the model's description alone; its weights are not fetched.

    Raises ConfigError, LoadError.
    """
    folder = find_model(
        config.model,
        revision=config.revision,
        download_dir=config.download_dir,
        wanted=DESCRIPTION,
    )
    device = pick(config.device)
    model = read_config(folder)
    dtype = choose_dtype(config.dtype, model, device.place)
    size = sizing.size(
        config,
        footprint(model, dtype),
        device.memory(),
        config.block_size or device.block_size,
    )
    return Forecast(
        folder=folder, facts=model_facts(folder), dtype=dtype, device=device, sizing=size
    )


def footprint(config: ModelConfig, dtype: torch.dtype) -> Footprint:
    """What decides the memory of a checkpoint, from its shapes alone."""
    shapes = build(config, Mesh(), dtype, "meta")
    return Footprint(
        weight_bytes=num_bytes(shapes),
        specs=tuple(shapes.cache_specs),
        width=sizing.token_width(
            config.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            config.num_kv_heads,
            config.head_size,
        ),
        vocab_size=config.vocab_size,
        max_model_len=config.max_length,
        itemsize=dtype.itemsize,
    )


class Worker:
    """One rank; `start` comes first, and all calls on one thread.

    `on_load` is told (bytes done, bytes in all) while weights are read; without it a terminal gets
    a bar.
    """

    def __init__(self, on_load: Callable[[int, int], None] | None = None) -> None:
        self._on_load = on_load
        self._runner: Runner | None = None
        self._device: Device | None = None
        self._step = -1
        self._controls: dict[str, Callable[..., object]] = {"health": self._health}

    def start(self, config: EngineConfig) -> Capacity:
        """Load the model, size the cache, and say what came of it.

        Raises ConfigError, LoadError; a model that does not fit is refused before it is loaded.
        """
        clock = _Clock()
        plan = forecast(config)
        device, self._device = plan.device, plan.device
        threads = device.prepare(config.threads, config.sharers)
        clock.lap("size")
        with _progress(plan.folder.name, self._on_load) as progress:
            loaded = load(
                config.model,
                revision=config.revision,
                download_dir=config.download_dir,
                device=device.place,
                dtype=_name(plan.dtype),
                load_format=config.load_format,
                seed=config.seed,
                max_len=config.max_model_len,
                progress=progress,
            )
        clock.lap("load")
        cache = allocate(
            loaded.model.cache_specs,
            plan.sizing.num_blocks,
            plan.sizing.block_size,
            plan.dtype,
            device,
        )
        facts = plan.facts
        columns = SamplingColumns(
            config.max_num_seqs, facts.vocab_size, facts.eos_token_ids, device
        )
        self._runner = Runner(
            loaded.model,
            cache,
            columns,
            num_slots=config.max_num_seqs,
            vocab_size=facts.vocab_size,
            device=device,
        )
        clock.lap("cache")
        return Capacity(
            groups=cache.groups,
            num_blocks=(plan.sizing.num_blocks,) * len(cache.groups),
            block_size=plan.sizing.block_size,
            max_model_len=plan.sizing.max_model_len,
            vocab_size=facts.vocab_size,
            eos_token_ids=facts.eos_token_ids,
            dtype=_name(plan.dtype),
            device=str(device.place),
            digest=loaded.digest,
            table=(*plan.sizing.table, ("threads", str(threads))),
            phases=tuple(clock.laps),
        )

    def run(self, plan: Plan) -> Result:
        """Compute one plan. What it raises is fatal to the rank."""
        assert self._runner is not None, "start comes first"
        result = self._runner.run(plan)
        self._step = plan.step
        return result

    def call(self, method: str, *args: object) -> object:
        """Run a control method by its name; `health` is the one there is."""
        if method not in self._controls:
            raise ValueError(
                f"a worker has no control method {method!r}; it has {', '.join(self._controls)}"
            )
        return self._controls[method](*args)

    def close(self) -> None:
        """Free model and cache; harmless when repeated."""
        self._runner = None
        if self._device is not None:
            self._device.release()

    def _health(self) -> dict[str, object]:
        """Who this rank is, and the last step that it finished."""
        device = str(self._device.place) if self._device else None
        return {"rank": 0, "pid": os.getpid(), "device": device, "step": self._step}


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: list[tuple[str, float]] = []
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """End the phase `name`."""
        now = time.perf_counter()
        self.laps.append((name, now - self._last))
        self._last = now


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def _progress(
    name: str, on_load: Callable[[int, int], None] | None
) -> Iterator[Callable[[int, int], None]]:
    """Who is told (bytes done, bytes in all): `on_load`, or a bar, once it takes a while and where
    there is a terminal.
    """
    if on_load is not None:
        yield on_load
        return
    options: Any = {"unit": "B", "unit_scale": True, "delay": 0.5, "disable": None, "leave": False}
    with tqdm(desc=f"loading {name}", **options) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
