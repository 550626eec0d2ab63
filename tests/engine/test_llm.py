"""The offline interface on a small random Qwen3, held against transformers."""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from shoal.engine.engine import AsyncEngine
from shoal.engine.errors import ConfigError, ContextTooLong, EngineLost, InvalidRequest, LoadError
from shoal.engine.llm import LLM, CompletionOutput, Logprob, RequestOutput
from shoal.engine.request import Request, SamplingParams, Update
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

CORPUS = ["The capital of France is Paris. Hello, my name is Ann; what is yours?", "def f(x):"] * 9
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROMPTS = ["Hello, my name is", "The capital of France is", "def f", "x y z", "Größe 🙂", "what"]
VOCAB, EOS = 512, 1
KEYS: dict[str, Any] = {
    "dtype": "float32",
    "max_model_len": 128,
    "max_num_seqs": 8,
    "num_gpu_blocks_override": 200,
    "block_size": 16,
}
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model whose text wanders, with a tokenizer, a template and sampling defaults."""
    path = str(tmp_path_factory.mktemp("qwen3"))
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=["<|endoftext|>", "<|im_end|>", "<|im_start|>"],
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=False,
        eos_token_id=EOS,
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.7, top_p=0.8, top_k=20, max_new_tokens=9, eos_token_id=EOS
    )
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def llm(folder: str) -> Iterator[LLM]:
    with LLM(folder, **KEYS) as made:
        yield made


@pytest.fixture(scope="module")
def theirs(folder: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model


def theirs_greedy(theirs: Any, ids: list[int], num: int) -> list[int]:
    """transformers' own greedy continuation of `ids`."""
    with torch.inference_mode():
        whole = theirs.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=num)
    return whole[0, len(ids) :].tolist()


def run(engine: AsyncEngine, request: Request) -> list[int]:
    """The tokens of one request."""
    updates: SimpleQueue[list[Update]] = SimpleQueue()
    engine.submit(request, updates.put)
    tokens: list[int] = []
    while True:
        for update in updates.get(timeout=60):
            assert not update.error
            tokens += update.tokens
            if update.finish is not None:
                return tokens


def idle(llm: LLM) -> None:
    deadline = time.monotonic() + 30
    while llm._engine.load().running or llm._engine.load().waiting:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert llm._engine.load().kv_usage == 0


def test_greedy_is_transformers_own(llm: LLM, theirs: Any) -> None:
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert [output.prompt for output in outputs] == PROMPTS
    for output in outputs:
        want = theirs_greedy(theirs, output.prompt_token_ids, 24)
        made = output.outputs[0]
        assert made.token_ids == want
        assert made.text == output.text == llm.get_tokenizer().decode(want, True)
        assert (made.finish_reason, made.stop_reason, made.index) == ("length", None, 0)
        assert output.finished and made.finished()
        assert made.logprobs is None is made.cumulative_logprob is output.prompt_logprobs
    assert len({tuple(output.outputs[0].token_ids) for output in outputs}) == len(PROMPTS)


