"""Whatever is wrong with an adapter, a reference or a rank, the run stops and says what."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import ConfigError, DataError, NumericsError, RlhfError, RolloutFleetExhausted, WeightSyncError
from rlhf.stages import ppo
from rlhf.telemetry.events import read_events
from rlhf.workers.group import WorkerGroup
from tests.support.faults import NAN_UPDATES
from tests.support.pickles import TEXT_OF_RUNS, careless, open_run, plant_everywhere
from tests.support.ppo import Finished, run, tiny_config
from tests.support.runtime import ActorPool, gone

FAULTS = "tests.support.faults:"

CASES: list[tuple[dict[str, str], type[RlhfError], str]] = [
    (
        {"PolicyWorker": "FrozenPublisher"},
        WeightSyncError,
        "version 1 has the bytes of version 0 after a real optimizer",
    ),
    ({"PolicyWorker": "EmptyPublisher"}, ConfigError, "the adapter is empty"),
    ({"RolloutWorker": "DeafRollout"}, WeightSyncError, r"after sync of version 1 the canary's log-probs differ by"),
    ({"RolloutWorker": "LateRollout"}, WeightSyncError, r"rollout worker 1 holds \w{12}, published was"),
    (
        {"RolloutWorker": "StaleRollout"},
        WeightSyncError,
        r"rollouts carry adapter versions \[0, 1\], the current one is 1",
    ),
    ({"RolloutWorker": "ShiftedRollout"}, WeightSyncError, r"differ by 0\.7 nats per token \(mismatch_limit=0\.5\)"),
    ({"RolloutWorker": "ForgetfulRollout"}, WeightSyncError, "rollout worker 1 holds adapter version -1, wanted 1"),
    ({"PolicyWorker": "OffPolicy"}, NumericsError, "step 0: the first micro-batch's ratio is off 1 by 0.01"),
    ({"PolicyWorker": "MovedReference"}, WeightSyncError, "the reference is not the start policy"),
]


@pytest.mark.parametrize(
    ("workers", "error", "reason"), CASES, ids=lambda c: next(iter(c.values())) if isinstance(c, dict) else ""
)
def test_a_fault_stops_the_run_with_its_reason(
    workers: dict[str, str],
    error: type[RlhfError],
    reason: str,
    actor_pool: ActorPool,
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    config = tiny_config(tiny_base, tmp_path / "run", **{"batch.epochs": 1, "optim.learning_rate": 1e-2})
    with pytest.raises(error, match=reason):
        run(config, actor_pool, **{name: FAULTS + fault for name, fault in workers.items()})
    assert not (tmp_path / "run" / "run.json").exists(), "a stopped run must not look finished"
    steps = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(steps) <= 1


def test_a_stopped_run_leaves_its_directory_free(actor_pool: ActorPool, tiny_base: Path, tmp_path: Path) -> None:
    config = tiny_config(tiny_base, tmp_path / "run", num_steps=1)
    with pytest.raises(WeightSyncError):
        run(config, actor_pool, PolicyWorker=FAULTS + "MovedReference")
    again = run(config, actor_pool)
    assert again.summary["adapter_version"] == 1 and (tmp_path / "run" / "run.json").is_file()


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"rollout.max_prompt_tokens": 3}, DataError, "the limit is max_prompt_tokens=3"),
        (
            {"scores": [{"kind": "function", "path": "tests.support.scores:absent"}]},
            ConfigError,
            "no function 'absent'",
        ),
        ({"scores": [{"kind": "function", "path": "no.such:module"}]}, ConfigError, "cannot import no.such"),
        ({"model.name": "./nowhere"}, ConfigError, "nowhere"),
    ],
)
def test_wrong_input_is_refused_before_any_worker_starts(
    changes: dict[str, Any], error: type[RlhfError], reason: str, tiny_base: Path, tmp_path: Path
) -> None:
    pool = ActorPool()
    with pytest.raises(error, match=reason):
        run(tiny_config(tiny_base, tmp_path / "run", **changes), pool)
    assert pool.groups == {}, "it would have had to start them"


@pytest.mark.parametrize(
    ("name", "reason"),
    [("one_missing", "returned 15 scores for 16 responses"), ("not_a_number", "returned nan for response 3")],
)
def test_scores_that_are_none_stop_the_run(
    name: str, reason: str, actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    scores = [{"kind": "function", "path": f"tests.support.scores:{name}"}]
    with pytest.raises(DataError, match=reason):
        run(tiny_config(tiny_base, tmp_path / "run", scores=scores), actor_pool)


def test_kl_over_its_limit_stops_the_run(actor_pool: ActorPool, tiny_base: Path, tmp_path: Path) -> None:
    changes = {"kl.limit": 1e-4, "optim.learning_rate": 1e-2}
    with pytest.raises(NumericsError, match=r"step 1: KL to the reference is .* above kl\.limit=0\.0001"):
        run(tiny_config(tiny_base, tmp_path / "run", **changes), actor_pool)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 1 and last["kl"] > 1e-4, "the step that broke the limit is on record"


def nan_run(base: Path, run_dir: Path, pool: ActorPool, zero: int, updates: list[int]) -> Finished:
    run_dir.mkdir()
    (run_dir / NAN_UPDATES).write_text(json.dumps(updates))
    config = tiny_config(base, run_dir, **{"placement.num_ranks": 2, "engine.zero_stage": zero})
    return run(config, pool, PolicyWorker=FAULTS + "NanPolicy")


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_updates_without_a_finite_gradient_are_skipped_on_all_ranks_and_counted(
    zero: int, actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    """One rank's loss is NaN in updates 1 and 2 of 4 in step 0, and in update 5, which is in step 1."""
    found = nan_run(tiny_base, tmp_path / "run", actor_pool, zero, [1, 2, 5])
    assert found.series("updates_skipped") == [2, 1]
    assert all(bool(tensor.isfinite().all()) for tensor in found.adapter.values())
    assert all(norm > 0 for norm in found.series("grad_norm")), "the other updates were made"
    learned = [answers for method, answers in found.answers if method == "learn"]
    assert all(ranks[0] == ranks[1] for ranks in learned), "the ranks skip alike"


