"""Break the algorithms on purpose, one small fault at a time, and see whether their tests notice.

Each fault is applied to a copy of ``rlhf/`` in a temporary directory, never to the working tree, and the tests of its
module run against the copy. A fault that no test notices survives, and the exit status is 1.

    python scripts/mutate_algos.py --output benchmarks/mutations-$(date +%F).json
    python scripts/mutate_algos.py --only gae
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = Path("tests/unit/algos")
TIMEOUT_SECONDS = 240
WRONG_PACKAGE = 99
VERDICTS = {0: "survived", 1: "killed", -signal.SIGALRM: "killed (timeout)"}


@dataclass(frozen=True)
class Mutation:
    """Replace ``old``, which must occur exactly once in the module, by ``new``; listed in ``mutations.json``.

    ``test`` names the test module that must notice, if it is not the one named like the module.
    """

    module: str
    function: str
    fault: str
    old: str
    new: str
    test: str = ""

    @property
    def test_module(self) -> str:
        return self.test or self.module


def load_mutations() -> list[Mutation]:
    by_module = json.loads((ROOT / TESTS / "mutations.json").read_text(encoding="utf-8"))
    return [Mutation(module=module, **fields) for module, listed in by_module.items() for fields in listed]


def copy_project(target: Path) -> None:
    """Copy what the tests of the algorithms need, and nothing that could hide a wrong import."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "rlhf" / "algos", target / "rlhf" / "algos", ignore=ignore)
    shutil.copytree(ROOT / TESTS, target / TESTS, ignore=ignore)
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "rlhf" / name, target / "rlhf" / name)
    (target / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")


def apply(mutation: Mutation, target: Path) -> None:
    path = target / "rlhf" / "algos" / f"{mutation.module}.py"
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1 or mutation.old == mutation.new:
        raise SystemExit(
            f"{mutation.function}, {mutation.fault}: the text occurs {text.count(mutation.old)} times:\n{mutation.old}"
        )
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")


def run_tests(target: Path, test_module: str) -> None:
    """Body of the child process: ends it with pytest's status."""
    signal.alarm(TIMEOUT_SECONDS)
    os.chdir(target)
    sys.path.insert(0, str(target))
    sys.dont_write_bytecode = True
    with (target / "output.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        import hypothesis
        import pytest

        # The first example that fails is enough here; shrinking it is for people.
        hypothesis.settings.register_profile("first failure", phases=[hypothesis.Phase.generate])
        hypothesis.settings.load_profile("first failure")
        status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", str(TESTS / f"test_{test_module}.py")]))
    package = getattr(sys.modules.get("rlhf.algos"), "__file__", None) or ""
    os._exit(status if package.startswith(str(target)) else WRONG_PACKAGE)


def judge(mutation: Mutation | None, test_module: str) -> tuple[str, str]:
    """Return the verdict and the first failing test (or the end of the output, if the run itself failed)."""
    with tempfile.TemporaryDirectory(prefix="mutate-") as name:
        target = Path(name).resolve()
        copy_project(target)
        if mutation is not None:
            apply(mutation, target)
        child = multiprocessing.get_context("fork").Process(target=run_tests, args=(target, test_module))
        child.start()
        child.join()
        output = (target / "output.txt").read_text(encoding="utf-8")
    verdict = VERDICTS.get(child.exitcode or 0, f"invalid (status {child.exitcode})")
    failed = [line.split(" ")[1].split("::")[1] for line in output.splitlines() if line.startswith("FAILED")]
    return verdict, failed[0] if failed else ("" if verdict == "survived" else output[-300:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="run the mutations whose module, function or fault contains this")
    parser.add_argument("--output", type=Path, help="write the table to this JSON file")
    arguments = parser.parse_args()
    chosen = [m for m in load_mutations() if arguments.only in f"{m.module} {m.function} {m.fault}"]

    import hypothesis  # loaded once here, inherited by every child
    import numpy
    import pytest
    import torch

    torch.set_num_threads(1)
    started = time.monotonic()
    for test_module in sorted({m.test_module for m in chosen}):
        verdict, detail = judge(None, test_module)
        if verdict != "survived":
            raise SystemExit(f"test_{test_module}.py fails without any fault: {verdict}\n{detail}")
    rows = []
    for mutation in chosen:
        verdict, detail = judge(mutation, mutation.test_module)
        rows.append(
            {
                "module": mutation.module,
                "function": mutation.function,
                "fault": mutation.fault,
                "verdict": verdict,
                "noticed_by": detail,
            }
        )
        print(f"{verdict:9} {mutation.module:10} {mutation.function:32} {mutation.fault:42} {detail}", flush=True)
    killed = sum(row["verdict"].startswith("killed") for row in rows)
    print(f"{killed} of {len(rows)} killed in {time.monotonic() - started:.0f} s")
    if arguments.output:
        report = {
            "command": f"python scripts/mutate_algos.py --output {arguments.output}",
            "date": time.strftime("%Y-%m-%d"),
            "versions": {
                "python": platform.python_version(),
                **{module.__name__: module.__version__ for module in (torch, numpy, hypothesis, pytest)},
            },
            "num_mutations": len(rows),
            "num_killed": killed,
            "seconds": round(time.monotonic() - started),
            "mutations": rows,
        }
        arguments.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0 if killed == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
