"""Every form of deployment sets the same variables of Ray."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from shoal.cluster.ray_variables import ON_EVERY_NODE, ON_THE_HEAD

from .judges import DEPLOY, ROOT, env_of, loaded, templates, variables


def test_the_files_are_the_table() -> None:
    assert variables(DEPLOY / "ray.env") == ON_EVERY_NODE
    assert variables(DEPLOY / "ray-head.env") == ON_THE_HEAD


def test_ray_knows_them() -> None:
    """Ray ignores a variable that it does not know, so a slip would go unnoticed."""
    import ray

    library = Path(ray.__file__).parent / "_raylet.so"
    known = library.read_bytes()
    names = [
        name.removeprefix("RAY_") for name in (*ON_EVERY_NODE, *ON_THE_HEAD) if "_A" not in name
    ]
    missing = [n for n in names if n.islower() and n.encode() not in known]
    assert missing == []


def test_compose_has_them() -> None:
    services = loaded(DEPLOY / "compose" / "two-nodes.yaml")["services"]
    assert services["head"]["env_file"] == ["../ray.env", "../ray-head.env"]
    assert services["worker"]["env_file"] == services["deploy"]["env_file"] == ["../ray.env"]
    for name in ("head", "worker", "deploy"):
        assert "RAY_AUTH_TOKEN" in services[name]["environment"]


def test_kuberay_has_them() -> None:
    resource = loaded(DEPLOY / "kuberay" / "rayservice.yaml")
    head, *workers = [template["spec"]["containers"][0] for template in templates(resource)]
    assert rays(env_of(head)) == ON_EVERY_NODE | ON_THE_HEAD
    assert all(rays(env_of(worker)) == ON_EVERY_NODE for worker in workers)
    assert resource["spec"]["rayClusterConfig"]["authOptions"] == {"mode": "token"}


def rays(env: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith("RAY_")}


@pytest.mark.parametrize("name", ["on-premise", "aws"])
def test_the_launcher_has_them(name: str) -> None:
    mounts = loaded(DEPLOY / "launcher" / f"{name}.yaml")["file_mounts"]
    for file in ("ray.env", "ray-head.env"):
        assert mounts[f"~/shoal/{file}"] == f"deploy/{file}"
    assert "~/.ray/auth_token" in mounts


def test_nobody_sets_other_values() -> None:
    """Whatever sets one of these names outside of the table says the same."""
    table = ON_EVERY_NODE | ON_THE_HEAD
    for path in (*DEPLOY.rglob("*.yaml"), *DEPLOY.rglob("*.service")):
        for line in path.read_text().splitlines():
            for name in table:
                value = line.partition(f"{name}=")[2] or line.partition(f"{name}:")[2]
                if value:
                    assert yaml.safe_load(value.split()[0].strip("'")) == table[name], path


def test_the_readme_has_the_table() -> None:
    readme = (ROOT / "deploy" / "README.md").read_text()
    for name, value in (ON_EVERY_NODE | ON_THE_HEAD).items():
        assert f"`{name}={value}`" in readme