def test_three_such_updates_in_a_row_stop_the_run(actor_pool: ActorPool, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(NumericsError, match=r"3 updates in a row .*max_nonfinite_updates=2.* sequences \[\d+, "):
        nan_run(tiny_base, tmp_path / "run", actor_pool, 2, [1, 2, 3])
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_fleet_without_workers_ends_the_run(
    ray_session: Any, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On processes of its own: started by the recipe, one killed while scoring, all gone afterwards."""
    groups: list[WorkerGroup] = []
    launch = WorkerGroup.launch

    def remember(worker: str, role: str, **options: Any) -> WorkerGroup:
        groups.append(launch(worker, role, **options))
        (tmp_path / "pids").write_text(" ".join(map(str, pids("rollout"))))
        return groups[-1]

    def pids(role: str) -> list[int]:
        return [pid for group in groups if group.role == role for pid in group.pids]

    monkeypatch.setattr(WorkerGroup, "launch", remember)
    monkeypatch.setenv("PIDS_TO_KILL", str(tmp_path / "pids"))
    scores = [{"kind": "function", "path": "tests.support.scores:kill_rollout_workers"}]
    changes = {"placement.num_rollout_workers": 1, "recovery.max_rollout_restarts": 0}
    config = tiny_config(tiny_base, tmp_path / "run", scores=scores, **changes)
    with pytest.raises(RolloutFleetExhausted) as caught:
        ppo.run_ppo(config)
    assert "no rollout worker is left after 0 restarts" in caught.value.cause, caught.value.cause
    events = read_events(tmp_path / "run")
    found = [e for e in events if e.get("fault") == "rollout-0"]
    assert [e["event"] for e in found] == ["fault_detected", "fault_fatal"] and "ActorDied" in found[0]["cause"]
    assert gone([*pids("policy"), *pids("rollout")])


def test_a_response_that_hangs_its_score_function_is_left_out(
    tiny_base: Path, tmp_path: Path, actor_pool: ActorPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step completes, the other responses are learnt from, and the drop is counted."""
    monkeypatch.setenv("LONGEST", str(tmp_path / "longest"))
    source = {"kind": "function", "path": "tests.support.scores:hangs_on_the_longest", "timeout_seconds": 0.2}
    scores = [{**source, "on_error": "drop"}]
    done = run(tiny_config(tiny_base, tmp_path / "run", scores=scores), actor_pool)
    assert done.series("unscored") == [1, 1] and done.series("reward_errors_total") == [1, 2]
    assert all(map(math.isfinite, done.series("score_mean")))
    assert all(value > 0 for value in done.series("grad_norm"))
    samples = [json.loads(line) for line in (done.run_dir / "rollouts.jsonl").read_text().splitlines()]
    assert all(row["score"] is None or math.isfinite(row["score"]) for row in samples)


def test_a_pickle_planted_in_a_finished_run_never_runs(tiny_base: Path, tmp_path: Path, actor_pool: ActorPool) -> None:
    done = run(tiny_config(tiny_base, tmp_path / "run"), actor_pool)
    outcomes = plant_everywhere(done.run_dir, tmp_path, open_run, kinds=("torch",))
    assert careless(outcomes, TEXT_OF_RUNS) == []
