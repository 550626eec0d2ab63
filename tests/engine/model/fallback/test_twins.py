"""Models in transformers' code over our pages, and in transformers alone: the same logits."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from shoal.engine.model.load import load
from torch import Tensor

from .families import NATIVE, TWINS, VOCAB, Twin

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: Any, random_model: Any) -> Any:
    """A twin's folder and transformers' model, made when first asked for."""
    made: dict[str, tuple[Path, Any]] = {}

    def get(name: str) -> tuple[Path, Any]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, random_model({**TWINS, **NATIVE}[name].config, folder)
        return made[name]

    return get


def texts_of(twin: Twin) -> dict[str, list[int]]:
    rng = random.Random(1)
    return {str(n): [rng.randrange(VOCAB) for _ in range(n)] for n in twin.lengths}


def expected(model: Any, tokens: list[int]) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([tokens])).logits[0]
    return logits.float()


def difference(found: Tensor, right: Tensor) -> float:
    """The largest difference, relative to the largest logit."""
    assert found.dtype == torch.float32 and found.shape == right.shape
    assert found.isfinite().all()
    return float((found - right).abs().max() / right.abs().max())


def in_chunks(run: Any, texts: dict[str, list[int]]) -> dict[str, Tensor]:
    """Logits of texts that go on by 33, 1 or 5 tokens a step, no two by the same."""
    left, found = dict(texts), {key: [] for key in texts}  # type: ignore[var-annotated]
    step = 0
    while any(left.values()):
        takes = [(33, 1, 5)[(step + place) % 3] for place in range(len(texts))]
        rows = {key: left[key][:take] for key, take in zip(texts, takes, strict=True) if left[key]}
        for key, logits in run.step(rows).items():
            found[key].append(logits)
        left = {key: tokens[len(rows.get(key, ())) :] for key, tokens in left.items()}
        step += 1
    return {key: torch.cat(parts) for key, parts in found.items()}


@pytest.mark.parametrize("name", TWINS)
def test_logits(name: str, checkpoint: Any, paged: Any) -> None:
    """At once, in company; in chunks beside single tokens; and alone."""
    twin = TWINS[name]
    folder, theirs = checkpoint(name)
    model = load(folder, dtype="float32", max_len=twin.max_len).model
    texts = texts_of(twin)
    right = {key: expected(theirs, tokens) for key, tokens in texts.items()}
    whole = paged(model).step(texts)
    pieces = in_chunks(paged(model, seed=1), texts)
    worst = max(difference(run[key], right[key]) for run in (whole, pieces) for key in texts)
    print(f"\n{name:24} largest relative logit difference {worst:.1e}", end="")
    assert worst < 1e-4
    last = str(twin.lengths[-1])
    alone = paged(model, seed=2).step({last: texts[last]})[last]
    assert difference(whole[last], alone) < 1e-5


@pytest.mark.parametrize("name", NATIVE)
def test_native_code_and_the_fallback_agree(name: str, checkpoint: Any, paged: Any) -> None:
    folder, _ = checkpoint(name)
    ours, theirs = (
        load(folder, dtype="float32", model_impl=impl).model for impl in ("shoal", "transformers")
    )
    assert type(ours) is not type(theirs)
    assert ours.cache_specs == theirs.cache_specs
    texts = texts_of(NATIVE[name])
    found, right = paged(theirs).step(texts), paged(ours).step(texts)
    for key in texts:
        assert difference(found[key], right[key]) < 1e-5


@pytest.mark.parametrize("name", ["gemma3", "gemma4", "opt", "mixtral", "ernie4.5-moe", "glm4-moe"])
def test_bfloat16_strays_no_further_than_transformers(
    name: str, checkpoint: Any, paged: Any
) -> None:
    """On average: an expert that is chosen by a hair's breadth may differ in a row."""
    folder, theirs = checkpoint(name)
    model: Any = load(folder, dtype="bfloat16").model
    rounded = type(theirs).from_pretrained(folder, dtype=torch.bfloat16).eval()
    kept = {key: tensor.dtype for key, tensor in rounded.state_dict().items()}
    assert {key: tensor.dtype for key, tensor in model.tensors().items()} == kept
    texts = texts_of(TWINS[name])
    found = paged(model).step(texts)
    right = {key: expected(theirs, tokens) for key, tokens in texts.items()}
    ours = sum(float((found[key] - right[key]).abs().mean()) for key in texts)
    yours = sum(float((expected(rounded, texts[key]) - right[key]).abs().mean()) for key in texts)
    assert 0 < ours < 1.3 * yours


def test_frequencies_follow_from_the_engine_alone(checkpoint: Any, paged: Any) -> None:
    """A short text is the same beside a long one, where transformers would change its angles."""
    for name, max_len in (("phi3-longrope-long", 256), ("stablelm-dynamic", 90)):
        folder, theirs = checkpoint(name)
        model = load(folder, dtype="float32", max_len=max_len).model
        short, long = list(range(20)), list(range(90))
        together = paged(model).step({"short": short, "long": long})
        alone = paged(model).step({"short": short})
        assert difference(together["short"], alone["short"]) < 1e-6
        assert difference(alone["short"], expected(theirs, short)) > 1e-3
        assert load(folder).digest != load(folder, max_len=20).digest
