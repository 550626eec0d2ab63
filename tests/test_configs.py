"""The ready YAML files mean what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from shoal.cluster.settings import serve_config

FOLDER = Path(__file__).resolve().parent.parent / "configs"
PLAIN = sorted(p for p in FOLDER.glob("*.yaml") if p.name != "serve-deploy.yaml")


@pytest.mark.parametrize("path", PLAIN, ids=lambda p: p.stem)
def test_it_is_a_configuration(path: Path) -> None:
    from shoal.cluster.flags import configure

    assert configure(["--config", str(path)], {}) == serve_config(yaml.safe_load(path.read_text()))


@pytest.mark.parametrize("path", PLAIN, ids=lambda p: p.stem)
def test_it_begins_with_its_command(path: Path) -> None:
    assert f"shoal serve --config configs/{path.name}" in path.read_text().splitlines()[0]


def test_the_deploy_file_is_what_serve_reads() -> None:
    from ray.serve.schema import ServeDeploySchema

    deploy = ServeDeploySchema(**yaml.safe_load((FOLDER / "serve-deploy.yaml").read_text()))
    assert deploy.proxy_location == "Disabled"
    (application,) = deploy.applications
    assert application.import_path == "shoal.cluster.app:build"
    assert [model.replicas for model in serve_config(application.args).models] == [2]
