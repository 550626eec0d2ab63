"""The start screen: one line a phase off a terminal, and lines that can be pasted."""

from __future__ import annotations

import ast
import io
import json
import os
import shlex
from dataclasses import replace

import pytest
from shoal.cluster.banner import Loaded, Progress, banner, curl_line, python_line
from shoal.cluster.link import ModelCard
from shoal.cluster.settings import serve_config

NAME = "it's"
CARD = ModelCard(
    names=(NAME,),
    model="/m",
    tokenizer="/m",
    max_model_len=4096,
    vocab_size=8,
    max_logprobs=20,
    eos_token_ids=(0,),
    sampling_defaults={},
    digest="d",
    created=0,
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_off_a_terminal_each_phase_is_one_line() -> None:
    out, err = io.StringIO(), io.StringIO()
    progress = Progress(out, err)
    with progress.phase("load the model"):
        progress.advance(10**9, 2 * 10**9)
        progress.advance(2 * 10**9, 2 * 10**9)
    with pytest.raises(ZeroDivisionError), progress.phase("fail"):
        _ = 1 / 0
    lines = err.getvalue().splitlines()
    assert len(lines) == 1
    assert "load the model" in lines[0] and "2.0 GB" in lines[0]
    assert not out.getvalue()


def test_on_a_terminal_the_bar_is_gone_when_the_banner_comes() -> None:
    out, err = io.StringIO(), Terminal()
    progress = Progress(out, err)
    with progress.phase("load the model"):
        progress.advance(5, 10)
        progress.note("a note")
    progress.ready(serve_config({"served_model_name": NAME}, {}), [Loaded(CARD)])
    assert "a note" in err.getvalue()
    assert "(load the model " in out.getvalue()


def test_the_banner_says_where_what_and_how() -> None:
    out, err = io.StringIO(), io.StringIO()
    config = serve_config({"host": "0.0.0.0", "port": 9000, "served_model_name": NAME}, {})
    progress = Progress(out, err)
    progress.ready(config, [Loaded(CARD, [("KV cache", "12 blocks")], [("weights", 1.25)])])
    text = out.getvalue()
    for part in ("http://127.0.0.1:9000/v1", "it's", "4,096", "12 blocks", "weights 1.2", "Ctrl-C"):
        assert part in text
    assert "open to the network" in err.getvalue()
    assert "--url http://127.0.0.1:9000" in text


@pytest.mark.parametrize("installed", [False, True])
def test_the_line_of_python_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    monkeypatch.setattr("shoal.cluster.banner.find_spec", lambda name: installed or None)
    lines = banner(serve_config({"served_model_name": NAME}, {}), [Loaded(CARD)], "now")
    assert any("pip install openai" in line for line in lines) is not installed


def test_a_server_in_the_background_is_not_stopped_by_keys() -> None:
    config = serve_config({"served_model_name": NAME, "port": 9000}, {})
    lines = "\n".join(banner(config, [Loaded(CARD)], "now", detached=True))
    assert "Ctrl-C" not in lines and "`shoal stop 9000`" in lines and str(os.getpid()) in lines


@pytest.mark.parametrize("key", [False, True])
def test_its_lines_can_be_pasted(key: bool) -> None:
    words = shlex.split(curl_line("http://h:1", "it's", key))
    assert json.loads(words[-1])["model"] == "it's"
    assert ("Authorization: Bearer $SHOAL_API_KEY" in words) is key
    ast.parse(python_line("http://h:1", "it's", key))
    config = serve_config({"served_model_name": NAME}, {})
    assert not any("\n" in line for line in banner(config, [Loaded(CARD)], "now"))


def test_several_models_each_have_their_table_and_phases() -> None:
    models = [{"model": "m", "served_model_name": NAME}, {"model": "other", "replicas": 2}]
    config = serve_config({"models": models}, {})
    other = replace(CARD, names=("other",))
    loaded = [
        Loaded(CARD, [("KV cache", "12 blocks")], [("load", 1.0)]),
        Loaded(other, [("KV cache", "99 blocks")], [("load", 2.0)]),
    ]
    lines = banner(config, loaded, "after 3 s")
    at = lines.index("other:")
    assert "99 blocks" in lines[at + 1] and "load 2.0" in lines[at + 2]
    assert f"{NAME}:" in lines[:at] and any("2 replicas" in line for line in lines)
    assert any(line.endswith("after 3 s") for line in lines)
