"""What a replica has to do, between two words of it: as it last said, and what was sent since."""

from __future__ import annotations

from dataclasses import replace

from ..engine.request import Load


class Backlog:
    """A gateway's estimate of a replica's work; every word of the replica sets it right.

    Requests are numbered as they are sent, and a word of the replica says how many of them it
    counts. What it does not count yet is added; what was begun or ended here since is taken off.
    """

    def __init__(self, load: Load) -> None:
        self._sent: dict[int, tuple[int, int]] = {}
        self._num_sent = 0
        self._tokens = self._sequences = 0
        self._load = load
        self._begun = self._ended = 0

    @property
    def tokens(self) -> int:
        """Those yet to be computed there until every sequence has its next token."""
        return max(0, self._load.tokens - self._begun) + self._tokens

    @property
    def room(self) -> int | None:
        """How many sequences more it takes, None for any number."""
        if self._load.room is None:
            return None
        return max(0, self._load.room + self._ended - self._sequences)

    def send(self, tokens: int, sequences: int) -> int:
        """Enter a request that is sent, with so many tokens to compute; its number."""
        self._num_sent += 1
        self._sent[self._num_sent] = (tokens, sequences)
        self._tokens += tokens
        self._sequences += sequences
        return self._num_sent

    def begun(self, number: int, tokens: int) -> None:
        """A request of so many tokens has brought its first one."""
        if number in self._sent:
            waiting, sequences = self._sent[number]
            self._sent[number] = (0, sequences)
            self._tokens -= waiting
        else:
            self._begun += tokens

    def refused(self) -> None:
        """The replica had no room, whatever was thought of it."""
        if self._load.room is not None:
            self._load = replace(self._load, room=0)
            self._ended = 0

    def ended(self) -> None:
        """A sequence has ended, and made room."""
        self._ended += 1

    def told(self, load: Load, num_taken: int) -> None:
        """The replica told its load, with the first `num_taken` requests from here in it."""
        self._load = load
        self._begun = self._ended = 0
        for number in [number for number in self._sent if number <= num_taken]:
            tokens, sequences = self._sent.pop(number)
            self._tokens -= tokens
            self._sequences -= sequences
