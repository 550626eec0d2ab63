"""Whether the ranks that a configuration would use find each other, and add up right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ...engine.config import EngineConfig
from ...engine.errors import ConfigError
from ...engine.seat import Seat, num_ranks
from .. import placement
from ..workers import WorkerActor
from .finding import Finding

MEET_S = 90.0
PLACE_S = 30.0


class TeamProbe(WorkerActor):
    """A rank that meets its team, adds with it, and leaves."""

    def meet(self, config: EngineConfig, seat: Seat) -> float:
        """Seconds that a sum takes; see `rehearse`."""
        from ...engine.worker.device import pick
        from ...engine.worker.team import rehearse

        return rehearse(seat, pick(config.device), self._store, config.interface)


def collective(config: EngineConfig, strategy: str) -> Iterator[Finding]:
    """Place the ranks as a replica would, and let them meet."""
    if num_ranks(config) == 1:
        yield Finding(check="ranks", node="", level="ok", words="one rank, which needs no other")
        return
    try:
        gpus = placement.wants_gpus(config)
        placement.check_enough(config, gpus)
        asked = placement.bundles(config, gpus, strategy)
        group = placement.reserve(asked, strategy, PLACE_S)
    except ConfigError as error:
        yield Finding(
            check="ranks",
            node="",
            level="failure",
            words=error.message,
            fix="stop what holds the resources, add nodes, or ask for fewer ranks",
        )
        return
    try:
        yield _meet(config, group, asked)
    finally:
        remove_placement_group(group)


def _meet(config: EngineConfig, group: PlacementGroup, asked: list[placement.Bundle]) -> Finding:
    width = num_ranks(config) // len(asked)
    bundle_of = [bundle for bundle in range(len(asked)) for _ in range(width)]
    actors: list[Any] = [
        ray.remote(TeamProbe)
        .options(
            num_cpus=asked[at]["CPU"] / width,
            num_gpus=asked[at].get("GPU", 0) / width,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, at),
        )
        .remote()
        for at in bundle_of
    ]
    where = ""
    try:
        places = ray.get([actor.place.remote() for actor in actors], timeout=MEET_S)
        chosen = placement.order(places, bundle_of)
        ranks = [(actors[i], places[i]) for i in chosen]
        hosts = tuple(place.address for _, place in ranks)
        where = ", ".join(dict.fromkeys(hosts))
        one_node = len(set(hosts)) == 1
        first = ranks[0][0].open_meeting.remote(None if one_node else hosts[0])
        meeting = ray.get(first, timeout=MEET_S)
        seats = [
            Seat(
                rank=rank,
                tensor_size=config.tensor_parallel_size,
                num_stages=config.pipeline_parallel_size,
                nodes=hosts,
                meeting=meeting,
            )
            for rank in range(len(ranks))
        ]
        refs = [a.meet.remote(config, s) for (a, _), s in zip(ranks, seats, strict=True)]
        took = ray.get(refs, timeout=MEET_S)
    except Exception as error:
        said = [line for line in str(error).strip().splitlines() if line] or [type(error).__name__]
        fix = "see network and interface above; --interface names another one"
        return Finding(check="ranks", node=where, level="failure", words=said[-1], fix=fix)
    finally:
        for actor in actors:
            ray.kill(actor, no_restart=True)
    words = f"{len(took)} ranks met; a sum of 16 KiB takes {1e3 * max(took):.2f} ms"
    return Finding(check="ranks", node=where, level="ok", words=words)
