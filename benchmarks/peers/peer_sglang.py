"""SGLang: its server, over HTTP, on GPUs."""

from __future__ import annotations

from contract import GPU_SHARE, HTTP, Environment, Launch, Peer, packages


def _install(environment: Environment, device: str) -> None:
    packages(environment, "sglang")


def _command(launch: Launch) -> list[str]:
    command = [str(launch.environment.python), "-m", "sglang.launch_server"]
    command += ["--model-path", str(launch.model), "--dtype", "bfloat16"]
    command += ["--context-length", str(launch.max_len), "--port", str(launch.port)]
    command += ["--mem-fraction-static", str(GPU_SHARE)]
    return [*command, "--max-running-requests", str(launch.max_streams)]


PEER = Peer(
    name="sglang",
    distribution="sglang",
    devices=("cuda",),
    over=HTTP,
    install=_install,
    command=_command,
)