def test_the_snippet_that_everyone_knows(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    llm = LLM(
        model=folder,
        dtype="half",
        tensor_parallel_size=1,
        max_num_seqs=256,
        max_num_batched_tokens=4096,
        gpu_memory_utilization=0.9,
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


def test_seeds_and_company(llm: LLM) -> None:
    drawn = SamplingParams(temperature=1.5, seed=11, n=3, max_tokens=16, ignore_eos=True)
    alone = llm.generate("Hello", drawn, use_tqdm=False)[0]
    texts = [made.token_ids for made in alone.outputs]
    assert len({tuple(ids) for ids in texts}) == 3
    crowd = llm.generate(["what", "Hello", *PROMPTS], [GREEDY, drawn, *[GREEDY] * 6], False)
    assert [made.token_ids for made in crowd[1].outputs] == texts
    other = SamplingParams(temperature=1.5, seed=12, max_tokens=16, ignore_eos=True)
    assert llm.generate("Hello", other, use_tqdm=False)[0].outputs[0].token_ids != texts[0]


def test_unseeded_requests_follow_the_engines_seed(folder: str) -> None:
    drawn = SamplingParams(temperature=1.5, max_tokens=12, ignore_eos=True)
    told = []
    for seed in (5, 5, 6):
        with LLM(folder, **KEYS, seed=seed) as llm:
            outputs = llm.generate(["Hello", "Hello"], drawn, use_tqdm=False)
            told.append([output.outputs[0].token_ids for output in outputs])
    assert told[0] == told[1] != told[2]
    assert told[0][0] != told[0][1]


def test_stop_strings(llm: LLM) -> None:
    text_of = llm.tokenizer.token_text
    readable = [id for id in range(3, VOCAB) if text_of(id).isascii() and text_of(id).isprintable()]
    plain: dict[str, Any] = {
        "temperature": 0,
        "max_tokens": 24,
        "ignore_eos": True,
        "allowed_token_ids": [id for id in readable if text_of(id)],
    }
    whole = llm.generate("Hello", SamplingParams(**plain), use_tqdm=False)[0].outputs[0]
    stop = "".join(text_of(id) for id in whole.token_ids[7:10])
    end = whole.text.find(stop) + len(stop)
    assert len(stop) >= 2 and len(whole.token_ids) == 24
    for include in (False, True):
        params = SamplingParams(
            **plain, stop=["never", stop], include_stop_str_in_output=include, logprobs=1
        )
        made = llm.generate("Hello", params, use_tqdm=False)[0].outputs[0]
        assert made.text == whole.text[: end if include else end - len(stop)]
        assert (made.finish_reason, made.stop_reason) == ("stop", stop)
        assert made.token_ids == whole.token_ids[: len(made.token_ids)]
        assert made.logprobs is not None and len(made.logprobs) == len(made.token_ids)
        assert stop in llm.tokenizer.decode(made.token_ids)
        assert stop not in llm.tokenizer.decode(made.token_ids[:-1])
    idle(llm)


def test_stop_tokens(llm: LLM) -> None:
    whole = llm.generate("Hello", GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    stop = next(id for i, id in enumerate(whole) if i > 3 and id not in whole[:i])
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop_token_ids=[stop])
    made = llm.generate("Hello", params, use_tqdm=False)[0].outputs[0]
    assert made.token_ids == whole[: whole.index(stop) + 1]
    assert (made.finish_reason, made.stop_reason) == ("stop", stop)
    assert made.text == llm.tokenizer.decode(made.token_ids[:-1])


def test_the_end_of_sequence(llm: LLM) -> None:
    always = SamplingParams(temperature=0, max_tokens=9, logit_bias={EOS: 100.0})
    made = llm.generate("Hello", always, use_tqdm=False)[0].outputs[0]
    assert (made.token_ids, made.text, made.stop_reason) == ([EOS], "", None)
    assert made.finish_reason == "stop"
    later = SamplingParams(temperature=0, max_tokens=9, min_tokens=4, logit_bias={EOS: 100.0})
    made = llm.generate("Hello", later, use_tqdm=False)[0].outputs[0]
    assert len(made.token_ids) == 5 and EOS not in made.token_ids[:4]


def test_logprobs(llm: LLM, theirs: Any) -> None:
    params = SamplingParams(
        temperature=0, max_tokens=6, ignore_eos=True, logprobs=3, prompt_logprobs=2
    )
    output = llm.generate("The capital of France", params, use_tqdm=False)[0]
    made, prompt = output.outputs[0], output.prompt_token_ids
    with torch.inference_mode():
        logits = theirs(torch.tensor([[*prompt, *made.token_ids]])).logits[0].double()
    wanted = torch.log_softmax(logits, -1)
    assert made.logprobs is not None and len(made.logprobs) == 6
    for i, (token, entry) in enumerate(zip(made.token_ids, made.logprobs, strict=True)):
        row = wanted[len(prompt) - 1 + i]
        assert next(iter(entry)) == token and len(entry) == 3
        assert set(entry) == set(row.topk(3).indices.tolist())
        for id, scored in entry.items():
            assert isinstance(scored, Logprob)
            assert scored.logprob == pytest.approx(float(row[id]), abs=1e-4)
            assert scored.rank == int((row > row[id]).sum()) + 1
            assert scored.decoded_token == llm.tokenizer.token_text(id)
    total = sum(e[t].logprob for e, t in zip(made.logprobs, made.token_ids, strict=True))
    assert made.cumulative_logprob == pytest.approx(total)
    scores = output.prompt_logprobs
    assert scores is not None and len(scores) == len(prompt) and scores[0] is None
    for i, (token, score) in enumerate(zip(prompt[1:], scores[1:], strict=True)):
        assert score is not None and 2 <= len(score) <= 3
        assert score[token].logprob == pytest.approx(float(wanted[i][token]), abs=1e-4)


def test_no_tokens_at_all(llm: LLM) -> None:
    params = SamplingParams(max_tokens=0, prompt_logprobs=0)
    output = llm.generate("Hello", params, use_tqdm=False)[0]
    made = output.outputs[0]
    assert (made.text, made.token_ids, made.finish_reason) == ("", [], "length")
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)


def test_bad_words(llm: LLM) -> None:
    whole = llm.generate("Hello", GREEDY, use_tqdm=False)[0]
    ids = whole.outputs[0].token_ids
    word = next(text for text in map(llm.tokenizer.token_text, ids) if text.strip().isalpha())
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, bad_words=[word])
    made = llm.generate("Hello", params, use_tqdm=False)[0].outputs[0]
    assert made.token_ids != ids
    banned = tuple(llm.tokenizer.encode(word, add_special_tokens=False))
    runs = [tuple(made.token_ids[i : i + len(banned)]) for i in range(24)]
    assert banned not in runs


