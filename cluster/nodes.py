"""What each node of a Ray cluster has installed, and which of them cannot serve with this shoal.

The questions travel by value: a node that lacks shoal answers them too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .. import __version__
from ..engine.errors import ConfigError

ASK_S = 15.0
"""How long a node may take to start a process and to answer."""


def alive() -> list[dict[str, Any]]:
    """The nodes that Ray holds for alive, the head first."""
    nodes = [dict(node) for node in ray.nodes() if node["Alive"]]
    return sorted(nodes, key=lambda n: ("node:__internal_head__" not in n["Resources"], address(n)))


def address(node: Mapping[str, Any]) -> str:
    """How Ray calls a node."""
    return str(node["NodeManagerAddress"])


def on_each(
    function: Callable[..., Any],
    nodes: Sequence[Mapping[str, Any]],
    *args: object,
    timeout_s: float = ASK_S,
) -> dict[str, Any]:
    """What `function` returns on each node, by its address: an Exception where it did not.

    It must be a function within another, which travels by value. All nodes are asked at once.
    """
    task = ray.remote(num_cpus=0, max_retries=0)(function)
    asked = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        asked[address(node)] = task.options(scheduling_strategy=there).remote(*args)
    _, late = ray.wait(list(asked.values()), num_returns=len(asked), timeout=timeout_s)
    found: dict[str, Any] = {}
    for node_address, ref in asked.items():
        if ref in late:
            ray.cancel(ref, force=True)
            found[node_address] = TimeoutError(f"no answer within {timeout_s:g} s")
            continue
        try:
            found[node_address] = ray.get(ref)
        except Exception as error:
            found[node_address] = error
    return found


def installed(nodes: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any] | Exception]:
    """The versions on each node: shoal's (None where it has none), torch's, Ray's, the driver's."""

    def versions() -> dict[str, Any]:
        """What this machine's Python finds; None for what it does not. Needs nothing of shoal."""
        import importlib
        import importlib.metadata
        import pathlib
        import platform
        import re

        def version(name: str) -> str | None:
            try:
                return importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                return None

        try:
            own = importlib.import_module("shoal").__version__
        except ImportError:
            own = None
        driver = pathlib.Path("/proc/driver/nvidia/version")
        words = re.search(r"\s(\d+\.\d+[\d.]*)\s", driver.read_text()) if driver.exists() else None
        return {
            "shoal": own,
            "torch": version("torch"),
            "ray": version("ray"),
            "python": platform.python_version(),
            "driver": words[1] if words else None,
        }

    return on_each(versions, nodes)


def check_installed() -> None:
    """Raise ConfigError that names the nodes which have another version of shoal, or none."""
    wrong = []
    for node, found in installed(alive()).items():
        if isinstance(found, Exception):
            wrong.append(f"{node} does not answer ({_reason(found)})")
        elif found["shoal"] is None:
            wrong.append(f"{node} has no shoal")
        elif found["shoal"] != __version__:
            wrong.append(f"{node} has shoal {found['shoal']}")
    if wrong:
        raise ConfigError(
            f"this is shoal {__version__}, and every node of the Ray cluster must have it: "
            f"{'; '.join(wrong)}. Install it there where Ray's Python finds it "
            f"(pip install shoal=={__version__}), or take the node out of the cluster",
            "ray_address",
        )


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
