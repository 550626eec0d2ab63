"""The systemd units."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

from .judges import DEPLOY, variables

FOLDER = DEPLOY / "systemd"
UNITS = sorted(FOLDER.glob("*.service"))
HOME = "/opt/shoal/bin/"

needs_systemd = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed"
)


class Unit(configparser.ConfigParser):
    """A unit; of a key that stands several times, all values are kept."""

    def __init__(self, path: Path) -> None:
        super().__init__(strict=False, interpolation=None, delimiters=("=",))
        self.optionxform = str  # type: ignore[assignment,method-assign]
        self.lines = path.read_text().splitlines()
        self.read(path)

    def all(self, key: str) -> list[str]:
        return [line.partition("=")[2] for line in self.lines if line.startswith(f"{key}=")]


def complaints(units: list[Path], folder: Path) -> str:
    """What systemd says of copies of these, whose programs are made to exist."""
    copies = []
    for name in ("shoal", "ray", "serve"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    for unit in units:
        copy = folder / unit.name
        copy.write_text(unit.read_text().replace(HOME, f"{folder}/"))
        copies.append(str(copy))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *copies], capture_output=True, text=True
    )
    # Units of the machine itself may be complained of beside ours.
    return "\n".join(line for line in done.stderr.splitlines() if "shoal" in line)


@needs_systemd
def test_systemd_takes_them(tmp_path: Path) -> None:
    assert complaints(UNITS, tmp_path) == ""


@needs_systemd
def test_systemd_finds_faults(tmp_path: Path) -> None:
    spoiled = tmp_path / "in" / "shoal-spoiled.service"
    spoiled.parent.mkdir()
    spoiled.write_text(UNITS[0].read_text().replace("RestartSec=", "RestartSecs="))
    assert "RestartSecs" in complaints([spoiled], tmp_path)


@pytest.mark.parametrize("path", UNITS, ids=lambda p: p.stem)
def test_it_runs_as_a_user_and_comes_back(path: Path) -> None:
    unit = Unit(path)
    service = unit["Service"]
    assert service["User"] == service["Group"] == "shoal"
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    (command,) = unit.all("ExecStart")
    assert command.startswith(HOME)
    if service["Type"] != "oneshot":
        assert service["Restart"] == "always" and service["OOMPolicy"] == "continue"
        assert int(service["LimitNOFILE"]) >= 65536


def test_nodes_block_and_have_rays_variables() -> None:
    head, worker = (Unit(FOLDER / f"shoal-{name}.service") for name in ("head", "worker"))
    for unit, files in (
        (head, ["ray.env", "ray-head.env", "shoal.env"]),
        (worker, ["ray.env", "shoal.env"]),
    ):
        (command,) = unit.all("ExecStart")
        assert "ray start " in command and " --block " in command
        assert unit.all("EnvironmentFile") == [f"/etc/shoal/{name}" for name in files]
        for name in ("NODE_ADDRESS", "RAY_AUTH_TOKEN"):
            assert name in variables(FOLDER / "shoal.env")
    state = variables(DEPLOY / "ray-head.env")["RAY_gcs_storage_path"]
    assert state.removeprefix("/var/lib/") in head["Service"]["StateDirectory"].split()


def test_a_wrong_configuration_is_not_tried_again() -> None:
    from shoal.cluster.exits import MEANING

    codes = Unit(FOLDER / "shoal.service")["Service"]["RestartPreventExitStatus"].split()
    assert [MEANING[int(code)].split()[1] for code in codes] == ["wrong", "model"]


def test_the_readme_installs_what_there_is() -> None:
    readme = (FOLDER / "README.md").read_text()
    assert all(unit.stem in readme for unit in UNITS)
