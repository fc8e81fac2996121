"""A committed checkpoint is never lost, half-read or mixed: not by a kill, not by a full disk, not by a flipped bit."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rlhf.engine.checkpoint.manifest import file_sha256, read_manifest
from rlhf.engine.checkpoint.store import CheckpointStore
from rlhf.errors import CheckpointError
from tests.support import chaos_files as chaos
from tests.support.chaos_store import BEFORE_THE_COMMIT, INSTANTS, strangers, write_commit

ROOT = Path(__file__).parents[3]


def child(*arguments: object) -> Any:
    """What a helper program prints, as JSON."""
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def hashes(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): file_sha256(p) for p in sorted(directory.rglob("*")) if p.is_file()}


def test_forty_kills_while_committing_lose_nothing(tmp_path: Path) -> None:
    found = child("tests.support.chaos_store", "random", tmp_path / "checkpoints", 40)
    assert found["killed"] == 40 and found["acknowledged"] >= 40
    harm = {name: found[name] for name in ("unreadable", "lost", "mixed", "leftovers")}
    assert harm == {"unreadable": 0, "lost": 0, "mixed": 0, "leftovers": 0}
    assert found["temporaries_cleaned"] > 0, "no kill hit a commit: the test has no power"


def test_a_kill_at_every_named_instant_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    found = child("tests.support.chaos_store", "named", tmp_path)
    assert set(found) == set(INSTANTS)
    for instant, (before, newest, left) in found.items():
        assert newest == (before if instant in BEFORE_THE_COMMIT else before + 1), instant
        assert left == [], instant


def test_all_instants_of_a_commit_have_a_name(tmp_path: Path) -> None:
    seen: list[str] = []
    store = CheckpointStore(tmp_path / "c", keep_last=1, keep_best=False, reached=seen.append)
    write_commit(store, 1)
    write_commit(store, 2)
    assert set(seen) == set(INSTANTS)


def test_every_kind_of_damage_is_found_and_the_commit_before_is_used(tmp_path: Path) -> None:
    rng = random.Random(3)
    store = chaos.three_commits(tmp_path / "c")
    damages = [chaos.flip_a_bit(rng) for _ in range(100)]
    damages += [chaos.cut(percent / 100, rng) for percent in range(0, 100, 4)]
    damages += [chaos.remove_a_file, chaos.add_a_file, chaos.mix_two_steps, chaos.rename_an_older_commit]
    found = chaos.detect(store, damages)
    assert (found.injected, found.missed(), found.fell_back) == (129, 0, 129)
    answer = store.newest()
    assert answer is not None and answer[1].step == 3 and answer[2] == [], "the last damage was taken back"


def test_no_bit_of_a_manifest_may_flip(tmp_path: Path) -> None:
    """Also where JSON says the same in other bytes: the exponent of a float, the white space at the end."""
    store = CheckpointStore(tmp_path / "c")
    path = write_commit(store, 1, size=8, metric=-1.5e-7) / "MANIFEST.json"
    data = path.read_bytes()
    missed = []
    metric = 8 * data.index(b"1.5e-07")
    bits = {*range(metric, metric + 56), *range(8 * len(data) - 32, 8 * len(data))}
    bits |= set(random.Random(5).sample(range(8 * len(data)), 800))
    for bit in bits:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(changed)
        try:
            read_manifest(path.parent)
        except CheckpointError:
            continue
        missed.append(bytes(changed[max(0, bit // 8 - 8) : bit // 8 + 8]))
    assert missed == []


@pytest.mark.parametrize("hint", [None, "", "step-00000099\n", "step-00000001\n", "\x00\xff"])
def test_the_hint_is_only_a_hint(tmp_path: Path, hint: str | None) -> None:
    store = chaos.three_commits(tmp_path / "c")
    latest = tmp_path / "c" / "latest"
    assert latest.read_text() == "step-00000003\n"
    latest.unlink()
    if hint is not None:
        latest.write_text(hint)
    answer = store.newest()
    assert answer is not None and answer[1].step == 3 and answer[2] == []


def test_without_a_whole_commit_nothing_starts_over(tmp_path: Path) -> None:
    store = chaos.three_commits(tmp_path / "c")
    for step in store.steps():
        chaos.cut(0.5, random.Random(step))(store.path(step))
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole: .*--fresh") as caught:
        store.newest()
    assert caught.value.exit_code == 4
    shutil.rmtree(tmp_path / "c")
    assert store.newest() is None, "no commits at all is no error: that is a first start"


def test_a_full_disk_leaves_the_commit_before_and_says_what_is_needed(tmp_path: Path) -> None:
    try:
        with chaos.small_disk(tmp_path / "disk", 3) as disk:
            _fill_the_disk(disk / "c")
    except PermissionError as error:
        pytest.skip(str(error))


def _fill_the_disk(directory: Path) -> None:
    store = CheckpointStore(directory)
    write_commit(store, 1, size=100_000)  # 0.5 MiB of 3
    before = hashes(store.path(1))
    temporary = store.open()
    with pytest.raises(OSError, match="No space left") as full:
        (temporary / "policy.pt").write_bytes(bytes(4 << 20))
    assert full.value.errno == errno.ENOSPC
    with pytest.raises(CheckpointError) as caught:  # what is left of the disk does not hold the manifest
        store.commit(temporary, 2, stage="ppo", identity={"data": "d" * 100_000})
    text = str(caught.value)
    assert str(directory) in text and "the disk is full" in text and "earlier checkpoints are untouched" in text
    assert "about 500000 bytes needed" in text and "0 free" in text
    assert caught.value.exit_code == 4 and strangers(directory) == [] and hashes(store.path(1)) == before
    (directory.parent / "ballast").write_bytes(bytes(shutil.disk_usage(directory).free - 550_000))
    with pytest.raises(CheckpointError, match=r"a checkpoint needs 600000 bytes, \d+ are free; free some space"):
        store.open()
    (directory.parent / "ballast").write_bytes(bytes((2 << 20) - 200_000))
    with pytest.raises(CheckpointError, match="the disk is full"):
        store.preflight()
    assert strangers(directory) == [], "what the check wrote is gone"
    (directory.parent / "ballast").unlink()
    store.preflight()
    write_commit(store, 2, size=100_000)
    assert store.steps() == [1, 2], "with room again the same process goes on"


def test_a_file_limit_in_the_middle_of_a_commit(tmp_path: Path) -> None:
    """The same without the right to mount: a manifest that may not grow to its length."""
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from rlhf.engine.checkpoint.store import CheckpointStore; from rlhf.errors import CheckpointError\n"
        "from tests.support.chaos_store import write_commit\n"
        "store = CheckpointStore(Path(sys.argv[1])); write_commit(store, 1, size=512)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))\n"
        "try:\n    write_commit(store, 2, size=512)\n"
        "except CheckpointError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "c")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "the disk is full (about 2560 bytes needed" in done.stdout, done.stdout + done.stderr
    store = CheckpointStore(tmp_path / "c")
    assert store.steps() == [1] and strangers(tmp_path / "c") == [] and store.newest() is not None


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_the_last_and_the_best_are_kept_across_restarts(tmp_path: Path, keep_last: int) -> None:
    counts: list[int] = []
    metrics = [0.1, 0.9, 0.2, float("nan"), 0.3, 0.4, None, 0.5]
    for step, metric in enumerate(metrics, start=1):
        store = CheckpointStore(tmp_path / "c", token=step, keep_last=keep_last)
        store.reached = lambda _, store=store: counts.append(len(store.steps()))  # type: ignore[misc]
        write_commit(store, step, metric=metric)
        expected = {2, *range(max(1, step - keep_last + 1), step + 1)} if step > 1 else {1}
        assert store.steps() == sorted(expected)
        assert store.newest() is not None
    assert max(counts) <= keep_last + 2 and min(counts[3:]) >= 1, "the best, the last k, and one being written"


def test_a_later_claim_fences_an_earlier_one_off(tmp_path: Path) -> None:
    early, late = CheckpointStore(tmp_path / "c", token=4), CheckpointStore(tmp_path / "c", token=5)
    write_commit(early, 1)
    write_commit(late, 2)
    before = hashes(tmp_path / "c")
    with pytest.raises(CheckpointError, match=r"taken over by a later run \(token 5, mine is 4\)"):
        write_commit(early, 3)
    assert hashes(tmp_path / "c") == before and strangers(tmp_path / "c") == []


def test_a_commit_without_a_rank_s_part_is_none(tmp_path: Path) -> None:
    """The ranks wrote elsewhere: what would be sealed as whole holds nothing of theirs."""
    store = CheckpointStore(tmp_path / "c")
    temporary = store.open()
    (temporary / "rank-0.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"rank-1\.json of 2 parts are not there.*all nodes share"):
        store.commit(temporary, 1, stage="ppo", identity={}, parts=["rank-0.json", "rank-1.json"])
    assert store.steps() == [] and not temporary.exists()
    temporary = store.open()
    (temporary / "critic").mkdir()
    for name in ("rank-0.json", "critic/rank-0.json"):
        (temporary / name).write_text("{}")
    store.commit(temporary, 1, stage="ppo", identity={}, parts=["rank-0.json", "critic/rank-0.json"])
    assert store.steps() == [1]


def test_a_step_that_is_there_is_not_written_again_unless_it_is_broken(tmp_path: Path) -> None:
    store = chaos.three_commits(tmp_path / "c")
    before = store.path(3).stat().st_ino
    write_commit(store, 3)
    assert store.path(3).stat().st_ino == before
    chaos.remove_a_file(store.path(3))
    write_commit(store, 3)
    answer = store.newest()
    assert answer is not None and answer[1].step == 3 and strangers(tmp_path / "c") == []


def test_of_twenty_launches_one_wins(tmp_path: Path) -> None:
    for token in (1, 2):
        answers = child("tests.support.chaos_files", tmp_path / "run", 20)
        won = [a for a in answers if a["won"]]
        assert len(won) == 1 and won[0]["token"] == token
        others = [a for a in answers if not a["won"]]
        assert len(others) == 19 and {a["code"] for a in others} == {7}
        assert all(f"pid {won[0]['pid']} on {os.uname().nodename}" in a["message"] for a in others), others
