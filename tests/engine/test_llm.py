"""The offline interface on a small random Qwen3."""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from shoal.engine.errors import ConfigError, ContextTooLong, EngineLost, InvalidRequest, LoadError
from shoal.engine.llm import LLM, CompletionOutput, RequestOutput
from shoal.engine.request import SamplingParams

from .tiny_qwen3 import GREEDY, KEYS, PROMPTS, VOCAB, idle


def test_the_snippet_that_everyone_knows(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    llm = LLM(
        model=folder,
        dtype="half",
        tensor_parallel_size=1,
        max_num_seqs=256,
        max_num_batched_tokens=4096,
        gpu_memory_utilization=0.9,
        threads=1,
        num_gpu_blocks_override=64,
    )
    params = SamplingParams(
        n=2,
        presence_penalty=0.1,
        frequency_penalty=0.1,
        temperature=0.8,
        top_p=0.95,
        top_k=50,
        min_p=0.01,
        stop=["\n\n"],
        stop_token_ids=[3],
        ignore_eos=False,
        max_tokens=20,
        min_tokens=2,
        skip_special_tokens=True,
    )
    outputs = llm.generate(["Hello, my name is", "The capital of France is"], params)
    for output in outputs:
        assert [made.index for made in output.outputs] == [0, 1]
        assert output.text == output.outputs[0].text
        assert all(2 <= len(made.token_ids) <= 20 for made in output.outputs)
    assert "Processed prompts: 100%" in capsys.readouterr().err
    llm.close()


def test_kinds_of_prompts(llm: LLM) -> None:
    ids = llm.tokenizer.encode("Hello, my name is")
    one = llm.generate("Hello, my name is", GREEDY, use_tqdm=False)
    assert isinstance(one[0], RequestOutput) and isinstance(one[0].outputs[0], CompletionOutput)
    same: list[Any] = [
        {"prompt": "Hello, my name is"},
        {"prompt_token_ids": ids},
        ids,
        {"prompt_token_ids": tuple(ids), "prompt": "said", "cache_salt": "s"},
    ]
    many = llm.generate(same, GREEDY, use_tqdm=False)
    assert {output.text for output in many} == {one[0].text}
    assert [output.prompt for output in many] == ["Hello, my name is", None, None, "said"]
    assert all(output.prompt_token_ids == ids for output in many)
    assert len(llm.generate(ids, GREEDY, use_tqdm=False)) == 1
    assert len({output.request_id for output in [*one, *many]}) == 5
    assert llm.generate([], GREEDY) == []


def test_cached_tokens_and_salt(llm: LLM) -> None:
    long = "The capital of France is Paris. " * 4
    params = SamplingParams(temperature=0, max_tokens=1)

    def cached(prompt: Any) -> int | None:
        return llm.generate(prompt, params, use_tqdm=False)[0].num_cached_tokens

    assert cached({"prompt": long, "cache_salt": "a"}) == 0
    hit = cached({"prompt": long, "cache_salt": "a"})
    assert hit is not None and hit >= 16 and hit % 16 == 0
    assert cached({"prompt": long, "cache_salt": "b"}) == 0


def test_params_of_each_prompt_and_the_order(folder: str) -> None:
    with LLM(folder, **{**KEYS, "max_num_seqs": 2, "max_waiting": 1}) as llm:
        params = [GREEDY] + [
            SamplingParams(temperature=0, max_tokens=1 + i % 7, ignore_eos=True) for i in range(20)
        ]
        prompts = ["Hello, my name is"] + [f"prompt {i}" for i in range(20)]
        outputs = llm.generate(prompts, params, use_tqdm=False)
        assert [output.prompt for output in outputs] == prompts
        lengths = [len(output.outputs[0].token_ids) for output in outputs]
        assert lengths == [24] + [1 + i % 7 for i in range(20)]


def test_chat(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "Hello"}]
    one = llm.chat(conversation, GREEDY, use_tqdm=False)[0]
    prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    assert one.prompt == prompt
    assert one.prompt_token_ids == llm.tokenizer.encode(prompt)
    assert one.text == llm.generate(prompt, GREEDY, use_tqdm=False)[0].text
    theirs = llm.get_tokenizer().apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=True
    )
    assert theirs == prompt
    two = llm.chat([conversation, [{"role": "user", "content": "x"}]], GREEDY, use_tqdm=False)
    assert two[0].text == one.text and two[1].prompt is not None and "user\nx" in two[1].prompt
    options: dict[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    more = llm.chat([{"role": "assistant", "content": "I am"}], GREEDY, False, **options)[0]
    assert more.prompt == "<|im_start|>assistant\nI am"
    template = "{{ messages[0].content }}{{ extra }}"
    given = llm.chat(
        conversation, GREEDY, False, chat_template=template, chat_template_kwargs={"extra": "!"}
    )
    assert given[0].prompt == "Hello!"


def test_an_answer_ends_where_the_context_does(llm: LLM) -> None:
    """More max_tokens than fit are no error, as in vLLM."""
    params = SamplingParams(temperature=0.0, max_tokens=500, ignore_eos=True)
    made = llm.generate([[5] * 120], params, use_tqdm=False)[0].outputs[0]
    assert (len(made.token_ids), made.finish_reason) == (8, "length")


def test_default_sampling_params(llm: LLM, folder: str, tmp_path: Path) -> None:
    params = llm.get_default_sampling_params()
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.7, 0.8, 20, 9)
    made = llm.generate("Hello", use_tqdm=False)[0].outputs[0]
    assert len(made.token_ids) <= 9
    for off in ("vllm", "shoal"):
        with LLM(folder, **KEYS, generation_config=off) as plain:
            assert plain.get_default_sampling_params() == SamplingParams()
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.25}')
    with LLM(folder, **KEYS, generation_config=str(tmp_path)) as other:
        assert other.get_default_sampling_params() == SamplingParams(temperature=0.25)


