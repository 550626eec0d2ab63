"""Chat templates at the door: missing, given, hostile ones; special tokens in messages."""

import dataclasses
import json
import shutil

import httpx2 as httpx
import pytest
from shoal.engine.errors import ConfigError
from shoal.engine.text import Tokenizer

HELLO = [{"role": "user", "content": "hello"}]


def chat(door, **fields):
    body = {"messages": HELLO, **fields}
    return httpx.post(f"{door.url}/v1/chat/completions", json=body, timeout=60)


@pytest.fixture(scope="session")
def bare_folder(tokenizer_folder, tmp_path_factory):
    """A tokenizer as GPT-2 has it: no chat template."""
    folder = tmp_path_factory.mktemp("bare")
    shutil.copy(f"{tokenizer_folder}/tokenizer.json", folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<eos>"}))
    return str(folder)


@pytest.fixture(scope="session")
def bare_door(open_door, bare_folder):
    door = open_door(model=bare_folder)
    door.link.card = dataclasses.replace(door.link.card, tokenizer=bare_folder)
    return door


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_without_a_template_names_the_flag(bare_door, stream):
    refused = chat(bare_door, stream=stream)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, "messages")
    assert "--chat-template FILE" in error["message"]
    asked = httpx.post(f"{bare_door.url}/tokenize", json={"messages": HELLO})
    assert "--chat-template FILE" in asked.json()["error"]["message"]
    done = httpx.post(f"{bare_door.url}/v1/completions", json={"prompt": "hello"})
    assert done.status_code == 200
    assert httpx.get(f"{bare_door.url}/tokenizer_info").json()["chat_template"] is None


def test_a_template_in_its_place(bare_folder, tmp_path):
    line = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    file = tmp_path / "chat.jinja"
    file.write_text(line)
    for given in (line, str(file)):
        assert Tokenizer.load(bare_folder, chat_template=given).render(HELLO) == "[hello]"
    for wrong, word in (
        ("/no/such/file", "no file"),
        ("{% for %}", "parse"),
        ("{{ " + "(" * 20_000, "parse"),
    ):
        with pytest.raises(ConfigError, match=word) as caught:
            Tokenizer.load(bare_folder, chat_template=wrong)
        assert caught.value.key == "chat_template"


def test_a_hostile_template_costs_a_refusal_and_nobody_else_anything(open_door):
    door = open_door(chat_template="{{ 'x' * 10 ** 11 }}{{ messages }}")
    for _ in range(2):
        refused = chat(door)
        assert refused.status_code == 400
        assert "chat template" in refused.json()["error"]["message"]
    done = httpx.post(f"{door.url}/v1/completions", json={"prompt": "hello"})
    assert done.status_code == 200
    door = open_door(chat_template="{% include '/etc/passwd' %}")
    assert "root:" not in chat(door).text


def test_special_tokens_in_a_message_are_the_tokens(door, tokenizer):
    """As in vLLM: a text is a text, and what the tokenizer knows in it counts."""
    chat(door, messages=[{"role": "user", "content": "a<eos>b"}])
    assert door.link.seen[0].prompt.count(1) == 2
    assert tokenizer.decode(door.link.seen[0].prompt, False) == "<|user|>a<eos>b<eos><|assistant|>"
