"""Environment variables: those that set a key, and what vLLM's mean here.

Each that is set is named once at start. A variable counts as set when it is not empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from ..engine.errors import ConfigError


class Setting(NamedTuple):
    """What a variable gives to a key."""

    value: object
    variable: str


def _parts(text: str) -> tuple[str, ...]:
    return tuple(filter(None, (part.strip() for part in text.split(","))))


def _gibibytes(text: str) -> int | None:
    """0 is vLLM's word for its own default."""
    try:
        num_bytes = int(float(text) * 2**30)
    except (ValueError, OverflowError):
        raise ValueError("a number of GiB") from None
    if num_bytes < 0:
        raise ValueError("a number of GiB, 0 or more")
    return num_bytes or None


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number of seconds") from None


def _switch(text: str) -> bool:
    if text.strip().lower() not in ("0", "1", "true", "false"):
        raise ValueError("0 or 1")
    return text.strip().lower() in ("1", "true")


READ: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "SHOAL_API_KEY": ("api_key", _parts),
    "VLLM_API_KEY": ("api_key", _parts),
    "SHOAL_LOG_DIR": ("log_dir", str),
    "VLLM_LOGGING_LEVEL": ("uvicorn_log_level", str),
    "VLLM_PP_LAYER_PARTITION": ("pipeline_layer_partition", str),
    "VLLM_CPU_KVCACHE_SPACE": ("kv_cache_memory_bytes", _gibibytes),
    "VLLM_ENGINE_READY_TIMEOUT_S": ("load_timeout", _seconds),
    "VLLM_ATTENTION_BACKEND": ("attention_backend", str),
    "VLLM_BATCH_INVARIANT": ("deterministic", _switch),
}
"""Variables that set a key, with how their text is read; of two for one key the first counts."""

_ONE_ENGINE = "there is one engine, and one scheduler"
_RAY = "Ray places and starts every process"
_HOME = "nothing is ever sent home"
_SERVER_PORT = "it never was the server's port; that is --port"
_KERNELS = "the kernels choose by device"
_TRACES = "tracing and profiling are not built yet"

MEANINGS: Mapping[str, str] = {
    "VLLM_USE_MODELSCOPE": "as SHOAL_USE_MODELSCOPE, it says whether models come from ModelScope",
    "VLLM_PORT": _SERVER_PORT,
    "VLLM_HOST_IP": "a node's address is Ray's (`ray start --node-ip-address`), "
    "the server's is --host",
    "VLLM_WORKER_MULTIPROC_METHOD": _RAY,
    "VLLM_ENABLE_V1_MULTIPROCESSING": _RAY,
    "VLLM_USE_RAY_SPMD_WORKER": _RAY,
    "VLLM_USE_RAY_COMPILED_DAG": "plans never travel through Ray",
    "VLLM_USE_V1": _ONE_ENGINE,
    "VLLM_USE_V2_MODEL_RUNNER": _ONE_ENGINE,
    "VLLM_CPU_OMP_THREADS_BIND": "threads are counted by --threads and not bound to cores",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "--threads says how many cores an engine uses",
    "VLLM_CACHE_ROOT": "models are kept by the hub (HF_HOME, --download-dir); nothing else is",
    "VLLM_CONFIG_ROOT": "there is no such folder; --config FILE reads one file",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "--max-model-len never exceeds what the model can do",
    "VLLM_NO_USAGE_STATS": _HOME,
    "VLLM_DO_NOT_TRACK": _HOME,
    "DO_NOT_TRACK": _HOME,
    "VLLM_USAGE_SOURCE": _HOME,
    "VLLM_USAGE_STATS_SERVER": _HOME,
    "VLLM_CONFIGURE_LOGGING": "logs are set by --log-dir and --uvicorn-log-level",
    "VLLM_LOGGING_CONFIG_PATH": "logs are set by --log-dir and --uvicorn-log-level",
    "VLLM_LOG_STATS_INTERVAL": "statistics are on /metrics, never in the log",
    "VLLM_TRACE_FUNCTION": _TRACES,
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "an idle connection is kept for 75 s",
    "VLLM_ENGINE_ITERATION_TIMEOUT_S": "--stall-timeout says when an engine is given up",
    "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "--stall-timeout says when an engine is given up",
    "VLLM_RPC_TIMEOUT": "a replica that does not answer is left out by the gateway",
    "VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS": "--shutdown-timeout bounds how long streams may end",
    "VLLM_ALL2ALL_BACKEND": "--all2all-backend; experts are not spread over ranks yet",
    "VLLM_KV_CACHE_LAYOUT": _KERNELS,
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "an engine that died is replaced by Ray Serve",
    "VLLM_DP_SIZE": "--replicas makes several copies of a model",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "--enable-lora; LoRA adapters are not built yet",
    "VLLM_PLUGINS": "code from elsewhere is not run inside shoal",
    "VLLM_SERVER_DEV_MODE": "there are no routes for development",
    "VLLM_SLEEP_WHEN_IDLE": "an idle engine always sleeps",
    "VLLM_USE_PRECOMPILED": "it is of vLLM's own installation",
    "VLLM_TARGET_DEVICE": "it is of vLLM's own installation; --device chooses here",
}
"""Variables that set no key, and what is said of them."""

