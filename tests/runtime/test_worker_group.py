"""Worker groups on real Ray processes: answers in order, failures with a name, nothing left behind."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf.config import PlacementConfig
from rlhf.errors import CheckpointError, DataError, WorkerError
from rlhf.stages.resume import require_shared
from rlhf.workers.group import WorkerGroup, share
from tests.support.runtime import gone

PROBE = "tests.support.workers:Probe"


def launch(run_dir: Any, *, size: int = 2, timeout: float = 30.0, **options: Any) -> WorkerGroup:
    placement = PlacementConfig(call_timeout_seconds=timeout, start_timeout_seconds=60)
    return WorkerGroup.launch(
        PROBE, "probe", size=size, placement=placement, run_dir=str(run_dir), args=(share("hello"),), **options
    )


@pytest.fixture(scope="module")
def group(ray_session: dict[str, float], tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerGroup]:
    found = launch(tmp_path_factory.mktemp("group"), collective=True)
    yield found
    found.close()


def test_calls_reach_every_rank_in_order(group: WorkerGroup) -> None:
    assert group.call("echo", 5) == [("hello", 0, 2, 5), ("hello", 1, 2, 5)]
    assert group.scatter("echo", [("a",), ("b",)]) == [("hello", 0, 2, "a"), ("hello", 1, 2, "b")]
    assert group.call("echo", share([1, 2]))[1][3] == [1, 2]
    refs = group.submit("echo", [(1,), (2,)])
    assert [answer[3] for answer in group.wait(refs)] == [1, 2]
    assert len(set(group.pids)) == 2 and os.getpid() not in group.pids


def test_workers_go_where_their_driver_is(
    ray_session: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes of a joined cluster were started anywhere, and relative names are told to workers as they stand."""
    place = tmp_path / "project"
    place.mkdir()
    monkeypatch.chdir(place)
    found = launch(tmp_path, size=1)
    try:
        assert found.call("directory") == [str(place)]
    finally:
        found.close()


def test_ranks_know_their_process_group(group: WorkerGroup) -> None:
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR", "OMP_NUM_THREADS",
             "CUDA_VISIBLE_DEVICES"]  # fmt: skip
    first, second = group.call("environment", names)
    assert (first["RANK"], second["RANK"]) == ("0", "1")
    assert (first["LOCAL_RANK"], second["LOCAL_RANK"]) == ("0", "1")
    for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR", "OMP_NUM_THREADS"):
        assert first[name] == second[name] is not None
    assert first["CUDA_VISIBLE_DEVICES"] == second["CUDA_VISIBLE_DEVICES"] == "", "Ray hides no GPU from them"
    assert first["WORLD_SIZE"] == "2" and first["OMP_NUM_THREADS"] == "1"


def test_a_failure_names_role_rank_and_cause(group: WorkerGroup) -> None:
    with pytest.raises(WorkerError) as caught:
        group.call("fail", 1, "plain")
    assert (caught.value.role, caught.value.rank) == ("probe", 1)
    assert "ZeroDivisionError" in caught.value.cause and "in fail" in caught.value.cause
    with pytest.raises(WorkerError, match=r"probe worker 0 failed: Oddity: the odd message"):
        group.call("fail", 0, "unpicklable")
    with pytest.raises(WorkerError, match=r"probe worker [01] failed: AttributeError"):
        group.call("no_such_method")


def test_errors_of_our_own_keep_their_type(group: WorkerGroup) -> None:
    with pytest.raises(DataError, match=r"^rows\.jsonl line 3: no prompt$"):
        group.call("fail", 0, "typed")
    with pytest.raises(WorkerError) as caught:  # a nested one names the outer worker
        group.call("fail", 1, "worker")
    assert (caught.value.role, caught.value.rank) == ("probe", 1)
    assert group.call("echo", "still here")[1][3] == "still here"


def test_ranks_in_another_working_directory_do_not_see_a_relative_one(
    group: WorkerGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    with pytest.raises(CheckpointError, match=r"probe ranks \[0, 1\] do not see run_dir=run"):
        require_shared(group, Path("run"))
    require_shared(group, Path("run").absolute())


def test_events_arrive_while_the_call_runs(group: WorkerGroup) -> None:
    arrived: list[tuple[float, dict[str, Any]]] = []
    started = time.monotonic()
    results = group.call("report", 20, on_event=lambda e: arrived.append((time.monotonic() - started, e)))
    took = time.monotonic() - started
    assert results == [20, 20]
    for rank in (0, 1):
        steps = [event["step"] for _, event in arrived if event["rank"] == rank]
        assert steps == list(range(20))
    assert arrived[0][0] < took - 0.2, "events came only at the end"


def test_silence_ends_in_a_timeout(ray_session: dict[str, float], tmp_path: Any) -> None:
    found = launch(tmp_path, size=1, timeout=1.0)
    try:
        started = time.monotonic()
        with pytest.raises(WorkerError, match=r"no progress within 1 s \(placement\.call_timeout_seconds\)"):
            found.call("sleep", 60)
        assert time.monotonic() - started < 12
    finally:
        pids = found.pids
        found.close()
    assert gone(pids), "close must end a busy process too"


def test_progress_keeps_a_call_alive_and_a_stall_after_it_ends_it(ray_session: dict[str, float], tmp_path: Any) -> None:
    found = launch(tmp_path, size=2, timeout=3.0)
    try:
        assert found.call("work", 4.0, 0.0) == [4.0, 4.0], "steps for longer than the bound, none longer than it"
        started = time.monotonic()
        with pytest.raises(WorkerError, match="no answer and no progress"):
            found.call("work", 1.0, 60.0)
        assert 3.5 < time.monotonic() - started < 14
        (written,) = (tmp_path / "stalls").iterdir()
        assert "time.sleep(stuck)" in written.read_text() and "last events" in written.read_text()
    finally:
        found.close()


@pytest.mark.parametrize("with_events", [False, True])
def test_a_killed_rank_is_noticed_while_others_are_busy(
    with_events: bool, ray_session: dict[str, float], tmp_path: Any
) -> None:
    found = launch(tmp_path)
    pids = found.pids
    try:
        started = time.monotonic()
        with pytest.raises(WorkerError) as caught:
            found.call("die", 1, on_event=(lambda event: None) if with_events else None)
        assert (caught.value.role, caught.value.rank) == ("probe", 1)
        assert "ActorDiedError" in caught.value.cause
        assert time.monotonic() - started < 15
    finally:
        found.close()
    assert gone(pids)


def test_a_failed_start_leaves_nothing_behind(ray_session: dict[str, float], tmp_path: Any) -> None:
    seen: list[int] = []
    gather = WorkerGroup._gather

    def remember(self: WorkerGroup, refs: list[Any], *rest: Any, **named: Any) -> list[Any]:
        answers = gather(self, refs, *rest, **named)
        seen.extend(answer[3] for answer in answers if isinstance(answer, tuple))
        return answers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkerGroup, "_gather", remember)
        with pytest.raises(DataError, match="line 3"):
            launch(tmp_path, kwargs={"fail_on_rank": 1})
    assert len(seen) == 2 and gone(seen)