@pytest.mark.parametrize(
    ("prompts", "params", "error", "message"),
    [
        (["ok", "x " * 200], GREEDY, ContextTooLong, "maximum context length is 128 tokens"),
        (["a", "b"], [GREEDY], InvalidRequest, "2 prompts with 1 sampling_params"),
        ("a", {"n": 2}, InvalidRequest, "must be a SamplingParams"),
        ("", GREEDY, InvalidRequest, "at least one token"),
        ([[1, 2], [VOCAB]], GREEDY, InvalidRequest, "ids of this model are 0 to 511"),
        ({"text": "a"}, GREEDY, InvalidRequest, "cannot hold 'text'"),
        ({"prompt": "a", "multi_modal_data": {}}, GREEDY, InvalidRequest, "multi_modal_data"),
        ({}, GREEDY, InvalidRequest, "must hold prompt or prompt_token_ids"),
        ([1.5], GREEDY, InvalidRequest, "text or token ids"),
        (7, GREEDY, InvalidRequest, "a list"),
        ("a", SamplingParams(logprobs=99), InvalidRequest, "between 0 and 20"),
    ],
)
def test_refusals_before_anything_runs(
    llm: LLM, prompts: Any, params: Any, error: type[Exception], message: str
) -> None:
    idle(llm)
    before = llm._engine.load().counters
    with pytest.raises(error, match=message):
        llm.generate(prompts, params, use_tqdm=False)
    assert llm._engine.load().counters == before


def test_settings_that_are_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_model_len'"):
        LLM(folder, max_model_length=64)
    with pytest.raises(ConfigError, match="quantized weights are not built yet"):
        LLM(folder, quantization="awq")
    with pytest.raises(LoadError, match="no folder"):
        LLM("/no/such/model")


def test_a_model_without_a_template(folder: str, tmp_path: Path) -> None:
    for file in Path(folder).iterdir():
        if file.name != "chat_template.jinja":
            (tmp_path / file.name).symlink_to(file)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "chat_template" not in config
    with LLM(str(tmp_path), **KEYS) as llm:
        with pytest.raises(InvalidRequest, match="--chat-template FILE"):
            llm.chat([{"role": "user", "content": "x"}])
        assert llm.generate("x", GREEDY, use_tqdm=False)[0].text


def test_an_interrupt_leaves_it_usable(llm: LLM) -> None:
    endless = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True, n=4)
    want = llm.generate("Hello", GREEDY, use_tqdm=False)[0].text

    def interrupt() -> None:
        while not llm._engine.load().running:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    with pytest.raises(KeyboardInterrupt):
        thread.start()
        for _ in itertools.count():
            llm.generate(["Hello"] * 8, endless, use_tqdm=False)
    thread.join()
    idle(llm)
    assert llm.generate("Hello", GREEDY, use_tqdm=False)[0].text == want


def test_several_threads(llm: LLM) -> None:
    want = [output.text for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]
    texts: dict[int, list[str]] = {}

    def work(i: int) -> None:
        texts[i] = [output.text for output in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(texts.values()) == [want] * 3


def test_a_progress_bar_of_the_callers(llm: LLM) -> None:
    seen: list[Any] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            seen.append(options["total"])

        def set_postfix_str(self, text: str, refresh: bool) -> None:
            assert "toks/s" in text

        def update(self, num: int) -> None:
            seen.append(num)

        def close(self) -> None:
            seen.append("closed")

    llm.generate(PROMPTS[:2], GREEDY, use_tqdm=Bar)
    assert seen == [2, 1, 1, "closed"]


def test_closing(folder: str) -> None:
    llm = LLM(folder, **KEYS)
    llm.close()
    llm.close()
    with pytest.raises(EngineLost, match="closed"):
        llm.generate("Hello", GREEDY, use_tqdm=False)
    dropped = LLM(folder, **KEYS)
    thread = dropped._engine._thread
    del dropped
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()
