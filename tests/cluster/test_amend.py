"""A YAML file whose values are refused: file, line, the line itself, and what should be there."""

from __future__ import annotations

from pathlib import Path

import pytest
from shoal.cluster.resolve import configure
from shoal.engine.errors import ConfigError


def refused(folder: Path, text: str) -> list[str]:
    """The lines of the refusal, with the file called F."""
    file = folder / "serve.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        configure(["--config", str(file)], {})
    return caught.value.message.replace(str(file), "F").splitlines()


@pytest.mark.parametrize(
    ("text", "line", "wrong", "right"),
    [
        ("port: 1\nuse_cuda_graph true\n", 2, "use_cuda_graph true", "use_cuda_graph: true"),
        (
            "port: 1\n--enable-prefix-caching true\nhost: x\n",
            2,
            "--enable-prefix-caching true",
            "enable-prefix-caching: true",
        ),
        ("port=8000\nhost: x\n", 1, "port=8000", "port: 8000"),
        ("max_model_ln: 4096\n", 1, "max_model_ln: 4096", "max_model_len: 4096"),
        ("max-modle-len: 1  # c\n", 1, "max-modle-len: 1  # c", "max-model-len: 1  # c"),
        ("seed: 1\nrevision: 1.0\n", 2, "revision: 1.0", 'revision: "1.0"'),
        ("revision: 1.10 # tag\n", 1, "revision: 1.10 # tag", 'revision: "1.10" # tag'),
        ("host: no\n", 1, "host: no", 'host: "no"'),
        ("response-role: on\n", 1, "response-role: on", 'response-role: "on"'),
        ("on: on\n", 1, "on: on", None),
        ("dtype: off\n", 1, "dtype: off", 'dtype: "off"'),
        ("uvicorn-log-level: 0\n", 1, "uvicorn-log-level: 0", None),
        ("served-model-name: 7\n", 1, "served-model-name: 7", 'served-model-name: "7"'),
        ("host: [0.0.0.0]\n", 1, "host: [0.0.0.0]", "host: 0.0.0.0"),
        ("port: 1\nhost:\n  - x\n", 2, "host:", "host: x"),
        ("host: [a, b]\n", 1, "host: [a, b]", None),
        ("port: {a: 1}\n", 1, "port: {a: 1}", None),
        ("max-num-seqs: 0\n", 1, "max-num-seqs: 0", None),
        ("max-model-len: 1:30\n", 1, "max-model-len: 1:30", None),
        ("quantization: awq\n", 1, "quantization: awq", None),
        (
            "models:\n  - model: a\n    revison: x\n  - model: b\n",
            3,
            "revison: x",
            "revision: x",
        ),
        ("models:\n  - model: a\n    dtype: 16\n", 3, "dtype: 16", 'dtype: "16"'),
    ],
)
def test_the_line_is_shown_with_its_correction(
    tmp_path: Path, text: str, line: int, wrong: str, right: str | None
) -> None:
    said = refused(tmp_path, text)
    ending = [f"  F, line {line}:", f"    {wrong}"]
    if right:
        ending += ["  should read:", f"    {right}"]
    assert said[-len(ending) :] == ending
    assert len(said) in (len(ending), len(ending) + 1)


def test_a_correction_is_right(tmp_path: Path) -> None:
    """What is said to be right is read without another word."""
    for text in ("revision: 1.0", "host: no", "host: [x]", "enforce_eagr: true", "seed=1\nport: 1"):
        *_, right = refused(tmp_path, text + "\n")
        file = tmp_path / "right.yaml"
        file.write_text(right.strip() + "\n")
        configure(["--config", str(file)], {})


@pytest.mark.parametrize("block", ["engine_args", "engine_kwargs", "args", "vllm", "server"])
def test_a_block_is_written_out(tmp_path: Path, block: str) -> None:
    said = refused(tmp_path, f"port: 1\n{block}:\n  model: x  # here\n  max-num-seqs: 4\n")
    assert said == [
        f"unknown setting {block!r}: settings stand at the left edge, not in a block",
        "  F, line 2:",
        f"    {block}:",
        "  should read:",
        "    model: x  # here",
        "    max-num-seqs: 4",
    ]


def test_flags_in_a_list_are_written_out(tmp_path: Path) -> None:
    said = refused(tmp_path, 'args: ["--port=80", --enforce-eager, "--model", org/name]\n')
    assert said[-4:] == [
        "  should read:",
        "    port: 80",
        "    enforce-eager: true",
        "    model: org/name",
    ]
    said = refused(tmp_path, "engine_args: {port: 80, model: x}\n")
    assert said[-3:] == ["  should read:", "    port: 80", "    model: x"]


def test_a_file_for_serve_deploy_is_told_from_ours(tmp_path: Path) -> None:
    said = refused(tmp_path, "applications:\n  - name: shoal\n")
    assert said[0] == "unknown setting 'applications': a file that holds it is for `serve deploy`"


def test_words_of_truth_are_read_for_a_key_of_true_or_false(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text('use_cuda_graph: false\nenable-prefix-caching: "no"\nlocal: on\n')
    config = configure(["-c", str(file)], {})
    engine = config.models[0].engine
    assert (engine.enforce_eager, engine.enable_prefix_caching, config.local) == (True, False, True)
    file.write_text("use_cuda_graph: true\n")
    assert not configure(["-c", str(file)], {}).models[0].engine.enforce_eager
