"""A profiled run: every part of every step, in every worker, and the same results as without."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from rlhf.telemetry.profile_files import profile_rows
from rlhf.workers.recorded import fetch_spans, record_spans
from tests.support.ppo import Finished, run, tiny_config
from tests.support.runtime import ActorPool

CHANGES: dict[str, Any] = {"num_steps": 3, "placement.num_ranks": 2, "engine.zero_stage": 2}
NOT_RESULTS = ("time", "seconds.", "speed.", "sync.milliseconds")


@pytest.fixture(scope="module")
def plain(actor_pool: ActorPool, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    found = run(tiny_config(tiny_base, tmp_path_factory.mktemp("plain") / "run", **CHANGES), actor_pool)
    for group in actor_pool.groups.values():
        left = fetch_spans(dict(enumerate(group.actors)))
        assert all(one == ([], [], None) for one in left.values()), "something is recorded without the flag"
    return found


@pytest.fixture(scope="module")
def profiled(actor_pool: ActorPool, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    changes = {**CHANGES, "telemetry.profile": True}
    found = run(tiny_config(tiny_base, tmp_path_factory.mktemp("profiled") / "run", **changes), actor_pool)
    for group in actor_pool.groups.values():  # the processes serve other tests
        record_spans(dict(enumerate(group.actors)), on=False)
    return found


def test_results_are_those_of_a_run_without(plain: Finished, profiled: Finished) -> None:
    def results(found: Finished) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if not k.startswith(NOT_RESULTS)} for row in found.rows]

    assert results(profiled) == results(plain) and len(plain.rows) == 3
    assert profiled.summary["adapter_sha256"] == plain.summary["adapter_sha256"]
    assert not (plain.run_dir / "profile").exists()


def test_parts_add_up_to_every_step(profiled: Finished) -> None:
    profile = json.loads((profiled.run_dir / "profile" / "profile.json").read_text("utf-8"))
    lanes = ["policy-0", "policy-1", "rollout-0", "rollout-1"]
    assert profile["lanes"] == lanes and [step["step"] for step in profile["steps"]] == [0, 1, 2]
    for step, row in zip(profile["steps"], profiled.rows, strict=True):
        wall = step["wall_seconds"]
        assert sum(step["kinds"].values()) == pytest.approx(wall, rel=0.05)
        assert all(sum(kinds.values()) == pytest.approx(wall, rel=0.05) for kinds in step["lanes"].values())
        assert list(step["lanes"]) == lanes
        for act in ("act", "judge", "learn", "share"):
            parts = dict(step["acts"][act])
            seconds = parts.pop("seconds")
            assert seconds == pytest.approx(row[f"seconds.{act}"], rel=0.05, abs=0.1)  # another clock
            assert sum(parts.values()) == pytest.approx(seconds, rel=1e-6)
            assert parts["workers"] > 0 and parts["ray"] > 0
        wanted = ("generate", "score.pass", "learn.forward", "learn.backward", "learn.optimizer", "sync.snapshot",
                  "sync.install", "sync.canary")  # fmt: skip
        assert all(step["kinds"][kind] > 0 for kind in wanted)
        assert all(step["lanes"][lane]["generate"] > 0 and step["lanes"][lane]["idle"] > 0 for lane in lanes[2:])
        assert all(step["lanes"][lane]["learn.backward"] > 0 for lane in lanes[:2])
        assert step["memory_bytes"]["learn.backward"]["rss"] > 50 << 20
        assert set(step["pss_bytes"]) == {"driver-0", *lanes}
        assert set(step["roles"]["learn"]) == {"policy", "critic"}
        assert set(step["roles"]["score"]) == {"policy", "ref", "critic"}


def test_trace_picture_and_table_are_there(profiled: Finished) -> None:
    folder = profiled.run_dir / "profile"
    events = json.loads((folder / "trace.json").read_text("utf-8"))["traceEvents"]
    lanes = {event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert lanes == {"driver-0", "policy-0", "policy-1", "rollout-0", "rollout-1"}
    # per step and rank: 2 epochs x 2 minibatches, each of 2 micro-batches
    assert sum(event["name"] == "learn.backward" for event in events) == 3 * 2 * 2 * 2 * 2
    root = ElementTree.parse(folder / "profile.svg").getroot()
    assert lanes - {"driver-0"} < {"".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"generate", "learn: backward", "step"} <= {row[0] for row in profile_rows(profiled.run_dir)}


def test_rollouts_that_run_ahead_are_seen_in_the_step_they_run_in(
    actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    changes = {"num_steps": 3, "rollout.overlap": 1, "loss.importance_cap": 2.0, "telemetry.profile": True}
    found = run(tiny_config(tiny_base, tmp_path / "run", **changes), actor_pool)
    for group in actor_pool.groups.values():
        record_spans(dict(enumerate(group.actors)), on=False)
    for step in json.loads((found.run_dir / "profile" / "profile.json").read_text("utf-8"))["steps"]:
        assert sum(step["kinds"].values()) == pytest.approx(step["wall_seconds"])
        assert step["kinds"]["learn.backward"] > 0
