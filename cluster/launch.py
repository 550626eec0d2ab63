"""A Ray of our own on this machine, or a place in one that runs already."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..engine.errors import ConfigError, EngineLost
from .processes import Sweeper, end_all
from .ray_variables import ON_EVERY_NODE

OBJECT_STORE_BYTES = 80 << 20
CONNECT_S = 5.0
ATTEMPTS = 2  # Ray gives itself 30 s, which is short on a machine that is busy
_MAX_FOLDER = 40  # Ray puts Unix sockets below it, whose paths end at 107 bytes

_ON_LOOPBACK = {"ENABLE_RAY_CLUSTER": False}
"""Else Ray takes 127.0.0.1 for the machine's address in the network, and listens there."""
_TOKEN = secrets.token_hex(32)
"""One a process: Ray reads it once, and keeps it for the next Ray of the same process."""
_UNHEARD = {
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "60000",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
}
"""What Ray counts of itself: without its pages nobody can ask, and `/metrics` needs none of it. An
idle tree would spend a fifth of its time on that.
"""
_QUIET_SIGNALS = {"RAY_DISABLE_FAILURE_SIGNAL_HANDLER": True}
"""Else a SIGTERM while Ray starts prints the driver's stack and ends it without cleaning up."""

LEFT_OUT = ("start_monitor", "start_api_server", "start_log_monitor")
"""What the head of a Ray of our own does without, by the methods that would start it."""

log = logging.getLogger(__name__)


@contextmanager
def private_ray(log_dir: Path) -> Iterator[None]:
    """Inside, this process is the driver of a Ray of its own; after it no process of it is left.

    Its logs lie in `log_dir`/ray. Nothing is sent home, nobody without the token made here can
    join, and processes of other Rays on this machine are neither found nor touched. Raises
    EngineLost when Ray does not start.
    """
    import ray

    _quieten()
    folder = _temporary_folder()
    sweeper = Sweeper(folder)
    with _environment(_settings()):
        try:
            _start_ray(folder)
            _show_logs(folder, log_dir)
            yield
        finally:
            ray.shutdown()
            _keep_logs(folder, log_dir)
            sweeper.close()


def _start_ray(folder: Path) -> None:
    """Raises EngineLost."""
    import ray

    for attempts_left in reversed(range(ATTEMPTS)):
        try:
            with _elsewhere(folder), _constants(_ON_LOOPBACK | _QUIET_SIGNALS), _bare():
                ray.init(
                    address="local",
                    namespace="shoal",
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=str(folder),
                    _node_ip_address="127.0.0.1",
                )
            return
        except Exception as error:  # Ray raises bare Exceptions here
            log.exception("Ray did not start")
            ray.shutdown()
            end_all(folder, os.getpid())
            if not attempts_left:
                raise EngineLost(f"Ray does not start on this machine: {error}") from error


@contextmanager
def joined_ray(address: str) -> Iterator[None]:
    """Inside, this process is a driver of the Ray at `address`: host:port, or auto for the one that
    runs on this machine. Raises ConfigError where it cannot be joined.
    """
    _check_address(address)
    _quieten()
    with _environment({"RAY_USAGE_STATS_ENABLED": "0"} | _patience()):
        with _elsewhere(Path(tempfile.gettempdir())), _constants(_QUIET_SIGNALS):
            _join(address)
        try:
            yield
        finally:
            import ray

            ray.shutdown()


def _patience() -> dict[str, str]:
    """A head that is lost is waited for as long as our own nodes do, unless it is said for how
    long.
    """
    name = "RAY_gcs_rpc_server_reconnect_timeout_s"
    return {} if name in os.environ else {name: ON_EVERY_NODE[name]}


def _join(address: str) -> None:
    import ray

    try:
        ray.init(
            address=address,
            namespace="shoal",
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address=_node_here(address),
        )
    except Exception as error:  # Ray raises what it likes here
        ray.shutdown()
        raise ConfigError(
            f"the Ray cluster at {address} cannot be joined: {error}. This machine must be a node "
            f"of it (`ray start --address HOST:PORT`)",
            "ray_address",
        ) from error


def _node_here(address: str) -> str | None:
    """The only address of a node of the cluster that is this host's own; None where there are more.

    Ray itself goes by the processes that it sees, which may be those of other network namespaces.
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    if not address.rpartition(":")[2].isdecimal():
        return None
    known = GcsClient(address=address).get_all_node_info(timeout=CONNECT_S).values()
    here = {str(node.node_manager_address) for node in known if _is_own(node.node_manager_address)}
    return here.pop() if len(here) == 1 else None


def _is_own(host: str) -> bool:
    """Whether an address is one of this host's."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


