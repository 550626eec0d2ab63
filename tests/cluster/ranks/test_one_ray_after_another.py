"""A process can start a Ray of its own again: Ray keeps some of what it read the first time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import sys
from pathlib import Path
from shoal.cluster.launch import private_ray
for _ in range(2):
    with private_ray(Path(sys.argv[1])):
        import ray
        print(len(ray.nodes()), flush=True)
"""


def test_a_second_ray_starts_in_the_same_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert done.stdout.split() == ["1", "1"], done.stderr
