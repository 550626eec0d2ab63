"""The Serve deployment round one engine: loads, says where its channel listens, drains, ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.exceptions import RayError

from ..engine.checkpoint import check_tokenizer
from ..engine.errors import ConfigError, EngineLost, LoadError, ShoalError
from ..engine.worker.machine import limit_threads, num_cores
from . import garbage, logs
from .card import model_card
from .channel import Channel
from .config import ModelConfig, ServeConfig
from .deployments import STOP_S
from .facts import Facts, Loading, node_address
from .gauge import Gauge
from .sigterm import exit_within, on_sigterm
from .stall import StallWatch, stacks
from .succession import LOOK_S, Succession

if TYPE_CHECKING:
    from ..engine.engine import AsyncEngine

WATCH_S = 0.2
LOADING_GRACE_S = 5.0
"""Ranks that do not come up in time are named by their executor, which knows more."""

log = logging.getLogger(__name__)


class Replica:
    """One model copy. Made by Serve in a process of its own, from a ServeConfig of that model alone
    as plain data; `version` stands for it.

    An engine that dies ends the process, so that Serve replaces it; a start that fails states its
    reason as a fact, for whoever started the application. SIGTERM, to this process or to one of its
    ranks, drains it as Serve's own stop does; Serve starts another one meanwhile.
    """

    def __init__(self, settings: dict[str, Any], version: str) -> None:
        config = ServeConfig.model_validate(settings)
        self._config = config
        self._version = version
        (self._model,) = config.models
        self._facts = Facts(config.name)
        context = serve.get_replica_context()
        self._id = context.replica_id.unique_id
        self._index = context.rank.rank
        self._host = node_address()  # asks the head, which may be away when it is wanted
        self._ending = threading.Lock()
        self._ended = False
        self._told_to_end = threading.Event()
        self._stopped = threading.Event()
        self._loaded = threading.Event()
        logs.start(config, f"replica-{context.deployment}-{self._index}")
        _set_threads(self._model)
        threading.Thread(target=self._bound_loading, name="replica-loading", daemon=True).start()
        try:
            self._start()
        except (ConfigError, LoadError) as error:
            self._facts.put_failure(self._id, error, self._model.name)
            raise

    def make_engine(self, model: ModelConfig) -> AsyncEngine:
        """The engine, not started yet."""
        from ..engine.engine import AsyncEngine
        from ..engine.executors import executor_for

        loading = Loading(self._facts, self._id)
        executor = executor_for(model.engine, loading, drains=True)
        return AsyncEngine(model.engine, executor, rehearses=model.autoscaling is not None)

    def record_replica_metadata(self) -> dict[str, Any]:
        """Called by Serve once, after the constructor; given to every `MemberRouter`."""
        host, port = self._channel.address
        return {"model": self._model.name, "host": host, "port": port, "pid": os.getpid()}

    def check_health(self) -> None:
        """Called by Serve every second, which replaces what says no. Raises EngineLost."""
        if self._told_to_end.is_set():
            raise EngineLost(f"replica {self._id} was told to end, and lets its streams move")
        self._engine.load()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Serve twice a second where the model scales; see `Gauge`."""
        return self._gauge.report()

    def pid(self) -> int:
        """The process that runs the engine."""
        return os.getpid()

    async def __del__(self) -> None:
        """Drain: finish what runs, within `shutdown_timeout`, and take nothing more."""
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        """See `__del__`; whoever comes second waits for the first."""
        with self._ending:
            if not self._ended:
                self._ended = True
                self._channel.drain(self._config.shutdown_timeout)
                self._channel.close()
                self._stopped.set()
                self._engine.close()
                self._facts.remove("replica", self._id)

    def _terminate(self) -> None:
        """As SIGTERM says; runs on a thread of its own."""
        log.warning("replica %s is told to end: its streams move", self._id)
        self._told_to_end.set()
        exit_within(self._config.shutdown_timeout + STOP_S)
        self._end()
        os._exit(0)

    def _start(self) -> None:
        self._state("load the model")
        check_tokenizer(self._model.engine)
        self._engine = self.make_engine(self._model)
        capacity = self._engine.start()
        self._loaded.set()
        card = model_card(self._model, capacity, self._version)
        self._gauge = Gauge(self._engine)
        self._channel = Channel(
            self._gauge,
            replica=self._id,
            index=self._index,
            card=card,
            secret=self._facts.secret(),
            host=self._host,
        )
        self._channel.start()
        threading.Thread(target=self._watch, name="replica-watch", daemon=True).start()
        threading.Thread(target=self._make_way, name="replica-succession", daemon=True).start()
        on_sigterm(self._terminate)
        self._facts.put("card", self._model.name, card)
        ready = {"card": card, "table": capacity.table, "phases": capacity.phases}
        self._state("ready", **ready)
        garbage.settle()

    def _state(self, phase: str, **more: object) -> None:
        """State how far this replica is, and where it runs."""
        context = ray.get_runtime_context()
        fact = {
            "model": self._model.name,
            "phase": phase,
            "node": self._host,
            "pid": os.getpid(),
            "actor": context.get_actor_id(),
        }
        self._facts.put("replica", self._id, fact | more)

    def _bound_loading(self) -> None:
        """End the process when its engine does not come up in time."""
        bound_s = self._model.engine.load_timeout
        if not bound_s or self._loaded.wait(bound_s + LOADING_GRACE_S):
            return
        log.critical("%s", stacks())
        late = LoadError(
            f"{self._model.name} was not loaded within {bound_s:g} s on {self._host}; see its "
            f"log for where it hangs, or raise load_timeout"
        )
        log.critical("%s", late.message)
        self._facts.put_failure(self._id, late)
        os._exit(1)

    def _watch(self) -> None:
        """End the process when its engine has died, does not get on, or has a rank that must go."""
        stall = StallWatch(self._model.engine.stall_timeout)
        while not self._stopped.wait(WATCH_S):
            try:
                load = self._engine.load()
                if blame := stall.look(load):
                    self._give_up(blame)
                if any(rank.leaving for rank in load.ranks) and not self._told_to_end.is_set():
                    self._told_to_end.set()
                    threading.Thread(target=self._terminate, name="sigterm", daemon=True).start()
            except EngineLost:  # which has logged why
                log.warning("replica %s ends with its engine", self._id)
                time.sleep(WATCH_S)  # what the engine told its streams is being sent
                os._exit(1)
            except ShoalError:
                log.exception("the engine does not tell its load")

    def _make_way(self) -> None:
        """End the process where a new version of it needs its place."""
        deployment = serve.get_replica_context().deployment
        succession = Succession(self._facts, deployment, self._id, self._version)
        while not self._stopped.wait(LOOK_S):
            with contextlib.suppress(RayError):
                if succession.is_due() and not self._told_to_end.is_set():
                    log.warning("a new replica of %s has no place", self._model.name)
                    self._terminate()

    def _give_up(self, blame: str) -> None:
        log.error("%s", stacks())
        log.critical("replica %s on %s is stuck: %s", self._id, self._host, blame)
        self._channel.give_up(blame)
        time.sleep(WATCH_S)  # what gateways are told is being sent
        os._exit(1)


def _set_threads(model: ModelConfig) -> None:
    """Ray would say 1 wherever a replica holds less than two CPUs."""
    limit_threads(model.engine.threads or max(1, num_cores() // model.engine.sharers))
