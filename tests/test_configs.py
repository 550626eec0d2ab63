"""The ready YAML files mean what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from shoal.cluster.config import ServeConfig
from shoal.cluster.resolve import configure, resolve
from shoal.cluster.settings import serve_config
from shoal.engine.errors import ConfigError

FOLDER = Path(__file__).resolve().parent.parent / "configs"
PLAIN = sorted(p for p in FOLDER.glob("*.yaml") if p.name != "serve-deploy.yaml")
REFUSED = [
    pytest.param(path, *found.groups(), id=f"{path.stem}-{found[1].partition(':')[0]}")
    for path in PLAIN
    for found in re.finditer(r"^# ([\w-]+: \S+)  # not yet: (.+)$", path.read_text(), re.MULTILINE)
]


def read(name: str) -> ServeConfig:
    return configure(["--config", str(FOLDER / f"{name}.yaml")], {})


@pytest.mark.parametrize("path", PLAIN, ids=lambda p: p.stem)
def test_it_is_a_configuration(path: Path) -> None:
    resolved = resolve(["--config", str(path)], {})
    assert resolved.config == serve_config(yaml.safe_load(path.read_text()), {})
    assert not resolved.remarks


@pytest.mark.parametrize("path", PLAIN, ids=lambda p: p.stem)
def test_it_begins_with_its_command(path: Path) -> None:
    assert f"shoal serve --config configs/{path.name}" in path.read_text().splitlines()[0]


@pytest.mark.parametrize(("path", "line", "why"), REFUSED)
def test_a_line_that_is_a_comment_would_be_refused(
    path: Path, line: str, why: str, tmp_path: Path
) -> None:
    changed = tmp_path / path.name
    changed.write_text(path.read_text().replace(f"# {line}  # not yet: {why}", line))
    with pytest.raises(ConfigError) as caught:
        configure(["--config", str(changed)], {})
    assert why in caught.value.message
    assert f"    {line}" in caught.value.message.splitlines()


def test_every_not_yet_is_tried() -> None:
    written = sum(path.read_text().count("not yet:") for path in PLAIN)
    assert len(REFUSED) == written >= 10


def test_every_file_is_in_the_list() -> None:
    listed = (FOLDER / "README.md").read_text()
    assert [path.name for path in FOLDER.glob("*.yaml") if f"`{path.name}`" not in listed] == []


def test_two_models_have_their_own_settings() -> None:
    small, large = read("two-models").models
    assert (small.served_model_name, small.replicas) == (("qwen3-0.6b", "small"), 2)
    assert (small.engine.max_model_len, large.engine.max_model_len) == (8000, 16_000)
    assert read("kimi-k2.5").models[0].engine.max_model_len == 262_144


def test_the_deploy_file_is_what_serve_reads() -> None:
    from ray.serve.schema import ServeDeploySchema

    deploy = ServeDeploySchema(**yaml.safe_load((FOLDER / "serve-deploy.yaml").read_text()))
    assert deploy.proxy_location == "Disabled"
    (application,) = deploy.applications
    assert application.import_path == "shoal.cluster.app:build"
    assert serve_config(application.args).models[0].replicas == 2
