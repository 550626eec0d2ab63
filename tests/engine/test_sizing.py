"""Memory and fit: the arithmetic, the report, and errors that say what would fit."""

from __future__ import annotations

import re

import pytest
from shoal.engine import sizing
from shoal.engine.config import EngineConfig
from shoal.engine.errors import ConfigError
from shoal.engine.plan import CacheSpec
from shoal.engine.sizing import Footprint, Memory
from shoal.kernels.gpu.room import Room

GIB = 1 << 30
STEP = 512
FULL, WINDOW = CacheSpec(8, 128), CacheSpec(8, 128, 4096)


def footprint(**changes):
    values = {
        "weight_bytes": GIB,
        "specs": (FULL,) * 28,
        "width": sizing.token_width(1024, 3072, 16, 8, 128),
        "vocab_size": 151_936,
        "max_model_len": 8192,
        "itemsize": 2,
    }
    return Footprint(**values | changes)


def memory(gib, **changes):
    values = {"total": 24 * GIB, "free": int(gib * GIB), "source": "RAM"}
    return Memory(**values | changes)


def size(mem=None, shape=None, block_size=32, **config):
    config = EngineConfig(**{"max_num_seqs": 16} | config)
    return sizing.size(config, shape or footprint(), mem or memory(16), block_size, STEP)


def test_layers_of_equal_spec_form_a_group():
    groups, of = sizing.group_layers([WINDOW, FULL, WINDOW, WINDOW, FULL])
    assert groups == (WINDOW, FULL) and of == (0, 1, 0, 0, 1)


def test_the_cache_takes_the_stated_share_of_free_memory():
    found = size(cpu_memory_share=0.25)
    shape, config = footprint(), EngineConfig(max_num_seqs=16)
    each = sizing.block_bytes(shape, 32)
    assert each == 2 * 28 * 8 * 128 * 32 * 2
    spare = 16 * GIB - GIB - sizing.activation_bytes(config, shape, 8192, STEP, host=True)
    assert found.num_blocks == int(spare * 0.25) // each
    assert found.max_model_len == 8192 and found.block_size == 32


def test_sharers_part_the_memory():
    alone, shared = size(memory(12)), size(memory(24), memory_sharers=2)
    assert shared.num_blocks == alone.num_blocks


def test_an_engine_that_comes_back_beside_its_siblings_fits():
    """Three of four have taken their weights and caches: what is free is no longer parted."""
    shape = footprint(weight_bytes=3 * GIB)
    found = size(memory(7), shape, memory_sharers=4)
    assert found.num_blocks == size(memory(24), shape, memory_sharers=4).num_blocks
    with pytest.raises(ConfigError, match=r"shared by 8 engines"):
        size(memory(7), shape, memory_sharers=8)


def test_cuda_takes_a_share_of_what_is_free_weights_included():
    mem = memory(80, total=80 * GIB, source="a GPU", host=False)
    found = size(mem, max_num_seqs=256, gpu_memory_utilization=0.5)
    shape, config = footprint(), EngineConfig(max_num_seqs=256)
    cache = 40 * GIB - GIB - sizing.activation_bytes(config, shape, 8192, STEP, host=False)
    assert found.num_blocks == cache // sizing.block_bytes(shape, 32)
    labels = dict(found.table)
    assert "gpu_memory_utilization" not in labels and "50%" in labels["KV cache"]


def test_a_gpu_has_room_for_the_scores_of_prompts():
    """They take as many rows as a step has tokens, however few sequences there are."""

    def needed(max_num_seqs, vocab_size, host):
        given = (EngineConfig(max_num_seqs=max_num_seqs), footprint(vocab_size=vocab_size))
        return sizing.activation_bytes(*given, 8192, STEP, host=host)

    logits = STEP * 1000 * 4
    assert needed(1, 1000, False) - needed(1, 0, False) == 6 * logits
    assert needed(64, 1000, False) == needed(1, 1000, False)
    assert needed(1, 10**6, False) - needed(1, 0, False) == 6 * sizing.PIECE_BYTES
    assert needed(1, 1000, True) - needed(1, 0, True) == 4 * 1000 * 4


def test_what_attention_keeps_is_counted_twice_and_a_workspace_once():
    config = EngineConfig(max_num_seqs=200)
    plain, shape = footprint(), footprint(room=Room(of_split=1000, fixed=7))
    without, found = (
        sizing.activation_bytes(config, each, 8192, STEP, host=False) for each in (plain, shape)
    )
    assert found - without == 2 * 256 * 20 * 1000 + 7


def test_no_more_blocks_than_could_be_of_use():
    found = size(memory(20), max_num_seqs=2, max_model_len=1000)
    assert found.num_blocks == 2 * (2 * 32 + 1)


