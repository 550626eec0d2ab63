"""One rank: loads its model, sizes its cache, runs plans, answers control calls."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._C._distributed_c10d import Store
from tqdm import tqdm

from ...kernels.cpu.bindings import Pool
from ...kernels.cpu.threads import using
from ...kernels.gpu.room import NONE as NO_ROOM
from ...kernels.gpu.room import Room
from .. import sizing
from ..config import EngineConfig
from ..errors import ConfigError
from ..executor import Capacity
from ..model.config import ModelConfig, ModelFacts, model_facts, read_config
from ..model.hub import find_model
from ..model.load import LoadedModel, choose_dtype, load
from ..model.mesh import Mesh, Stage
from ..model.packing import num_bytes
from ..model.zoo.registry import CausalLM, build, is_native, token_width
from ..plan import CacheSpec, Plan, Result
from ..request import RankState
from ..seat import Seat
from ..sizing import Footprint, Sizing
from .cache import Cache, allocate
from .columns import SamplingColumns
from .device import Device, pick
from .forward import Limits
from .graphs import forward_of
from .progress import Progress
from .rehearsal import rehearsal
from .runner import Launched, Runner
from .team import alone, join

log = logging.getLogger(__name__)

_TOUCHED_TOKENS = 16384
"""What a cache has room for whose pages are taken ahead: a page that a step is the first to write
holds that step up, and all of a cache may be more than is ever used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What one rank will be, known before a weight is read.

    `groups` are the cache groups of the whole model, `stage` is None where there is but one.
    `attention`: which kernels and why, where there is a choice.
    """

    folder: Path
    facts: ModelFacts
    width: int
    dtype: torch.dtype
    device: Device
    sizing: Sizing
    groups: tuple[CacheSpec, ...]
    stage: Stage | None
    attention: str


def forecast(config: EngineConfig, seat: Seat | None = None) -> Forecast:
    """Work out what fits from the model's description alone; its weights are not fetched.

    Raises ConfigError, LoadError.
    """
    seat = seat or Seat()
    folder = find_model(
        config.model,
        revision=config.revision,
        download_dir=config.download_dir,
        weights=False,
    )
    device = pick(config.device)
    model = read_config(folder)
    impl = config.model_impl
    dtype = choose_dtype(config.dtype, model, device.place, impl)
    mesh = Mesh(rank=seat.tensor, size=seat.tensor_size)
    stage = stage_of(seat, model, config.pipeline_layer_partition)
    whole = build(model, mesh, dtype, "meta", impl=impl)
    own = build(model, mesh, dtype, "meta", stage=stage, impl=impl) if stage else whole
    block_size = config.block_size or device.block_size
    device, why = choose_kernels(config, device, model, dtype, whole.cache_specs, block_size)
    size = sizing.size(
        _shared(config, device, seat),
        footprint(
            model,
            dtype,
            own,
            packed=device.packs_weights,
            columns=lambda head_size: device.page_columns(dtype, head_size, block_size),
            room=device.room(-(-model.num_attention_heads // mesh.size), own.cache_specs),
        ),
        device.memory(),
        block_size,
        config.step_tokens(device.step_tokens),
    )
    return Forecast(
        folder=folder,
        facts=model_facts(folder),
        width=model.hidden_size,
        dtype=dtype,
        device=device,
        sizing=size,
        groups=tuple(dict.fromkeys(whole.cache_specs)),
        stage=stage,
        attention=f"{device.choice.attention} ({why})" if why else "",
    )


def choose_kernels(
    config: EngineConfig,
    device: Device,
    model: ModelConfig,
    dtype: torch.dtype,
    specs: Sequence[CacheSpec],
    block_size: int,
) -> tuple[Device, str]:
    """The device with the kernels that serve the model, and why these. Raises ConfigError."""
    native = is_native(model, config.model_impl)
    if config.deterministic and device.offers_kernels and not native:
        raise ConfigError(
            f"deterministic cannot be kept: {model.architecture} runs in transformers' code, whose "
            f"products are of torch's choice; leave it out",
            "deterministic",
        )
    sizes = tuple(dict.fromkeys(spec.head_size for spec in specs))
    return device.choosing(config.attention_backend, config.deterministic, dtype, sizes, block_size)


def stage_of(seat: Seat, config: ModelConfig, partition: str | None) -> Stage | None:
    """The part of the model's depth that a rank holds; None for all of it. Raises ConfigError."""
    if seat.num_stages == 1:
        return None
    return Stage(seat.layers(config.num_hidden_layers, partition), seat.first, seat.last)


