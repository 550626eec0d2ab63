"""What environment variables set, and that each of vLLM's is named once."""

from __future__ import annotations

import pytest
from shoal.cluster.environment import MEANINGS, READ, from_environment, named
from shoal.cluster.resolve import resolve
from shoal.cluster.settings import serve_config
from shoal.engine.errors import ConfigError


def test_variables_that_set_a_key() -> None:
    environ = {
        "VLLM_API_KEY": "a, b",
        "SHOAL_LOG_DIR": "/logs",
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "VLLM_CPU_KVCACHE_SPACE": "1.5",
    }
    config = serve_config({}, environ)
    assert (config.api_key, config.log_dir) == (("a", "b"), "/logs")
    assert config.uvicorn_log_level == "debug"
    assert config.models[0].engine.kv_cache_memory_bytes == 3 * 2**29


def test_shoals_own_variable_counts_before_vllms_and_a_setting_before_both() -> None:
    environ = {"VLLM_API_KEY": "v", "SHOAL_API_KEY": "s", "VLLM_LOGGING_LEVEL": "error"}
    assert serve_config({}, environ).api_key == ("s",)
    assert serve_config({"uvicorn_log_level": "info"}, environ).uvicorn_log_level == "info"


@pytest.mark.parametrize("unset", [{}, {"VLLM_API_KEY": ""}, {"VLLM_CPU_KVCACHE_SPACE": "0"}])
def test_an_empty_variable_is_not_set(unset: dict[str, str]) -> None:
    assert serve_config({}, unset) == serve_config({}, {})


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("VLLM_CPU_KVCACHE_SPACE", "lots", "is 'lots'; expected a number of GiB"),
        ("VLLM_CPU_KVCACHE_SPACE", "-1", "0 or more"),
        ("VLLM_CPU_KVCACHE_SPACE", "inf", "expected a number of GiB"),
        ("VLLM_LOGGING_LEVEL", "loud", "expected one of critical, error"),
    ],
)
def test_a_wrong_value_names_the_variable(variable: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        serve_config({}, {variable: value})
    assert caught.value.key == variable
    assert caught.value.message.startswith(variable) and said in caught.value.message


def test_each_variable_of_vllms_is_named_once_and_no_value_is_shown() -> None:
    environ = dict.fromkeys(
        [*READ, *MEANINGS, "VLLM_PORT_8000_TCP", "VLLM_ROCM_USE_AITER", "VLLM_NEW", "HOME"], "5551"
    )
    lines = list(named(environ))
    for variable in environ:
        own = [line for line in lines if line.startswith((f"{variable}:", f"{variable} "))]
        assert len(own) == (not variable.startswith("SHOAL_") and variable != "HOME"), variable
    assert "5551" not in "".join(lines)
    assert "VLLM_NEW: nothing here reads it" in lines
    assert "VLLM_API_KEY is read: it is --api-key" in lines
    assert "VLLM_PORT_8000_TCP: Kubernetes sets it for a service called vllm" in lines
    assert not list(named({"VLLM_PORT": "", "PATH": "/"}))


def test_the_patterns_end_with_all_of_vllms() -> None:
    assert from_environment({}) == {}
    assert resolve([], {"VLLM_ANY": "1", "DO_NOT_TRACK": "1"}).remarks == (
        "DO_NOT_TRACK: nothing is ever sent home",
        "VLLM_ANY: nothing here reads it",
    )
