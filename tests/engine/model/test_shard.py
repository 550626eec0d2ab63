"""Which piece of which tensor goes where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from shoal.engine.model.config import ModelConfig
from shoal.engine.model.mesh import Mesh, Stage
from shoal.engine.model.shard import Claim, claims, column_share, row_share
from shoal.engine.model.zoo.registry import build, num_bytes

VALUES = {
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 101,
    "max_position_embeddings": 128,
}
CONFIG = ModelConfig(Path("config.json"), json.dumps(VALUES), VALUES)


def test_cut() -> None:
    into = torch.empty(0)
    assert Claim("w", into).cut((4, 6)) == (slice(0, 4), slice(0, 6))
    assert Claim("w", into, 1, 2, 3).cut((4, 6)) == (slice(0, 4), slice(4, 6))
    rows = [Claim("w", into, 0, share, 4).cut((5, 2))[0] for share in range(4)]
    assert rows == [slice(0, 2), slice(2, 4), slice(4, 5), slice(5, 5)]


def test_few_key_value_heads_are_repeated() -> None:
    shares = [column_share(2, Mesh(rank=rank, size=4), "heads") for rank in range(4)]
    assert [(share.part, share.of, share.units) for share in shares] == [
        (0, 2, 1),
        (0, 2, 1),
        (1, 2, 1),
        (1, 2, 1),
    ]
    assert [row_share(8, Mesh(rank=rank, size=4), "heads").part for rank in range(4)] == [
        0,
        1,
        2,
        3,
    ]


def model(**options: Any) -> Any:
    return build(CONFIG, options.pop("mesh", Mesh()), torch.bfloat16, "meta", **options)


def test_a_model_claims_each_of_its_weights_once() -> None:
    built = model()
    found = list(claims(built))
    assert len({claim.name for claim in found}) == len(found) == 4 * 11 + 3
    assert sum(claim.into.nbytes for claim in found) == num_bytes(built)


def test_ranks_together_claim_every_element() -> None:
    whole = {claim.name: claim.into.numel() for claim in claims(model())}
    ranks = [list(claims(model(mesh=Mesh(rank=rank, size=4)))) for rank in range(4)]
    for same in zip(*ranks, strict=True):
        name, of = same[0].name, same[0].of
        distinct = {claim.share: claim.into.numel() for claim in same}
        assert len(distinct) == of and sum(distinct.values()) == whole[name]


def test_a_stage_builds_only_its_layers() -> None:
    stage = model(stage=Stage(range(1, 3), first=False, last=False))
    assert len(stage.cache_specs) == 2
    assert {claim.name.split(".")[2] for claim in claims(stage)} == {"1", "2"}


@pytest.mark.parametrize(
    ("values", "windows"),
    [
        ({"sliding_window": 9}, [None] * 4),
        (
            {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 3},
            [None] * 3 + [9],
        ),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["sliding_attention", "full_attention"] * 2,
            },
            [9, None] * 2,
        ),
    ],
)
def test_windows(values: dict[str, Any], windows: list[int | None]) -> None:
    config = ModelConfig(Path("config.json"), "", {**VALUES, **values})
    specs = build(config, Mesh(), torch.float32, "meta").cache_specs
    assert [spec.window for spec in specs] == windows
    assert {(spec.num_kv_heads, spec.head_size) for spec in specs} == {(2, 16)}
