"""Where one rank sits among the ranks of an engine. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from .config import EngineConfig
from .errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Rank `rank` of an engine; alone by default.

    Ranks are numbered stage after stage: `tensor_size` ranks share each layer of a stage. `nodes`
    has for every rank the address of its node. `meeting` is where they first find each other: a
    file on their one node, or host:port.
    """

    rank: int = 0
    tensor_size: int = 1
    num_stages: int = 1
    nodes: tuple[str, ...] = ("127.0.0.1",)
    meeting: str = ""

    @property
    def size(self) -> int:
        """Ranks of the engine."""
        return self.tensor_size * self.num_stages

    @property
    def tensor(self) -> int:
        """Which slice of its layers this rank holds."""
        return self.rank % self.tensor_size

    @property
    def stage(self) -> int:
        """Which stage this rank belongs to."""
        return self.rank // self.tensor_size

    @property
    def first(self) -> bool:
        """Whether its stage begins with tokens."""
        return self.stage == 0

    @property
    def last(self) -> bool:
        """Whether its stage ends with logits."""
        return self.stage == self.num_stages - 1

    @property
    def answers(self) -> bool:
        """Whether this is the rank that samples, and whose results count."""
        return self.last and self.tensor == 0

    @property
    def mates(self) -> tuple[int, ...]:
        """The ranks of its stage."""
        first = self.stage * self.tensor_size
        return tuple(range(first, first + self.tensor_size))

    @property
    def one_node(self) -> bool:
        """Whether all ranks of the engine are on one node."""
        return len(set(self.nodes)) == 1

    @property
    def mates_are_near(self) -> bool:
        """Whether the ranks of its stage are on one node."""
        return len({self.nodes[mate] for mate in self.mates}) == 1

    @property
    def node(self) -> str:
        """The address of its node."""
        return self.nodes[self.rank]

    @property
    def sharers(self) -> int:
        """Ranks of the engine on its node."""
        return self.nodes.count(self.node)

    def layers(self, num_layers: int, partition: str | None) -> range:
        """The layers of its stage. Raises ConfigError."""
        return layer_ranges(num_layers, self.num_stages, partition)[self.stage]


def num_ranks(config: EngineConfig) -> int:
    """Ranks of an engine."""
    return config.tensor_parallel_size * config.pipeline_parallel_size


def check_even(units: int, size: int, noun: str, *, repeated: bool) -> None:
    """Raise ConfigError where `size` ranks cannot share `units` evenly; `repeated`: where there are
    fewer of these, several ranks may have the same.
    """
    of = min(size, units) if repeated else size
    if units % of == 0 and size % of == 0:
        return
    fitting = [size for size in range(1, min(units, 64) + 1) if units % size == 0]
    more = f", or a multiple of {units}" if repeated else ""
    raise ConfigError(
        f"tensor_parallel_size={size} cannot cut the model's {units} {noun} evenly; "
        f"use one of {', '.join(map(str, fitting))}{more}",
        "tensor_parallel_size",
    )


def layer_ranges(num_layers: int, num_stages: int, partition: str | None = None) -> list[range]:
    """The layers of each stage: as `partition` ("7,8,7") says, or evenly.

    What does not come out even goes to the stages in the middle, since the first and the last hold
    an embedding or a head beside their layers. Raises ConfigError.
    """
    if num_stages > num_layers:
        raise ConfigError(
            f"pipeline_parallel_size={num_stages} is more than the model's {num_layers} layers; "
            f"use {num_layers} or less",
            "pipeline_parallel_size",
        )
    counts = _given(num_layers, num_stages, partition) if partition else None
    if counts is None:
        least, extra = divmod(num_layers, num_stages)
        counts = [least] * num_stages
        inwards = sorted(range(num_stages), key=lambda s: (abs(2 * s - num_stages + 1), -s))
        for stage in inwards[:extra]:
            counts[stage] += 1
    ends = [sum(counts[: stage + 1]) for stage in range(num_stages)]
    return [range(end - count, end) for end, count in zip(ends, counts, strict=True)]


def _given(num_layers: int, num_stages: int, partition: str) -> list[int]:
    words = [word.strip() for word in partition.split(",")]
    counts = [int(word) for word in words if word.isdigit()]
    if len(counts) == len(words) == num_stages and sum(counts) == num_layers and 0 not in counts:
        return counts
    raise ConfigError(
        f"pipeline_layer_partition={partition!r} must be {num_stages} counts of layers, each at "
        f"least 1, that add up to the model's {num_layers}",
        "pipeline_layer_partition",
    )
