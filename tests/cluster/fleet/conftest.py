"""A channel to an engine that counts."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from shoal.cluster.channel import Channel
from shoal.cluster.link import ModelCard

sys.path.insert(0, str(Path(__file__).parent))

from scripted import ScriptedEngine

SECRET = b"s" * 32

CARD = ModelCard(
    names=("tiny",),
    model="/models/tiny",
    tokenizer="/models/tiny",
    max_model_len=1024,
    vocab_size=100,
    max_logprobs=20,
    eos_token_ids=(2,),
    sampling_defaults={"temperature": 0.5},
    digest="abc",
    created=1,
)


@contextmanager
def channel_of(
    engine: ScriptedEngine, replica: str = "r1", card: ModelCard = CARD
) -> Iterator[Channel]:
    channel = Channel(engine, replica=replica, card=card, secret=SECRET, host="127.0.0.1")
    channel.start()
    try:
        yield channel
    finally:
        channel.close()


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def channel(engine: ScriptedEngine) -> Iterator[Channel]:
    with channel_of(engine) as channel:
        yield channel


@pytest.fixture
def card() -> ModelCard:
    return CARD


@pytest.fixture
def channels(card: ModelCard) -> Iterator[list[Channel]]:
    """Two replicas, r1 and r2."""
    with (
        channel_of(ScriptedEngine(), "r1", card) as one,
        channel_of(ScriptedEngine(), "r2", card) as two,
    ):
        yield [one, two]


@pytest.fixture(scope="session")
def until() -> Callable:
    return _until


async def _until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Wait for a condition, on the loop."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        await asyncio.sleep(0.005)
