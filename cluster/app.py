"""From a configuration to a running application: on a Ray of our own, or on one that is there."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from ..engine.checkpoint import check_ranks, check_tokenizer, checkpoint_facts, read_ahead
from ..engine.config import GENERATION
from ..engine.errors import ConfigError, LoadError, ShoalError
from . import controller, head, logs, nodes, placement, rollout
from .banner import Progress
from .config import ModelConfig, ServeConfig
from .deployments import (
    STOP_S,
    bounded,
    deployment_names,
    gateway_options,
    gateway_settings,
    health_check_s,
    let_surge,
    num_nodes,
    replica_options,
    replica_settings,
    shares_of,
    state_shares,
    versioned,
)
from .exits import DONE, exit_code
from .facts import Facts, node_address
from .ingress import Ingress
from .interrupts import interrupts, listen
from .launch import joined_ray, private_ray
from .ports import check_port
from .readiness import await_ready, loaded
from .removal import BACK_S, await_control, end_serve, remove
from .replica import Replica
from .settings import remarks, serve_config
from .shares import is_on_gpu, shared
from .web import check_tls

MAX_ONGOING = 1_000_000  # of control calls; requests do not pass through Serve
WATCH_S = 1.0
END_S = 60.0
"""What Ray gets to end, beside the time of the streams."""


log = logging.getLogger(__name__)


def build(args: dict[str, Any]) -> Application:
    """The application for `serve run shoal.cluster.app:build KEY=VALUE ...` and for Serve's YAML.

    The keys are those of `shoal serve`. Raises ConfigError.
    """
    config = serve_config(args)
    for remark in remarks(args):
        log.warning(remark)
    return application(config)


def application(
    config: ServeConfig,
    *,
    replica: type[Replica] = Replica,
    ingress: type[Ingress] = Ingress,
    door: str | None = None,
    surge: bool = True,
) -> Application:
    """The deployments of `config`: one a model, and the gateways; an only one is on node
    `door`.

    `surge`: whether a changed one may have a replica more while it is replaced.
    """
    config = bounded(_anywhere(config))
    shape = serve.deployment(
        max_ongoing_requests=MAX_ONGOING,
        health_check_period_s=1.0,
        health_check_timeout_s=health_check_s(),
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=config.shutdown_timeout + STOP_S,
        max_constructor_retry_count=3,
    )
    replicas = shape(replica).options(
        request_router_config={"request_router_class": "shoal.cluster.serve_router:MemberRouter"},
    )
    names = deployment_names(config.models)
    found = shares_of(config, names)
    models = [shared(m, share.sharers) for m, share in zip(config.models, found, strict=True)]
    told = zip(models, names, found, strict=True)
    every = [replica_options(config, model, name, share) for model, name, share in told]
    if surge:
        let_surge(config.name, every)
    state_shares(config, every, found)
    deployments = [
        versioned(replicas.options(**options, _internal=True)).bind(
            replica_settings(config, model), options["version"]
        )
        for model, options in zip(models, every, strict=True)
    ]
    versions = [options["version"] for options in every]
    options = gateway_options(config, versions, num_nodes(), door)
    gateways = versioned(shape(ingress).options(**options, _internal=True))
    app: Application = gateways.bind(gateway_settings(config), *deployments)
    return app


def run(
    config: ServeConfig,
    progress: Progress | None = None,
    *,
    replica: type[Replica] = Replica,
    ingress: type[Ingress] = Ingress,
) -> None:
    """Serve until SIGINT or SIGTERM, then let running streams end and leave no process behind.

    Call it on the main thread. A second signal ends everything at once. Raises ConfigError,
    LoadError or EngineLost when it cannot be brought up, after cleaning up.
    """
    progress = progress or Progress()
    logs.start(config, "serve", terminal=True)
    joins = _address(config) is not None
    if not joins:
        _check_here(config, progress)
    bound_s = config.shutdown_timeout + STOP_S + BACK_S + END_S
    with interrupts(bound_s) as stop, contextlib.ExitStack() as stack:
        listen()
        with progress.phase("start Ray"):
            stack.enter_context(_ray(config))
            if joins:
                stack.push(_end_without_head)
                nodes.check_installed()
        listen()  # Ray has put a handler of its own in place
        if joins:
            controller.wait_for(stop, progress.note)
            if stop.is_set():
                return
        owner = rollout.Owner(Facts(config.name))
        rolls = rollout.runs(config.name)
        leave = partial(_leave, config, owner, progress)
        if not rolls:
            Facts(config.name).clear()
            check_port(config.host, config.port)
            if joins:  # what ran before outlives a configuration that does not start
                stack.callback(leave)

        def deploy(surge: bool) -> None:
            app = application(
                config, replica=replica, ingress=ingress, door=node_address(), surge=surge
            )
            _deploy(app, config, owner)

        if stop.is_set() or not _bring_up(config, deploy, stop, progress, rolls=rolls):
            return
        if rolls or not joins:
            stack.callback(leave)
        progress.ready(config, loaded(config))
        if _stay(config, owner, stop, progress):
            progress.note(f"stopping; running answers get {config.shutdown_timeout:g} s to end")


def _check_here(config: ServeConfig, progress: Progress) -> None:
    """What this machine alone tells, before Ray is started on it. Raises ConfigError, LoadError."""
    check_port(config.host, config.port)
    check_tls(config)
    there = placement.gpus_here()
    with progress.phase("find the model"):
        for model in config.models:
            if is_on_gpu(model, there):
                placement.check_visible(model.engine, there)
            _find(model, progress, named=len(config.models) > 1)
    reading = threading.Thread(target=_read_ahead, args=(config,), daemon=True)
    reading.start()  # while Ray starts


def _bring_up(
    config: ServeConfig,
    deploy: Callable[[bool], None],
    stop: threading.Event,
    progress: Progress,
    *,
    rolls: bool,
) -> bool:
    """`deploy` it, which is told whether one replica more may start before an old one drains, and
    wait until it is ready; whether it is, before `stop`.
    """

    def give_way() -> None:
        progress.note("no room for one replica more: an old one drains first")
        deploy(False)

    with progress.phase("roll to this configuration" if rolls else "start Serve"):
        watch = rollout.Surge(Facts(config.name), config.placement_timeout, give_way)
        deploy(True)
    with progress.phase("load the model" if len(config.models) == 1 else "load the models"):
        await_ready(config, stop, progress, watch.look if rolls else None)
    return not stop.is_set()


def _find(model: ModelConfig, progress: Progress, *, named: bool) -> None:
    """Look at the checkpoint, which is fetched once for all replicas here. Raises LoadError."""
    try:
        check_ranks(model.engine, checkpoint_facts(model.engine, progress.advance))
        check_tokenizer(model.engine)
    except (ConfigError, LoadError) as error:
        raise type(error)(f"{model.name}: {error.message}") if named else error from None


def _read_ahead(config: ServeConfig) -> None:
    for model in config.models:
        read_ahead(model.engine)


def _anywhere(config: ServeConfig) -> ServeConfig:
    """The configuration with folders that are found from any working directory."""

    def absolute(of: object, *keys: str) -> dict[str, str]:
        values = {key: getattr(of, key) for key in keys}
        return {k: os.path.abspath(v) for k, v in values.items() if v and os.path.exists(v)}

    def found(model: ModelConfig) -> ModelConfig:
        paths = absolute(model.engine, "model", "tokenizer", "chat_template", "download_dir")
        if model.engine.generation_config not in GENERATION:
            paths |= absolute(model.engine, "generation_config")
        engine = dataclasses.replace(model.engine, **paths)  # type: ignore[arg-type]
        return model.model_copy(update={"engine": engine})

    server = absolute(config, "ssl_keyfile", "ssl_certfile", "log_dir")
    return config.model_copy(update={"models": tuple(map(found, config.models)), **server})


def _address(config: ServeConfig) -> str | None:
    """The Ray to join; None for one of our own."""
    given = config.ray_address or os.environ.get("RAY_ADDRESS")
    return None if given == "local" else given


def _ray(config: ServeConfig) -> AbstractContextManager[None]:
    address = _address(config)
    return joined_ray(address) if address else private_ray(logs.folder(config))


def _deploy(app: Application, config: ServeConfig, owner: rollout.Owner) -> None:
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = LoggingConfig(enable_access_log=False, log_level="WARNING")
    serve.start(proxy_location="Disabled", logging_config=quiet)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    owner.take()
    serve._run(app, _blocking=False, name=config.name, route_prefix=None, logging_config=quiet)


def _stay(
    config: ServeConfig, owner: rollout.Owner, stop: threading.Event, progress: Progress
) -> bool:
    """Wait for `stop`; False where the application is no longer this process's before."""
    absence = head.Absence(progress.warn, progress.note)
    while not stop.wait(WATCH_S):
        owned = owner.look()
        absence.look(owned is not None)
        if owned is rollout.Owned.BY_ANOTHER:
            progress.note(f"another `shoal serve` has taken {config.name} over")
            return False
        if owned is rollout.Owned.BY_NOBODY:
            progress.note(f"{config.name} was taken off its Ray")
            return False
    return True


def _leave(config: ServeConfig, owner: rollout.Owner, progress: Progress) -> None:
    """Take the application off its Ray, and Serve where nothing else is on it.

    A Ray of our own ends with all that is left on it.
    """
    joined = _address(config) is not None
    if not joined and not head.answers():
        progress.note("the head of Ray does not answer: running answers are cut off")
        return
    if joined and not await_control(config.name, progress.note):
        return
    if owner.look() is not rollout.Owned.BY_US:
        return
    remove(config.name, config.shutdown_timeout + STOP_S)
    if joined:
        Facts(config.name).clear()
        end_serve()


def _end_without_head(
    kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> None:
    """End the process where the head does not answer: to leave Ray in good order is to wait for
    it.
    """
    if head.answers():
        return
    if error is not None:
        log.critical("%s", error, exc_info=not isinstance(error, ShoalError))
    logging.shutdown()
    os._exit(DONE if error is None else exit_code(error))