PATTERNS: Mapping[str, str] = {
    "VLLM_SERVICE_": "Kubernetes sets it for a service called vllm",
    "VLLM_PORT_": "Kubernetes sets it for a service called vllm",
    "VLLM_CPU_": "the CPU's kernels are set by --threads and --cpu-memory-share alone",
    "VLLM_ROCM_": "AMD's GPUs compute with the same Triton kernels as NVIDIA's",
    "VLLM_TPU_": "TPUs are not served",
    "VLLM_XLA_": "TPUs are not served",
    "VLLM_HPU_": "Gaudi is not served",
    "VLLM_XPU_": "Intel's GPUs are not served",
    "VLLM_RAY_": _RAY,
    "VLLM_USE_RAY_": _RAY,
    "VLLM_USE_FLASHINFER": _KERNELS,
    "VLLM_USE_TRITON_": _KERNELS,
    "VLLM_USE_TRTLLM_": _KERNELS,
    "VLLM_FLASH": _KERNELS,
    "VLLM_MLA_": _KERNELS,
    "VLLM_MARLIN_": _KERNELS,
    "VLLM_USE_DEEP_GEMM": _KERNELS,
    "VLLM_TORCH_PROFILER_": _TRACES,
    "VLLM_TORCH_CUDA_PROFILE": _TRACES,
    "VLLM_NVTX_": _TRACES,
    "VLLM_LOGGING_": "logs are set by --log-dir and --uvicorn-log-level",
    "VLLM_LORA_": "--enable-lora; LoRA adapters are not built yet",
    "VLLM_NIXL_": "--kv-transfer-config; moving KV between engines is not built yet",
    "VLLM_MOONCAKE_": "--kv-transfer-config; moving KV between engines is not built yet",
    "VLLM_DP_": "--replicas makes several copies of a model",
    "VLLM_IMAGE_": "images, audio and video are not built yet",
    "VLLM_AUDIO_": "images, audio and video are not built yet",
    "VLLM_VIDEO_": "images, audio and video are not built yet",
    "VLLM_MEDIA_": "images, audio and video are not built yet",
    "VLLM_MM_": "images, audio and video are not built yet",
    "VLLM_MOE_": _KERNELS,
    "VLLM_DEEPEP": "experts are not spread over ranks yet",
    "VLLM_": "nothing here reads it",
}
"""Beginnings of other variables; the first that fits is said."""


def from_environment(environ: Mapping[str, str]) -> dict[str, Setting]:
    """The keys that variables set. Raises ConfigError naming the variable."""
    found: dict[str, Setting] = {}
    for variable, (key, read) in READ.items():
        if environ.get(variable) and key not in found:
            try:
                value = read(environ[variable])
            except ValueError as error:
                shown = f"{variable} is {environ[variable]!r}"
                raise ConfigError(f"{shown}; expected {error}", variable) from None
            if value is not None:
                found[key] = Setting(value, variable)
    return found


def named(environ: Mapping[str, str]) -> Iterator[str]:
    """A line for each of vLLM's variables that is set; never its value, which may be secret."""
    for variable in sorted(environ):
        if not environ[variable]:
            continue
        if variable in READ:
            if variable.startswith("VLLM_"):
                yield f"{variable} is read: it is --{READ[variable][0].replace('_', '-')}"
        elif variable in MEANINGS:
            yield f"{variable}: {MEANINGS[variable]}"
        elif (
            why := next((w for p, w in PATTERNS.items() if variable.startswith(p)), None)
        ) is not None:
            yield f"{variable}: {why}"
