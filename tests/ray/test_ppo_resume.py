"""A run that was cut off goes on as if nothing had happened: equal to the last bit, and to nothing less."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlhf.engine.checkpoint.manifest import read_manifest
from rlhf.errors import CheckpointError, StoppedError
from rlhf.stages import ppo, ppo_run
from rlhf.stages.resume import StopRequest
from rlhf.telemetry.events import read_events
from tests.support.ppo import FEW_PASSES, Finished, flat, run
from tests.support.resumed import (
    STEPS,
    assert_same,
    config_of,
    cut_after,
    kept,
    resumed_at,
    run_and_keep,
)
from tests.support.runtime import ActorPool

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all runs of the plain settings: they must read the same prompt file."""
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def plain(actor_pool: ActorPool, tiny_base: Path, place: Path) -> Finished:
    """The whole run of the plain settings."""
    return run_and_keep(config_of(tiny_base, place / "whole"), actor_pool, [2])


@pytest.fixture(scope="module")
def half_done(plain: Finished) -> Path:
    """What a kill after the second step of the plain settings leaves."""
    return kept(plain.run_dir, 2)


OF_STAGE: dict[int, dict[str, Any]] = {0: {}, 1: {"loss.old_logprobs": "rollout"}, 2: {}, 3: FEW_PASSES}


@pytest.mark.parametrize("zero_stage", OF_STAGE)
def test_a_resumed_run_is_the_same_run(
    zero_stage: int, plain: Finished, actor_pool: ActorPool, tiny_base: Path, place: Path
) -> None:
    changes = {"engine.zero_stage": zero_stage, **OF_STAGE[zero_stage]}
    cuts = range(1, STEPS) if zero_stage == 2 else [2]
    config = config_of(tiny_base, place / f"whole-{zero_stage}", **changes)
    whole = plain if zero_stage == 0 else run_and_keep(config, actor_pool, cuts)
    for cut in cuts:
        config = config_of(tiny_base, place / f"resumed-{zero_stage}-{cut}", **changes)
        shutil.copytree(kept(whole.run_dir, cut), config.run_dir)
        again = run(config, actor_pool)
        assert_same(whole, again)
        assert resumed_at(again) == [cut]


def test_a_cut_between_commits_repeats_the_steps_since(
    plain: Finished, actor_pool: ActorPool, tiny_base: Path, place: Path
) -> None:
    config = config_of(tiny_base, place / "cut", **{"checkpoint.every": 2})
    cut_after(config, actor_pool, 3)
    again = run(config, actor_pool)
    assert_same(plain, again)
    assert resumed_at(again) == [2]


def test_rollouts_ahead_resume_exactly_at_a_commit(actor_pool: ActorPool, tiny_base: Path, tmp_path: Path) -> None:
    changes = {"rollout.overlap": 1, "loss.importance_cap": 2.0, "checkpoint.every": 2, "num_steps": 4}
    whole = run(config_of(tiny_base, tmp_path / "whole", **changes), actor_pool)
    assert whole.series("staleness") == [0, 1, 0, 1], "a step after a commit is drawn by the newest policy"
    config = config_of(tiny_base, tmp_path / "cut", **changes)
    cut_after(config, actor_pool, 3)
    assert_same(whole, run(config, actor_pool))


ITEMS = ["optimizer", "updates_done", "kl", "step_order"]


