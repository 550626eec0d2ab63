"""Which replicas would find their places on the nodes that are there, before any is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Bundles = Sequence[Mapping[str, float]]


class Room:
    """What each node has free; what is taken of it is counted here alone."""

    def __init__(self, nodes: Iterable[Mapping[str, float]]) -> None:
        self._free = [dict(node) for node in nodes]

    @classmethod
    def now(cls) -> Room:
        """That of the cluster."""
        from ray._private.state import available_resources_per_node

        return cls(available_resources_per_node().values())

    def take(self, bundles: Bundles) -> bool:
        """Set the bundles of a replica aside, each on one node; nothing where one has no place."""
        free = [dict(node) for node in self._free]
        found = all(_take(bundle, free) for bundle in bundles)
        if found:
            self._free = free
        return found


def _take(bundle: Mapping[str, float], free: Sequence[dict[str, float]]) -> bool:
    for node in free:
        if all(node.get(kind, 0) >= amount for kind, amount in bundle.items()):
            for kind, amount in bundle.items():
                node[kind] = node.get(kind, 0) - amount
            return True
    return False
