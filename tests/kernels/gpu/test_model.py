"""A whole engine over the Triton kernels, interpreted: the road that CUDA takes, on CPU tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from shoal import SamplingParams
from shoal.engine.llm import LLM
from shoal.engine.worker.device import Device
from shoal.kernels import choice

PROMPTS = [[5, 6, 7, 8], [12]]
PARAMS = [
    SamplingParams(temperature=0.0, max_tokens=2, logprobs=1, ignore_eos=True),
    SamplingParams(temperature=1.0, top_k=9, seed=3, max_tokens=2, ignore_eos=True),
]

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it is no CPU's road")


@pytest.fixture(params=[False, True], ids=["fast", "exact"])
def on_triton(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], bool]]:
    """Call it, and from then on CPU tensors are computed by what CUDA's are; whether exactly."""
    from shoal.kernels.gpu.backends import backends

    monkeypatch.setattr(Device, "packs_weights", False)
    monkeypatch.setattr(Device, "pool", lambda self, threads: None)
    monkeypatch.setattr(Device, "handed", lambda self, own: own)

    def begin() -> bool:
        chosen = backends("triton", request.param)
        monkeypatch.setitem(choice._BACKENDS, "cpu", chosen)
        choice._find.cache_clear()
        return bool(request.param)

    yield begin
    choice._find.cache_clear()


def test_an_engine_says_what_the_reference_says(
    on_triton: Callable[[], bool], tiny_model: Path, random_model: Callable[[str], Path]
) -> None:
    model = str(random_model("LlamaForCausalLM"))
    keys = {"device": "cpu", "dtype": "float32", "enforce_eager": True, "threads": 1}
    keys |= {"num_gpu_blocks_override": 40, "max_model_len": 64, "block_size": 16}
    with LLM(model, tokenizer=str(tiny_model), **keys) as llm:

        def say(prompts: list[list[int]]) -> list[tuple[list[int], object]]:
            given = [{"prompt_token_ids": ids} for ids in prompts]
            outs = llm.generate(given, PARAMS[: len(prompts)], use_tqdm=False)
            return [(list(out.outputs[0].token_ids), out.outputs[0].logprobs) for out in outs]

        right = say(PROMPTS)
        exact = on_triton()
        found = say(PROMPTS)
        assert [text for text, _ in found] == [text for text, _ in right]
        alone = say(PROMPTS[:1])
        assert alone[0][0] == found[0][0]
        if exact:
            assert alone == found[:1], "the same bits, log probabilities too"
