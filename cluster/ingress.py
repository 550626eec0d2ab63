"""The Serve deployment that is the public door: a gateway on a web server and port of its own.

Serve starts, watches and stops it; no request comes through Serve.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
import time
from typing import Any

import msgspec
from ray import serve
from ray.serve.handle import DeploymentHandle

from ..engine.errors import ConfigError, EngineLost
from . import logs, membership
from .census import Census
from .config import ModelConfig, ServeConfig
from .decisions import Decisions
from .facts import Facts, node_address
from .handover import Server, hand_over
from .link import ModelCard, Router
from .open_files import lift_limit
from .peers import Peers, Told
from .pool import Pool
from .ports import check_port, holder
from .registry import FactRegistry
from .router import FleetRouter
from .turnstile import Turnstile
from .waker import Waker
from .web import CLOSE_S, check_tls, loop_factory, web_config

START_S = 30.0
CLAIM_S = 1.0
RETRY_S = 0.02

log = logging.getLogger(__name__)


class Ingress:
    """One gateway, on a thread with an event loop of its own.

    It listens on the public port of the configuration and on a private one of its node.
    """

    def __init__(self, settings: dict[str, Any], *replicas: DeploymentHandle[Any]) -> None:
        self._config = ServeConfig.model_validate(settings)
        context = serve.get_replica_context()
        self._id = context.replica_id.unique_id
        self._host = node_address()
        self._facts = Facts(self._config.name)
        logs.start(self._config, f"gateway-{context.rank.rank}")
        if line := lift_limit():
            log.warning(line)
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
        self._stopped = False
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._thread.start()
        if not self._up.wait(START_S) or self._failure:
            raise EngineLost(f"the gateway did not start: {self._failure or 'no sign of it'}")
        private = {"host": self._host, "port": self._private.getsockname()[1], "pid": os.getpid()}
        self._facts.put("gateway", self._id, private)

    def make_app(self, router: Router, pool: Pool, census: Census) -> Any:
        """The ASGI application behind the door."""
        from .gateway import build_gateway

        return build_gateway(self._config, router, pool, census)

    def check_health(self) -> None:
        """Called by Serve every second. Raises EngineLost."""
        if not self._thread.is_alive():
            raise EngineLost(f"the gateway's web server ended: {self._failure}")

    def reconfigure(self, changed: dict[str, Any]) -> None:
        """Called by Serve with what may change while it runs: `least` replicas by model."""
        if not self._stopped:
            self._loop.call_soon_threadsafe(self._router.expect, changed["least"])

    def pid(self) -> int:
        """The process of this gateway."""
        return os.getpid()

    async def __del__(self) -> None:
        """Drain: running answers end, and new requests go to another gateway, or get 503; see
        `handover`.
        """
        if not self._stopped:
            self._stopped = True
            self._facts.remove("gateway", self._id)
            draining = asyncio.run_coroutine_threadsafe(self._drain(), self._loop)
            await asyncio.wrap_future(draining)
            await asyncio.to_thread(self._thread.join, CLOSE_S + 1)

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
            Server(web_config(config, self._turnstile, lifespan="auto"), self._up.set),
            Server(web_config(config, inside, lifespan="off", tls=False), lambda: None),
        )
        sockets = (self._public, self._private)
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
        if await hand_over(self._facts, self._host, self._servers[0], self._turnstile):
            log.info("another gateway has taken over")
        self._app.stop()
        if not await self._turnstile.drain(self._config.shutdown_timeout):
            log.warning("streams were cut off after %s s", self._config.shutdown_timeout)
        await self._peers.leave()
        for server in self._servers:
            server.should_exit = True


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
    it taken while another looks whether it is free. Raises ConfigError that names another holder.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    until = time.monotonic() + CLAIM_S
    while True:
        try:
            _refuse_strangers(config, facts)
            return socket.create_server(
                (config.host, config.port), family=family, backlog=2048, reuse_port=True
            )
        except (ConfigError, OSError):
            if time.monotonic() > until:
                raise
        time.sleep(RETRY_S)


def _refuse_strangers(config: ServeConfig, facts: Facts) -> None:
    try:
        check_port(config.host, config.port)
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
