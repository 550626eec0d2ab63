"""Flat keys to a ServeConfig, and every way they may be refused."""

from __future__ import annotations

import pickle

import pytest
from shoal.cluster.config import (
    BUNDLED,
    ModelConfig,
    ServeConfig,
    bundled_model,
    keys,
    model_keys,
    warnings,
)
from shoal.cluster.settings import serve_config
from shoal.engine.errors import ConfigError


def build(environ: dict[str, str] | None = None, **settings: object) -> ServeConfig:
    return serve_config(settings, environ or {})


def only(config: ServeConfig) -> ModelConfig:
    (model,) = config.models
    return model


@pytest.mark.parametrize(
    ("key", "value", "held"),
    [
        ("max-model-len", "32k", 32_000),
        ("max_model_len", "32K", 32_768),
        ("max_model_len", "1.5m", 1_500_000),
        ("max_model_len", 4096, 4096),
        ("max_model_len", "None", None),
        ("kv_cache_memory_bytes", "4G", 4 * 2**30),
        ("seed", "-12345678901234567890", -12345678901234567890),
        ("gpu_memory_utilization", "0.5", 0.5),
        ("gpu_memory_utilization", 1, 1.0),
        ("enforce_eager", "true", True),
        ("enable_prefix_caching", False, False),
        ("served_model_name", "a", ("a",)),
        ("served_model_name", ["a", "b"], ("a", "b")),
        ("allowed-origins", '["https://a", "https://b"]', ("https://a", "https://b")),
        ("port", "9000", 9000),
        ("uvicorn_log_level", "debug", "debug"),
        ("api_key", ["x", "y"], ("x", "y")),
    ],
)
def test_a_value_is_held_in_its_own_type(key: str, value: object, held: object) -> None:
    config = serve_config({key: value}, {})
    name = key.replace("-", "_")
    (model,) = config.models
    homes = (config, model, model.engine)
    got = next(getattr(home, name) for home in homes if hasattr(home, name))
    assert (got, type(got)) == (held, type(held))


def test_a_process_that_serves_alone_has_no_ranks() -> None:
    with pytest.raises(ConfigError, match=r"wants 4 ranks.*leave --local out"):
        serve_config(
            {"local": True, "tensor-parallel-size": 2, "pipeline-parallel-size": 2}, environ={}
        )


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("port", 0, "greater than or equal to 1, got 0"),
        ("port", "http", "port is 'http'; expected a whole number"),
        ("port", True, "expected a whole number"),
        ("max_model_len", "32x", "expected a whole number"),
        ("max-model-len", "0.5", "expected a whole number"),
        ("max_model_len", "auto", "not built yet"),
        ("max_model_len", -1, "not built yet"),
        ("dtype", "float8", "one of auto, float32"),
        ("revision", 1.5, "revision is 1.5; expected text, in quotes"),
        ("enforce_eager", "maybe", "expected true or false"),
        ("served_model_name", {"a": 1}, "expected text or a list of texts"),
        ("allowed_origins", "[a", 'such as ["a", "b"]'),
        ("uvicorn_log_level", "loud", "one of critical, error"),
        ("replicas", 0, "greater than or equal to 1"),
        ("gpu_memory_utilization", "nan", "expected a number"),
        ("gpu_memory_utilization", 1.5, "at most 1, got 1.5"),
        ("tensor_parallel_size", 0, "at least 1, got 0"),
        ("max_model_ln", 1, "did you mean 'max_model_len'?"),
        ("gpu-memory-utilisation", 1, "did you mean 'gpu-memory-utilization'?"),
        ("--max-model-ln", 1, "did you mean '--max-model-len'?"),
        ("--quantization", "awq", "`--quantization awq` cannot be kept"),
        ("zzz", 1, "unknown setting 'zzz'"),
        ("quantization", "awq", "quantized weights are not built yet"),
        ("trust-remote-code", True, "is never run"),
        ("uds", "/tmp/s", "use --host and --port"),
        ("ssl_keyfile", "k.pem", "give both or neither"),
        ("print-config", True, "a flag of `shoal serve` alone, --print-config"),
        ("--api-key", "", "would let everybody in"),
        ("api-key", ("k", " "), "would let everybody in"),
        ("--name", "../../etc/x", "letters, digits"),
        ("name", "", "letters, digits"),
        ("root-path", "llm/", "as /llm"),
    ],
)
def test_a_refusal_names_the_key_as_it_was_given(key: str, value: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        serve_config({key: value}, {})
    assert said in caught.value.message
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantization", None),
        ("quantization", "none"),
        ("trust_remote_code", "false"),
        ("kv_cache_dtype", "auto"),
        ("data_parallel_size", "1"),
        ("disable_log_stats", True),
    ],
)
def test_what_changes_nothing_is_taken(key: str, value: object) -> None:
    assert serve_config({key: value}, {}) == build()


def test_other_names_of_a_key() -> None:
    assert build(enable_log_requests="true").log_requests
    assert not build(disable_log_requests=True).log_requests
    with pytest.raises(ConfigError, match="set the same thing"):
        build(log_requests=True, disable_log_requests=True)
    with pytest.raises(ConfigError, match="set the same thing"):
        serve_config({"max-model-len": 1, "max_model_len": 2}, {})


