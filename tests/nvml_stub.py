"""The stand-in for NVIDIA's library (nvml/stub_nvml.c), built: a folder in which programs find libnvidia-ml.so.1."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "nvml" / "stub_nvml.c"


def build(folder: Path) -> Path:
    """The folder, with the library in it; the test skips where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler (it builds the stand-in for NVML)")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(SOURCE)], check=True)
    return folder
