"""`tokenswarm calibrate`: what it finds is kept in a file, shown in the manifest, and refuses what it can't read."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from tokenswarm.cluster import calibration
from tokenswarm.cluster.calibration import Calibration, Rung
from tokenswarm.commands import calibrate
from tokenswarm.commands.calibrate import advice
from tokenswarm.errors import ExitCode

BARE = """
import sys
from pathlib import Path
from tokenswarm.cluster import calibration
calibration.SENDER = Path("/no/such/file.c")
from tokenswarm.commands import calibrate
sys.exit(calibrate.main(["--streams", "4", "--seconds", "1"]))
"""


def calibrated(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "XDG_CACHE_HOME": str(home)}
    return subprocess.run(
        [sys.executable, *words], env=environ, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("sender", ["paced sender", "embedded engine"])
def test_what_it_finds_is_kept(tmp_path: Path, sender: str) -> None:
    paced = calibration.SENDER.is_file() and sys.platform.startswith("linux")
    if sender == "paced sender" and not (paced and any(map(_there, ("cc", "gcc", "clang")))):
        pytest.skip("the paced sender needs Linux and a C compiler (cc)")
    words = ["-m", "tokenswarm.cli", "calibrate", "--streams", "4", "--seconds", "1"]
    done = calibrated(tmp_path, *(words if sender == "paced sender" else ["-c", BARE]))
    assert done.returncode == 0, done.stderr
    found = msgspec.json.decode((tmp_path / "tokenswarm" / "calibration.json").read_bytes(), type=Calibration)
    assert found.sender == sender
    assert [(rung.streams, rung.busy) for rung in found.rungs] == [(4, False), (4, True)]
    assert all(rung.events_per_s > 0 and abs(rung.ttft_p50_error_s or 0) < 0.1 for rung in found.rungs)
    assert "One worker held" in done.stdout or "No rung was held" in done.stdout


def _there(program: str) -> bool:
    return any((Path(folder) / program).exists() for folder in os.environ["PATH"].split(os.pathsep))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--streams", "0"), "whole numbers from 1"),
        (("--streams", "4,x"), "whole numbers from 1"),
        (("--streams", "99999"), "whole numbers from 1"),
        (("--seconds", "0.1"), "between 0.5 and 600"),
        (("--seconds", "soon"), "--seconds"),
    ],
)
def test_bad_words_are_one_sentence(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = calibrated(tmp_path, "-m", "tokenswarm.cli", "calibrate", *words)
    assert done.returncode == ExitCode.CONFIG
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_where_it_goes_is_looked_at_before_the_minute_that_it_takes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = calibrated(tmp_path / "file", "-m", "tokenswarm.cli", "calibrate")
    assert done.returncode == ExitCode.RESULTS
    assert done.stderr == f"tokenswarm: {tmp_path / 'file' / 'tokenswarm'}: can't be written: Not a directory\n"
    assert done.stdout == ""


def rung(events_per_s: float, *, held: bool = True, busy: bool = False) -> Rung:
    return Rung(
        streams=10, busy=busy, events_per_s=events_per_s, cpu_ratio=0.1, waited_ratio=0.0, ttft_p50_error_s=0.0,
        ttft_p99_error_s=0.0, ttft_p50_bar=0.001, itl_p99_bar=0.01, merged_ratio=0.0, held=held,
    )  # fmt: skip


def known(*rungs: Rung, host: str = "here") -> Calibration:
    return Calibration(version="1", at="now", host=host, cpus=os.cpu_count() or 1, sender="x", rungs=list(rungs))


def test_workers_are_planned_with_half_of_what_was_held_alone() -> None:
    said = advice(known(rung(20_000), rung(40_000), rung(60_000, held=False), rung(90_000, busy=True)))
    assert "held 40.0k events/s" in said
    assert "/ 20.0k" in said
    assert "No rung was held" in advice(known(rung(10, held=False)))


@pytest.mark.parametrize("columns", [80, 60])
def test_no_number_of_the_table_is_cut(columns: int) -> None:
    one = msgspec.structs.replace(rung(9_990.0), streams=12_800, ttft_p50_error_s=-12.8e-6, ttft_p99_error_s=-734e-6)
    console = Console(width=columns, record=True, file=io.StringIO())
    console.print(calibrate._table(known(one, one)))
    said = console.export_text()
    assert "…" not in said
    if columns == 80:
        assert all(number in said for number in ("12800", "9.99k", "-12.8µs", "-734µs", "neighbours")), said


def test_a_file_of_another_machine_or_none_that_can_be_read_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(calibration, "path", lambda: tmp_path / "calibration.json")
    assert calibration.kept() is None
    for data in (b"", b"[]", b"{" * 100_000, msgspec.json.encode(known(host="elsewhere"))):
        (tmp_path / "calibration.json").write_bytes(data)
        assert calibration.kept() is None
    mine = known(rung(1.0), host=calibration.platform.node())
    assert calibration.keep(mine) == tmp_path / "calibration.json"
    assert calibration.kept() == mine
