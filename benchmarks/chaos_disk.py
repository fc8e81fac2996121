"""Checkpoints on disk: kills while they are written, damage afterwards, many launches on one directory. No Ray."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.chaos_common import Row, folder, seconds_since
from tests.support import chaos_files
from tests.support.chaos_store import BEFORE_THE_COMMIT, INSTANTS

ROOT = Path(__file__).parents[1]


def child(*arguments: object) -> Any:
    """What a helper program prints, as JSON."""
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800, check=True)
    return json.loads(done.stdout)


def kills_while_saving(quick: bool) -> list[Row]:
    """C01: SIGKILL at instants that nobody chose."""
    with folder() as place:
        found = child("tests.support.chaos_store", "random", place / "checkpoints", 40 if quick else 200)
    lost = found["unreadable"] + found["lost"] + found["mixed"] + found["leftovers"]
    note = f"{found['acknowledged']} commits acknowledged, {found['temporaries_cleaned']} unfinished ones cleaned away"
    killed = found["killed"]
    return [
        Row(
            "C01",
            "SIGKILL while a checkpoint is written",
            killed,
            killed,
            killed - found["unreadable"] - found["lost"],
            lost,
            found["longest_recovery_seconds"],
            note,
            found,
        )
    ]


def kills_at_named_instants(quick: bool) -> list[Row]:
    """C02: at each named instant of a commit."""
    rounds, good, lost = 1 if quick else 5, 0, 0
    for _ in range(rounds):
        with folder() as place:
            found = child("tests.support.chaos_store", "named", place)
        for instant, (before, newest, left) in found.items():
            good += newest == (before if instant in BEFORE_THE_COMMIT else before + 1) and not left
            lost += newest is None
    total = rounds * len(INSTANTS)
    note = f"instants: {', '.join(INSTANTS)}"
    return [Row("C02", "SIGKILL at a named instant of a commit", total, total, good, lost, None, note)]


def full_disk(quick: bool) -> list[Row]:
    """C03: a file system of three MiB."""
    code = (
        "import sys; from pathlib import Path; from tests.unit.engine.test_checkpoint_store import _fill_the_disk;"
        "_fill_the_disk(Path(sys.argv[1]) / 'c')"
    )
    began = time.monotonic()
    with folder() as place:
        try:
            with chaos_files.small_disk(place / "disk", 3) as disk:
                done = subprocess.run([sys.executable, "-c", code, str(disk)], cwd=ROOT, capture_output=True, text=True)
        except PermissionError as error:
            return [Row("C03", "disk full", 0, 0, 0, 0, None, str(error))]
    good = 3 * (done.returncode == 0)
    note = "while the manifest is written, before the files are, in the check at start; earlier sha256 unchanged"
    return [Row("C03", "disk full", 3, good, good, 3 - good, seconds_since(began), note + done.stderr[-500:])]


def damage(quick: bool) -> list[Row]:
    """C04: flipped bits, cut, missing, foreign and mixed files."""
    rng = random.Random(11)
    kinds = {
        "one flipped bit": [chaos_files.flip_a_bit(rng) for _ in range(100 if quick else 400)],
        "file cut to 1..99 %": [chaos_files.cut(percent / 100, rng) for percent in range(1, 100, 9 if quick else 1)],
        "file missing": [chaos_files.remove_a_file],
        "file from elsewhere": [chaos_files.add_a_file],
        "file of another step": [chaos_files.mix_two_steps],
        "commit under another step's name": [chaos_files.rename_an_older_commit],
    }
    rows = []
    for name, damages in kinds.items():
        with folder() as place:
            found = chaos_files.detect(chaos_files.three_commits(place / "c", size=4096), damages)
        seconds = found.longest_seconds
        rows.append(Row("C04", name, found.injected, found.detected, found.fell_back, found.missed(), seconds))
    return rows


def launches(quick: bool) -> list[Row]:
    """R11: twenty processes claim one run directory at once."""
    rounds, winners, refused, named = 1 if quick else 10, 0, 0, 0
    longest = 0.0
    with folder() as place:
        for token in range(1, rounds + 1):
            began = time.monotonic()
            answers = child("tests.support.chaos_files", place / "run", 20)
            longest = max(longest, seconds_since(began))
            won = [a for a in answers if a["won"]]
            winners += len(won)
            ours = f"pid {won[0]['pid']} on {os.uname().nodename}"
            refused += sum(a.get("code") == 7 for a in answers)
            named += sum(ours in a.get("message", "") for a in answers)
            if won[0]["token"] != token:
                winners += 100  # a fencing token that did not grow
    note = f"{rounds} rounds of 20 launches: {winners} winners, {refused} end with exit code 7 and the owner's pid"
    lost = abs(winners - rounds)
    return [Row("R11", "launch on a directory in use", 19 * rounds, refused, named, lost, longest, note)]


SECTIONS = {
    "C01": kills_while_saving,
    "C02": kills_at_named_instants,
    "C03": full_disk,
    "C04": damage,
    "R11": launches,
}
