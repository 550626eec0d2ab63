"""Every flag that vLLM has or had means something here: ours, renamed, idle or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from shoal.cluster.config import keys
from shoal.cluster.flags import parse
from shoal.cluster.names import IDLE, NOT_BUILT, RENAMED, SHORT
from shoal.cluster.settings import plain, serve_config, target
from shoal.engine import names as engine_names
from shoal.engine import unbuilt as engine_unbuilt
from shoal.engine.config import engine_keys, from_keys
from shoal.engine.errors import ConfigError
from shoal.engine.names import Foreign

LISTED = [
    line.split()
    for line in (Path(__file__).parent / "vllm_flags.txt").read_text().splitlines()
    if not line.startswith("#")
]
LONG = [plain(flag) for flag, _ in LISTED if flag.startswith("--")]
SHORTS = [flag for flag, _ in LISTED if not flag.startswith("--")]
HELD_BY_THE_COMMAND = {"config"}


def homes(name: str) -> list[str]:
    """The tables that hold a name."""
    tables = {"ours": keys(), "renamed": RENAMED, "idle": IDLE, "refused": NOT_BUILT}
    return [home for home, table in tables.items() if name in table]


@pytest.mark.parametrize("name", [name for name in LONG if name not in HELD_BY_THE_COMMAND])
def test_a_flag_of_vllm_has_one_meaning(name: str) -> None:
    assert len(homes(name)) == 1, f"{name} is in {homes(name) or 'no table'}"


def test_the_short_flags_are_vllms() -> None:
    assert {*SHORT, "-c"} == {*SHORTS, "-c"}
    assert all(plain(flag) in LONG for flag in SHORT.values())


def test_what_the_tables_hold_beside_vllms_flags() -> None:
    """YAML keys of old, and nothing that is misspelt."""
    ours = {"model_tag", "use_cuda_graph", "disable_async_scheduling"}
    assert {*RENAMED, *IDLE, *NOT_BUILT} - {*LONG} == ours


def test_renamed_keys_lead_to_keys() -> None:
    assert {target(name) for name in RENAMED} <= set(keys())


def test_no_key_of_the_engine_is_held_twice() -> None:
    foreign = {*engine_names.IDLE, *engine_unbuilt.NOT_BUILT}
    assert not foreign & set(engine_keys())
    assert not set(engine_names.IDLE) & set(engine_unbuilt.NOT_BUILT)


@pytest.mark.parametrize("name", sorted(NOT_BUILT))
def test_what_is_refused_says_why_and_takes_its_off_value(name: str) -> None:
    refused = NOT_BUILT[name]
    for off in (None, *refused.off):
        assert serve_config({name: off}, {}) == serve_config({}, {})
    asked = "somewhat"
    if refused.kind is bool:
        asked = str(False in refused.off).lower()
    with pytest.raises(ConfigError, match="cannot be kept") as caught:
        serve_config({name: asked}, {})
    assert refused.why in caught.value.message
    assert caught.value.key == name


@pytest.mark.parametrize("name", sorted(IDLE))
def test_what_is_idle_is_taken_as_a_flag(name: str) -> None:
    flag = f"--{name.replace('_', '-')}"
    line = [flag] if IDLE[name].kind is bool else [flag, "7"]
    settings = parse([*line, "--port", "1"]).settings
    assert list(settings) == [flag, "--port"]
    assert serve_config(settings, {}) == serve_config({"port": 1}, {})


@pytest.mark.parametrize(
    ("value", "asks"),
    [
        (None, False),
        ("none", False),
        ("{}", False),
        ({}, False),
        ("4", False),
        (4.0, False),
        ("4.0", False),
        (5, True),
        ("x", True),
        (True, True),
    ],
)
def test_a_value_asks_for_something_or_not(value: object, asks: bool) -> None:
    assert Foreign("", str, (4, "lru")).asks(value) is asks
    assert not Foreign("", str, (4, "lru")).asks("LRU")


def test_llm_takes_what_old_scripts_give_it(caplog: pytest.LogCaptureFixture) -> None:
    config = from_keys({"model": "m", "swap_space": 8, "worker_use_ray": False, "max_loras": 1})
    assert config == from_keys({"model": "m"})
    assert caplog.messages == [
        "swap_space=8 changes nothing: preempted requests are recomputed, never swapped"
    ]
    with pytest.raises(ConfigError, match=r"quantization='awq' cannot be kept: quantized"):
        from_keys({"model": "m", "quantization": "awq"})