def test_without_a_model_the_bundled_one_is_served() -> None:
    for config in (build(), build(model=BUNDLED)):
        assert only(config).engine.model == str(bundled_model())
        assert only(config).served_model_name == (BUNDLED,)
    assert only(build(model="org/name")).served_model_name == ("org/name",)
    named = only(build(model="org/name", served_model_name="n"))
    assert named.served_model_name == ("n",) and named.name == "n"


def test_the_environment_comes_last() -> None:
    environ = {"SHOAL_API_KEY": "a,b", "VLLM_API_KEY": "c", "SHOAL_LOG_DIR": "/logs"}
    assert build(environ).api_key == ("a", "b")
    assert build(environ).log_dir == "/logs"
    assert build(environ, api_key="d").api_key == ("d",)
    assert build({"VLLM_API_KEY": "c"}).api_key == ("c",)


def test_a_config_travels_and_hides_its_keys() -> None:
    config = build(api_key="secret")
    assert pickle.loads(pickle.dumps(config)) == config
    assert "secret" not in repr(config)


def test_the_url_is_one_that_this_machine_can_reach() -> None:
    assert build(host="0.0.0.0", port=1).url == "http://127.0.0.1:1"
    assert build(host="::").url == "http://[::1]:8000"
    assert build(ssl_keyfile="k", ssl_certfile="c", root_path="/x").url.startswith("https://")


def test_an_open_door_without_a_key_is_warned_of() -> None:
    assert "open to the network" in warnings(build(host="0.0.0.0"))[0]
    assert not warnings(build(host="0.0.0.0", api_key="k"))
    assert not warnings(build())


def test_every_key_is_explained_once() -> None:
    assert all(key.help and key.group for key in keys().values())
    assert 10 <= sum(key.first for key in keys().values()) <= 16
    assert "memory_sharers" in keys() and "engine" not in keys() and "models" not in keys()
    assert {"model", "replicas", "served_model_name"} <= model_keys().keys()
    assert not {"port", "api_key", "local"} & model_keys().keys()


TWO = [{"model": "org/a", "replicas": 2}, {"model": "org/b", "served-model-name": ["b", "bb"]}]


def test_models_are_listed_with_what_they_share_beside_them() -> None:
    config = build(models=TWO, max_model_len="4k", port=9000)
    a, b = config.models
    assert (a.name, a.replicas, a.engine.max_model_len) == ("org/a", 2, 4000)
    assert (b.served_model_name, b.replicas, b.engine.max_model_len) == (("b", "bb"), 1, 4000)
    assert config.port == 9000 and config.model("bb") is b and config.of(b).models == (b,)
    own = build(models=[TWO[0], {**TWO[1], "max-model-len": 99}], max_model_len="4k")
    assert [model.engine.max_model_len for model in own.models] == [4000, 99]
    assert build(models=[{"model": BUNDLED}]) == build()


def test_models_travel_as_plain_data() -> None:
    config = build(models=TWO)
    assert ServeConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("models", "key", "said"),
    [
        ([], "models", "must be a list of models"),
        ("org/a", "models", "must be a list of models"),
        (["org/a"], "models[0]", "`model: FOLDER or hub id`"),
        ([{"replicas": 1}], "models[0]", "item 1 of `models`: `model` is missing"),
        (
            [TWO[0], {"model": "m", "max-model-ln": 1}],
            "models[1].max-model-ln",
            "item 2 of `models` (m): unknown setting 'max-model-ln'; did you mean 'max-model-len'?",
        ),
        ([{"model": "m", "port": 1}], "models[0].port", "is of the whole server"),
        ([{"model": "m", "replicas": 0}], "models[0].replicas", "greater than or equal to 1"),
        ([{"model": "m", "dtype": "float8"}], "models[0].dtype", "one of auto, float32"),
        ([{"model": "m", "quantization": "awq"}], "models[0].quantization", "not built yet"),
        ([{"model": "m", "block-size": 3}], "models[0].block-size", "power of two"),
        (
            [*TWO, {"model": "c", "served_model_name": "bb"}],
            "models[2]",
            "items 2 and 3 of `models` are both served as 'bb'",
        ),
        ([TWO[0], TWO[0]], "models[1]", "items 1 and 2 of `models` are both served as 'org/a'"),
    ],
)
def test_a_refusal_names_the_item(models: object, key: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(models=models)
    assert said in caught.value.message
    assert caught.value.key == key


@pytest.mark.parametrize("key", ["model", "served_model_name"])
def test_one_model_and_several_exclude_each_other(key: str) -> None:
    with pytest.raises(ConfigError, match="leave one of the two out") as caught:
        serve_config({f"--{key}": "x", "models": TWO}, {})
    assert caught.value.key == f"--{key}"


def test_a_chat_template_is_read_at_once(tmp_path):
    """A gateway may run on a node that has not the file."""
    file = tmp_path / "chat.jinja"
    for text in ("{{ messages }}\n", "{{ messages }}", "plain { text"):
        file.write_text(text)
        held = serve_config({"chat-template": str(file)}, environ={}).models[0].engine.chat_template
        assert held.rstrip("\n") == text.rstrip("\n")
        again = serve_config({"chat-template": held}, environ={})
        assert again.models[0].engine.chat_template == held
    with pytest.raises(ConfigError, match="no file") as caught:
        serve_config({"--chat-template": "nope.jinja"}, environ={})
    assert caught.value.key == "--chat-template"
