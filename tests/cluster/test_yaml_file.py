"""A file's keys with their lines, and the line that mends a file which does not parse."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from shoal.cluster.yaml_file import read
from shoal.engine.errors import ConfigError

BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in pairwise("abcdefghij")
)


def write(folder: Path, text: str) -> Path:
    path = folder / "serve.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_keys_come_with_their_lines(tmp_path: Path) -> None:
    text = "# a comment\nport: 9000\n\nserved-model-name:\n  - a\n  - b\nhost: ~\n"
    found = read(write(tmp_path, text))
    assert {key: (entry.value, entry.line) for key, entry in found.items()} == {
        "port": (9000, 2),
        "served-model-name": (["a", "b"], 4),
        "host": (None, 7),
    }
    assert found["port"].text == "port: 9000"


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_sets_nothing(tmp_path: Path, text: str) -> None:
    assert read(write(tmp_path, text)) == {}


@pytest.mark.parametrize(
    ("text", "line", "wrong", "right"),
    [
        ("port: 1\nuse_cuda_graph true\n", 2, "use_cuda_graph true", "use_cuda_graph: true"),
        ("port: 1\nuse_cuda_graph true\nhost: x\n", 2, "use_cuda_graph", "use_cuda_graph: true"),
        ("host:\nport 8000\nseed: 1\n", 2, "port 8000", "port: 8000"),
        ("use_cuda_graph true\n", 1, "use_cuda_graph true", "use_cuda_graph: true"),
        ("--port 8000\n", 1, "--port 8000", "port: 8000"),
        ("host: x\n--port=8000\n", 2, "--port=8000", "port: 8000"),
        ("host: x\n--enforce-eager\n", 2, "--enforce-eager", "enforce-eager: true"),
        ("host = x\nport: 1\n", 1, "host = x", "host: x"),
        ("port: 1\nhost = x\n", 2, "host = x", "host: x"),
        ("port:8000\n", 1, "port:8000", "port: 8000"),
        ("seed: 1\nport:8000\nhost: x\n", 2, "port:8000", "port: 8000"),
        ("seed: 1\n\tport: 8000\n", 2, "port: 8000", "port: 8000"),
        ("seed: 1\n  port: 8000\n", 2, "port: 8000", "port: 8000"),
        ("model: a: b\n", 1, "model: a: b", 'model: "a: b"'),
        ("root_path: @x\n", 1, "root_path: @x", 'root_path: "@x"'),
        ("allowed_origins: *\nport: 1\n", 1, "allowed_origins: *", 'allowed_origins: "*"'),
        ("served_model_name: [a, b\nport: 1\n", 1, "[a, b", "served_model_name: [a, b]"),
        ('host: "x\nport: 1\n', 1, 'host: "x', 'host: "x"'),
        ("- port: 8000\n", 1, "- port: 8000", "port: 8000"),
    ],
)
def test_a_line_that_does_not_parse_is_shown_and_corrected(
    tmp_path: Path, text: str, line: int, wrong: str, right: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read(path)
    said = caught.value.message.splitlines()
    assert f"{path}, line {line}:" in said[-4]
    assert wrong in said[-3]
    assert said[-2].strip() == "should read:"
    assert said[-1].strip() == right


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("port: 1\nhost: x\nport: 2\n", "'port' was set before, on line 1"),
        ("1: 2\n", "a key is a word, not 1"),
        ("a: &x [*x]\nb: }{\n", "line 2"),
        ("a: \x07\n", "line 1"),
        ("a: 1\n---\nb: 2\n", "line 2"),
        ("models:\n  - model: a\n    model: b\n", "'model' was set before, on line 2"),
        ("<<: {a: 1}\n", "keys are not merged"),
        ("a: &a [*a]\n", "contains itself"),
        ("a: !!python/object/apply:os.system [ls]\n", "python/object/apply:os.system are not read"),
        ("a: !!int abc\n", "a value that is no int"),
        ("a: !!binary aGk=\n", "binary are not read"),
        ("a: " + "[" * 2000 + "]" * 2000, "nested too deeply"),
        ("a: " + "9" * 5000 + "\n", "is no int"),
        (BOMB, "more than 10,000 values"),
    ],
)
def test_a_line_that_cannot_be_guessed_is_shown(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(write(tmp_path, text))
    assert said in caught.value.message
    assert "serve.yaml, line" in caught.value.message


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="directory"):
        read(tmp_path)
    with pytest.raises(ConfigError, match="longer than 65,536 bytes"):
        read(write(tmp_path, "#" * 70_000))
    with pytest.raises(ConfigError, match="null byte"):
        read("a\0b")
    (tmp_path / "latin").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read(tmp_path / "latin")


def test_what_is_wrong_with_the_beginning_of_a_line_is_seen(tmp_path: Path) -> None:
    for text, shown in (
        ("seed: 1\n\tport: 8000\n", "    \\tport: 8000"),
        ("seed: 1\n  port: 8000\n", "      port: 8000"),
    ):
        with pytest.raises(ConfigError) as caught:
            read(write(tmp_path, text))
        assert caught.value.message.splitlines()[2:] == [shown, "  should read:", "    port: 8000"]


def test_dates_and_odd_numbers_stay_text(tmp_path: Path) -> None:
    text = "\ufeffa: 2024-01-31\nb: 2024-99-99\nc: 012\nd: 1:30\ne: 0x10\nf: =\n"
    found = {key: entry.value for key, entry in read(write(tmp_path, text)).items()}
    assert found == {
        "a": "2024-01-31",
        "b": "2024-99-99",
        "c": "012",
        "d": "1:30",
        "e": 16,
        "f": "=",
    }


def test_a_long_line_is_shown_in_part(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(write(tmp_path, "a: 1\na: " + "x" * 5000))
    assert max(map(len, caught.value.message.splitlines())) < 300


def test_a_second_document_is_not_taken_for_a_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(write(tmp_path, "port: 9000\n---\nport: 1\n"))
    assert "another document" in caught.value.message
    assert "should read" not in caught.value.message


def test_items_of_a_list_and_their_keys_have_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("port: 1\nmodels:\n  - model: a\n    replicas: 2\n  - model: b\n")
    models = read(path)["models"]
    assert models.value == [{"model": "a", "replicas": 2}, {"model": "b"}]
    assert [item.line for item in models.items] == [3, 5]
    assert models.items[0].entries["replicas"].line == 4
    path.write_text("models:\n  - model: a\n    model: b\n")
    with pytest.raises(ConfigError, match="set before, on line 2"):
        read(path)