@pytest.mark.parametrize("item", ITEMS)
def test_leaving_out_one_piece_of_state_is_noticed(
    item: str, plain: Finished, half_done: Path, actor_pool: ActorPool, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above has power: without any one item it fails."""
    config = config_of(tiny_base, half_done.with_name(f"without-{item}"))
    shutil.copytree(half_done, config.run_dir)
    restore = ppo_run._restore
    substitutes = {}

    def forget(run_: ppo_run.PpoRun, resumed: Any) -> None:
        restore(run_, resumed)
        if item == "updates_done":
            run_.updates_done = 0
        if item == "kl":
            run_.kl.coef = config.kl.coef
        if item == "step_order":
            run_.next_draw = 0
            monkeypatch.setattr(ppo, "prompt_rows_of", lambda c, n, step: ppo_run.prompt_rows_of(c, n, step - 2))
            run_.next_draw = 2

    monkeypatch.setattr(ppo_run, "_restore", forget)
    if item == "optimizer":
        substitutes["PolicyWorker"] = "tests.support.faults:ForgetsOptimizer"
    again = run(config, actor_pool, **substitutes)
    with pytest.raises(AssertionError):
        assert_same(plain, again)


def test_a_stop_request_commits_and_says_how_to_go_on(
    plain: Finished, actor_pool: ActorPool, tiny_base: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tiny_base, place / "stopped", **{"checkpoint.every": 50})
    record = ppo.record

    def ask(run_: ppo_run.PpoRun, step: int, *rest: Any) -> None:
        if step == 1:
            run_.session.stop.name = "SIGTERM"
            run_.session.stop.asked.set()
        record(run_, step, *rest)

    monkeypatch.setattr(ppo, "record", ask)
    with pytest.raises(StoppedError, match="stopped by SIGTERM after step 2 of 4, checkpoint written") as caught:
        run(config, actor_pool)
    assert caught.value.exit_code == 3
    monkeypatch.setattr(ppo, "record", record)
    again = run(config, actor_pool)
    assert_same(plain, again)
    assert resumed_at(again) == [2]


def test_a_relative_run_dir_is_one_place_for_driver_and_ranks(
    actor_pool: ActorPool, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ranks' working directory is another one, as on a cluster that was joined."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the score function's process
    config = config_of(tiny_base, Path("run"), **{"placement.num_ranks": 1, "num_steps": 2})
    cut_after(config, actor_pool, 1)
    files = read_manifest(tmp_path / "run" / "checkpoints" / "step-00000001").files
    assert "rank-0.json" in files and any(name.startswith("policy/adapter/") for name in files)
    found = run(config, actor_pool)
    assert resumed_at(found) == [1] and found.adapter


def test_a_stop_request_is_made_by_a_signal() -> None:
    import os
    import signal

    from rlhf.stages.resume import stop_on_signals

    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as request:
        os.kill(os.getpid(), signal.SIGTERM)
        assert isinstance(request, StopRequest) and request.asked.is_set() and request.name == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


CHANGED: list[tuple[dict[str, Any], str]] = [
    ({"optim.learning_rate": 5e-4}, r"written with optim\.learning_rate=0\.001, this run has 0\.0005"),
    ({"placement.num_ranks": 1}, "written by 2 ranks, this run has 1: set placement.num_ranks=2"),
    ({"checkpoint.resume": "never"}, "checkpoint.resume=never"),
]


def test_a_commit_of_another_run_is_refused(actor_pool: ActorPool, tiny_base: Path, tmp_path: Path) -> None:
    cut_after(config_of(tiny_base, tmp_path / "cut"), actor_pool, 1)
    for changes, reason in CHANGED:
        with pytest.raises(CheckpointError, match=reason) as caught:
            run(config_of(tiny_base, tmp_path / "cut", **changes), actor_pool)
        assert caught.value.exit_code == 4
    config = config_of(tiny_base, tmp_path / "cut")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(prompts.read_text().replace("They ran", "They walked"))
    with pytest.raises(CheckpointError, match="the data has changed since the checkpoint was written"):
        run(config, actor_pool)


def test_the_newest_whole_commit_is_used_and_never_none(
    plain: Finished, half_done: Path, actor_pool: ActorPool, tiny_base: Path, place: Path
) -> None:
    config = config_of(tiny_base, place / "flipped")
    shutil.copytree(half_done, config.run_dir)
    newest = place / "flipped" / "checkpoints" / "step-00000002"
    victim = next(newest.rglob("*optim_states.pt"), None) or next(newest.rglob("*.pt"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    again = run(config, actor_pool)
    assert_same(plain, again)
    assert resumed_at(again) == [1]
    refused = [event["reason"] for event in read_events(again.run_dir) if event["event"] == "checkpoint_refused"]
    assert "its sha256 does not fit" in refused[0]

    damaged = config_of(tiny_base, place / "bad")
    shutil.copytree(half_done, damaged.run_dir)
    for path in (place / "bad" / "checkpoints").glob("step-*/MANIFEST.json"):
        path.write_text(path.read_text()[:-40])
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole"):
        run(damaged, actor_pool)
    rows = [flat(json.loads(line)) for line in (place / "bad" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1], "nothing was started over"
