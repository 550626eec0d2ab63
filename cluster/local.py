"""Serving from one process, without Ray: the same gateway, engines on threads beside it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator

import uvicorn

from ..engine.checkpoint import check_tokenizer
from ..engine.engine import AsyncEngine
from ..engine.errors import EngineLost, ShoalError, UnknownModel
from ..engine.local import LocalExecutor
from ..engine.request import FinishReason, Request, Update
from ..engine.worker.worker import Worker
from . import logs
from .banner import Progress
from .card import model_card
from .config import ServeConfig
from .gateway import build_gateway
from .link import Link, Load, ModelCard
from .ports import check_port
from .turnstile import Turnstile
from .web import loop_factory, web_config

OnUpdate = Callable[[Update | ShoalError], None]

log = logging.getLogger(__name__)


class MemoryLink:
    """A Link to an engine in this process; made on the event loop that it is used on."""

    def __init__(self, replica: str, engine: AsyncEngine, card: ModelCard) -> None:
        self.replica = replica
        self.card = card
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._streams: dict[tuple[str, int], OnUpdate] = {}
        self._sink: Callable[[list[Update]], None] = self._hand_over

    @property
    def load(self) -> Load:
        """The engine's load; nothing once it has died."""
        try:
            return self._engine.load()
        except EngineLost:
            return Load()

    @property
    def alive(self) -> bool:
        """Whether the engine still takes requests."""
        try:
            self._engine.load()
        except EngineLost:
            return False
        return True

    @property
    def pressure(self) -> int:
        """Sequences under way."""
        return len(self._streams)

    def submit(self, request: Request, on_update: OnUpdate) -> None:
        """See Link."""
        siblings = range(request.sibling, request.sibling + request.params.n)
        for sibling in siblings:
            self._streams[request.id, sibling] = on_update
        try:
            self._engine.submit(request, self._sink)
        except ShoalError as error:
            for sibling in siblings:
                del self._streams[request.id, sibling]
            on_update(error)

    def abort(self, request_id: str, sibling: int | None = None) -> None:
        """See Link."""
        for key in [k for k in self._streams if k[0] == request_id and sibling in (None, k[1])]:
            del self._streams[key]
        self._engine.abort(request_id, sibling)

    def _hand_over(self, updates: list[Update]) -> None:
        """Called by the engine's thread, once a step."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended before the engine
            self._loop.call_soon_threadsafe(self._deliver, updates)

    def _deliver(self, updates: list[Update]) -> None:
        lost = updates[0].finish is FinishReason.ERROR and not self.alive
        for update in updates:
            key = update.id, update.sibling
            on_update = self._streams.get(key)
            if on_update is None:
                continue
            if update.finish is not None:
                del self._streams[key]
            on_update(EngineLost(update.error or "the engine died") if lost else update)


class LocalRouter:
    """A Router over the engines of this process; `links` come when they are ready."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._links: list[MemoryLink] = []
        self._loading = True

    def add(self, link: MemoryLink) -> None:
        """Take a loaded engine into service."""
        self._links.append(link)
        self._loading = len(self._links) < self._wanted

    def choose(self, model: str | None, request: Request) -> Link:
        """The engine with the fewest sequences. Raises UnknownModel, EngineLost."""
        alive = [link for link in self._links if link.alive]
        if not alive:
            raise EngineLost("no engine is alive" if self._links else "the model is still loading")
        serving = [link for link in alive if model is None or model in link.card.names]
        if not serving:
            raise UnknownModel(f"The model `{model}` does not exist.", "model")
        return min(serving, key=lambda link: link.pressure)

    def cards(self) -> list[ModelCard]:
        """The one model, once it is loaded."""
        return [self._links[0].card] if self._links else []

    def links(self) -> list[Link]:
        """Every engine."""
        return list(self._links)

    def status(self) -> str:
        """loading, ready, degraded (fewer engines than asked for) or down."""
        alive = sum(link.alive for link in self._links)
        if not alive:
            return "loading" if self._loading else "down"
        return "ready" if alive == self._wanted else "degraded"


def run_local(config: ServeConfig, progress: Progress | None = None) -> None:
    """Serve until SIGINT or SIGTERM, then let running answers end; call it on the main thread.

    The door is open while the model loads, and says so. A second signal ends everything at once.
    Raises ConfigError, LoadError.
    """
    check_port(config.host, config.port)
    logs.start(config, "server", terminal=True)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_Local(config, progress or Progress()).serve())


class _Local:
    """One run of `run_local`."""

    def __init__(self, config: ServeConfig, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self._router = LocalRouter(config.replicas)
        self._gateway = build_gateway(config, self._router)
        self._door = Turnstile(self._gateway)
        self._server = _Server(web_config(config, self._door, lifespan="off"))
        self._engines = [_engine(config, progress) for _ in range(config.replicas)]
        self._failure: BaseException | None = None
        self._stopping: asyncio.Task[None] | None = None

    async def serve(self) -> None:
        """See `run_local`."""
        self._loop = asyncio.get_running_loop()
        loading = threading.Thread(target=self._load, name="shoal-load", daemon=True)
        loading.start()
        with self._signals():
            await self._server.serve()
        self._gateway.close()
        if not loading.is_alive():
            for engine in self._engines:
                engine.close()
        if self._failure is not None:
            raise self._failure

    def _load(self) -> None:
        """Runs on a thread of its own."""
        try:
            with self._progress.phase("load the model"):
                check_tokenizer(self._config.engine)
                capacities = [engine.start() for engine in self._engines]
            card = model_card(self._config, capacities[0])
            ready = asyncio.run_coroutine_threadsafe(self._open(card), self._loop)
            ready.result()
            first = capacities[0]
            self._progress.ready(self._config, card, table=first.table, phases=first.phases)
        except BaseException as error:
            self._failure = error
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._leave)

    async def _open(self, card: ModelCard) -> None:
        for i, engine in enumerate(self._engines):
            self._router.add(MemoryLink(f"local-{i}", engine, card))

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
        self._progress.note(f"stopping; running answers get {patience:g} s to end")
        if not await self._door.drain(patience):
            log.warning("answers were cut off after %g s", patience)
        self._leave()

    def _leave(self) -> None:
        self._server.should_exit = True


def _engine(config: ServeConfig, progress: Progress) -> AsyncEngine:
    worker = Worker(on_load=progress.advance)
    return AsyncEngine(config.engine, LocalExecutor(config.engine, worker))


class _Server(uvicorn.Server):
    """Leaves signals to `_Local`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """See uvicorn."""
        yield
