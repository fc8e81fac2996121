"""A critic on a base of its own learns what the critic on the policy's base learns, in ranks of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf.config import PpoConfig
from rlhf.errors import NumericsError
from rlhf.models.adapters import read_adapter_file
from rlhf.models.source import resolve_model
from rlhf.workers.recorded import record_spans
from tests.support.faults import NAN_UPDATES
from tests.support.ppo import FEW_PASSES, Finished, run, tiny_config
from tests.support.runs import write_reward_run
from tests.support.runtime import ActorPool
from tests.support.tiny import build_model

SAME = ("policy_loss", "value_loss", "grad_norm", "grad_norm.policy", "grad_norm.critic", "value_clip_fraction", "kl",
        "approx_kl", "entropy", "score_mean", "reward_mean", "explained_variance", "clip_fraction")  # fmt: skip
BOUND = 2e-5
FAULTS = "tests.support.faults:"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for the runs that are compared: they must read the same prompt file."""
    return tmp_path_factory.mktemp("critic")


@pytest.fixture(scope="module")
def judges(tiny_base: Path, place: Path) -> tuple[Path, Path]:
    """The same reward run twice: on the policy's base, and on a copy of it that lies elsewhere."""
    copy = Path(shutil.copytree(tiny_base, place / "copy"))
    found = []
    for name, base in (("here", tiny_base), ("there", copy)):
        torch.manual_seed(0)
        found.append(write_reward_run(place / name, base, 0))
    return found[0], found[1]


@pytest.fixture(scope="module")
def wide(place: Path) -> Path:
    """Another base: other weights, another width and depth, the policy's tokenizer."""
    return build_model(place / "wide", seed=5, hidden_size=96, num_hidden_layers=3)


def config_of(base: Path, run_dir: Path, **changes: Any) -> PpoConfig:
    settings: dict[str, Any] = {
        "prompts": str(run_dir.parent / "shared.prompts.jsonl"),  # rows are known by their file
        "loss.value_clip": 0.2,
        "critic_learning_rate": 3e-3,
        **changes,
    }
    tiny_config(base, run_dir.parent / "shared")
    return tiny_config(base, run_dir, **settings)


def critic_of(found: Finished) -> dict[str, Tensor]:
    """Adapter and value head."""
    adapter, head = read_adapter_file(found.run_dir / "critic")
    return adapter | head


def first_values(found: Finished, method: str, *, padded: bool = False) -> Tensor:
    """Values of the first step's sequences, in an order that the number of ranks does not change.

    Args:
        padded: padded slots hold anything: the first token alone, which every response has.
    """
    judged = next(ranks for asked, ranks in found.answers if asked == method and "values" in ranks[0])
    values = torch.cat([rank["values"] for rank in judged])
    return (values[:, 0] if padded else values.flatten()).sort().values


def farthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys() and ours
    return max(float((ours[key] - theirs[key]).abs().max()) for key in ours)


def assert_alike(one: Finished, two: Finished) -> None:
    for key in SAME:
        assert two.series(key) == pytest.approx(one.series(key), rel=BOUND, abs=BOUND), key
    assert farthest(one.adapter, two.adapter) < BOUND and farthest(critic_of(one), critic_of(two)) < BOUND


