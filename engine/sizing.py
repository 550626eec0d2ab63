"""Memory and fit: how many KV blocks there are, worked out once, from plain numbers.

The same functions serve a plan made before anything is loaded and the start of an engine, so that
both say the same. Nothing here touches a device.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from ..kernels.gpu.room import NONE as NO_ROOM
from ..kernels.gpu.room import Room, num_splits
from .config import EngineConfig
from .errors import ConfigError
from .plan import CacheSpec

PIECE_BYTES = 256 << 20
"""Most bytes of float32 logits held at once: longer lists of rows are done in pieces."""

_COPIES_ON_CPU = 4
_COPIES_ON_GPU = 6
"""Logits, what is kept of them, and what sampling derives, at once: finding the top ones of a row
takes three copies on a GPU, which orders integers of 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """A device's memory in bytes.

    `source` says what bounds it, `holders` which other processes have some of it. `host`: it is the
    machine's own RAM, which other programs need too.
    """

    total: int
    free: int
    source: str
    host: bool = True
    holders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What of a model decides its memory.

    `specs`: a layer each. `width`: the most elements a token has alive at once inside a layer.
    `max_model_len`: the model's own. `itemsize`: bytes of an element of weights and cache. `room`:
    what attention takes beside its results.
    """

    weight_bytes: int
    specs: tuple[CacheSpec, ...]
    width: int
    vocab_size: int
    max_model_len: int
    itemsize: int
    room: Room = NO_ROOM


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """How the memory is spent. `table` is the report, label and value a line."""

    num_blocks: int
    block_size: int
    max_model_len: int
    step_tokens: int
    table: tuple[tuple[str, str], ...]


def group_layers(specs: Sequence[CacheSpec]) -> tuple[tuple[CacheSpec, ...], tuple[int, ...]]:
    """The cache groups, in order of their first layer, and each layer's group."""
    groups = tuple(dict.fromkeys(specs))
    return groups, tuple(groups.index(spec) for spec in specs)


def token_width(hidden: int, intermediate: int, heads: int, kv_heads: int, head_size: int) -> int:
    """Elements that a token has alive at once inside a transformer layer, at most.

    Residual, its norm and a sum; then queries, keys, values and output of attention, or the two
    halves of the feed-forward layer and their product: the greater of the two.
    """
    attention = (2 * heads + 2 * kv_heads) * head_size
    return 3 * hidden + max(attention, 3 * intermediate)


def block_bytes(footprint: Footprint, block_size: int) -> int:
    """Bytes of one block id: its keys and values in every layer."""
    elements = sum(spec.num_kv_heads * spec.head_size for spec in footprint.specs)
    return 2 * elements * block_size * footprint.itemsize


def activation_bytes(
    config: EngineConfig,
    footprint: Footprint,
    max_model_len: int,
    step_tokens: int,
    *,
    host: bool,
) -> int:
    """A bound on what a step needs beside weights and cache, in a machine's own RAM (`host`) or on
    a GPU.

    Every token of the budget at its widest in float32; the logits of the sampled rows, on a GPU of
    all tokens, as where prompts are scored, with what is derived from them (of RAM the cache leaves
    a share that holds this); as plain attention gathers them, the keys and values that one layer
    has of the longest sequence; and attention's own room.
    """
    tokens = step_tokens * footprint.width * 4
    rows, copies = (config.max_num_seqs, _COPIES_ON_CPU) if host else (step_tokens, _COPIES_ON_GPU)
    logits = min(rows * footprint.vocab_size * 4, PIECE_BYTES) * copies
    widest = max(spec.num_kv_heads * spec.head_size for spec in footprint.specs)
    gathered = 2 * max_model_len * widest * footprint.itemsize
    return tokens + logits + gathered + _room_bytes(config, footprint.room, max_model_len)


def _room_bytes(config: EngineConfig, room: Room, max_model_len: int) -> int:
    """Attention's own room: partial sums twice, for steps that run op by op and for CUDA graphs,
    whose memory is theirs and whose rows are a power of 2.
    """
    sequences = 1 << (config.max_num_seqs - 1).bit_length()
    return 2 * sequences * num_splits(max_model_len) * room.of_split + room.fixed


