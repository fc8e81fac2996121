"""Spans become kinds that add up to the wall time, whatever the spans look like."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.telemetry.profile import StepSpans, lane_pieces, medians, step_pieces, summarise
from rlhf.telemetry.profile_files import profile_rows, trace_events, write_profile
from rlhf.telemetry.spans import Recorder, Span

SECOND = 10**9
SHARES = {
    "learn": {"policy": 0.6, "critic": 0.4},
    "optimizer": {"policy": 0.5, "critic": 0.5},
    "score": {"policy": 0.5, "ref": 0.5},
}


def span(name: str, start: float, end: float, **memory: int) -> Span:
    return Span(name, round(start * SECOND), round(end * SECOND), memory)


def a_step(number: int = 0, at: float = 100.0) -> StepSpans:
    """Ten seconds: drawing 0-3, judging 3-5, learning 5-8, sharing 8-9, records 9-10."""
    driver = [
        span("step", at, at + 10),
        span("act", at, at + 3),
        span("ray.rollout", at + 0.1, at + 2.9),
        span("judge", at + 3, at + 5),
        span("put", at + 3.1, at + 3.2),
        span("ray.policy", at + 3.2, at + 4.2),
        span("scores", at + 4.2, at + 4.7),
        span("learn", at + 5, at + 8),
        span("ray.policy", at + 5, at + 8),
        span("share", at + 8, at + 9),
        span("ray.policy", at + 8, at + 8.4),
        span("ray.rollout", at + 8.4, at + 9),
    ]
    rollout = {
        "rollout-0": [span("generate", at + 0.2, at + 2.2, rss=5), span("install", at + 8.5, at + 8.7)],
        "rollout-1": [span("generate", at + 0.3, at + 2.8, rss=7), span("install", at + 8.5, at + 8.9)],
    }
    policy = [
        span("fetch", at + 3.3, at + 3.4),
        span("judge.pass", at + 3.4, at + 4.0, rss=9),
        span("judge", at + 3.3, at + 4.1),
        span("learn.forward", at + 5.2, at + 6.2, rss=11),
        span("learn.backward", at + 6.2, at + 7.2, rss=12),
        span("learn.optimizer", at + 7.3, at + 7.7),
        span("learn", at + 5.1, at + 7.9),
        span("snapshot", at + 8.1, at + 8.3),
    ]
    return StepSpans(number, driver, {"policy-0": policy, **rollout}, SHARES, {"policy-0": 100})


def test_a_step_is_divided_as_it_was_spent() -> None:
    found = summarise(a_step())
    assert found["wall_seconds"] == pytest.approx(10)
    assert found["kinds"] == pytest.approx(
        {
            "generate": 2.5,  # of the slower worker
            "score.pass": 0.6,
            "score.functions": 0.5,
            "score.rest": 0.1,
            "learn.forward": 1.0,
            "learn.backward": 1.0,
            "learn.optimizer": 0.4,
            "learn.rest": 0.4,
            "sync.snapshot": 0.2,
            "sync.install": 0.4,
            "driver": 0.2 + 0.1 + 0.3 + 1.0,
            "ray.store": 0.1 + 0.1,
            "ray.overhead": 0.3 + 0.2 + 0.2 + 0.2 + 0.2,
        }
    )
    assert found["acts"]["act"] == pytest.approx({"seconds": 3, "workers": 2.5, "driver": 0.2, "ray": 0.3})
    assert found["acts"]["learn"] == pytest.approx({"seconds": 3, "workers": 2.8, "driver": 0, "ray": 0.2})
    assert found["lanes"]["rollout-0"] == pytest.approx({"generate": 2.0, "sync.install": 0.2, "idle": 7.8})
    assert found["memory_bytes"]["generate"] == {"rss": 7} and found["memory_bytes"]["learn.backward"] == {"rss": 12}
    assert found["roles"]["learn"] == pytest.approx({"policy": 2.4 * 0.6 + 0.2, "critic": 2.4 * 0.4 + 0.2})
    assert sum(found["roles"]["learn"].values()) == pytest.approx(2.8)


def test_a_critic_on_a_base_of_its_own_is_waited_for_after_the_policy() -> None:
    """What is left of its work has kinds of its own, and is no part of what the roles on one base share."""
    step = a_step()
    step.workers["critic-0"] = [span("learn.backward", 105.1, 108.6), span("learn", 105.1, 108.7)]
    driver = [s for s in step.driver if s.name not in ("learn", "share") and s.start < 108 * SECOND]
    step.driver[:] = [*driver, span("learn", 105, 108.8), span("ray.critic", 108, 108.8)]
    found = summarise(step)
    assert found["kinds"]["critic.learn"] == pytest.approx(0.7)
    assert found["kinds"]["learn.backward"] == pytest.approx(1.0)
    assert found["lanes"]["critic-0"] == pytest.approx({"learn.backward": 3.5, "learn.rest": 0.1, "idle": 6.4})
    assert sum(found["roles"]["learn"].values()) == pytest.approx(2.8)
    assert sum(found["kinds"].values()) == pytest.approx(10)


def test_work_that_goes_on_beside_the_step_is_nobodys_wait() -> None:
    """Rollouts drawn ahead: the learn phase stays the trainer's, the lane shows what the rollout worker did."""
    step = a_step()
    step.workers["rollout-0"] = [span("generate", 95, 125)]
    found = summarise(step)
    assert found["kinds"]["learn.forward"] == pytest.approx(1.0)
    assert found["lanes"]["rollout-0"] == pytest.approx({"generate": 10, "idle": 0})


