"""Shapes without weights are served with random ones, as benchmarks/README.md says."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from pathlib import Path

import pytest
from httpx2 import ASGITransport, AsyncClient
from shoal.cluster.card import model_card
from shoal.cluster.gateway import build_gateway
from shoal.cluster.local import LocalRouter, MemoryLink
from shoal.cluster.resolve import configure
from shoal.engine.checkpoint import check_tokenizer, checkpoint_facts
from shoal.engine.engine import AsyncEngine

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "benchmarks" / "README.md").read_text()
(COMMAND,) = re.findall(r"`shoal serve (benchmarks/shapes/.*?)`", PAGE)


def test_the_command_of_the_page_names_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (model,) = configure(shlex.split(COMMAND), {}).models
    assert model.engine.load_format == "dummy"
    assert checkpoint_facts(model.engine).num_layers
    check_tokenizer(model.engine)


def test_a_shape_answers_with_a_vocabulary_larger_than_its_tokenizers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    _, *flags = shlex.split(COMMAND)
    shape = json.loads((ROOT / "benchmarks/shapes/qwen3-0.6b/config.json").read_text())
    shape |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 16}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    small = ["--max-model-len", "64", "--num-gpu-blocks-override", "64", "--threads", "1"]
    config = configure([str(tmp_path), "--served-model-name", "m", *flags, *small], {})
    (model,) = config.models
    engine = AsyncEngine(model.engine)
    capacity = engine.start()
    body = {"model": "m", "max_tokens": 8, "ignore_eos": True, "return_token_ids": True, "seed": 1}

    async def asked() -> list[dict[str, object]]:
        router = LocalRouter(config.models)
        router.add(MemoryLink(0, engine, model_card(model, capacity)))
        door = build_gateway(config, router)
        async with AsyncClient(transport=ASGITransport(door), base_url="http://door") as client:
            prompts = ["Hello", [capacity.vocab_size - 1, 5]]
            answers = [
                await client.post("/v1/completions", json=body | {"prompt": p, "logprobs": 2})
                for p in prompts
            ]
        door.close()
        return [answer.json()["choices"][0] for answer in answers]

    try:
        choices = asyncio.run(asked())
    finally:
        engine.close()
    assert capacity.vocab_size == shape["vocab_size"]
    for choice in choices:
        tokens = choice["token_ids"]
        assert isinstance(tokens, list) and len(tokens) == 8
        assert any(token >= 2048 for token in tokens)
        assert isinstance(choice["text"], str) and choice["finish_reason"] == "length"
