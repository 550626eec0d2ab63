"""Command lines as vLLM's users type them, and where a setting given twice comes from."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.cluster.config import ServeConfig, bundled_model, keys
from shoal.cluster.flags import parameters, parse
from shoal.cluster.names import IDLE, NOT_BUILT, RENAMED
from shoal.cluster.resolve import configure, resolve
from shoal.engine.errors import ConfigError

EVERY = sorted({*keys(), *IDLE, *NOT_BUILT, *RENAMED})


def config(line: str, environ: dict[str, str] | None = None) -> ServeConfig:
    return configure(line.split(), environ or {})


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        ("M --port 9000", {"model": "M", "--port": "9000"}),
        ("--port=9000 M", {"model": "M", "--port": "9000"}),
        ("--max_model_len 32k", {"--max-model-len": "32k"}),
        ("--model M", {"--model": "M"}),
        ("-- M", {"model": "M"}),
        ("--seed -5", {"--seed": "-5"}),
        ("--enforce-eager M", {"--enforce-eager": True, "model": "M"}),
        ("--enforce-eager false M", {"--enforce-eager": False, "model": "M"}),
        ("--enforce-eager=no", {"--enforce-eager": False}),
        ("--no-enable-prefix-caching", {"--enable-prefix-caching": False}),
        ("--no_enable_prefix_caching M", {"--enable-prefix-caching": False, "model": "M"}),
        ("--enable-prefix-caching", {"--enable-prefix-caching": True}),
        ("--disable-log-requests M", {"--disable-log-requests": True, "model": "M"}),
        ("M --api-key a b --port 1", {"model": "M", "--api-key": ("a", "b"), "--port": "1"}),
        ("--api-key a --api-key b", {"--api-key": ("a", "b")}),
        ("--api-key a M", {"--api-key": ("a",), "model": "M"}),
        ("--model M --api-key a b", {"--model": "M", "--api-key": ("a", "b")}),
        ('M --allowed-origins ["x","y"]', {"model": "M", "--allowed-origins": ("x", "y")}),
        ("M -tp 8", {"model": "M", "--tensor-parallel-size": "8"}),
        (
            "-tp=8 -pp 2 M",
            {"--tensor-parallel-size": "8", "--pipeline-parallel-size": "2", "model": "M"},
        ),
        ("-tp2 -dp4 M", {"--tensor-parallel-size": "2", "--data-parallel-size": "4", "model": "M"}),
        ("-dp 4", {"--data-parallel-size": "4"}),
        ("-q awq", {"--quantization": "awq"}),
        ("-ep M", {"--enable-expert-parallel": True, "model": "M"}),
        ("-O3 M", {"--optimization-level": "3", "model": "M"}),
        ("-O=2", {"--optimization-level": "2"}),
        ("-O 0 M", {"--optimization-level": "0", "model": "M"}),
        ("-O.mode=3", {"--compilation-config.mode": "3"}),
        ("--compilation_config.mode 3 M", {"--compilation-config.mode": "3", "model": "M"}),
        ("--eplb-config.window_size 7", {"--eplb-config.window_size": "7"}),
        ('--hf-overrides {"a":-1}', {"--hf-overrides": '{"a":-1}'}),
        ("--enforce-eager True --port 1", {"--enforce-eager": True, "--port": "1"}),
        ("--disable-log-stats false", {"--disable-log-stats": False}),
        ("--no-use-tqdm-on-load", {"--use-tqdm-on-load": False}),
        ("M --swap-space 4 --port 1", {"model": "M", "--swap-space": "4", "--port": "1"}),
        ("M --lora-modules a=1 b=2", {"model": "M", "--lora-modules": ("a=1", "b=2")}),
        (
            "M --cudagraph-capture-sizes 1 2",
            {"model": "M", "--cudagraph-capture-sizes": ("1", "2")},
        ),
        ("M --served_model_name a b", {"model": "M", "--served-model-name": ("a", "b")}),
        ("--served-model-name a b M", {"model": "M", "--served-model-name": ("a", "b")}),
        (
            "--served-model-name a b --seed 1 M",
            {"model": "M", "--seed": "1", "--served-model-name": ("a", "b")},
        ),
        ("--served-model-name a b -- M", {"model": "M", "--served-model-name": ("a", "b")}),
        ("--served-model-name a b --model M", {"--model": "M", "--served-model-name": ("a", "b")}),
        ("-c M.yaml --served-model-name a b", {"--served-model-name": ("a", "b")}),
        ('--allowed-origins ["x","y"] M', {"model": "M", "--allowed-origins": ("x", "y")}),
    ],
)
def test_a_line_is_read(line: str, settings: dict[str, object]) -> None:
    assert parse(line.split()).settings == settings


def test_it_is_told_which_word_of_a_row_is_taken_for_the_model() -> None:
    said = resolve(["--served-model-name", "a", "b"], {}).remarks
    assert said == (
        "'b', the last word after --served-model-name, is taken for MODEL; give MODEL first, or "
        "--model",
    )
    assert resolve(["M", "--served-model-name", "a", "b"], {}).remarks == ()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--max-model-ln 1", "unknown flag --max-model-ln: did you mean --max-model-len?"),
        ("--max_model_ln 1", "did you mean --max-model-len?"),
        ("--zzzzz", "`shoal serve --help-all` lists all"),
        ("-qfp8 M", "unknown flag -qfp8: did you mean `-q fp8`?"),
        ("-tpx", "did you mean `-tp x`?"),
        ("-config x", "did you mean --config?"),
        ("-port 1", "did you mean --port?"),
        ("--port", "--port needs a value"),
        ("--port --local", "--port needs a value"),
        ("--port x", "--port is 'x'; expected a whole number"),
        ("--local=maybe", "--local is 'maybe'; expected true or false"),
        ("--quantization awq", "`--quantization awq` cannot be kept: quantized weights"),
        ("--hf-token x", "`--hf-token (not shown)` cannot be kept"),
        ("--enable-lora M", "`--enable-lora` cannot be kept: LoRA"),
        ("--speculative-config.method ngram", "speculative decoding is not built"),
        ("--trust-remote-code", "is never run"),
        ("M N", "unexpected argument 'N': the model is 'M' already"),
        ("M --model N", "set the same thing"),
        ("--allowed-origins [x", "expected a list"),
        ("--config /nowhere.yaml", "cannot read /nowhere.yaml"),
        ("--config= M", "--config needs the name of a YAML file"),
        ("-c a --config b", "--config is given twice"),
        ("-q awq", "`--quantization awq` cannot be kept: quantized weights are not built yet"),
        ("-O3", "`--optimization-level 3` cannot be kept: compiling a model"),
        ("-O.mode 3", "`--compilation-config.mode 3` cannot be kept: compiling a model"),
        ("--compilation-config.mode=3", "`--compilation-config.mode 3` cannot be kept"),
        ('--compilation-config {"mode":3}', "cannot be kept: compiling a model"),
        ("--kv-cache-dtype fp8", "`--kv-cache-dtype fp8` cannot be kept"),
        ("--max-model-len auto", "choosing the longest that fits is not built yet"),
        ("--max-model-len -5", "--max-model-len must be at least 1, got -5"),
        ("--device tpu", "--device must be one of auto, cpu, cuda; got 'tpu'"),
        ("--gpu_memory_utilization 2", "--gpu-memory-utilization must be above 0 and at most 1"),
        ("--port 0", "--port should be greater than or equal to 1, got 0"),
        ("-dp 0", "--data-parallel-size should be greater than or equal to 1, got 0"),
        ("-tp", "--tensor-parallel-size needs a value"),
        ("--host.name x", "unknown flag --host.name"),
        ("-x", "unknown flag -x"),
        (f"--revision= --hf-overrides {'x' * 200}", "xxx...` cannot be kept"),
    ],
)
def test_a_line_is_refused(line: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(line)
    assert said in caught.value.message


def test_what_changes_nothing_is_taken() -> None:
    assert config("--disable-log-stats --no-enable-lora --kv-cache-dtype auto") == config("")
    assert config("").models[0].engine.model == str(bundled_model())


def test_data_parallel_size_means_replicas() -> None:
    assert config("-dp 3").models[0].replicas == 3
    assert config("--data_parallel_size=3 M") == config("--replicas 3 M")


def test_values_that_vllm_gives_itself_are_taken() -> None:
    line = (
        "--kv-cache-dtype auto -O2 --quantization none --task generate --tokenizer-mode auto "
        "--distributed-executor-backend mp --mm-processor-cache-gb 4.0 --load-format auto "
        "--hf-overrides {} --max-lora-rank 16 --trust-remote-code false --no-enable-lora"
    )
    assert config(line) == config("")


@given(
    st.lists(
        st.one_of(
            st.sampled_from([f"--{name.replace('_', '-')}" for name in EVERY]),
            st.sampled_from(
                ["-tp", "-O3", "-O.x", "--", "-", "--=", "--no-", "-c=", "=", "--x.y=z"]
            ),
            st.sampled_from(
                ["1", "-1", "32k", "auto", "true", "none", "{}", "[", '["a"]', "1e999"]
            ),
            st.text(max_size=8),
        ),
        max_size=6,
    )
)
@settings(max_examples=300, deadline=None)
def test_any_words_give_a_configuration_or_one_line(words: list[str]) -> None:
    try:
        configure(words, {})
    except ConfigError as error:
        assert error.message
        assert "\n" not in error.message or any("\n" in word for word in words)


def test_the_command_line_wins_then_the_file_then_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("model: F\nmax_model_len: 4k\napi-key: [f]\nport: 1\nlog-requests: true\n")
    environ = {"SHOAL_API_KEY": "e", "SHOAL_LOG_DIR": "/e"}
    found = config(f"M --config {file} --max-model-len 8k --disable-log-requests", environ)
    assert found.models[0].engine.model == "M"
    assert found.models[0].engine.max_model_len == 8000
    assert (found.api_key, found.log_dir, found.port) == (("f",), "/e", 1)
    assert not found.log_requests
    assert config(f"-c {file}").models[0].engine.model == "F"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "port: 1\nmax_model_ln: 4096\n",
            "unknown setting 'max_model_ln'; did you mean 'max_model_len'?\n"
            "  {file}, line 2:\n    max_model_ln: 4096\n  should read:\n    max_model_len: 4096",
        ),
        ("zzzzz: 1\n", "unknown setting 'zzzzz'\n  {file}, line 1:\n    zzzzz: 1"),
        ("port: http\n", "expected a whole number (32k stands for 32,000 and 32K for 32,768)\n"),
        ("port: http\n", "{file}, line 1:\n    port: http"),
        (
            "seed: 1\nrevision: 1.0\n",
            'in quotes\n  {file}, line 2:\n    revision: 1.0\n  should read:\n    revision: "1.0"',
        ),
        ("quantization: awq\n", "`quantization: awq` cannot be kept"),
        ("api-key: 5\n", "expected text, in quotes, or a list of texts\n"),
        ("api-key: 5\n", 'api-key: (not shown)\n  should read:\n    api-key: "..."'),
        ("quantization: awq\n", "{file}, line 1:\n    quantization: awq"),
        ("max-num-seqs: 0\n", "{file}, line 1:\n    max-num-seqs: 0"),
        ("port: 1\nuse_cuda_graph true\n", "should read:\n    use_cuda_graph: true"),
    ],
)
def test_a_fault_in_the_file_is_quoted(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config(f"--config {file}")
    assert said.format(file=file) in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "api-key: 12345\n",
        "api_key: [12345]\n",
        "api-key:\n  - 12345\n",
        'port: 1\napi-key:\n  - "12345\n  - b\n',
        "api-key 12345\n",
        "api-key: '12345\nport: 1\n",
        "apikey: 12345\n",
        "VLLM_API_KEY: 12345\n",
        "args: [--api-key, '12345']\n",
        "args:\n - --api-key\n - '12345'\n",
        "hf-token: '12345'\n",
        "models:\n - model: x\n   api-key: 12345\n",
        "api-key: !!int 12345x\n",
    ],
)
def test_a_secret_is_never_shown(tmp_path: Path, text: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        config(f"--config {file}")
    assert "12345" not in caught.value.message
    assert f"{file}, line" in caught.value.message


def test_there_is_a_flag_for_each_setting() -> None:
    assert {part.name for part in parameters()} == set(keys()) - {"model"}


MODELS = """models:
  - model: org/a
    max-model-len: 4k
  - model: org/b
