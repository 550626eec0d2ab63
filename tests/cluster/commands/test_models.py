"""`pull` and `ls` against a hub on the loopback."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.cluster.commands.conftest import Home
from tests.engine.model.fake_hub import Repo, fake_hub


def bundled(tiny_model: Path) -> Repo:
    """The bundled model as a repository."""
    return Repo({path.name: path.read_bytes() for path in tiny_model.iterdir() if path.is_file()})


def test_a_model_is_fetched_and_listed(home: Home, tiny_model: Path) -> None:
    with fake_hub(flock__tiny=bundled(tiny_model)) as hub:
        online = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
        pulled = home.shoal("pull", "flock/tiny", environ=online)
        assert pulled.returncode == 0, pulled.stderr
        folder = Path(pulled.stdout.strip())
        assert (folder / "model.safetensors").is_file()
        assert "fetch flock/tiny" in pulled.stderr and " MB" in pulled.stderr
        commit = hub.repos["flock/tiny"].commit
        assert Path(home.shoal("pull", "shoal-tiny").stdout.strip()) == tiny_model
        refused = home.shoal("pull", "flock/tinny", environ=online)
        assert refused.returncode == 3 and "'flock/tiny'" in refused.stderr
    rows = json.loads(home.shoal("ls", "--json").stdout)
    assert [(row["name"], row["complete"]) for row in rows] == [
        ("shoal-tiny", True),
        ("flock/tiny", True),
    ]
    assert rows[1]["revision"] == commit and rows[1]["path"] == str(folder)
    (folder / "model.safetensors").unlink()
    table = home.shoal("ls").stdout
    assert "incomplete; `shoal pull` goes on with it" in table and commit[:12] in table


def test_neither_imports_torch(home: Home) -> None:
    for args in (["ls"], ["pull", "/no/such/folder"]):
        code = (
            f"import atexit, sys; sys.argv = ['shoal', *{args}]\n"
            "atexit.register(lambda: print('torch' in sys.modules))\n"
            "from shoal.cluster.cli import main; main()"
        )
        done = home.run(sys.executable, "-c", code)
        assert done.stdout.splitlines()[-1] == "False", done.stderr