def test_explicit_sizes_are_kept_to_the_block():
    each = sizing.block_bytes(footprint(), 32)
    assert size(kv_cache_memory_bytes=300 * each + 5).num_blocks == 300
    both = size(kv_cache_memory_bytes=300 * each, num_gpu_blocks_override=400)
    assert both.num_blocks == 400


def test_the_table_says_it_all():
    found = size(max_num_seqs=400, max_model_len=4096)
    table = dict(found.table)
    assert table["weights"] == "1.00 GiB"
    assert table["KV cache a token"] == "112.0 KiB"
    assert table["KV blocks"] == f"{found.num_blocks:,} of 32 tokens"
    assert float(table["sequences of 4,096 tokens at once"]) == pytest.approx(
        (found.num_blocks - 1) / 128, abs=0.06
    )
    assert "40% of free RAM (cpu_memory_share)" in table["KV cache"]
    assert table["gpu_memory_utilization"] == "unused on CPUs"
    assert "16.00 GiB of 24.00 GiB RAM free" in table["memory"]


def test_no_more_sequences_at_once_than_are_allowed():
    found = size(max_num_seqs=3, max_model_len=4096)
    assert dict(found.table)["sequences of 4,096 tokens at once"] == "3.0"


def test_groups_are_listed_where_layers_differ():
    found = size(shape=footprint(specs=(FULL, WINDOW, WINDOW)))
    lines = [value for label, value in found.table if label.startswith("  group")]
    assert lines == [
        "1 layer, 8 heads of 128, all tokens",
        "2 layers, 8 heads of 128, the last 4,096 tokens",
    ]


def suggestion(error, pattern):
    found = re.search(pattern, str(error))
    assert found, str(error)
    return int(found[1])


@pytest.mark.parametrize("host", [True, False])
def test_too_little_memory_names_what_would_fit_and_it_does(host):
    mem = memory(4, host=host, holders=("pid 7 (other) holds 3 GiB",))
    shape = footprint(max_model_len=131_072)
    with pytest.raises(ConfigError) as error:
        size(mem, shape)
    assert error.value.key == "max_model_len" and "pid 7 (other)" in str(error.value)
    fits = suggestion(error.value, r"lower max_model_len to (\d+)")
    assert size(mem, shape, max_model_len=fits).num_blocks >= fits // 32 + 1
    with pytest.raises(ConfigError):
        size(mem, shape, max_model_len=fits + 32)


def test_the_cache_size_that_is_suggested_holds_one_sequence():
    shape = footprint(max_model_len=65_536)
    with pytest.raises(ConfigError) as error:
        size(memory(12), shape, cpu_memory_share=0.1)
    enough = suggestion(error.value, r"kv_cache_memory_bytes=(\d+)")
    found = size(memory(12), shape, kv_cache_memory_bytes=enough)
    assert found.num_blocks == 65_536 // 32 + 1
    with pytest.raises(ConfigError) as error:
        size(memory(12), shape, kv_cache_memory_bytes=enough - 1)
    assert suggestion(error.value, r"raise kv_cache_memory_bytes to (\d+)") == enough


def test_an_override_that_holds_too_little_says_how_many_blocks_do():
    with pytest.raises(ConfigError) as error:
        size(num_gpu_blocks_override=100)
    assert suggestion(error.value, r"num_gpu_blocks_override to (\d+)") == 257
    assert suggestion(error.value, r"max_model_len to (\d+)") == 99 * 32


@pytest.mark.parametrize(
    "config", [{"kv_cache_memory_bytes": 20 * GIB}, {"num_gpu_blocks_override": 10_000}]
)
def test_an_explicit_cache_beyond_the_free_memory_is_refused(config):
    with pytest.raises(ConfigError, match="are free") as error:
        size(memory(16), **config)
    assert error.value.key == next(iter(config))


@pytest.mark.parametrize("host", [True, False])
def test_weights_that_do_not_fit_are_refused(host):
    with pytest.raises(ConfigError, match="weights and activations take") as error:
        size(memory(16, host=host), footprint(weight_bytes=30 * GIB))
    assert error.value.key == "model"


def test_the_length_is_the_models_own_unless_lowered():
    with pytest.raises(ConfigError, match="more than the model can do \\(8192\\)"):
        size(max_model_len=9000)
    assert size(max_model_len=100).max_model_len == 100


def test_a_tiny_model_asks_for_little():
    tiny = footprint(
        weight_bytes=11 << 20,
        specs=(CacheSpec(2, 32),) * 6,
        width=sizing.token_width(192, 512, 6, 2, 32),
        vocab_size=2048,
        max_model_len=2048,
        itemsize=4,
    )
    assert sizing.activation_bytes(EngineConfig(), tiny, 2048, STEP, host=True) < 64 << 20
    assert size(memory(2), tiny, max_num_seqs=256).num_blocks > 64
