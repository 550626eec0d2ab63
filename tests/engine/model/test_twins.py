"""Models here and in transformers, same weights: same logits, same text."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from shoal.engine.model.config import read_config
from shoal.engine.model.load import load
from torch import Tensor

from .twins import ROPES, TWINS, chunks, difference, expected, llama, prompts

ROUNDED = [
    "llama-biases",
    "qwen2-windows",
    "qwen3",
    "mistral-window",
    "gpt2",
    "falcon-40b",
    "falcon-rw",
]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: Any, random_model: Any) -> Any:
    """A twin's folder and transformers' model, made when first asked for."""
    made: dict[str, tuple[Path, Any]] = {}

    def get(name: str) -> tuple[Path, Any]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, random_model(TWINS[name].config, folder)
        return made[name]

    return get


@pytest.mark.parametrize("name", TWINS)
def test_logits(name: str, checkpoint: Any, paged: Any) -> None:
    """Prefill at once; chunks of many sizes beside single tokens."""
    twin = TWINS[name]
    folder, twin_model = checkpoint(name)
    model = load(folder, dtype="float32", max_len=twin.max_len).model
    texts = prompts(twin)
    right = {key: expected(twin_model, tokens) for key, tokens in texts.items()}
    worst = 0.0
    whole = paged(model, block_size=twin.block_size).step(texts)
    for key in texts:
        worst = max(worst, difference(whole[key], right[key]))
    for seed, sizes in enumerate([(33, 1, 5, 1), (1, 16, 2)]):
        run = paged(model, block_size=twin.block_size, seed=seed)
        found: dict[str, list[Tensor]] = {key: [] for key in texts}
        for rows in chunks(texts, sizes):
            for key, logits in run.step(rows).items():
                found[key].append(logits)
        for key in texts:
            worst = max(worst, difference(torch.cat(found[key]), right[key]))
    print(f"\n{name:28} largest relative logit difference {worst:.1e}", end="")
    assert worst < 1e-4


@pytest.mark.parametrize("name", ROUNDED)
def test_bfloat16_strays_no_further_than_transformers(
    name: str, checkpoint: Any, paged: Any
) -> None:
    twin = TWINS[name]
    folder, twin_model = checkpoint(name)
    model = load(folder, dtype="bfloat16").model
    rounded = copy.deepcopy(twin_model).bfloat16()
    for key, tokens in prompts(twin).items():
        exact = expected(twin_model, tokens)
        theirs = difference(expected(rounded, tokens).float(), exact)
        ours = difference(paged(model).step({key: tokens})[key], exact)
        assert 1e-4 < ours < max(0.02, 1.5 * theirs)


@pytest.mark.parametrize("name", [name for name, twin in TWINS.items() if twin.greedy])
def test_greedy_text(name: str, checkpoint: Any, paged: Any) -> None:
    """Token for token, alone and side by side, over the end of blocks, windows and contexts."""
    twin = TWINS[name]
    folder, twin_model = checkpoint(name)
    model = load(folder, dtype="float32", max_len=twin.max_len).model
    texts = prompts(twin)
    right = {key: greedy(twin_model, tokens, 24) for key, tokens in texts.items()}
    assert paged(model).greedy(texts, 24) == right
    for key, tokens in texts.items():
        assert paged(model, block_size=32, seed=3).greedy({key: tokens}, 24) == {key: right[key]}


def test_dynamic_angles_are_those_of_the_longest_text(checkpoint: Any, paged: Any) -> None:
    """transformers, once its angles are those of a text of 120 tokens, and kept from changing."""
    folder, twin_model = checkpoint("llama-rope-dynamic-long")
    still = copy.deepcopy(twin_model)
    expected(still, [1] * 120)
    still.model.rotary_emb.rope_type = "default"
    model = load(folder, dtype="float32", max_len=120).model
    texts = {"past": list(range(60, 150)), "short": [3, 4, 5]}
    found = paged(model).step(texts)
    for key, tokens in texts.items():
        assert difference(found[key], expected(still, tokens)) < 1e-4
    assert paged(model).greedy(texts, 24) == {k: greedy(still, t, 24) for k, t in texts.items()}


def greedy(model: Any, tokens: list[int], count: int) -> list[int]:
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([tokens]),
            attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
        )
    text: list[int] = whole[0, len(tokens) :].tolist()
    return text


@pytest.mark.parametrize("kind", ["type", "rope_type"])
@pytest.mark.parametrize("name", ROPES)
def test_the_old_spelling_of_a_rope(name: str, kind: str, tmp_path: Path) -> None:
    """`rope_scaling` with `type` beside `rope_theta`, as transformers wrote it before 5."""
    config = llama(
        rope_parameters={**ROPES[name], "rope_theta": 7e3}, architectures=["LlamaForCausalLM"]
    )
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    right = read_config(tmp_path).rope
    values = json.loads(path.read_text())
    scaling = values.pop("rope_parameters")
    values["rope_theta"] = scaling.pop("rope_theta")
    scaling[kind] = scaling.pop("rope_type")
    path.write_text(json.dumps({**values, "rope_scaling": scaling}))
    found = read_config(tmp_path).rope
    found.pop("type", None)
    assert found == right
    assert right["rope_type"] == name and right["rope_theta"] == 7e3
    # As people lengthen a context by hand, in a file that transformers 5 wrote.
    both = {"rope_parameters": {"rope_type": "default", "rope_theta": 7e3}, "rope_scaling": scaling}
    path.write_text(json.dumps({**values, "rope_theta": None, **both}))
    found = read_config(tmp_path).rope
    found.pop("type", None)
    assert found == right


def test_one_rows_nan_stays_its_own(checkpoint: Any, paged: Any) -> None:
    folder, _ = checkpoint("llama-gqa")
    model = load(folder, dtype="float32").model
    texts = {f"{n}": list(range(n)) for n in range(1, 17)}
    run = paged(model)
    run.step(texts)
    sick = run.blocks["5"][0][0]
    for kv in run.kv:
        kv[:, sick, :5] = torch.nan
    found = run.step({name: [7] for name in texts})
    for name, logits in found.items():
        assert logits.isfinite().all() == (name != "5")
        if name != "5":
            alone = paged(model)
            alone.step({name: texts[name]})
            assert difference(logits, alone.step({name: [7]})[name]) < 1e-5
