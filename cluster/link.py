"""The gateway's view of a replica: a Link, whatever lies between (a socket, or nothing at all).

A Router gives the gateway a Link for each request. Both are called on the gateway's event loop
only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from ..engine.errors import EngineLost, ShoalError
from ..engine.request import FinishReason, Request, Update
from ..engine.request import Load as Load


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """What a gateway must know of a model to speak for it; a replica states it once, when it is
    ready.

    `names` are the served names, the first one is answered with. `model` and `tokenizer` are
    folders or hub ids that the gateway can open too, the latter at `tokenizer_revision`.
    `sampling_defaults` comes from generation_config.json. `digest` names the weights. `cache`: how
    the KV cache is made, in words.
    `block_size`: of how many tokens each a prompt's cached blocks are; 0 where none are kept.
    `window`: the longest that any layer has, in tokens, which keeps no more; 0 where none has one.
    `version` stands for the settings that the replica was made of; "" where those never change.
    """

    names: tuple[str, ...]
    model: str
    tokenizer: str
    max_model_len: int
    vocab_size: int
    max_logprobs: int
    eos_token_ids: tuple[int, ...]
    sampling_defaults: dict[str, float]
    digest: str
    created: int
    cache: dict[str, str] = field(default_factory=dict)
    block_size: int = 0
    window: int = 0
    version: str = ""
    tokenizer_revision: str | None = None

    @property
    def vocabulary(self) -> tuple[str, str | None]:
        """What its token ids mean: the place of its tokenizer."""
        return self.tokenizer, self.tokenizer_revision


class LinkLost(EngineLost):
    """A replica is out of reach, with all that ran there.

    `died`: its engine is dead, `stuck`: it did not get on with its work; perhaps because of what it
    ran. Otherwise it was stopped, cut off or silent.
    """

    def __init__(self, message: str, died: bool = False, stuck: bool = False) -> None:
        ShoalError.__init__(self, message, died, stuck)
        self.died = died
        self.stuck = stuck


class Link(Protocol):
    """A replica within reach, in the process `pid` on `node`; `index` is its number among those of
    its model.

    `leaving`: it finishes what it has and takes nothing new. `streams`: what each gateway has
    there, as of its last beat.
    """

    replica: str
    index: int
    node: str
    pid: int
    card: ModelCard
    leaving: bool
    streams: dict[str, int]

    @property
    def state(self) -> str:
        """ready, draining (takes nothing new) or stalled (does not get on)."""
        ...

    @property
    def load(self) -> Load:
        """Its load, as of its last message."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether it may take one request more, as far as is known."""
        ...

    def cached(self, request: Request) -> int:
        """Tokens of a request that the replica is known to hold."""
        ...

    def submit(self, request: Request, on_update: Callable[[Update | ShoalError], None]) -> None:
        """Send a request. `on_update` gets each of its updates in order, or one ShoalError and
        nothing after it; it is not called before this returns.

        Never raises for the request's sake: a refusal (Overloaded, RequestError, EngineLost) comes
        through `on_update`, and so does LinkLost.
        """
        ...

    def abort(
        self,
        request_id: str,
        sibling: int | None = None,
        reason: FinishReason = FinishReason.ABORT,
    ) -> None:
        """Free what the request, or one of its siblings, holds; no update of it follows.

        The engine counts it as ended for `reason`. Unknown ids are ignored.
        """
        ...


Fit = Callable[[Link], bool]
"""Whether a replica may be chosen."""


def anywhere(link: Link) -> bool:
    """Every replica will do."""
    return True


class Router(Protocol):
    """Chooses replicas."""

    def choose(self, model: str, request: Request, fit: Fit = anywhere) -> Link:
        """The replica of `model`, one of its served names, to send `request` to, of those that fit.

        Raises UnknownModel, or EngineLost while none that fits is alive.
        """
        ...

    async def awake(self, name: str) -> None:
        """Wait for a replica of a model, by its first name, if it may be without any and is.

        Raises EngineLost where none came in time, Overloaded where too many wait.
        """
        ...

    def check_room(self, model: str) -> None:
        """Raise Overloaded while the queue of every replica of `model` is full, UnknownModel."""
        ...

    def cards(self) -> list[ModelCard]:
        """The models that have been loaded."""
        ...

    def links(self) -> list[Link]:
        """Every replica within reach."""
        ...

    def known(self) -> list[Link]:
        """Those, and what can be told of others that are not."""
        ...

    def status(self) -> str:
        """How all of it is; see `health.of_all`."""
        ...

    def statuses(self) -> dict[str, str]:
        """How each model is, by its first name; see `health.of_model`."""
        ...
