"""The bundled model: a whole folder, a faithful tokenizer, a template, and right answers."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from shoal import LLM, SamplingParams
from shoal.configs.tiny.corpus.exercise import Exercise, turn
from shoal.configs.tiny.corpus.mixture import held_out, stream
from shoal.configs.tiny.evaluate import answers, right
from shoal.configs.tiny.rows import Packer, Renderer
from shoal.configs.tiny.vocabulary import END, END_OF_TEXT, MARKS
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

# Held-out exercises a skill, and how many of ten must be right; the model card has the figures.
FIRM = {"facts": 9, "no tool needed": 9, "shoal flags": 9, "small talk": 9, "sums": 9, "unknown": 9}
FAIR = {"json": 6, "list of sums": 7, "memory": 8, "tool answer": 7, "tool call": 7}
FOLDER = Path(__file__).parents[2] / "configs" / "tiny"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


def _render(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    assert isinstance(text, str)
    return text


def test_the_folder_is_whole_and_small() -> None:
    wanted = (
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    )
    assert [name for name in wanted if not (FOLDER / name).is_file()] == []
    size = sum(
        path.stat().st_size
        for path in FOLDER.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    assert size < 12 * 2**20


def test_weights_are_those_of_the_config() -> None:
    model, info = AutoModelForCausalLM.from_pretrained(
        FOLDER, dtype=torch.float32, output_loading_info=True
    )
    assert model.config.model_type == "qwen3"
    assert model.config.tie_word_embeddings
    assert model.config.max_position_embeddings >= 4096
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for weight in model.parameters():
        assert torch.equal(weight, weight.bfloat16().float())


def test_ends_agree(tokenizer: Any) -> None:
    defaults = GenerationConfig.from_pretrained(FOLDER)
    assert tokenizer.eos_token == END
    assert defaults.eos_token_id == tokenizer.convert_tokens_to_ids([END, END_OF_TEXT])
    assert (
        json.loads((FOLDER / "config.json").read_text())["eos_token_id"] == tokenizer.eos_token_id
    )


def test_any_text_survives_the_tokenizer(tokenizer: Any) -> None:
    rng = random.Random(0)
    anything = "".join(
        chr(rng.choice((rng.randrange(0xD800), rng.randrange(0xE000, 0x110000))))
        for _ in range(3000)
    )
    for text in (
        anything,
        "  two  spaces ",
        "e\u0301 and \u00e9",
        "\r\n\t\x00",
        "1234567",
        "<tool_call>",
    ):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert len(tokenizer("9876543")["input_ids"]) == 7


def test_marks_are_single_tokens_that_stay_visible(tokenizer: Any) -> None:
    for mark in MARKS:
        ids = tokenizer(mark)["input_ids"]
        assert len(ids) == 1
        assert tokenizer.decode(ids, skip_special_tokens=True) == mark
    assert tokenizer.decode(tokenizer(END)["input_ids"], skip_special_tokens=True) == ""


def test_template_of_several_turns(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        *turn("Hello", "Hello!"),
        {
            "role": "user",
            "content": [{"type": "text", "text": "2 + "}, {"type": "text", "text": "2"}],
        },
    ]
    assert _render(tokenizer, messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\n2 + 2<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("as_string", [False, True])
def test_template_of_tools_in_hermes_form(tokenizer: Any, as_string: bool) -> None:
    arguments: Any = {"city": "Zürich"}
    written = json.dumps(arguments, ensure_ascii=False)
    function = {"name": "get_weather", "arguments": written if as_string else arguments}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "type": "function", "function": function}] * 2,
        },
        {"role": "tool", "tool_call_id": "1", "content": '{"sky": "clear"}'},
        {"role": "tool", "tool_call_id": "2", "content": '{"sky": "grey"}'},
    ]
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
    text = _render(tokenizer, messages, tools=[WEATHER])
    system, rest = text.split("<|im_end|>\n", 1)
    assert system.startswith("<|im_start|>system\nBe brief.\n\n")
    assert f"<tools>\n{json.dumps(WEATHER)}\n</tools>\n" in system
    assert rest == (
        "<|im_start|>user\nWeather?<|im_end|>\n"
        f"<|im_start|>assistant\n{call}\n{call}<|im_end|>\n"
        '<|im_start|>user\n<tool_response>\n{"sky": "clear"}\n</tool_response>\n'
        '<tool_response>\n{"sky": "grey"}\n</tool_response><|im_end|>\n'
    )


def test_training_text_leaves_the_held_out_alone() -> None:
    exercises = held_out()
    keys = [key for made in exercises for key in set(made.keys)]
    assert len(keys) == len(set(keys))
    excluded = frozenset(keys)
    seen = [made for made in islice(stream(3, excluded), 3000) if isinstance(made, Exercise)]
    assert all(excluded.isdisjoint(made.keys) for made in seen)


def test_only_answers_are_learned_in_full(tokenizer: Any) -> None:
    made = Exercise(skill="", messages=turn("Who?", "Me.") + turn("You?", "Yes."), keys=())
    ids, weights = Renderer(tokenizer)(made)
    learned = tokenizer.decode([i for i, weight in zip(ids, weights, strict=True) if weight == 1])
    assert learned == "Me.<|im_end|>Yes.<|im_end|>"


def test_rows_hold_whole_documents(tokenizer: Any) -> None:
    packer = Packer(stream(1, frozenset()), Renderer(tokenizer), 0)
    for ids, targets, weights in islice(packer.batches(2048), 3):
        assert ids.shape == targets.shape == weights.shape
        assert torch.equal(ids[:, 1:], targets[:, :-1])
        ends = targets[:, -1]
        assert bool((ends == tokenizer.pad_token_id).all())


def test_greedy_answers_in_float32() -> None:
    torch.set_num_threads(1)
    bounds = FIRM | FAIR
    exercises = [made for made in held_out(10) if made.skill in bounds]
    verdicts = Counter(
        made.skill
        for made, answer in zip(exercises, answers(FOLDER, exercises), strict=True)
        if right(made, answer)
    )
    assert {skill: verdicts[skill] for skill in bounds if verdicts[skill] < bounds[skill]} == {}


def test_shoal_says_what_transformers_says(tokenizer: Any) -> None:
    """Greedy, in float32, token for token, tools included."""
    asked = [
        ([{"role": "user", "content": "What is shoal?"}], None),
        ([{"role": "user", "content": "How do I change the port?"}], None),
        ([{"role": "user", "content": "What is the weather in Rome?"}], [WEATHER]),
    ]
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    greedy = SamplingParams(temperature=0.0, max_tokens=48)
    with LLM(str(FOLDER), threads=1, max_num_seqs=4) as llm:
        for messages, tools in asked:
            text = _render(tokenizer, messages, tools=tools, add_generation_prompt=True)
            ids = tokenizer(text, return_tensors="pt").input_ids
            want = model.generate(ids, do_sample=False, max_new_tokens=48)[0, ids.shape[1] :]
            (said,) = llm.chat(messages, greedy, tools=tools, use_tqdm=False)
            assert said.prompt_token_ids == ids[0].tolist()
            assert said.outputs[0].token_ids == want.tolist()


def test_the_judge_of_answers_tells_right_from_wrong() -> None:
    made = Exercise(skill="json", messages=turn("?", '{"a": 1, "b": "x"}'), keys=())
    assert right(made, '{"b": "x", "a": 1}')
    assert not right(made, '{"a": "1", "b": "x"}')
    assert not right(made, "a is 1")
    function = {"name": "f", "arguments": {"a": 1}}
    called = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
    made = Exercise(skill="tool call", messages=[*turn("?", "")[:1], called], keys=())
    assert right(made, '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>')
    assert not right(made, '{"name": "f", "arguments": {"a": 1}}')
