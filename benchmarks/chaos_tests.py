"""The part of the catalogue that tests inject case by case: each row counts its tests and those that passed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks.chaos_common import Row

ROOT = Path(__file__).parents[1]
FLEET, FAULTS, STORE = (
    "runtime/test_fleet_faults.py::",
    "ray/test_ppo_faults.py::",
    "unit/engine/test_checkpoint_store.py::",
)
CATALOGUE: dict[str, tuple[str, list[str]]] = {
    "R03": ("every replacement dies", [f"{FLEET}test_when_every_replacement_dies_the_run_ends"]),
    "R04": (
        "a replacement without the adapter",
        [f"{FLEET}test_a_replacement_draws_nothing_before_the_current_adapter"],
    ),
    "R12": ("a reward server that fails", ["processes/test_scoring_http.py"]),
    "R13": (
        "a reward function that never returns, dies, or answers nonsense",
        ["processes/test_scoring_function.py", f"{FAULTS}test_a_response_that_hangs_its_score_function_is_left_out"],
    ),
    "R16": ("what no node can hold", [f"{FLEET}test_what_no_node_can_hold_is_refused_by_name"]),
    "C07": (
        "a commit of another run, or of other ranks",
        ["ray/test_ppo_resume.py::test_a_commit_of_another_run_is_refused"],
    ),
    "C08": ("pruning across restarts", [f"{STORE}test_the_last_and_the_best_are_kept_across_restarts"]),
    "C10": (
        "a pickle in any file",
        ["unit/models/test_trust.py", f"{FAULTS}test_a_pickle_planted_in_a_finished_run_never_runs"],
    ),
    "N01": (
        "numbers that are none: losses, gradients, rewards, KL",
        [
            "unit/stages/test_ppo_unscored.py",
            f"{FAULTS}test_updates_without_a_finite_gradient_are_skipped_on_all_ranks_and_counted",
            f"{FAULTS}test_three_such_updates_in_a_row_stop_the_run",
            f"{FAULTS}test_a_fault_stops_the_run_with_its_reason",
            f"{FAULTS}test_scores_that_are_none_stop_the_run",
            f"{FAULTS}test_kl_over_its_limit_stops_the_run",
        ],
    ),
    "D01": ("bad rows and files", ["unit/data/test_loading_bad_rows.py"]),
    "D05": ("models, tokenizers and adapters that do not belong together", ["unit/stages/test_pairing.py"]),
    "D06": ("mistakes in configs", ["unit/config/test_mistakes.py"]),
}
"""Name -> what goes wrong, and the tests below tests/ that make it go wrong."""


def cases(quick: bool) -> list[Row]:
    """R03 to D06: faults that tests inject one by one."""
    return [count(name, fault, tests) for name, (fault, tests) in CATALOGUE.items()]


def count(name: str, fault: str, tests: list[str]) -> Row:
    """Runs the tests of a row; a test that is skipped or missing is a fault that was not injected."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", f"--basetemp={place}/t"]
        subprocess.run(
            [*command, *(f"tests/{test}" for test in tests)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        found = list(ElementTree.parse(report).iter("testcase"))
    passed = [case for case in found if not any(child.tag in ("failure", "error", "skipped") for child in case)]
    slowest = max((float(case.get("time", 0)) for case in found), default=0.0)
    note = "one test per fault; seconds of the longest test, its preparation included"
    return Row(name, fault, len(found), len(passed), len(passed), len(found) - len(passed), round(slowest, 2), note)


SECTIONS = {"cases": cases}
