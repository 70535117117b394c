"""The stand-in for NVIDIA's library (nvml/stub_nvml.c), built: a folder in which programs find libnvidia-ml.so.1."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "nvml" / "stub_nvml.c"


def build(folder: Path) -> Path:
    """The folder, with the library in it; without a C compiler the test skips, on CI it fails."""
    compiler = shutil.which("cc")
    if compiler is None:
        sentence = "there is no C compiler (it builds the stand-in for NVML)"
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(SOURCE)], check=True)
    return folder
