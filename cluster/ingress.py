"""The Serve deployment that is the public door: a gateway on a web server and port of its own.

Serve starts, watches and stops it; no request comes through Serve.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
from typing import Any

import msgspec
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from ..engine.errors import ConfigError, EngineLost
from . import garbage, logs, membership
from .census import Census
from .config import ModelConfig, ServeConfig
from .decisions import Decisions
from .deployments import STOP_S
from .facts import Facts, node_address
from .handover import HAND_OVER_S, DoorServer, await_another, forget_the_dead, hand_over
from .link import ModelCard, Router
from .open_files import lift_limit
from .peers import Peers, Told
from .pool import Pool
from .ports import check_port, holder
from .registry import FactRegistry
from .router import FleetRouter
from .sigterm import exit_within, on_sigterm
from .turnstile import Turnstile
from .waker import Waker
from .web import CLOSE_S, check_tls, loop_factory, web_config

START_S = 120.0
MEET_S = 5.0
CLAIM_S = 20.0
BACKLOG = 2048
RETRY_S = 0.02

log = logging.getLogger(__name__)


class Ingress:
    """One gateway, on a thread with an event loop of its own.

    It listens on the public port of the configuration and on a private one of its node. SIGTERM
    drains it as Serve's own stop does; Serve starts another one meanwhile.
    """

    def __init__(self, settings: dict[str, Any], *replicas: DeploymentHandle[Any]) -> None:
        self._config = ServeConfig.model_validate(settings)
        context = serve.get_replica_context()
        self._id = context.replica_id.unique_id
        self._host = node_address()
        self._facts = Facts(self._config.name)
        self._rank: int = context.rank.rank
        logs.start(self._config, f"gateway-{self._rank}")
        if line := lift_limit():
            log.warning(line)
        forget_the_dead(self._facts, self._host)
        self._facts.put("gateway", self._id, {"pid": os.getpid()})
        try:
            check_tls(self._config)
            self._public = _claim(self._config, self._facts)
        except ConfigError as error:
            self._facts.put_failure(self._id, error)
            raise
        self._private = socket.create_server((self._host, 0), backlog=128)
        # From now on Serve tells this process the replicas of each model.
        self._handles = [handle.options() for handle in replicas]
        self._up = threading.Event()
        self._ending = threading.Lock()
        self._told_to_end = threading.Event()
        self._stopped = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._thread.start()
        if not self._up.wait(START_S) or self._failure:
            raise EngineLost(f"the gateway did not start: {self._failure or 'no sign of it'}")
        private = {"host": self._host, "port": self._private.getsockname()[1], "pid": os.getpid()}
        actor = ray.get_runtime_context().get_actor_id()
        self._facts.put("gateway", self._id, private | {"actor": actor})
        on_sigterm(self._terminate)

    def make_app(self, router: Router, pool: Pool, census: Census) -> Any:
        """The ASGI application behind the door."""
        from .gateway import build_gateway

        return build_gateway(self._config, router, pool, census, self._rank)

    def check_health(self) -> None:
        """Called by Serve every second, which replaces what says no. Raises EngineLost."""
        if self._told_to_end.is_set():
            raise EngineLost(f"gateway {self._id} was told to end, and lets its answers end")
        if not self._thread.is_alive():
            raise EngineLost(f"the gateway's web server ended: {self._failure}")

    def reconfigure(self, changed: dict[str, Any]) -> None:
        """Called by Serve with what may change while it runs: `least` replicas by model, and the
        `versions` of models by all their names.
        """
        if not self._stopped:
            self._loop.call_soon_threadsafe(self._router.expect, changed["least"])
            self._loop.call_soon_threadsafe(self._app.serve_only, changed["versions"])

    def pid(self) -> int:
        """The process of this gateway."""
        return os.getpid()

    async def __del__(self) -> None:
        """Drain: running answers end, and new requests go to another gateway, or get 503; see
        `handover`.
        """
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        """See `__del__`; whoever comes second waits for the first."""
        with self._ending:
            if not self._stopped:
                self._stopped = True
                if self._told_to_end.is_set():
                    await_another(self._facts, self._host, self._id, self._config.shutdown_timeout)
                self._facts.remove("gateway", self._id)
                asyncio.run_coroutine_threadsafe(self._drain(), self._loop).result()
                self._thread.join(CLOSE_S + 1)

    def _terminate(self) -> None:
        """As SIGTERM says; runs on a thread of its own."""
        log.warning("gateway %s is told to end: another one takes over", self._id)
        self._told_to_end.set()
        exit_within(HAND_OVER_S + 2 * self._config.shutdown_timeout + STOP_S)
        self._end()
        os._exit(0)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=loop_factory()) as runner:
                runner.run(self._serve())
        except BaseException as error:
            log.exception("the gateway ended")
            self._failure = error
        finally:
            self._up.set()

    async def _serve(self) -> None:
        config = self._config
        self._loop = asyncio.get_running_loop()
        wanted = {model.served_model_name: model.least for model in config.models}
        secret = self._facts.secret()
        router = self._router = FleetRouter(wanted=wanted, secret=secret, gateway=self._id)
        for card in self._facts.all("card").values():
            router.know(msgspec.convert(card, ModelCard))
        for model, handle in zip(config.models, self._handles, strict=True):
            if model.autoscaling is not None:
                router.may_sleep(model.name, _waker(model, handle))
        pool = Pool(router, self._id)
        router.on_gone = pool.hear
        router.watch(membership.replicas)
        self._peers = Peers(pool, self._facts, secret, self._id)
        keeping_up = self._loop.create_task(self._peers.keep_up())
        deciding = self._loop.create_task(self._follow_decisions(pool))
        census = Census(router, self._id, FactRegistry(self._facts, router.ended))
        self._app = self.make_app(router, pool, census)
        self._turnstile = Turnstile(self._app)
        inside = Told(self._turnstile, pool, secret)
        self._servers = (
            DoorServer(web_config(config, self._turnstile, lifespan="auto"), self._up.set),
            DoorServer(web_config(config, inside, lifespan="off", tls=False), lambda: None),
        )
        garbage.settle()
        sockets = (self._public, self._private)
        await _meet(router)
        await asyncio.gather(
            *(s.serve([bound]) for s, bound in zip(self._servers, sockets, strict=True))
        )
        keeping_up.cancel()
        deciding.cancel()
        router.close()

    async def _follow_decisions(self, pool: Pool) -> None:
        if any(model.autoscaling for model in self._config.models):
            await Decisions(self._facts, pool).follow()

    async def _drain(self) -> None:
        door, only = self._servers[0], self._app.serve_only
        if await hand_over(self._facts, self._host, door, self._turnstile, only):
            log.info("another gateway has taken over")
        self._app.stop()
        if not await self._turnstile.drain(self._config.shutdown_timeout):
            log.warning("streams were cut off after %s s", self._config.shutdown_timeout)
        await self._peers.leave()
        for server in self._servers:
            server.end()


async def _meet(router: FleetRouter) -> None:
    """Wait a moment for models that have been loaded to be within reach: who has connected waits
    too, where the door would say that they are down.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(MEET_S):
            while "down" in router.statuses().values():
                await asyncio.sleep(RETRY_S)