"""


def test_a_file_lists_models_and_flags_fill_in(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(MODELS)
    a, b = config(f"--config {path} --max-num-seqs 8").models
    assert (a.engine.max_model_len, b.engine.max_model_len) == (4000, None)
    assert a.engine.max_num_seqs == b.engine.max_num_seqs == 8


@pytest.mark.parametrize(
    ("before", "after", "line", "said"),
    [
        ("max-model-len: 4k", "max-model-ln: 4k", 3, "should read:\n    max-model-len: 4k"),
        ("max-model-len: 4k", "dtype: float8", 3, "item 1 of `models` (org/a): dtype"),
        ("- model: org/b", "- replicas: 2", 4, "item 2 of `models`: `model` is missing"),
        ("org/b", "org/a", 4, "items 1 and 2 of `models` are both served as 'org/a'"),
    ],
)
def test_an_item_is_refused_with_its_line(
    tmp_path: Path, before: str, after: str, line: int, said: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(MODELS.replace(before, after))
    with pytest.raises(ConfigError) as caught:
        config(f"--config {path}")
    assert said in caught.value.message
    assert f"{path}, line {line}:\n" in caught.value.message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--model M", "--model names one model and `models` lists several"),
        ("M", "names one model and `models` lists several"),
        ("--served-model-name x", "leave one of the two out"),
        ("--max-model-len 8k", "is set by item 1 of `models` itself"),
    ],
)
def test_a_flag_for_one_of_several_models_is_refused(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(MODELS)
    with pytest.raises(ConfigError) as caught:
        config(f"--config {path} {line}")
    assert said in caught.value.message