@pytest.mark.parametrize(
    "changes",
    [
        {"engine.zero_stage": 0},
        {"engine.zero_stage": 2, "placement.num_ranks": 2, "placement.num_critic_ranks": 2},
        {"engine.zero_stage": 3, "placement.num_ranks": 2, "batch.microbatch_tokens_per_gpu": 64},
        {"model.gradient_checkpointing": True, "loss.critic_warmup_steps": 1, "critic_max_grad_norm": 0.1},
        {"rollout.overlap": 1, "loss.importance_cap": 2.0, "lora.use_dora": True},
    ],
    ids=lambda c: ",".join(f"{key.split('.')[-1]}={value}" for key, value in c.items()),
)
def test_on_a_copy_of_the_policys_base_it_is_the_shared_critic(
    changes: dict[str, Any], judges: tuple[Path, Path], actor_pool: ActorPool, tiny_base: Path, tmp_path: Path
) -> None:
    """Values, losses, norms, and the tensors of critic and policy after two steps."""
    scores = [{"kind": "reward_model", "run": str(judges[0])}]
    shared = run(config_of(tiny_base, tmp_path / "one", scores=scores, **changes), actor_pool)
    apart = {**changes, "roles.critic": str(judges[1])}
    alone = run(config_of(tiny_base, tmp_path / "two", scores=scores, **apart), actor_pool)
    padded = "lora.use_dora" in changes
    ours, theirs = (
        first_values(found, method, padded=padded)
        for found, method in ((shared, "judge"), (alone, "waited for critic"))
    )
    assert float(ours.std()) > 1e-2 and float((ours - theirs).abs().max()) < 5e-5
    assert_alike(shared, alone)
    assert alone.summary["trainable"] == shared.summary["trainable"]
    assert min(alone.series("value_loss")) > 0
    moved = read_adapter_file(judges[0] / "adapter")[0]
    assert farthest(moved, {k: v for k, v in critic_of(alone).items() if k in moved}) > 1e-3
    assert alone.series("critic_updates_skipped") == [0, 0]
    assert all(value > 0 for value in alone.series("speed.critic_tflops"))
    named = json.loads((alone.run_dir / "critic" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert named == resolve_model(str(judges[1])).base


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_another_base_trains_and_stays_as_it_is(
    zero_stage: int, actor_pool: ActorPool, wide: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """From a base alone: values are 0 at first; adapter and head move; what is frozen does not; two ranks equal one."""

    def of(ranks: int) -> Finished:
        changes = {"roles.critic": str(wide), "engine.zero_stage": zero_stage, "placement.num_critic_ranks": ranks}
        changes |= FEW_PASSES if zero_stage == 3 else {}
        config = config_of(tiny_base, tmp_path / f"on-{ranks}", **changes)
        return run(config, actor_pool, CriticWorker="tests.support.measured:DigestedCritic")

    one, two = of(1), of(2)
    assert float(first_values(one, "waited for critic").abs().max()) == 0.0
    assert one.rows[0]["explained_variance"] == pytest.approx(0.0, abs=1e-6) != one.rows[1]["explained_variance"]
    assert one.rows[1]["value_loss"] < one.rows[0]["value_loss"]
    told = [rank for asked, ranks in two.answers if asked == "waited for critic" for rank in ranks]
    learned = [rank for rank in told if isinstance(rank, dict) and "frozen" in rank]
    assert len(learned) == 4 and all(rank["frozen"] > 25 and rank["frozen_changed"] == 0 for rank in learned)
    critic = critic_of(one)
    assert all(tensor.shape[-1] in (96, 4, 1, 128) for tensor in critic.values()) and len(critic) == 44
    assert all(float(tensor.abs().max()) > 1e-4 for tensor in critic.values()), "a tensor has not moved"
    assert_alike(one, two)
    assert two.summary["num_critic_ranks"] == 2 and two.summary["trainable"]["critic"] > 0


def test_updates_that_are_not_finite_are_skipped_and_counted(
    actor_pool: ActorPool, wide: Path, tiny_base: Path, tmp_path: Path
) -> None:
    """Of the critic alone, on both of its ranks; three in a row end the run."""

    def spoiled(name: str, updates: list[int]) -> Finished:
        (tmp_path / name).mkdir()
        (tmp_path / name / NAN_UPDATES).write_text(json.dumps(updates))
        changes = {"roles.critic": str(wide), "placement.num_critic_ranks": 2, "engine.zero_stage": 2}
        return run(config_of(tiny_base, tmp_path / name, **changes), actor_pool, CriticWorker=FAULTS + "NanCritic")

    found = spoiled("two", [1, 2, 5])
    assert found.series("critic_updates_skipped") == [2, 1] and found.series("updates_skipped") == [0, 0]
    assert all(bool(tensor.isfinite().all()) for tensor in critic_of(found).values())
    assert all(value > 0 for key in ("grad_norm.critic", "grad_norm.policy") for value in found.series(key))
    with pytest.raises(NumericsError, match=r"3 updates in a row .*max_nonfinite_updates=2.* critic_learning_rate"):
        spoiled("three", [1, 2, 3])


def test_it_learns_while_the_policy_learns(actor_pool: ActorPool, wide: Path, tiny_base: Path, tmp_path: Path) -> None:
    """Each begins when the other has begun, and both are on record; a step's parts still add up to its wall time."""
    config = config_of(tiny_base, tmp_path / "run", **{"roles.critic": str(wide), "telemetry.profile": True})
    home = "tests.support.meeting:"
    found = run(config, actor_pool, PolicyWorker=home + "MeetingPolicy", CriticWorker=home + "MeetingCritic")
    for group in actor_pool.groups.values():  # the processes serve other tests
        record_spans(dict(enumerate(group.actors)), on=False)
    folder = found.run_dir / "profile"
    events = json.loads((folder / "trace.json").read_text("utf-8"))["traceEvents"]
    lanes = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    for name in ("learn", "judge"):
        spans: dict[str, list[tuple[float, float]]] = {"policy-0": [], "critic-0": []}
        for event in events:
            lane = lanes.get((event["pid"], event["tid"]), "")
            if event["name"] == name and lane in spans:
                spans[lane].append((event["ts"], event["ts"] + event["dur"]))
        pairs = list(zip(sorted(spans["policy-0"]), sorted(spans["critic-0"]), strict=True))
        assert len(pairs) == 2
        for (policy_start, policy_end), (critic_start, critic_end) in pairs:
            assert critic_start < policy_end and policy_start < critic_end, f"{name}: one after the other"
    for step in json.loads((folder / "profile.json").read_text("utf-8"))["steps"]:
        assert sum(step["kinds"].values()) == pytest.approx(step["wall_seconds"])
        assert step["lanes"]["critic-0"]["learn.backward"] > 0
        assert set(step["roles"]["learn"]) == {"policy"}
    assert all(waited <= learning for waited, learning in zip(
        found.series("seconds.critic"), found.series("seconds.learn"), strict=True))  # fmt: skip
