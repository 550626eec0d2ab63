"""Where the ranks of an engine go: bundles for Ray, and the order of ranks once they are placed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import ray
from ray._private.accelerators import get_accelerator_manager_for_resource
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from ..engine.config import EngineConfig
from ..engine.errors import ConfigError
from ..engine.seat import num_ranks
from .workers import Place

Bundle = dict[str, float]

CONTROL: Bundle = {"CPU": 0.01}
"""What the process that holds the executor asks for."""

PLACE_S = 60.0
"""How long ranks may wait for their places; more where Ray's autoscaler starts nodes."""


def wants_gpus(config: EngineConfig, there: float | None = None) -> bool:
    """Whether ranks compute on GPUs, as far as there are any; those of the cluster unless given."""
    if config.device == "cpu":
        return False
    if there is None:
        there = ray.cluster_resources().get("GPU", 0)
    return config.device == "cuda" or bool(there)


def bundles(config: EngineConfig, gpus: bool, strategy: str = "PACK") -> list[Bundle]:
    """A bundle a stage; a bundle a rank where no node has GPUs for a whole stage, or where the
    ranks of an only stage are to be spread.

    The CPUs of ranks are shares, so that the ranks of several replicas fit on few cores.
    """
    cpu = math.floor(1000 / (config.sharers * num_ranks(config))) / 1000  # never more than a core
    one: Bundle = {"CPU": cpu} | ({"GPU": 1.0} if gpus else {})
    width, stages = config.tensor_parallel_size, config.pipeline_parallel_size
    wide = gpus and width > max(_gpus_a_node(), default=0)
    if wide or (stages == 1 and strategy.endswith("SPREAD")):
        return [one] * (width * stages)
    return [{kind: width * amount for kind, amount in one.items()}] * stages


def with_control(asked: Sequence[Bundle], strategy: str) -> list[Bundle]:
    """The bundles of a replica: one for the process that holds the executor, then those of ranks.

    Where no two bundles may share a node, that process is in the first rank's.
    """
    if strategy != "STRICT_SPREAD":
        return [CONTROL, *asked]
    first = {kind: amount + CONTROL.get(kind, 0) for kind, amount in asked[0].items()}
    return [first, *asked[1:]]


def of_ranks(replica: Sequence[Bundle]) -> tuple[int, list[Bundle]]:
    """Of the bundles of a replica: how many come before those of its ranks, and these."""
    skipped = int(replica[0] == CONTROL)
    return skipped, list(replica[skipped:])


def gpus_here() -> int:
    """GPUs that a Ray of this machine alone would have."""
    manager = get_accelerator_manager_for_resource("GPU")
    if manager is None:
        return 0
    found: int = manager.get_current_node_num_accelerators()
    visible = manager.get_current_process_visible_accelerator_ids()
    return found if visible is None else min(found, len(visible))


def check_enough(config: EngineConfig, gpus: bool) -> None:
    """Raise ConfigError where the cluster has fewer GPUs than an engine has ranks."""
    if gpus:
        check_visible(config, int(ray.cluster_resources().get("GPU", 0)))


def check_visible(config: EngineConfig, there: int) -> None:
    """Raise ConfigError where `there` are fewer GPUs than an engine has ranks."""
    ranks = num_ranks(config)
    if there < ranks:
        raise ConfigError(
            f"tensor_parallel_size={config.tensor_parallel_size} times pipeline_parallel_size="
            f"{config.pipeline_parallel_size} needs {ranks} GPU{'s'[: ranks > 1]}, and {there} are "
            f"visible; lower them, or use device=cpu",
            "tensor_parallel_size",
        )


def own_group(asked: Sequence[Bundle], ranks: int) -> PlacementGroup | None:
    """The group that this process was placed in, where it has room for the ranks beside this one.

    It has the bundles that are `asked` for, or one for each of the `ranks`, as a strategy that
    spreads them makes it. A caller's group that was made for something else is let be.
    """
    group: PlacementGroup | None = ray.util.get_current_placement_group()
    if group is None:
        return None
    total, wanted = _total(group.bundle_specs), _total([CONTROL, *asked])
    enough = all(total.get(kind, 0) >= amount - 1e-3 for kind, amount in wanted.items())
    return group if enough and len(of_ranks(group.bundle_specs)[1]) in (len(asked), ranks) else None


def reserve(asked: Sequence[Bundle], strategy: str, timeout_s: float = PLACE_S) -> PlacementGroup:
    """A placement group that is in place.

    Raises ConfigError that names what is missing, node by node.
    """
    group: PlacementGroup = placement_group(list(asked), strategy=strategy)
    if not group.wait(timeout_s):
        remove_placement_group(group)
        raise ConfigError(
            f"no place for the ranks within {timeout_s:g} s: {shortage(asked)}. Free some, add "
            f"nodes, or lower tensor_parallel_size or pipeline_parallel_size",
            "tensor_parallel_size",
        )
    return group


def shortage(asked: Sequence[Mapping[str, float]]) -> str:
    """What was asked for and what is there, node by node."""
    kinds = dict.fromkeys(("CPU", "GPU", *(kind for bundle in asked for kind in bundle)))
    return f"asked for {_words(asked)}; {_free(list(kinds))}"


def order(places: Sequence[Place], bundle_of: Sequence[int]) -> list[int]:
    """Which of the placed processes becomes which rank: rank r is `places[order[r]]`.

    Ranks of a node are neighbours, bundle by bundle and in the order of its devices; so a stage
    that was placed as one bundle stays together, and the next stage is near where it can be.
    """

    def key(index: int) -> tuple[str, int, tuple[int, ...], int]:
        devices = tuple(int(device) for device in places[index].devices if device.isdigit())
        return places[index].address, bundle_of[index], devices, index

    return sorted(range(len(places)), key=key)


def _total(bundles: Sequence[Bundle]) -> Bundle:
    kinds = {kind for bundle in bundles for kind in bundle}
    return {kind: sum(bundle.get(kind, 0) for bundle in bundles) for kind in kinds}


def _gpus_a_node() -> list[int]:
    return [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]


def _words(asked: Sequence[Mapping[str, float]]) -> str:
    one = ", ".join(f"{amount:g} {kind}" for kind, amount in asked[-1].items())
    return f"{len(asked)} bundle{'s'[: len(asked) > 1]} of {one}"


def _free(kinds: Sequence[str]) -> str:
    from ray._private.state import available_resources_per_node

    free = available_resources_per_node()
    parts = []
    for node in ray.nodes():
        if node["Alive"]:
            left = free.get(node["NodeID"], {})
            words = ", ".join(f"{left.get(kind, 0):g} {kind}" for kind in kinds)
            parts.append(f"{node['NodeManagerAddress']} has {words} free")
    return "; ".join(parts) or "the cluster has no node"
