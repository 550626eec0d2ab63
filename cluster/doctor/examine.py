"""All examinations of the cluster that a configuration would be served on, in order."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import ray

from ... import __version__
from ..config import ServeConfig
from ..launch import joined_ray, private_ray
from ..nodes import address, alive, installed
from . import checks
from .collective import collective
from .finding import Finding


def examine(config: ServeConfig) -> Iterator[Finding]:
    """Findings as they come. Raises ConfigError, EngineLost where there is no Ray to look at."""
    with tempfile.TemporaryDirectory(prefix="shoal-doctor-") as logs, _ray(config, Path(logs)):
        there = alive()
        yield from checks.versions(there)
        found = installed(there)
        able = [n for n in there if _has_shoal(found[address(n)])]
        probes = checks.start_probes(able)
        try:
            yield from checks.clocks(probes)
            yield from checks.lines(probes)
            for model in config.models:
                engine = model.engine
                yield from checks.interfaces(probes, engine)
                yield from checks.shared_memory(probes, engine)
                yield from checks.disks(probes, engine)
                yield from checks.checkpoints(probes, engine)
                if len(able) == len(there):
                    yield from collective(engine, model.placement_strategy)
        finally:
            for probe in probes.values():
                ray.kill(probe, no_restart=True)


def _has_shoal(found: object) -> bool:
    return isinstance(found, dict) and found["shoal"] == __version__


def _ray(config: ServeConfig, logs: Path) -> AbstractContextManager[None]:
    given = config.ray_address or os.environ.get("RAY_ADDRESS")
    return joined_ray(given) if given and given != "local" else private_ray(logs)
