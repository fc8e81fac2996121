"""Compiles the kernels once, at ``make setup``: ``python -m rlhf.models.kernels.build``.

The result lies in the environment under a name that tells sources, flags, compiler options and processor, so that a
copy made for another processor is never loaded. Nothing is compiled in the middle of a run.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")


@cache
def library_path() -> Path:
    """Where the library for these sources and this processor lies, if it was compiled."""
    sources = b"".join(path.read_bytes() for path in _sources())
    told = "\n".join((*FLAGS, platform.system(), platform.machine(), _processor()))
    digest = hashlib.sha256(sources + told.encode()).hexdigest()[:16]
    return Path(sys.prefix) / "rlhf-kernels" / f"{digest}.so"


def build() -> Path:
    """Compiles the library unless it is there.

    Raises:
        OSError: there is no compiler, or the environment cannot be written.
        subprocess.CalledProcessError: the compiler refuses.
    """
    target = library_path()
    if target.is_file():
        return target
    target.parent.mkdir(exist_ok=True)
    part = target.with_name(f"{target.name}.{os.getpid()}")
    sources = [str(path) for path in _sources() if path.suffix == ".cpp"]
    subprocess.run([os.environ.get("CXX", "g++"), *FLAGS, *sources, "-o", str(part)], check=True)
    part.replace(target)
    return target


def _sources() -> list[Path]:
    return sorted(path for path in HERE.iterdir() if path.suffix in (".cpp", ".h"))


def _processor() -> str:
    """What ``-march=native`` looks at: name and features of the first processor."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return platform.processor()
    return "\n".join(line for line in first.splitlines() if line.startswith(("model", "flags", "Features", "CPU")))


def main() -> int:
    """Says where the library is, or why there is none: everything runs without it, slower."""
    try:
        sys.stdout.write(f"{build()}\n")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"the kernels were not compiled, plain torch runs instead: {error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
