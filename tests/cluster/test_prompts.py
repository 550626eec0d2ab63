"""Where the work on a prompt is done: what takes long, beside the event loop."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from shoal.cluster import off_loop, prompts
from shoal.engine.keys import chained_keys, root_key


class Elsewhere:
    """Notes on which thread it was called."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.loop = threading.get_ident()
        self.beside: list[bool] = []

    def __call__(self, *args: Any, **keys: Any) -> Any:
        self.beside.append(threading.get_ident() != self.loop)
        return self.answer(*args, **keys)


SHORT, LONG = range(16), range(off_loop.LONG)


def test_the_keys_of_prompts_that_are_long_together_are_hashed_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashing = Elsewhere(prompts.prompt_keys)
    monkeypatch.setattr(prompts, "prompt_keys", hashing)
    card: Any = SimpleNamespace(block_size=16)
    for asked in ([SHORT], [LONG], [SHORT] * (len(LONG) // len(SHORT))):
        found = asyncio.run(prompts.keys_of([tuple(ids) for ids in asked], card, "salt"))
        assert found == [tuple(chained_keys(root_key(None, "salt"), ids, 16)) for ids in asked]
    assert hashing.beside == [False, *[True] * (1 + len(LONG) // len(SHORT))]


def test_long_texts_are_tokenized_and_made_beside_the_event_loop() -> None:
    tokenizer: Any = SimpleNamespace(
        encode=Elsewhere(lambda text, add_special_tokens: [1] * len(text)),
        decode=Elsewhere(lambda ids, skip_special_tokens: "a" * len(ids)),
    )
    for ids in (SHORT, LONG):
        assert len(asyncio.run(prompts.encode(tokenizer, "a" * len(ids)))) == len(ids)
        assert len(asyncio.run(prompts.decode(tokenizer, ids))) == len(ids)
    assert tokenizer.encode.beside == tokenizer.decode.beside == [False, True]