def test_detokenize_false(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, detokenize=False)
    made = llm.generate("Hello", params, use_tqdm=False)[0].outputs[0]
    assert made.text == "" and len(made.token_ids) == 4


@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SamplingParams(
            temperature=1.2,
            seed=3,
            max_tokens=24,
            ignore_eos=True,
            top_p=0.9,
            repetition_penalty=1.2,
            presence_penalty=0.5,
            frequency_penalty=0.5,
            min_tokens=5,
        ),
    ],
)
def test_emitted_tokens_go_on_exactly(llm: LLM, params: SamplingParams) -> None:
    prompt = tuple(llm.tokenizer.encode("The capital of France is"))
    drawn = Request(id="whole", prompt=prompt, params=llm._seeds.give(_r(prompt, params)).params)
    whole = run(llm._engine, drawn)
    assert len(whole) == 24
    for cut in (1, 7, 15, 16, 23):
        rest = Request(
            id=f"cut-{cut}", prompt=prompt, params=drawn.params, emitted=tuple(whole[:cut])
        )
        assert whole[:cut] + run(llm._engine, rest) == whole


def _r(prompt: tuple[int, ...], params: SamplingParams) -> Request:
    return Request(id="r", prompt=prompt, params=params)


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


def test_default_sampling_params(llm: LLM, folder: str) -> None:
    params = llm.get_default_sampling_params()
    assert (params.temperature, params.top_p, params.top_k, params.max_tokens) == (0.7, 0.8, 20, 9)
    made = llm.generate("Hello", use_tqdm=False)[0].outputs[0]
    assert len(made.token_ids) <= 9
    with LLM(folder, **KEYS, generation_config="vllm") as plain:
        assert plain.get_default_sampling_params() == SamplingParams()


@pytest.mark.parametrize(
    ("prompts", "params", "error", "message"),
    [
        (["ok", "x " * 200], GREEDY, ContextTooLong, "maximum context length is 128 tokens"),
        ("ok", SamplingParams(max_tokens=500), ContextTooLong, "requested 500 output tokens"),
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
    with pytest.raises(ConfigError, match="tensor_parallel_size=2"):
        LLM(folder, tensor_parallel_size=2)
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
            llm.generate(["Hello"] * 32, endless, use_tqdm=False)
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
    thread.join(30)
    assert not thread.is_alive()
