"""Which piece of which tensor goes where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from shoal.engine.errors import ConfigError
from shoal.engine.model.config import ModelConfig
from shoal.engine.model.mesh import Mesh, Stage
from shoal.engine.model.packing import num_bytes
from shoal.engine.model.shard import Claim, Runs, claims, column_share, row_share
from shoal.engine.model.zoo.registry import build
from torch import Tensor

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


def fill(claim: Claim, tensor: Tensor) -> Tensor:
    """What the claim's place holds after its cuts of the tensor are copied."""
    claim.into.fill_(-1)
    for cut in claim.cuts(tuple(tensor.shape)):
        claim.place[cut.target] = tensor[cut.source]
    return claim.into


def test_cuts_of_a_whole_and_of_shares() -> None:
    tensor = torch.arange(24.0).view(4, 6)
    assert torch.equal(fill(Claim("w", torch.empty(4, 6)), tensor), tensor)
    assert torch.equal(fill(Claim("w", torch.empty(4, 2), 1, 2, 3), tensor), tensor[:, 4:])
    rows = [
        len(Claim("w", torch.empty(n, 6), 0, share, 3).cuts((4, 6)))
        for share, n in enumerate((2, 2, 0))
    ]
    assert rows == [1, 1, 0]
    with pytest.raises(ValueError, match="does not fit"):
        Claim("w", torch.empty(4, 2), 1, 2, 3).cuts((4, 9))


def test_cuts_of_a_transposed_tensor() -> None:
    tensor = torch.arange(24.0).view(4, 6)
    found = fill(Claim("w", torch.empty(2, 4), 1, 2, 3, transposed=True), tensor)
    assert torch.equal(found, tensor[:, 4:].T)
    found = fill(Claim("w", torch.empty(6, 2), 0, 1, 2, transposed=True), tensor)
    assert torch.equal(found, tensor[2:].T)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(("groups", "wide"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_cuts_of_interleaved_parts(groups: int, wide: int, ranks: int) -> None:
    """Groups of `wide` query heads, a key head and a value head, three rows each."""
    tensor = torch.arange(groups * (wide + 2) * 3.0)
    grouped = tensor.view(groups, wide + 2, 3)
    for start, stop in ((0, wide), (wide, wide + 1), (wide + 1, wide + 2)):
        whole = grouped[:, start:stop].reshape(-1)
        of = min(ranks, groups * (stop - start))
        for share, right in enumerate(whole.chunk(of)):
            runs = Runs(groups, start, stop, wide + 2)
            assert torch.equal(
                fill(Claim("w", torch.empty(len(right)), 0, share, of, runs), tensor), right
            )
    with pytest.raises(ValueError, match="equal units"):
        Claim("w", torch.empty(3), 0, runs=Runs(groups, 0, 1, wide + 2)).cuts((len(tensor) + 1,))


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
    assert sum(claim.into.nbytes for claim in found) == num_bytes(built, packed=False)


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


def test_a_number_of_ranks_that_does_not_come_out_even_is_told_those_that_do() -> None:
    with pytest.raises(ConfigError, match=r"3 heads evenly; use one of 1, 3, or a multiple of 3$"):
        column_share(3, Mesh(size=4), "heads")
    assert column_share(3, Mesh(rank=3, size=6), "heads")[:2] == (1, 3)
    with pytest.raises(ConfigError, match=r"6 columns evenly; use one of 1, 2, 3, 6$"):
        row_share(6, Mesh(size=4), "columns")