SPANS = st.lists(
    st.tuples(st.floats(-2, 12), st.floats(0, 6), st.sampled_from(["generate", "fetch", "odd"])), max_size=9
)


@settings(max_examples=80, deadline=None)
@given(lanes=st.lists(SPANS, min_size=1, max_size=3), waits=SPANS)
def test_both_views_add_up_to_the_wall_time(lanes: list, waits: list) -> None:
    """Also for spans that overlap, leave the step, or contradict each other, as clocks of two hosts may make them."""
    workers = {
        f"rollout-{rank}": [span(name, start, start + length) for start, length, name in own]
        for rank, own in enumerate(lanes)
    }
    driver = [span("step", 0, 10), *(span("ray.rollout", start, start + length) for start, length, _ in waits)]
    step = StepSpans(0, driver, workers)
    found = summarise(step)
    assert sum(found["kinds"].values()) == pytest.approx(10)
    for lane in found["lanes"].values():
        assert sum(lane.values()) == pytest.approx(10)
        assert min(lane.values()) >= 0
    pieces = step_pieces(step, {k: lane_pieces(v, 0, 10 * SECOND, None) for k, v in workers.items()})
    assert all(a.end == b.start for a, b in pairwise(pieces)) and pieces[-1].end == 10 * SECOND


def test_the_median_leaves_the_first_step_out() -> None:
    steps = [summarise(a_step(number)) for number in range(3)]
    steps[0]["wall_seconds"] = 99.0
    steps[2]["kinds"]["checkpoint"] = 2.0
    found = medians(steps)
    assert found["wall_seconds"] == pytest.approx(10)
    assert found["kinds"]["checkpoint"] == 1.0  # half of the counted steps had none
    assert medians(steps[:1])["wall_seconds"] == 99.0


class Counting:
    """A meter that counts."""

    def __init__(self) -> None:
        self.settled, self.read = 0, 0

    def settle(self) -> None:
        self.settled += 1

    def memory(self) -> dict[str, int]:
        self.read += 1
        return {"rss": self.read}

    def pss(self) -> int | None:
        return 42


def test_nothing_is_recorded_unless_switched_on() -> None:
    recorder, meter = Recorder(), Counting()
    with recorder.span("a"), recorder.span("b"):
        pass
    assert recorder.take() == ([], [], None)
    began = time.process_time()
    for _ in range(20_000):
        with recorder.span("a"):
            pass
    assert time.process_time() - began < 0.5  # 25 microseconds each; about 0.2 on a quiet machine
    recorder.switch(meter)
    with recorder.span("a"):
        with recorder.span("b"):
            pass
        running = recorder.take()
    done = recorder.take()
    assert [s.name for s in running.done] == ["b"] and [s.name for s in running.running] == ["a"]
    assert [s.name for s in done.done] == ["a"] and done.running == [] and done.pss == 42
    assert running.done[0].start >= done.done[0].start and running.done[0].end <= done.done[0].end
    assert meter.settled == 4
    recorder.switch(None)
    with recorder.span("c"):
        pass
    assert recorder.take() == ([], [], None)


def test_the_files_parse_and_name_every_lane(tmp_path: Path) -> None:
    spans = [a_step(number, 100.0 + 10 * number) for number in range(3)]
    picture = write_profile(tmp_path, [summarise(step) for step in spans], spans)
    folder = tmp_path / "profile"
    profile = json.loads((folder / "profile.json").read_text("utf-8"))
    assert profile["schema"] == 1 and profile["lanes"] == ["policy-0", "rollout-0", "rollout-1"]
    assert profile["median_of_steps"] == [1, 2] and len(profile["steps"]) == 3
    events = json.loads((folder / "trace.json").read_text("utf-8"))["traceEvents"]
    threads = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert threads == {"driver-0", "policy-0", "rollout-0", "rollout-1"}
    complete = [e for e in events if e["ph"] == "X"]
    assert all(e["dur"] >= 0 and e["ts"] >= 0 for e in complete) and len(complete) == 3 * (12 + 2 + 2 + 8)
    root = ElementTree.fromstring(picture.read_text("utf-8"))
    texts = {"".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"policy-0", "rollout-1", "learn: backward", "idle"} <= texts
    rows = profile_rows(tmp_path)
    step = next(i for i, row in enumerate(rows) if row[0] == "step")
    assert sum(float(row[1]) for row in rows[:step]) == pytest.approx(10, abs=0.01) and rows[step][2] == "100.0%"


def test_a_span_that_ends_a_step_later_is_traced_once() -> None:
    first, second = a_step(0, 100.0), a_step(1, 110.0)
    first.workers["rollout-0"] = [span("generate", 101, 110)]
    second.workers["rollout-0"] = [span("generate", 101, 112)]
    drawn = [e for e in trace_events([first, second]) if e["name"] == "generate" and e["tid"] == 0]
    assert len(drawn) == 1 and drawn[0]["dur"] == pytest.approx(11e6)