def footprint(
    config: ModelConfig,
    dtype: torch.dtype,
    shapes: CausalLM,
    *,
    packed: bool = False,
    columns: Callable[[int], int] = int,
    room: Room = NO_ROOM,
) -> Footprint:
    """What decides the memory of a rank, from the shapes of its part of the model alone.

    `columns`: how many the cache has for a head of a size. `room`: what attention takes.
    """
    assert isinstance(shapes, torch.nn.Module)
    return Footprint(
        weight_bytes=num_bytes(shapes, packed=packed),
        specs=tuple(s._replace(head_size=columns(s.head_size)) for s in shapes.cache_specs),
        width=token_width(shapes, config),
        vocab_size=config.vocab_size,
        max_model_len=config.max_length,
        itemsize=dtype.itemsize,
        room=room,
    )


def _shared(config: EngineConfig, device: Device, seat: Seat) -> EngineConfig:
    """The configuration of a rank that shares its node's memory and cores with others.

    `threads` are an engine's: its ranks on a node divide them.
    """
    ranks = seat.sharers if device.divides_node else 1
    threads = config.threads and max(1, config.threads // ranks)
    return dataclasses.replace(config, memory_sharers=config.sharers * ranks, threads=threads)


class Worker:
    """One rank; `start` comes first, and all calls on one thread.

    `on_load` is told (bytes done, bytes in all) while weights are read; without it a terminal gets
    a bar. `store` is what rank 0 of several got from `open_meeting`. `progress` says what the rank
    is doing, for any thread that asks.
    """

    def __init__(
        self,
        on_load: Callable[[int, int], None] | None = None,
        *,
        seat: Seat | None = None,
        store: Store | None = None,
    ) -> None:
        self.progress = Progress()
        self._seat = seat or Seat()
        self._store = store
        self._on_load = on_load
        self._runner: Runner | None = None
        self._device: Device | None = None
        self._pool: Pool | None = None
        self._team = alone()
        self._controls: dict[str, Callable[..., object]] = {
            "health": self._health,
            "timeline": lambda: list(self.progress.timeline),
            "gaps": lambda: list(self.progress.gaps),
        }

    def overlaps(self, config: EngineConfig) -> bool:
        """Whether it would compute on a device that does so by itself; `start` need not have been.

        Raises ConfigError.
        """
        return pick(config.device).overlaps

    def start(self, config: EngineConfig) -> Capacity:
        """Meet the other ranks, load the model, size the cache, and say what came of it.

        Raises ConfigError, LoadError; a model that does not fit is refused before it is loaded.
        """
        clock = _Clock()
        seat = self._seat
        plan = forecast(config, seat)
        device, self._device = plan.device, plan.device
        own = _shared(config, device, seat)
        threads = device.prepare(own.threads, own.sharers)
        if plan.attention:
            log.info("attention: %s", plan.attention)
        clock.lap("size")
        self._team = join(seat, device, self._store, config.interface)
        num_blocks = self._team.least(plan.sizing.num_blocks)
        if seat.size > 1:
            clock.lap("meet")
        pool = self._pool = device.pool(threads)
        loaded = self._load(config, plan, pool)
        clock.lap("load")
        cache = allocate(
            loaded.model.cache_specs,
            plan.groups,
            num_blocks,
            plan.sizing.block_size,
            plan.dtype,
            device,
        )
        if pool is not None:
            pool.touch(cache.beginning(_TOUCHED_TOKENS))
        self._runner = self._make_runner(config, plan, loaded.model, cache, pool)
        clock.lap("cache")
        if device.rehearses:
            self._rehearse(config.max_num_seqs, plan.sizing, cache)
            clock.lap("rehearse")
        return Capacity(
            groups=cache.groups,
            num_blocks=(num_blocks,) * len(cache.groups),
            block_size=plan.sizing.block_size,
            max_model_len=plan.sizing.max_model_len,
            step_tokens=plan.sizing.step_tokens,
            prompt_tokens=config.prompt_tokens(device.prompt_tokens),
            vocab_size=plan.facts.vocab_size,
            eos_token_ids=plan.facts.eos_token_ids,
            dtype=_name(plan.dtype),
            device=str(device.place),
            overlaps=device.overlaps,
            digest=loaded.digest,
            table=(
                *plan.sizing.table,
                ("threads", str(threads)),
                *([("attention", plan.attention)] if plan.attention else []),
            ),
            phases=tuple(clock.laps),
        )

    def _load(self, config: EngineConfig, plan: Forecast, pool: Pool | None) -> LoadedModel:
        """This rank's part of the model, packed where its device computes with packed weights."""
        with _progress(plan.folder.name, self._on_load) as progress, using(pool):
            return load(
                config.model,
                mesh=self._team.mesh,
                stage=plan.stage,
                revision=config.revision,
                download_dir=config.download_dir,
                device=plan.device.place,
                dtype=_name(plan.dtype),
                load_format=config.load_format,
                seed=config.seed,
                max_len=config.max_model_len,
                model_impl=config.model_impl,
                progress=progress,
                packed=plan.device.packs_weights,
            )

    def _rehearse(self, num_slots: int, sizing: Sizing, cache: Cache) -> None:
        """Run what no request asked for, as long as it may be and no longer than a step."""
        most = min(sizing.max_model_len, sizing.step_tokens) - 1
        num_tokens = max(1, min(cache.device.rehearsed_tokens, most))
        for plan in rehearsal(num_slots, len(cache.groups), num_tokens, sizing.block_size):
            self.run(plan)
        self.progress.forget()

    def _make_runner(
        self, config: EngineConfig, plan: Forecast, model: CausalLM, cache: Cache, pool: Pool | None
    ) -> Runner:
        """What runs plans over a loaded model."""
        facts, seat = plan.facts, self._seat
        if isinstance(model, torch.nn.Module):
            self.progress.watch(model)
        forward = forward_of(
            model,
            cache,
            Limits(
                tokens=plan.sizing.step_tokens,
                sequences=config.max_num_seqs,
                model_len=plan.sizing.max_model_len,
                width=0 if seat.first else plan.width,
            ),
            self.progress,
            dtype=plan.dtype,
            pool=pool,
            last=seat.last,
            eager=config.enforce_eager,
        )
        return Runner(
            forward,
            cache,
            SamplingColumns(
                config.max_num_seqs, facts.vocab_size, facts.eos_token_ids, plan.device
            ),
            num_slots=config.max_num_seqs,
            vocab_size=facts.vocab_size,
            width=plan.width,
            dtype=plan.dtype,
            device=plan.device,
            team=self._team,
            progress=self.progress,
        )

    def run(self, plan: Plan) -> Result:
        """Compute one plan. What it raises is fatal to the rank.

        Only the result of the rank that samples means anything.
        """
        return self.launch(plan).result()

    def launch(self, plan: Plan) -> Launched:
        """Have the device compute a plan; it may be launched before the last one's result is read.

        Results are read in order, each once.
        """
        assert self._runner is not None, "start comes first"
        with using(self._pool):
            launched = self._runner.launch(plan)

        def finish() -> Result:
            with using(self._pool):
                result = launched.result()
            self.progress.done(plan.step)
            return result

        return Launched(finish, launched.done)

    def state(self) -> RankState:
        """Who this rank is and what it does; for any thread."""
        progress = self.progress
        return RankState(
            rank=self._seat.rank,
            node=None,
            pid=os.getpid(),
            device=str(self._device.place) if self._device else "",
            step=progress.step,
            operation=progress.operation,
            ticks=progress.ticks,
            last_step_s=progress.since_s,
            expected_s=progress.expected_s,
        )

    def call(self, method: str, *args: object) -> object:
        """Run a control method by its name: `health`, or `timeline` or `gaps` of the last steps."""
        if method not in self._controls:
            raise ValueError(
                f"a worker has no control method {method!r}; it has {', '.join(self._controls)}"
            )
        return self._controls[method](*args)

    def close(self) -> None:
        """Free model and cache and leave the other ranks; harmless when repeated."""
        self._runner = self._pool = None
        self._team.close()
        if self._device is not None:
            self._device.release()

    def _health(self) -> dict[str, object]:
        """Who this rank is, and the last step that it finished."""
        device = str(self._device.place) if self._device else None
        return {
            "rank": self._seat.rank,
            "pid": os.getpid(),
            "device": device,
            "step": self.progress.finished,
        }


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
