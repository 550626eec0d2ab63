"""What the files of deploy/ are held against, and how they are read."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
DEPLOY = ROOT / "deploy"
SCHEMAS = Path(__file__).resolve().parent / "schemas"
KUBERNETES = "1.30"


def loaded(path: Path) -> Any:
    """The one document of a YAML file."""
    return yaml.safe_load(path.read_text())


def faults(schema: str, document: object) -> list[str]:
    """What a schema of `schemas/` finds wrong, each with its place."""
    judge = jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{schema}.json").read_text()))
    return [f"{error.json_path}: {error.message}" for error in judge.iter_errors(document)]


def check_kubernetes(resource: dict[str, Any]) -> None:
    """Raises ValidationError where Kubernetes would refuse it, unknown fields included."""
    kubernetes_validate.validate(resource, KUBERNETES, strict=True)


def check_rayservice(resource: dict[str, Any]) -> None:
    """Raises where KubeRay, Kubernetes or Serve would refuse a RayService."""
    from ray.serve.schema import ServeDeploySchema

    assert faults("rayservice", resource) == []
    spec = resource["spec"]
    ServeDeploySchema(**yaml.safe_load(spec["serveConfigV2"]))
    for template in templates(resource):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, **template}
        check_kubernetes(pod)
    service = {"apiVersion": "v1", "kind": "Service", **spec["serveService"]}
    check_kubernetes(service)


def templates(resource: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The pods of a RayService, the head first."""
    cluster = resource["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]


def variables(path: Path) -> dict[str, str]:
    """The NAME=VALUE lines of an environment file."""
    lines = [line for line in path.read_text().splitlines() if line and line[0] != "#"]
    return dict(line.split("=", 1) for line in lines)  # type: ignore[misc]


def env_of(container: dict[str, Any]) -> dict[str, str]:
    """The variables of a container of Kubernetes that are not secrets."""
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


@cache
def builds_from(names: frozenset[str]) -> bool:
    """Whether these files and folders of the tree are all that a wheel is built of."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        source = folder / "source"
        source.mkdir()
        for name in names:
            here = ROOT / name
            if here.is_dir():
                shutil.copytree(here, source / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(here, source / name)
        flags = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q")
        done = subprocess.run(
            [sys.executable, "-m", "pip", "wheel", *flags, "-w", made, str(source)],
            env=os.environ | {"CXX": str(ROOT / "tests" / "hasty_cxx.sh")},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        (wheel,) = folder.glob("shoal-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            packed = set(archive.namelist())
    wanted = {"shoal/cluster/cli.py", "shoal/kernels/ops.py", "shoal/configs/tiny/config.json"}
    if sys.platform == "linux" and platform.machine() == "x86_64":
        wanted.add("shoal/kernels/cpu/native.so")
    return wanted <= packed and any(n.startswith("shoal/cluster/static/") for n in packed)
