"""Attack every reader of strangers' bytes for a while, guided by coverage, and write down what came of it.

    python scripts/fuzz.py --minutes 60 --output benchmarks/fuzz-$(date +%F).json

Each target of ``tests/fuzz/targets.py`` gets an equal share of the time in a process of its own, under atheris
(libFuzzer for Python) with the target's packages instrumented. An exception that is not one of the system's typed
errors, a hang of 30 s or more than 2 GiB of memory counts as a crash: the input is kept and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
WORDS = (
    "prompt completion chosen rejected messages role user assistant system content instruction instances conversations "
    "from value human gpt responses ranking tiers parent_id message_id replies text scores NaN null true 1e999 kind "
    "function http url model stage ppo sft data_offsets dtype shape env: file:"
)


def attack_one(name: str, seconds: int, folder: Path) -> None:
    """Runs in the child: instruments, then fuzzes until the time is over (libFuzzer ends the process itself)."""
    import atheris

    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    with atheris.instrument_imports(include=list(target.packages)):
        target.consume(b"".join(target.seeds[:1]))  # imports what is only imported inside of functions
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    (folder / "words").write_text("".join(f'"{word}"\n' for word in WORDS.split()), encoding="utf-8")
    options = [
        f"-max_total_time={seconds}",
        "-max_len=4096",
        "-timeout=30",
        "-rss_limit_mb=2048",
        f"-dict={folder / 'words'}",
        f"-artifact_prefix={folder}/crash-",
        "-print_final_stats=1",
        "-verbosity=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target.consume)
    atheris.Fuzz()


def run_target(name: str, seconds: int, keep: Path) -> dict[str, Any]:
    """Fuzzes one target in a child process; its figures."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY) as scratch:
        started = time.perf_counter()
        command = [sys.executable, __file__, "--one", name, "--seconds", str(seconds), "--folder", scratch]
        environment = {**os.environ, "FUZZ_FOLDER": scratch}  # libFuzzer ends its process without cleaning up
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")
        seen = re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
        coverage = re.findall(r"cov: (\d+)", done.stderr)
        crashes = []
        for artifact in sorted(Path(scratch).glob("crash-*")):
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{name}-{artifact.name}").write_bytes(artifact.read_bytes())
            crashes.append(f"{name}-{artifact.name}")
        if done.returncode and not crashes:
            crashes.append(f"exit status {done.returncode}: {done.stderr[-2000:]}")
        elif crashes:
            print(done.stderr[-4000:], file=sys.stderr)
        return {
            "target": name,
            "inputs": int(seen[-1]) if seen else 0,
            "seconds": round(time.perf_counter() - started, 1),
            "edges": int(coverage[-1]) if coverage else 0,
            "crashes": crashes,
        }


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="for all targets together")
    parser.add_argument("--only", help="a target's name")
    parser.add_argument("--output", type=Path, help="where the JSON goes")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-crashes"), help="where inputs that crash are kept")
    for hidden in ("--one", "--seconds", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        attack_one(args.one, int(args.seconds), Path(args.folder))
        return 0
    from tests.fuzz.targets import TARGETS

    names = [args.only] if args.only else sorted(TARGETS)
    share = max(1, round(60 * args.minutes / len(names)))
    results = []
    for name in names:
        results.append(run_target(name, share, args.keep))
        print(json.dumps(results[-1]))
    summary = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "hours": round(sum(r["seconds"] for r in results) / 3600, 3),
        "inputs": sum(r["inputs"] for r in results),
        "crashes": sum(len(r["crashes"]) for r in results),
        "targets": results,
    }
    print(json.dumps({key: value for key, value in summary.items() if key != "targets"}))
    if args.output:
        args.output.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return 1 if summary["crashes"] else 0


if __name__ == "__main__":
    sys.exit(main())
