"""What sampling parameters refuse, before an engine has seen them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from shoal.engine.errors import InvalidRequest
from shoal.engine.request import SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 1.5),
        ("seed", "7"),
        ("max_tokens", "5"),
        ("max_tokens", -1),
        ("logprobs", 1.5),
        ("logprobs", -2),
        ("prompt_logprobs", True),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 10**400),
        ("repetition_penalty", "x"),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("top_p", 0.0),
        ("top_k", -2),
        ("stop", 5),
        ("stop", [5]),
        ("stop", ["a", ""]),
        ("stop_token_ids", 5),
        ("stop_token_ids", ["a"]),
        ("bad_words", "word"),
        ("allowed_token_ids", [1.5]),
        ("allowed_token_ids", []),
        ("logit_bias", [1]),
        ("logit_bias", {"a": 1}),
    ],
)
def test_a_wrong_value_is_named(name: str, value: Any) -> None:
    """It is refused here: past the door it would fail a whole step, and every request with it."""
    with pytest.raises(InvalidRequest, match=name) as refused:
        SamplingParams(**{name: value})
    assert refused.value.param == name


def test_nulls_and_lists() -> None:
    params = SamplingParams(stop=None, stop_token_ids=None, bad_words=None, max_tokens=None)
    assert params == SamplingParams(stop=(), stop_token_ids=[], bad_words=[], max_tokens=None)
    assert SamplingParams(stop="x").stops == ("x",)
    assert SamplingParams(top_k=-1).top_k == 0
    assert SamplingParams(seed=-(2**70)).seed == -(2**70)


def test_integers_of_other_libraries_become_plain() -> None:
    params = SamplingParams(seed=np.int64(7), allowed_token_ids=list(np.arange(3)))  # type: ignore[arg-type]
    assert type(params.seed) is int and params.allowed_token_ids == (0, 1, 2)
    assert params.allowed_token_ids is not None
    assert {type(id) for id in params.allowed_token_ids} == {int}
