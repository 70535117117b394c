"""What a worker that the master starts on its own machine takes over from it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

AUTOGROUP = Path("/proc/self/autogroup")
CHILD = """
from pathlib import Path
from tokenswarm.cluster.parent import share_with_it

def told():
    return Path("/proc/self/autogroup").read_text()

before = told()
share_with_it()
print(before, told())
"""
PARENT = f"""
import subprocess, sys
from pathlib import Path

Path("/proc/self/autogroup").write_text("7")
subprocess.run([sys.executable, "-c", {CHILD!r}], check=True, start_new_session=True)
"""


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no autogroups")
def test_a_session_of_its_own_keeps_the_priority_of_the_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARENT], capture_output=True, text=True, timeout=60, start_new_session=True, check=True
    )
    before, after = done.stdout.splitlines()[0].split("nice")[1:], done.stdout.splitlines()[1]
    assert before[0].split()[0] == "0"
    assert after.split()[-1] == "7"
