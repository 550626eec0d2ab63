"""How long a rank should go on without a word of progress, from how long it has."""

from __future__ import annotations

FADES = 0.9
"""What a measured silence counts for with each later step of its size."""


class Pace:
    """The longest silence within steps, by the size of the step: the power of two of its tokens."""

    def __init__(self) -> None:
        self._silence_s: dict[int, float] = {}

    def enter(self, num_tokens: int, silence_s: float) -> None:
        """A step of so many tokens has been done, and was silent for so long at a stretch."""
        size = num_tokens.bit_length()
        self._silence_s[size] = max(silence_s, FADES * self._silence_s.get(size, 0.0))

    def expected_s(self, num_tokens: int) -> float:
        """The silence to expect of a step; 0 where nothing was measured.

        That of the next larger size that was measured, or that of the largest in proportion.
        """
        size = num_tokens.bit_length()
        larger = [known for known in self._silence_s if known >= size]
        if larger:
            return self._silence_s[min(larger)]
        if not self._silence_s:
            return 0.0
        largest = max(self._silence_s)
        return self._silence_s[largest] * 2.0 ** (size - largest)
