"""What a gateway expects to be served: which models, and by replicas of which version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .link import Link
from .state import StreamState


class Served:
    """All models, by replicas as they are, until `only` says which."""

    def __init__(self) -> None:
        self._versions: Mapping[str, str | None] | None = None

    def only(self, versions: Mapping[str, str | None]) -> None:
        """From now on replicas come of these versions alone; they stand by models' names, all.
        None: the model is served, but none comes.
        """
        self._versions = versions

    def lacks(self, model: str) -> bool:
        """Whether no replica of a model will come."""
        return self._versions is not None and self._versions.get(model) is None

    def end_of(self, state: StreamState, links: Iterable[Link]) -> str | None:
        """Why no replica will come for a stream; None where one may, or is there. `links` are those
        of its model.
        """
        if self._versions is None:
            return None
        if state.model not in self._versions:
            return f"the model `{state.model}` is served no more"
        wanted = self._versions[state.model]
        if wanted is None:
            return f"no engine of the model `{state.model}` is left, and none is started again"
        cards = [link.card for link in links]
        if any(card.version == wanted for card in cards) and not any(map(state.fits, cards)):
            return f"the model `{state.model}` is served with other weights now"
        return None
