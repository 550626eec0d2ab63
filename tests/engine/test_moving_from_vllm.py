"""Lines that people have in their notes on vLLM run with the import changed, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

LINES = """
from shoal import LLM, SamplingParams
llm = LLM(model=PATH, dtype="half", tensor_parallel_size=1, max_num_seqs=256, max_num_batched_tokens=4096, gpu_memory_utilization=0.9)
params = SamplingParams(n=2, best_of=3, presence_penalty=0.1, frequency_penalty=0.1, temperature=0.8, top_p=0.95, top_k=50, min_p=0.01, use_beam_search=False,
    length_penalty=1.0, early_stopping=False, stop=["\\n\\n"], stop_token_ids=[3], ignore_eos=False, max_tokens=100, min_tokens=2, skip_special_tokens=True)
for out in llm.generate(["Hello, my name is", "The capital of France is"], params):
    print(out.outputs[0].text, out.text)
"""  # noqa: E501

BEAMS = """
from shoal import LLM, BeamSearchParams, SamplingParams
llm = LLM(model=PATH, max_model_len=256)
found = llm.beam_search([{"prompt": "The capital of France is"}], BeamSearchParams(beam_width=5, max_tokens=10))
print(found[0].sequences[0].text)
old = SamplingParams(n=2, best_of=5, use_beam_search=True, temperature=0.0, max_tokens=10)
print(llm.generate("The capital of France is", old)[0].outputs[1].text)
"""  # noqa: E501


@pytest.mark.parametrize("lines", [LINES, BEAMS], ids=["sampling", "beams"])
@pytest.mark.parametrize("bundled", [True, False], ids=["bundled", "random"])
def test_old_lines_run(
    lines: str, bundled: bool, tiny_model: Path, folder: str, capsys: Any
) -> None:
    names: dict[str, Any] = {"PATH": str(tiny_model) if bundled else folder}
    try:
        exec(lines, names)
    finally:
        if "llm" in names:
            names["llm"].close()
    told = capsys.readouterr().out
    assert told.strip()
    if bundled and lines is BEAMS:
        assert "Paris" in told
