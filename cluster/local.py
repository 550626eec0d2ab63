"""Serving from one process, without Ray: the same gateway, engines on threads beside it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from ..engine.checkpoint import check_tokenizer, checkpoint_facts, read_ahead
from ..engine.engine import AsyncEngine
from ..engine.errors import ConfigError, EngineLost, LoadError, ShoalError, UnknownModel
from ..engine.local import LocalExecutor
from ..engine.request import FinishReason, Request, Update
from . import garbage, health, logs
from .banner import Loaded, Progress
from .card import model_card
from .census import HERE
from .chooser import Chooser, check_room
from .config import ModelConfig, ServeConfig
from .gateway import build_gateway
from .link import Fit, Link, LinkLost, Load, ModelCard, anywhere
from .ports import check_port
from .prefixes import PrefixIndex
from .shares import shared
from .stall import StallWatch, stacks
from .standing import Standing
from .turnstile import Turnstile
from .web import Server, check_tls, loop_factory, web_config

WATCH_S = 0.5

OnUpdate = Callable[[Update | ShoalError], None]

log = logging.getLogger(__name__)


class MemoryLink:
    """A Link to an engine in this process; made on the event loop that it is used on."""

    def __init__(self, index: int, engine: AsyncEngine, card: ModelCard) -> None:
        self.replica = f"{card.names[0]}-{index}"
        self.index = index
        self.node, self.pid = HERE, os.getpid()
        self.card = card
        self.stalled: str | None = None
        self._stall = StallWatch(engine.config.stall_timeout)
        self.leaving = False
        self.prefixes = PrefixIndex()
        self.streams: dict[str, int] = {}
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._streams: dict[tuple[str, int], tuple[OnUpdate, int]] = {}
        self._sink: Callable[[list[Update]], None] = self._hand_over

    @property
    def load(self) -> Load:
        """The engine's load; nothing once it has died."""
        try:
            return self._engine.load()
        except EngineLost:
            return Load()

    @property
    def state(self) -> str:
        """See Link; dead where the engine is."""
        return "stalled" if self.stalled else "ready" if self.alive else "dead"

    @property
    def alive(self) -> bool:
        """Whether the engine takes requests."""
        return not self.stalled and self._engine.alive

    def standing(self, cached: int = 0, last_used: int = 0) -> Standing:
        """See Candidate; all of it as it is now."""
        load = self.load
        sequences = load.running + load.waiting
        return Standing(self.replica, cached, load.tokens, sequences, load.room, last_used)

    @property
    def has_room(self) -> bool:
        """See Link."""
        return self.load.room != 0

    def cached(self, request: Request) -> int:
        """See Link."""
        return self.prefixes.held_by(self.replica, request, self.card)

    def enter(self, prefixes: PrefixIndex) -> None:
        """Keep `prefixes` true from now on, as often as it is told to `hear`."""
        self.prefixes = prefixes
        prefixes.update(self.replica, self._engine.holdings.watch(), ())

    def hear(self) -> None:
        """Enter into `prefixes` what has changed in the engine's cache."""
        if change := self._engine.holdings.changes():
            self.prefixes.update(self.replica, *change)

    def submit(self, request: Request, on_update: OnUpdate) -> None:
        """See Link."""
        siblings = range(request.sibling, request.sibling + request.params.n)
        for sibling in siblings:
            self._streams[request.id, sibling] = (on_update, request.epoch)
        try:
            self._engine.submit(request, self._sink)
        except ShoalError as error:
            for sibling in siblings:
                del self._streams[request.id, sibling]
            self._loop.call_soon(on_update, error)

    def abort(
        self,
        request_id: str,
        sibling: int | None = None,
        reason: FinishReason = FinishReason.ABORT,
    ) -> None:
        """See Link."""
        for key in [k for k in self._streams if k[0] == request_id and sibling in (None, k[1])]:
            del self._streams[key]
        self._engine.abort(request_id, sibling, reason)

    def watch(self) -> None:
        """Look whether the engine gets on, from any thread.

        One that does not takes no requests, and those that it has are told, until it does again.
        """
        blame = self._stall.look(self.load)
        # Before the event loop hears of it: what it moves must not come back here.
        known, self.stalled = self.stalled, blame
        if blame and not known:
            log.error("%s", stacks())
            log.critical("the engine of %s is stuck: %s", self.card.names[0], blame)
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._give_up, blame)

    def _give_up(self, blame: str) -> None:
        streams, self._streams = self._streams, {}
        for on_update in dict.fromkeys(on_update for on_update, _ in streams.values()):
            on_update(LinkLost(f"the engine is stuck: {blame}", stuck=True))
        for request_id in {request_id for request_id, _ in streams}:
            self._engine.abort(request_id)

    def _hand_over(self, updates: list[Update]) -> None:
        """Called by the engine's thread, once a step."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended before the engine
            self._loop.call_soon_threadsafe(self._deliver, updates)

    def _deliver(self, updates: list[Update]) -> None:
        lost = updates[0].finish is FinishReason.ERROR and not self.alive
        if lost:
            log.warning("%s is lost; %d streams go on elsewhere", self.replica, len(self._streams))
        for update in updates:
            key = update.id, update.sibling
            on_update, epoch = self._streams.get(key, (None, -1))
            if on_update is None or update.epoch != epoch:
                continue
            if update.finish is not None:
                del self._streams[key]
            reason = update.error or "the engine died"
            on_update(LinkLost(f"{self.replica}: {reason}", died=True) if lost else update)


class LocalRouter:
    """A Router over the engines of this process; `links` come when they are ready."""

    def __init__(self, models: Sequence[ModelConfig]) -> None:
        self._models = models
        self._links: list[MemoryLink] = []
        self._chooser = Chooser()

    def add(self, link: MemoryLink) -> None:
        """Take a loaded engine into service."""
        link.enter(self._chooser.prefixes)
        self._links.append(link)

    def choose(self, model: str, request: Request, fit: Fit = anywhere) -> Link:
        """See Router and `standing.py`."""
        links = self._of(model)
        alive = [link for link in links if link.alive and fit(link)]
        if not alive:
            raise EngineLost(f"no engine of {model} is alive" if links else "it is still loading")
        for link in alive:
            link.hear()
        return self._chooser.choose(alive, request)

    def check_room(self, model: str) -> None:
        """See Router."""
        check_room([link for link in self._of(model) if link.alive], model)

    async def awake(self, name: str) -> None:
        """See Router; engines of this process never sleep."""

    def cards(self) -> list[ModelCard]:
        """The models that have been loaded."""
        return list({link.card.names: link.card for link in self._links}.values())

    def links(self) -> list[Link]:
        """Every engine that is alive."""
        return [link for link in self._links if link.alive]

    def known(self) -> list[Link]:
        """Every engine, however it is."""
        return list(self._links)

    def engines(self) -> list[MemoryLink]:
        """The same, as this process has them."""
        return list(self._links)

    def served(self) -> dict[str, str | None]:
        """The version of each model, None where all of its engines have died; see `Served`."""
        engines = {model.name: self._engines_of(model) for model in self._models}
        return {
            name: None if links and all(link.state == "dead" for link in links) else ""
            for name, links in engines.items()
        }

    def status(self) -> str:
        """See Router."""
        return health.of_all(self.statuses().values())

    def statuses(self) -> dict[str, str]:
        """See Router."""
        return {model.name: self._status_of(model) for model in self._models}

    def _of(self, model: str) -> list[MemoryLink]:
        if not any(model in known.served_model_name for known in self._models):
            raise UnknownModel(f"The model `{model}` does not exist.", "model")
        return [link for link in self._links if model in link.card.names]

    def _status_of(self, model: ModelConfig) -> str:
        links = self._engines_of(model)
        return health.of_model(sum(link.alive for link in links), model.replicas, bool(links))

    def _engines_of(self, model: ModelConfig) -> list[MemoryLink]:
        return [link for link in self._links if link.card.names[0] == model.name]


def run_local(config: ServeConfig, progress: Progress | None = None) -> None:
    """Serve until SIGINT or SIGTERM, then let running answers end; call it on the main thread.

    The door is open while the model loads, and says so. A second signal ends everything at once.
    Raises ConfigError, LoadError.
    """
    check_port(config.host, config.port)
    check_tls(config)
    logs.start(config, "server", terminal=True)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_Local(config, progress or Progress()).serve())


class _Local:
    """One run of `run_local`."""

    def __init__(self, config: ServeConfig, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self._router = LocalRouter(config.models)
        self._gateway = build_gateway(config, self._router)
        self._door = Turnstile(self._gateway)
        self._server = _Server(web_config(config, self._door, lifespan="off"))
        self._engines = _engines(config, progress)
        self._failure: BaseException | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """See `run_local`."""
        self._loop = asyncio.get_running_loop()
        loading = threading.Thread(target=self._load, name="shoal-load", daemon=True)
        loading.start()
        threading.Thread(target=self._watch, name="shoal-watch", daemon=True).start()
        with self._signals():
            await self._server.serve()
        self._gateway.close()
        if not loading.is_alive():
            for engines in self._engines.values():
                for engine in engines:
                    engine.close()
        if self._failure is not None:
            raise self._failure

    def _load(self) -> None:
        """Runs on a thread of its own."""
        try:
            loaded = [self._load_model(model) for model in self._config.models]
            garbage.settle()
            self._progress.ready(self._config, loaded)
        except BaseException as error:
            self._failure = error
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._leave)

    def _watch(self) -> None:
        """Runs on a thread of its own: looks whether engines get on, and tells the streams of those
        that have died that no other one will come; a stalled one may yet get on.
        """
        served = self._router.served()
        while not self._server.should_exit:
            for link in self._router.engines():
                link.watch()
            if (left := self._router.served()) != served:
                served = left
                with contextlib.suppress(RuntimeError):  # the event loop has ended
                    self._loop.call_soon_threadsafe(self._gateway.serve_only, served)
            time.sleep(WATCH_S)

    def _load_model(self, model: ModelConfig) -> Loaded:
        several = len(self._config.models) > 1
        engines = self._engines[model.name]
        try:
            with self._progress.phase(f"load {model.name}" if several else "load the model"):
                checkpoint_facts(model.engine, self._progress.advance)
                # While torch is imported.
                threading.Thread(target=read_ahead, args=(model.engine,), daemon=True).start()
                check_tokenizer(model.engine)
                capacities = [engine.start() for engine in engines]
        except (ConfigError, LoadError) as error:
            raise type(error)(f"{model.name}: {error.message}") if several else error from None
        card = model_card(model, capacities[0])
        asyncio.run_coroutine_threadsafe(self._open(card, engines), self._loop).result()
        return Loaded(card, capacities[0].table, capacities[0].phases)

    async def _open(self, card: ModelCard, engines: Sequence[AsyncEngine]) -> None:
        for i, engine in enumerate(engines):
            self._router.add(MemoryLink(i, engine, card))

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._on_signal)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._loop.remove_signal_handler(number)

    def _on_signal(self) -> None:
        if self._stopping is None:
            self._stopping = self._loop.create_task(self._stop())
        else:
            self._leave()
            self._server.force_exit = True

    async def _stop(self) -> None:
        patience = self._config.shutdown_timeout
        self._gateway.stop()
        self._progress.note(f"stopping; running answers get {patience:g} s to end")
        if not await self._door.drain(patience):
            log.warning("answers were cut off after %g s", patience)
        self._leave()

    def _leave(self) -> None:
        self._server.end()


def _engines(config: ServeConfig, progress: Progress) -> dict[str, list[AsyncEngine]]:
    """The engines of each model; all of them share the memory and the cores."""
    sharers = sum(model.replicas for model in config.models)

    def engine(model: ModelConfig) -> AsyncEngine:
        told = shared(model, sharers).engine
        return AsyncEngine(told, LocalExecutor(told, on_load=progress.advance))

    return {m.name: [engine(m) for _ in range(m.replicas)] for m in config.models}


class _Server(Server):
    """Leaves signals to `_Local`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn."""
        yield
