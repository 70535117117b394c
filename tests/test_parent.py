"""What a worker that the master starts on its own machine takes over from it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenswarm.cluster.parent import nice_of

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


@pytest.mark.parametrize(
    ("told", "nice"), [("/autogroup-12 nice 0\n", "0"), ("/autogroup-7 nice -20\n", "-20"), ("", ""), ("\n", "")]
)
def test_the_nice_value_is_read_where_there_is_one(told: str, nice: str) -> None:
    assert nice_of(told) == nice


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this kernel has no autogroups")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_parent_in_no_group_leaves_ours_as_it_is(tmp_path: Path) -> None:
    """So it is in a container whose first process began no session: the file is there, and empty."""
    (tmp_path / "empty").touch()
    script = f"mount --bind {tmp_path}/empty /proc/$$/autogroup && {sys.executable} -c '{CHILD}' && true"
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    if "mount:" in done.stderr or "unshare:" in done.stderr:
        pytest.skip("no namespace for mounts here")
    assert done.returncode == 0, done.stderr
    before, after = done.stdout.split()[:3], done.stdout.split()[3:]
    assert before == after
