"""The reader in C under libFuzzer: bytes that find new ways through it, with both sanitizers and a look for leaks.

`make check-native` runs it: `fuzz.py [SECONDS [--keep]]`. It compiles fuzz_reader.c, which includes the reader, with
-Wall -Wextra -Werror, loads it into Python with the sanitizers' runtime, and starts from the seeds of check.py:
tests/streams, the scripts of the tests, tests/native/corpus. What fails is written to tests/native/found, to be moved
into the corpus, which check.py plays to both readers. `--keep` adds to the corpus what found new ways. It needs clang
and its runtime (Debian: clang, libclang-rt-14-dev) and says so where they are missing. Exit code 1 where one failed.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from check import HERE, SPICE, STEP, TESTS, corpus

SECONDS = 60
INPUT_BYTES_MAX = 4096
SOURCE = HERE / "fuzz_reader.c"
STRICT = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-g", "-O1", "-fPIC", "-shared", "-Wl,-Bsymbolic")
SANITIZE = ("-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=undefined", "-shared-libasan")
SEED = "{:04}"
HELD: list[object] = []  # the look for leaks does not see what only a frame of Python's holds
WORDS = (*SPICE, STEP, b'"}\n', b'":"', b"1\r\n", b"HTTP/1.1 200 OK\r\n", b"content-length: ", b"\r\n\r\n")


def main() -> int:
    if "--child" in sys.argv:
        return child(Path(sys.argv[2]), sys.argv[3:])
    seconds = int(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    clang = shutil.which("clang")
    driver = runtime(clang, "fuzzer_no_main", ".a") if clang else None
    sanitizers = runtime(clang, "asan", ".so") if clang else None
    if clang is None or driver is None or sanitizers is None:
        print(f"check-native: no fuzzing by coverage, there is no {'libclang-rt' if clang else 'clang'}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        library, seeds, fresh = Path(folder) / "fuzz_reader.so", Path(folder) / "seeds", Path(folder) / "fresh"
        command = [clang, *STRICT, *SANITIZE, f"-I{sysconfig.get_paths()['include']}", str(SOURCE), "-o", str(library)]
        if subprocess.run([*command, driver, "-lstdc++", "-lm", "-lpthread"], check=False).returncode:
            return 1
        write(seeds, Path(folder) / "words")
        fresh.mkdir()
        (HERE / "found").mkdir(exist_ok=True)
        run = [sys.executable, __file__, "--child", str(library)]
        run += [f"-max_len={INPUT_BYTES_MAX}", "-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1"]
        run += [f"-artifact_prefix={HERE / 'found'}/", f"-dict={folder}/words"]
        environ = {**os.environ, "LD_PRELOAD": sanitizers, "PYTHONMALLOC": "malloc", "PYTHONHASHSEED": "0"}
        environ |= {"ASAN_OPTIONS": "detect_leaks=1:leak_check_at_exit=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
        print(f"check-native: {seconds} s of fuzzing by coverage", flush=True)
        fuzzing = [*run, f"-max_total_time={seconds}", str(fresh), str(seeds)]
        failed = told(subprocess.run(fuzzing, env=environ, capture_output=True, text=True, check=False))
        if "--keep" in sys.argv and not failed:
            subprocess.run([*run, "-set_cover_merge=1", str(seeds), str(fresh)], env=environ, check=True)
            (HERE / "corpus").mkdir(exist_ok=True)
            for path in seeds.iterdir():  # what was not there before bears a hash
                if len(path.name) > len(SEED.format(0)):
                    shutil.copy(path, HERE / "corpus" / path.name[:12])
        return int(failed)


def runtime(clang: str, name: str, ending: str) -> str | None:
    """A library of clang's own."""
    machine = sysconfig.get_platform().rpartition("-")[2]
    asked = [clang, f"-print-file-name=libclang_rt.{name}-{machine}{ending}"]
    path = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    return path if Path(path).is_absolute() and Path(path).exists() else None


def write(seeds: Path, words: Path) -> None:
    seeds.mkdir()
    sys.path.insert(0, str(TESTS))
    for number, steps in enumerate(corpus()):
        (seeds / SEED.format(number)).write_bytes(STEP.join(steps)[:INPUT_BYTES_MAX])
    words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in WORDS), "ascii")


def told(done: subprocess.CompletedProcess[str]) -> bool:
    """Whether it failed; what it says is printed then."""
    if done.returncode:
        print(done.stderr[-6000:], file=sys.stderr)
        return True
    count = next(line for line in done.stderr.splitlines() if "number_of_executed_units" in line).rpartition(":")[2]
    print(f"check-native: {count.strip()} inputs, no fault and no leak", flush=True)
    return False


def child(library: Path, options: list[str]) -> int:
    again = f"{sys.executable} {__file__} --child {library}"  # how it runs itself, to merge
    words = [word.encode() for word in (again, *options)]
    loaded, told = ctypes.PyDLL(str(library)), (ctypes.c_char_p * (len(words) + 1))(*words)
    HELD.extend((library, options, again, words, loaded, told))
    return int(loaded.fuzz(len(words), told))


if __name__ == "__main__":
    sys.exit(main())