def _check_address(address: str) -> None:
    """Raise ConfigError for what is no address of a cluster, or where nobody listens."""
    if "://" in address:
        raise ConfigError(
            f"ray_address is {address!r}: through Ray Client a process is no node of the cluster, "
            f"and cannot reach the sockets by which shoal's processes talk; run shoal on a node "
            f"of it and give host:port of the head, or auto",
            "ray_address",
        )
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
        except OSError as error:
            raise ConfigError(
                f"no Ray cluster answers at {address}: {error}; `ray start --head` starts one",
                "ray_address",
            ) from error


def import_path() -> str:
    """A PYTHONPATH by which a new interpreter finds this very package.

    The folders of `sys.path` that hold a `shoal`, never the package's own folder: below it lie
    `kernels` and other names that must not be found at the top.
    """
    folders = [os.path.abspath(entry or os.curdir) for entry in sys.path]
    holding = [f for f in folders if os.path.isfile(os.path.join(f, "shoal", "__init__.py"))]
    given = [f for f in os.environ.get("PYTHONPATH", "").split(os.pathsep) if f]
    package = os.path.realpath(Path(__file__).parent.parent)
    kept = [f for f in (*holding, *given) if os.path.realpath(f) != package]
    return os.pathsep.join(dict.fromkeys(kept))


def _settings() -> dict[str, str]:
    return {
        "PYTHONPATH": import_path(),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_register_timeout_seconds": "240",  # Ray kills a process that takes a minute
        "RAY_memory_monitor_refresh_ms": "0",  # the engine sized itself; the kernel judges the rest
        "RAY_ROTATION_MAX_BYTES": str(10 << 20),
        "RAY_ROTATION_BACKUP_COUNT": "2",
        "RAY_DISABLE_IMPORT_WARNING": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    } | _UNHEARD


def _quieten() -> None:
    """What Ray tells its driver of processes that died goes to the log: `log_to_driver` keeps only
    what workers print from the terminal."""
    from ray._private import worker

    def note(data: Mapping[str, Any], ignore_prefix: bool) -> None:
        log.info("%s: %s", data["pid"], " ".join(data["lines"]))

    worker.print_to_stdstream = note


@contextmanager
def _constants(values: Mapping[str, bool]) -> Iterator[None]:
    """Constants of Ray's that it has read from the environment already, other ones for a while."""
    from ray._private import ray_constants

    before = {name: getattr(ray_constants, name) for name in values}
    vars(ray_constants).update(values)
    try:
        yield
    finally:
        vars(ray_constants).update(before)


@contextmanager
def _bare() -> Iterator[None]:
    """A head started in here has no autoscaler, which one node has no use for; no dashboard's
    server: without its pages it only tells of usage, and every start would wait for it; and nobody
    who reads all logs again and again for a driver that shows none.

    `ray.init` has no word for any of them: what it starts of a head it cannot be told, and
    `include_dashboard=False` takes off the server's pages alone.
    """
    from ray._private.node import Node

    def none(node: object, **options: object) -> None:
        pass

    before = {name: getattr(Node, name) for name in LEFT_OUT}
    try:
        for name in LEFT_OUT:
            setattr(Node, name, none)
        yield
    finally:
        for name, start in before.items():
            setattr(Node, name, start)


@contextmanager
def _elsewhere(folder: Path) -> Iterator[None]:
    """Stand in `folder` for a while, under a program name there.

    Ray puts the driver's working directory and script folder on its workers' `sys.path`; either may
    be the package's own folder.
    """
    program = sys.argv[0]
    sys.argv[0] = str(folder / "shoal")
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        sys.argv[0] = program


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for Ray, which reads some of them once, when it is imported."""
    from ray._raylet import Config  # type: ignore[attr-defined]

    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    Config.initialize("")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _temporary_folder() -> Path:
    """A folder for Ray's sockets and session."""
    base = Path(tempfile.gettempdir())
    if len(str(base)) > _MAX_FOLDER:
        base = Path("/tmp")
    return Path(tempfile.mkdtemp(prefix="shoal-", dir=base)).resolve()


def _show_logs(folder: Path, log_dir: Path) -> None:
    """Let `log_dir`/ray lead to the session's logs while it runs."""
    shown = log_dir / "ray"
    log_dir.mkdir(parents=True, exist_ok=True)
    _remove(shown)
    with contextlib.suppress(OSError):
        shown.symlink_to((folder / "session_latest" / "logs").resolve())


def _keep_logs(folder: Path, log_dir: Path) -> None:
    """Copy the session's logs to `log_dir`/ray: they are about to be removed."""
    logs = folder / "session_latest" / "logs"
    shown = log_dir / "ray"
    with contextlib.suppress(OSError):
        if logs.is_dir():
            _remove(shown)
            shutil.copytree(logs, shown)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
