"""Which executor computes: this process, or ranks that Ray places."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from .config import EngineConfig
from .errors import ConfigError
from .executor import Executor
from .seat import num_ranks


def executor_for(
    config: EngineConfig,
    on_load: Callable[[int, int], None] | None = None,
    *,
    drains: bool = False,
) -> Executor:
    """Who computes: this process where there is one rank, else ranks that Ray places.

    `on_load` is told (bytes done, bytes in all) while weights are read. `drains`: the caller ends
    the engine when a rank is `leaving`; otherwise a rank that gets SIGTERM ends at once.
    This is the one door from the engine to the cluster, found by name, because an engine of one
    rank runs where Ray is not installed. Raises ConfigError.
    """
    if num_ranks(config) == 1:
        from .local import LocalExecutor

        return LocalExecutor(config, on_load=on_load)
    try:
        home = import_module("..cluster.ray_executor", __package__)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"tensor_parallel_size={config.tensor_parallel_size} and pipeline_parallel_size="
            f"{config.pipeline_parallel_size}: several ranks are placed by Ray, and "
            f"{error.name!r} is not installed: pip install 'ray[serve]'",
            "tensor_parallel_size",
        ) from error
    executor: Executor = home.RayExecutor(config, on_load=on_load, drains=drains)
    return executor