def size(
    config: EngineConfig,
    footprint: Footprint,
    memory: Memory,
    block_size: int,
    step_tokens: int,
) -> Sizing:
    """How many blocks an engine gets, given the memory that is free before its weights are loaded.

    `step_tokens`: the most that a step computes.

    Raises ConfigError with the numbers and what would fit.
    """
    length = _max_model_len(config, footprint)
    each = block_bytes(footprint, block_size)
    activations = activation_bytes(config, footprint, length, step_tokens, host=memory.host)
    budget = _budget(config, memory, footprint.weight_bytes + activations, step_tokens)
    num_blocks = _num_blocks(config, budget, each, -(-length // block_size))
    if num_blocks * each > budget.spare:
        raise _no_room(config, memory, footprint, budget, num_blocks * each)
    if num_blocks < -(-length // block_size) + 1:
        fits = _longest(config, footprint, memory, block_size, length, step_tokens)
        raise _too_short(config, memory, budget, num_blocks, length, block_size, each, fits)
    return Sizing(
        num_blocks=num_blocks,
        block_size=block_size,
        max_model_len=length,
        step_tokens=step_tokens,
        table=_table(config, footprint, memory, activations, num_blocks, block_size, length),
    )


def _num_blocks(config: EngineConfig, budget: _Budget, each: int, longest: int) -> int:
    """Blocks of `each` bytes, where a sequence has `longest` of them at most."""
    if config.num_gpu_blocks_override is not None:
        return config.num_gpu_blocks_override
    if config.kv_cache_memory_bytes is not None:
        return config.kv_cache_memory_bytes // each
    useful = config.max_num_seqs * longest + 1
    return min(max(0, budget.cache) // each, 2 * useful)


def _longest(
    config: EngineConfig,
    footprint: Footprint,
    memory: Memory,
    block_size: int,
    length: int,
    step_tokens: int,
) -> int:
    """The greatest multiple of a block, below `length`, that would fit."""
    each = block_bytes(footprint, block_size)

    def too_long(blocks: int) -> bool:
        length = blocks * block_size
        longest = activation_bytes(config, footprint, length, step_tokens, host=memory.host)
        fixed = footprint.weight_bytes + longest
        left = _left(config, memory, fixed)
        return _num_blocks(config, left, each, blocks) < blocks + 1

    candidates = range(1, -(-length // block_size))
    return block_size * bisect.bisect_left(candidates, True, key=too_long)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Budget:
    """Bytes left for the cache: `cache` by the configured share, `spare` at the very most."""

    cache: int
    spare: int
    rule: str


def _left(config: EngineConfig, memory: Memory, fixed: int) -> _Budget:
    """What is left, perhaps nothing, once `fixed` bytes of weights and activations are taken.

    An engine's part follows from the whole memory, not from what is free: one that comes back
    beside its siblings finds theirs taken already.
    """
    mine = min(memory.free, memory.total // config.sharers)
    spare = mine - fixed
    if memory.host:
        cache, rule = int(spare * config.cpu_memory_share), "cpu_memory_share"
    else:
        cache, rule = int(mine * config.gpu_memory_utilization) - fixed, "gpu_memory_utilization"
    return _Budget(cache=cache, spare=spare, rule=rule)


def _budget(config: EngineConfig, memory: Memory, fixed: int, step_tokens: int) -> _Budget:
    """What is left for the cache. Raises ConfigError where the rest does not fit."""
    left = _left(config, memory, fixed)
    if left.spare <= 0 or (left.cache <= 0 and _automatic(config)):
        bound = left.spare + fixed
        if not memory.host:
            bound = int(bound * config.gpu_memory_utilization)
        raise ConfigError(
            f"weights and activations take {_bytes(fixed)}, and {_bytes(bound)} can be had "
            f"({_having(config, memory)}); use a smaller model or dtype, lower "
            f"max_num_batched_tokens ({step_tokens}) or max_num_seqs "
            f"({config.max_num_seqs}), or free memory",
            "model",
        )
    return left


def _automatic(config: EngineConfig) -> bool:
    return config.kv_cache_memory_bytes is None and config.num_gpu_blocks_override is None


def _max_model_len(config: EngineConfig, footprint: Footprint) -> int:
    own = footprint.max_model_len
    if config.max_model_len is None:
        return own
    if config.max_model_len > own:
        raise ConfigError(
            f"max_model_len ({config.max_model_len}) is more than the model can do ({own}); "
            f"use {own} or less",
            "max_model_len",
        )
    return config.max_model_len


def _no_room(
    config: EngineConfig, memory: Memory, footprint: Footprint, budget: _Budget, asked: int
) -> ConfigError:
    """An explicit cache size that the memory does not hold."""
    key = "kv_cache_memory_bytes" if config.num_gpu_blocks_override is None else None
    key = key or "num_gpu_blocks_override"
    return ConfigError(
        f"{key}={getattr(config, key)} asks for a KV cache of {_bytes(asked)}, and beside the "
        f"weights ({_bytes(footprint.weight_bytes)}) and activations only {_bytes(budget.spare)} "
        f"are free ({_having(config, memory)}); ask for less",
        key,
    )


def _too_short(
    config: EngineConfig,
    memory: Memory,
    budget: _Budget,
    num_blocks: int,
    length: int,
    block_size: int,
    each: int,
    fits: int,
) -> ConfigError:
    """A cache that does not hold one sequence of the greatest length."""
    needed = -(-length // block_size) + 1
    if config.num_gpu_blocks_override is not None:
        has, more = (
            f"num_gpu_blocks_override gives {num_blocks}",
            (f"raise num_gpu_blocks_override to {needed}"),
        )
    elif config.kv_cache_memory_bytes is not None:
        has, more = (
            f"kv_cache_memory_bytes={config.kv_cache_memory_bytes} gives {num_blocks}",
            (f"raise kv_cache_memory_bytes to {needed * each}"),
        )
    else:
        share = getattr(config, budget.rule)
        has = f"{budget.rule}={share} of the free memory gives {num_blocks}"
        more = f"raise {budget.rule}, or set kv_cache_memory_bytes={needed * each}"
        if needed * each > budget.spare:
            more = f"free memory ({_bytes(needed * each)} are needed for the cache)"
    shorter = f"lower max_model_len to {fits}, or " if fits else ""
    return ConfigError(
        f"one sequence of max_model_len={length} tokens needs {needed} KV blocks of {block_size} "
        f"({_bytes(needed * each)}), and {has} ({_bytes(num_blocks * each)}; "
        f"{_having(config, memory)}); {shorter}{more}",
        "max_model_len",
    )


def _having(config: EngineConfig, memory: Memory) -> str:
    """The memory in words, with who else holds some of it."""
    words = f"{_bytes(memory.free)} of {_bytes(memory.total)} {memory.source} free"
    if config.sharers > 1:
        words += f", shared by {config.sharers} engines"
    return words + "".join(f"; {holder}" for holder in memory.holders)


def _table(
    config: EngineConfig,
    footprint: Footprint,
    memory: Memory,
    activations: int,
    num_blocks: int,
    block_size: int,
    length: int,
) -> tuple[tuple[str, str], ...]:
    each = block_bytes(footprint, block_size)
    concurrency = min((num_blocks - 1) / -(-length // block_size), config.max_num_seqs)
    lines = [
        ("memory", _having(config, memory)),
        ("weights", _bytes(footprint.weight_bytes)),
        ("activations, at most", _bytes(activations)),
        ("KV cache a token", _bytes(each // block_size)),
        ("KV cache", f"{_bytes(num_blocks * each)}, {_rule(config, memory)}"),
        ("KV blocks", f"{num_blocks:,} of {block_size} tokens"),
        (f"sequences of {length:,} tokens at once", f"{concurrency:.1f}"),
    ]
    groups, group_of = group_layers(footprint.specs)
    if len(groups) > 1:
        lines[4:4] = [
            (f"  group {index}", _group(spec, group_of.count(index)))
            for index, spec in enumerate(groups)
        ]
    if memory.host:
        lines.append(("gpu_memory_utilization", "unused on CPUs"))
    return tuple(lines)


def _group(spec: CacheSpec, layers: int) -> str:
    seen = "all tokens" if spec.window is None else f"the last {spec.window:,} tokens"
    return (
        f"{layers} layer{'s'[: layers > 1]}, {spec.num_kv_heads} heads of {spec.head_size}, {seen}"
    )


def _rule(config: EngineConfig, memory: Memory) -> str:
    if config.num_gpu_blocks_override is not None:
        return "num_gpu_blocks_override"
    if config.kv_cache_memory_bytes is not None:
        return "kv_cache_memory_bytes"
    if memory.host:
        return f"at most {config.cpu_memory_share:.0%} of free RAM (cpu_memory_share)"
    return f"within {config.gpu_memory_utilization:.0%} of free memory (gpu_memory_utilization)"


def _bytes(count: int) -> str:
    """Bytes as people read them."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"
