"""A whole engine over the Triton kernels, interpreted: the road that CUDA takes, on CPU tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from shoal import SamplingParams
from shoal.engine.config import from_keys
from shoal.engine.core.scheduler import Scheduler
from shoal.engine.llm import LLM
from shoal.engine.local import LocalExecutor
from shoal.engine.loop import Loop
from shoal.engine.request import Request
from shoal.engine.worker.device import Device
from shoal.kernels import choice
from transformers import LlamaConfig, LlamaForCausalLM

PROMPTS = [[5, 6, 7, 8], [12]]
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=2, logprobs=1, ignore_eos=True),
    SamplingParams(temperature=1.0, top_k=9, seed=3, max_tokens=2, ignore_eos=True),
]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it is no CPU's road")

COMMON = {"device": "cpu", "dtype": "float32", "enforce_eager": True, "threads": 1}


@pytest.fixture
def on_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], None]]:
    """Call it, and from then on CPU tensors are computed by what CUDA's are; whether exactly."""
    from shoal.kernels.gpu.backends import backends

    monkeypatch.setattr(Device, "packs_weights", False)
    monkeypatch.setattr(Device, "pool", lambda self, threads: None)
    monkeypatch.setattr(Device, "handed", lambda self, own: own)

    def begin(exact: bool) -> None:
        monkeypatch.setitem(choice._BACKENDS, "cpu", backends("triton", exact))
        choice._find.cache_clear()

    yield begin
    choice._find.cache_clear()


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "exact"])
def test_an_engine_says_what_the_reference_says(
    on_triton: Callable[[bool], None],
    exact: bool,
    tiny_model: Path,
    random_model: Callable[[str], Path],
) -> None:
    model = str(random_model("LlamaForCausalLM"))
    keys = COMMON | {"num_gpu_blocks_override": 40, "max_model_len": 64, "block_size": 16}
    with LLM(model, tokenizer=str(tiny_model), **keys) as llm:

        def say(prompts: list[list[int]]) -> list[tuple[list[int], object]]:
            given = [{"prompt_token_ids": ids} for ids in prompts]
            outs = llm.generate(given, PARAMS[: len(prompts)], use_tqdm=False)
            return [(list(out.outputs[0].token_ids), out.outputs[0].logprobs) for out in outs]

        right = say(PROMPTS)
        on_triton(exact)
        found = say(PROMPTS)
        assert [text for text, _ in found] == [text for text, _ in right]
        alone = say(PROMPTS[:1])
        assert alone[0][0] == found[0][0]
        if exact:
            assert alone == found[:1], "the same bits, log probabilities too"


Said = dict[str, list[tuple[int, object]]]


def engine(model: Path, budget: int) -> Loop:
    keys = COMMON | {"model": str(model), "max_num_batched_tokens": budget, "max_num_seqs": 4}
    config = from_keys(
        keys | {"num_gpu_blocks_override": 40, "block_size": 16, "max_model_len": 512}
    )
    executor = LocalExecutor(config)
    return Loop(Scheduler(config, executor.start(config)), executor)


def run(loop: Loop, *requests: Request) -> Said:
    said: Said = {request.id: [] for request in requests}
    for request in requests:
        loop.add(request)
    while loop.unfinished:
        for update in loop.step():
            assert update.logprobs is not None, update.error
            said[update.id] += zip(update.tokens, update.logprobs, strict=True)
    return said


def random_layer(folder: Path) -> Path:
    """A layer whose weights are large enough for a difference in the last bit to be heard."""
    sizes: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    sizes |= {"hidden_size": 160, "intermediate_size": 160, "num_hidden_layers": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64))
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, 0, 0.25)
        model.save_pretrained(folder)
    return folder


def test_exact_kernels_give_a_long_text_the_same_bits_in_any_company(
    on_triton: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Long enough for attention's second split, and for both ways to add up a product's parts."""
    from shoal.kernels.gpu import exact
    from shoal.kernels.gpu import linear as products

    rows: set[int] = set()
    splits: set[tuple[bool, int]] = set()
    linear, paged_attention = exact.linear, exact.paged_attention

    def counted_linear(x: torch.Tensor, *others: Any) -> torch.Tensor:
        if x.shape[1] > products.PART:
            rows.add(len(x))
        return linear(x, *others)

    def counted_attention(*tensors: torch.Tensor, plan: Any, **options: Any) -> torch.Tensor:
        splits.add((plan.max_query > 1, plan.num_splits))
        return paged_attention(*tensors, plan=plan, **options)

    # The interpreter would take long over products that are wide enough for several parts.
    monkeypatch.setattr(products, "PART", 64)
    monkeypatch.setattr(exact, "linear", counted_linear)
    monkeypatch.setattr(exact, "paged_attention", counted_attention)
    on_triton(True)

    drawn = SamplingParams(temperature=0.9, seed=3, max_tokens=5, logprobs=60, ignore_eos=True)
    ids = tuple(Random(5).randrange(3, 60) for _ in range(290))
    long, short = (Request(id=f"{n}", prompt=ids[:n], params=drawn) for n in (290, 4))

    model = random_layer(tmp_path)
    whole = engine(model, 512)
    alone = run(whole, short) | run(whole, long)
    assert max(rows) > products.FEW_ROWS > min(rows) and splits >= {(True, 2), (False, 2)}
    resumed = replace(long, emitted=tuple(token for token, _ in alone[long.id][:3]))

    for loop in (whole, engine(model, 16)):
        rows.clear()
        assert run(loop, short, long) == alone
        cached = loop.scheduler.counters.prefix_hits
        assert run(loop, short, resumed) == {**alone, long.id: alone[long.id][3:]}
        assert loop.scheduler.counters.prefix_hits > cached
        assert rows and max(rows) <= products.FEW_ROWS
        loop.executor.close()
