"""Keys of vLLM's engine that EngineConfig does not hold, and what each means here.

Those that change nothing are below, those that are refused in `unbuilt.py`; each stands with the
value that vLLM itself gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Foreign(NamedTuple):
    """A key that no setting holds: what is said of it, and the values that ask for nothing.

    `kind` is how its flag takes words: bool none, str one, list all up to the next flag.
    """

    why: str
    kind: type
    off: tuple[object, ...]

    def asks(self, value: object) -> bool:
        """Whether `value`, which may be text, asks for something."""
        said = str(value).strip().lower()
        if said in ("none", "null", "", "{}", "[]", "()"):
            return False
        return all(said != str(off).lower() and not _equal(said, off) for off in self.off)


def _equal(said: str, off: object) -> bool:
    try:
        return isinstance(off, (int, float)) and float(said) == float(off)
    except ValueError:
        return False


def because(why: str, **off: object) -> dict[str, Foreign]:
    """The keys of which `why` holds, each with the value that asks for nothing.

    A set stands for several such values, () for a flag of several words.
    """
    return {name: _foreign(why, value) for name, value in off.items()}


def _foreign(why: str, off: object) -> Foreign:
    if isinstance(off, (set, frozenset)):
        return Foreign(why, str, tuple(sorted(off, key=str)))
    if off == ():
        return Foreign(why, list, ())
    kind = bool if isinstance(off, bool) else str
    return Foreign(why, kind, () if off is None else (off,))


IDLE: Mapping[str, Foreign] = {
    **because("statistics are on /metrics, never in the log", disable_log_stats=False),
    **because("each replica logs for itself", aggregate_engine_logging=False),
    **because(
        "preempted requests are recomputed, never swapped", swap_space=4, preemption_mode=None
    ),
    **because("there is one block manager", use_v2_block_manager=False),
    **because("ranks are always placed by Ray; --local does without it", worker_use_ray=False),
    **because("engines are always placed by Ray; --local does without it", engine_use_ray=False),
    **because(
        "steps are recorded when one of their size is met, up to --max-num-seqs rows",
        max_context_len_to_capture=None,
        max_seq_len_to_capture=8192,
        max_cudagraph_capture_size=None,
        cudagraph_capture_sizes=(),
        cuda_graph_sizes=(),
    ),
    **because(
        "a step makes one token a sequence", num_scheduler_steps=1, multi_step_stream_outputs=True
    ),
    **because("speculative decoding is not built, so no slots are kept", num_lookahead_slots=0),
    **because("a request waits for room, not for time", scheduler_delay_factor=0),
    **because("CUDA graphs pad rows to a power of two; no other step is padded", max_paddings=None),
    **because(
        "the token budget of --max-num-batched-tokens alone bounds a step",
        max_num_partial_prefills=1,
        max_long_partial_prefills=1,
    ),
    **because("results are read beside the next step", disable_async_output_proc=False),
    **because(
        "each rank reads its own part of the weights",
        max_parallel_loading_workers=None,
        safetensors_prefetch_num_threads=None,
        safetensors_prefetch_block_size=None,
    ),
    **because("loading always shows its progress", use_tqdm_on_load=True),
    **because("weights in numpy's own format are not kept", use_np_weights=False),
    **because(
        "there is no such kernel to switch off",
        disable_custom_all_reduce=False,
        disable_cascade_attn=False,
        disable_nccl_for_dp_synchronization=False,
    ),
    **because(
        "layers that cache differently always have block lists of their own",
        disable_hybrid_kv_cache_manager=False,
    ),
    **because("a block's key is always a 128-bit digest", prefix_caching_hash_algo="sha256"),
    **because(
        "text is tokenized once, by the gateway",
        tokenizer_pool_size=0,
        tokenizer_pool_type="ray",
        tokenizer_pool_extra_config=None,
        renderer_num_workers=1,
        intial_incremental_detokenization_offset=5,
    ),
    **because(
        "images, audio and video are not built, so nothing of them is kept",
        disable_mm_preprocessor_cache=False,
        disable_chunked_mm_input=False,
        skip_mm_profiling=False,
    ),
    **because(
        "structured output is not built; requests that ask for it are refused",
        guided_decoding_backend="auto",
        guided_decoding_disable_fallback=False,
        guided_decoding_disable_any_whitespace=False,
        guided_decoding_disable_additional_properties=False,
    ),
    **because(
        "what Triton compiles on a GPU is not watched",
        jit_monitor_mode="warn",
        jit_monitor_verbose=False,
    ),
    **because("workers run without a profiler", ray_workers_use_nsight=False),
}
"""Keys that are taken and change nothing, many of them dropped by vLLM itself."""
