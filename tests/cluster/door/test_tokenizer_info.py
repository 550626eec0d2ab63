"""/tokenizer_info: what evaluation harnesses ask before they tokenize by /tokenize."""

import json
import shutil

import httpx2 as httpx
import pytest
from shoal.engine.text import Tokenizer

from tests.cluster.door.conftest import TEMPLATE


def ask(door, **params):
    return httpx.get(f"{door.url}/tokenizer_info", params=params)


def test_it_tells_what_a_client_needs_to_render_and_to_end(door, tokenizer):
    told = ask(door).json()
    assert told["chat_template"] == TEMPLATE
    assert (told["eos_token"], told["bos_token"], told["pad_token"]) == ("<eos>", None, "<pad>")
    assert told["tokenizer_class"]
    assert told["added_tokens_decoder"] == {"0": "<pad>", "1": "<eos>"}
    body = {"prompt": told["eos_token"], "add_special_tokens": False}
    assert httpx.post(f"{door.url}/tokenize", json=body).json()["tokens"] == [1]


def test_it_is_asked_of_one_model(door):
    assert ask(door, model="alias/of it").json() == ask(door).json()
    refused = ask(door, model="gpt-9")
    assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")


def test_it_needs_the_key(open_door):
    door = open_door(api_key=("k",))
    assert ask(door).status_code == 401
    answer = httpx.get(f"{door.url}/tokenizer_info", headers={"x-api-key": "k"})
    assert answer.json()["eos_token"] == "<eos>"


@pytest.fixture
def saved(tokenizer_folder, tmp_path):
    """A tokenizer whose configuration is written as transformers writes it."""

    def save(**settings):
        shutil.copy(f"{tokenizer_folder}/tokenizer.json", tmp_path)
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return str(tmp_path)

    return save


def test_tokens_are_texts_and_paths_stay_at_home(saved):
    token = {"__type": "AddedToken", "content": "<eos>", "special": True, "lstrip": False}
    info = Tokenizer.load(
        saved(
            eos_token=token,
            extra_special_tokens={"tool": {"content": "<pad>"}},
            name_or_path="/srv/somebody/model",
            vocab_file="/srv/somebody/vocab.json",
            tokenizer_class="Qwen2Tokenizer",
            model_max_length=512,
        )
    ).info
    assert info["eos_token"] == "<eos>"
    assert info["extra_special_tokens"] == {"tool": "<pad>"}
    assert info["tokenizer_class"] == "Qwen2Tokenizer"
    assert info["model_max_length"] == 512
    assert info["chat_template"] is None
    assert "somebody" not in json.dumps(info)


def test_the_template_is_the_one_that_is_used(saved, tmp_path):
    folder = saved(chat_template="of the model")
    assert Tokenizer.load(folder).info["chat_template"] == "of the model"
    given = Tokenizer.load(folder, chat_template="{{ 'given' }}")
    assert given.info["chat_template"] == "{{ 'given' }}"
