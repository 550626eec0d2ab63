"""The limit on open files, in processes whose limit is set before."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from shoal.cluster.open_files import lift_limit
soft, hard = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
line = lift_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0], line or "")
"""


@pytest.mark.parametrize(("soft", "hard", "told"), [(256, 4096, False), (100, 1000, True)])
def test_the_soft_limit_becomes_the_hard_one(soft, hard, told):
    command = [sys.executable, "-c", PROGRAM, str(soft), str(hard)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    now, _, line = done.stdout.strip().partition(" ")
    assert int(now) == hard
    assert bool(line) is told
    assert not told or f"{hard} files" in line
