"""A whole engine over the Triton kernels, interpreted: the road that CUDA takes, on CPU tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from shoal import SamplingParams
from shoal.engine.llm import LLM
from shoal.engine.worker.device import Device
from shoal.kernels import ops

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=3, logprobs=1, ignore_eos=True)
DRAWN = SamplingParams(temperature=1.0, top_p=0.9, seed=3, max_tokens=3, ignore_eos=True)

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it is no CPU's road")


@pytest.fixture(params=[False, True], ids=["fast", "exact"])
def on_triton(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], None]]:
    """Call it, and from then on CPU tensors are computed by what CUDA's are."""
    from shoal.kernels.gpu.backends import backends

    monkeypatch.setattr(Device, "packs_weights", False)
    monkeypatch.setattr(Device, "pool", lambda self, threads: None)
    monkeypatch.setattr(Device, "handed", lambda self, own: own)

    def begin() -> None:
        chosen = backends("triton", request.param)
        monkeypatch.setitem(ops._BACKENDS, "cpu", chosen)
        ops._find.cache_clear()

    yield begin
    ops._find.cache_clear()


def test_an_engine_says_what_the_reference_says(
    on_triton: Callable[[], None], tiny_model: Path
) -> None:
    options = {"device": "cpu", "dtype": "float32", "enforce_eager": True, "threads": 1}
    with LLM(
        str(tiny_model), num_gpu_blocks_override=40, max_model_len=64, block_size=16, **options
    ) as llm:

        def say(prompts: list[list[int]], params: SamplingParams) -> list[list[tuple[int, object]]]:
            outs = llm.generate(
                [{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False
            )
            return [
                list(
                    zip(
                        out.outputs[0].token_ids, out.outputs[0].logprobs or [None] * 3, strict=True
                    )
                )
                for out in outs
            ]

        right, drawn = say(PROMPTS, GREEDY), say(PROMPTS, DRAWN)
        on_triton()
        found = say(PROMPTS, GREEDY)
        assert [[token for token, _ in text] for text in found] == [
            [token for token, _ in text] for text in right
        ]
        assert say(PROMPTS, DRAWN) == drawn
        assert say(PROMPTS[2:], GREEDY) == found[2:], "the same bits alone"
