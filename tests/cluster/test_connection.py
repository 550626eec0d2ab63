"""What a connection writes, and in how many pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shoal.cluster.connection import Together

HEAD, CHUNK = b"HTTP/1.1 200 OK\r\n\r\n", b"3\r\nabc\r\n"


class Heard:
    """A transport that keeps what is done to it."""

    def __init__(self) -> None:
        self.done: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.done


def after(*acts: Callable[[Together], None]) -> list[bytes | str]:
    """What a transport has heard a turn of the loop after `acts`."""

    async def main() -> list[bytes | str]:
        together = Together(heard := Heard())
        for act in acts:
            act(together)
        await asyncio.sleep(0)
        assert together.is_closing() == ("closed" in heard.done)
        return heard.done

    return asyncio.run(main())


def test_the_head_of_an_answer_leaves_with_what_follows_it() -> None:
    assert after(lambda t: t.write(HEAD), lambda t: t.write(CHUNK)) == [HEAD + CHUNK]
    both = [lambda t: t.write(HEAD), lambda t: t.write(CHUNK)]
    assert after(*both, lambda t: t.write(CHUNK), *both) == [HEAD + CHUNK, CHUNK, HEAD + CHUNK]


def test_a_head_that_nothing_follows_leaves_in_the_same_turn() -> None:
    assert after(lambda t: t.write(HEAD)) == [HEAD]
    assert after(lambda t: t.write(HEAD), lambda t: t.close()) == [HEAD, "closed"]
