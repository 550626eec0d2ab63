"""`shoal k8s`: a configuration as what KubeRay takes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ...engine.errors import ConfigError
from ..config import ServeConfig
from ..resolve import configure
from ..settings import serve_config
from ..yaml_file import read

SERVICE_TYPES = ("ClusterIP", "NodePort", "LoadBalancer")

File = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of `shoal serve`.")]
Image = Annotated[
    str | None,
    typer.Option(help="Image of every pod (default: shoal:VERSION-cuda or -cpu).", metavar="IMAGE"),
]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Namespace of it all.")]
Kind = Annotated[str, typer.Option(help="ClusterIP, NodePort or LoadBalancer.")]
KeySecret = Annotated[
    str | None, typer.Option(help="Secret whose `api-key` requests must carry.", metavar="NAME")
]
TokenSecret = Annotated[
    str | None, typer.Option(help="Secret whose `token` is the hub's.", metavar="NAME")
]
Claim = Annotated[
    str | None,
    typer.Option(
        help="PersistentVolumeClaim for weights, mounted at /weights (default: each pod fetches "
        "its own).",
        metavar="NAME",
    ),
]
Cpus = Annotated[int, typer.Option(help="CPUs of a worker pod.", min=1, metavar="N")]
Memory = Annotated[str, typer.Option(help="Memory of a worker pod.", metavar="SIZE")]
CpuOnly = Annotated[bool, typer.Option("--cpu", help="No GPUs where the file names no device.")]
Gpus = Annotated[int, typer.Option(help="Most GPUs of a pod.", min=1, metavar="N")]
GpuResource = Annotated[str, typer.Option(help="What Kubernetes calls a GPU.", metavar="NAME")]


def k8s(
    config: File,
    image: Image = None,
    namespace: Namespace = None,
    service_type: Kind = "ClusterIP",
    api_key_secret: KeySecret = None,
    hf_token_secret: TokenSecret = None,
    weights_claim: Claim = None,
    cpus: Cpus = 4,
    memory: Memory = "16Gi",
    cpu_only: CpuOnly = False,
    gpus_per_node: Gpus = 8,
    gpu_resource: GpuResource = "nvidia.com/gpu",
) -> None:
    """Print the KubeRay RayService of a configuration; `kubectl apply -f -` takes it."""
    from ..rayservice import Target, rayservice, text

    if service_type not in SERVICE_TYPES:
        raise ConfigError(
            f"--service-type is {service_type!r}; it must be one of {', '.join(SERVICE_TYPES)}"
        )
    served = _configuration(config)
    target = Target(
        image=image,
        namespace=namespace,
        service_type=service_type,
        api_key_secret=api_key_secret,
        hf_token_secret=hf_token_secret,
        weights_claim=weights_claim,
        cpus=cpus,
        memory=memory,
        cpu_only=cpu_only,
        gpus_per_node=gpus_per_node,
        gpu_resource=gpu_resource,
    )
    print(text(rayservice(served, target)), end="")
    for note in _notes(served, api_key_secret):
        print(f"note: {note}", file=sys.stderr)


def _configuration(file: Path) -> ServeConfig:
    """What the file says, be it for `shoal serve` or for `serve deploy`; no environment counts."""
    applications = read(file).get("applications")
    if applications is None:
        return configure(["--config", str(file)], {})
    for one in cast(list[dict[str, Any]], applications.value):
        if one.get("import_path") == "shoal.cluster.app:build":
            named = {"name": one["name"]} if "name" in one else {}
            return serve_config(named | dict(one.get("args") or {}), {})
    raise ConfigError(f"{file}: none of its applications is shoal.cluster.app:build", "config")


def _notes(config: ServeConfig, api_key_secret: str | None) -> list[str]:
    """What a reader of the RayService should know of it."""
    found = []
    if config.local:
        found.append("`local` is left out: KubeRay brings a Ray")
    if config.ray_address:
        found.append("`ray-address` is left out: the RayService has a Ray of its own")
    if not api_key_secret:
        found.append("no API key is asked for; --api-key-secret NAME sets one")
    found += [
        f"{model.engine.model} must be a folder in the pods, such as one below /weights"
        for model in config.models
        if model.engine.model.startswith((".", "~", "/")) and "shoal-tiny" not in model.name
    ]
    return found
