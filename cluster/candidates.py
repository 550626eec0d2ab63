"""The replicas to which a generation can go: at first, anew, or alone."""

from __future__ import annotations

from collections.abc import Sequence, Set

from ..engine.errors import EngineLost
from .link import Fit, Link, Router
from .lives import Lives
from .state import Choice
from .stream import Generation


class Candidates:
    """What a router offers to generations whose lives are in a book."""

    def __init__(self, router: Router, lives: Lives) -> None:
        self._router = router
        self._lives = lives

    def of_model(self, generation: Generation) -> list[Link]:
        """The replicas of its model, whatever their weights."""
        model = generation.state.model
        return [link for link in self._router.links() if model in link.card.names]

    def within_reach(self, generation: Generation) -> list[Link]:
        """The replicas on which it could go on."""
        fits = generation.state.fits
        return [link for link in self.of_model(generation) if fits(link.card)]

    def to_begin(self, generation: Generation) -> Link:
        """The replica to send it to.

        Raises UnknownModel, EngineLost where there is none.
        """
        state = generation.state

        def fit(link: Link) -> bool:
            return state.fits(link.card) and self._lives.is_free(link)

        return self._router.choose(state.model, state.request, fit)

    def to_ask(self, generation: Generation, refused_by: Set[Link]) -> Link | None:
        """One that may have room, after some have refused it."""

        def fit(link: Link) -> bool:
            able = link not in refused_by and link.has_room and self._lives.is_free(link)
            return able and generation.state.fits(link.card)

        return self._choose(generation, fit)

    def to_resume(
        self, generation: Generation, choices: Sequence[Choice], *, stay: bool = True
    ) -> Link | None:
        """The replica on which choices go on, None where those there have enough to do.

        With `stay` one that is leaving will do where there is no other.
        """
        there = self.within_reach(generation)
        num_tokens = generation.state.num_anew(choices[0])

        def fit(link: Link) -> bool:
            free = link in there and self._lives.is_free(link)
            return free and self._lives.has_pace(link, num_tokens)

        link = self._choose(generation, fit)
        if link is None and stay and all(link.leaving for link in there):
            return next(filter(fit, there), None)
        return link

    def to_run_alone(self, generation: Generation) -> Link | None:
        """A replica for a suspect; one at a time is set apart for each model."""
        there = self.within_reach(generation)
        if self._lives.any_apart(there):
            return None
        return self._choose(generation, lambda link: link in there)

    def _choose(self, generation: Generation, fit: Fit) -> Link | None:
        state = generation.state
        try:
            return self._router.choose(state.model, state.request, fit)
        except EngineLost:
            return None