def _waker(model: ModelConfig, handle: DeploymentHandle[Any]) -> Waker:
    assert model.autoscaling is not None
    timeout_s = model.autoscaling.cold_start_timeout_s
    return Waker(
        model.name,
        lambda: handle.pid.remote().result(timeout_s=timeout_s),
        timeout_s=timeout_s,
        max_waiting=model.engine.max_waiting,
    )


def _claim(config: ServeConfig, facts: Facts) -> socket.socket:
    """The public port, which only gateways of the same application may share.

    They do while one replaces another, and where several were asked for on one node; one may find
    it taken while another looks whether it is free. Who is alone listens at once, so that clients
    wait for its door to open; where there is another, it has them until then. Raises ConfigError
    that names another holder.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    until = time.monotonic() + CLAIM_S
    while True:
        claimed = socket.socket(family)
        try:
            alone = _is_alone(config, facts)
            claimed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            claimed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                claimed.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            claimed.bind((config.host, config.port))
            if alone:
                claimed.listen(BACKLOG)
            return claimed
        except (ConfigError, OSError):
            claimed.close()
            if time.monotonic() > until:
                raise
        time.sleep(RETRY_S)


def _is_alone(config: ServeConfig, facts: Facts) -> bool:
    """Whether nobody has the port, or another gateway. Raises ConfigError for anybody else."""
    try:
        check_port(config.host, config.port)
        return True
    except ConfigError as error:
        taken = holder(config.port)
        if taken is not None and "ProxyActor" in taken.command:
            raise ConfigError(
                f"port {config.port} is held by Ray Serve's own proxy, which shoal does without: "
                "set `proxy_location: Disabled` in the YAML, or give shoal another port",
                "port",
            ) from None
        if taken is None or taken.pid not in [g.get("pid") for g in facts.all("gateway").values()]:
            raise error
        return False
