"""What the driver does around a step: its checks, its record, and a stop that is asked for between two of them."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf.algos.kl import AdaptiveKLController
from rlhf.errors import StoppedError, WeightSyncError
from rlhf.rollout.experience import Experience, collect
from rlhf.rollout.protocol import Rollout
from rlhf.stages import ppo
from rlhf.stages.agreement import Agreement, Bounds, refuse_reference
from rlhf.stages.judging import Judged
from rlhf.stages.resume import StopRequest
from tests.support.ppo import tiny_config


def judged_batch(drift: list[list[float]]) -> Experience:
    """Two responses of three and two tokens; the policy is ``drift`` nats per token above the reference."""
    rollouts = [Rollout(str(n), (5, 6), (9,) * n, (-1.0,) * n, True, 0, "x") for n in (3, 2)]
    reference = torch.full((2, 3), -1.0)
    return collect(rollouts, 0).with_judgement(old_logprobs=reference + torch.tensor(drift), ref_logprobs=reference)


@pytest.mark.parametrize(
    ("drift", "apart"),
    [
        ([[8e-5, 8e-5, 8e-5], [0.0, 0.0, math.nan]], False),  # above the tolerance in sum alone; a pad is nothing
        ([[3e-4, -3e-4, 0.0], [0.0, 0.0, 0.0]], True),  # nothing in sum
        ([[0.0, 0.0, 0.0], [0.0, math.nan, 0.0]], True),
    ],
)
def test_the_reference_is_compared_token_by_token(drift: list[list[float]], apart: bool) -> None:
    bounds, batch = Bounds.of("sync_tolerance", 1e-4, "float32"), judged_batch(drift)
    told = pytest.raises(WeightSyncError, match=r"sync_tolerance=0\.0001.*the reference is not the start policy")
    with told if apart else contextlib.nullcontext():
        refuse_reference(bounds, batch)


@pytest.mark.parametrize("step", [0, 1])
def test_the_reference_is_compared_before_any_update_alone(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, drifted = tiny_config(tmp_path, tmp_path / "run"), judged_batch([[0.01] * 3] * 2)
    found = {"old_logprobs": drifted.old_logprobs, "ref_logprobs": drifted.ref_logprobs}
    monkeypatch.setattr(ppo, "_ask_scorers", lambda *_: None)
    monkeypatch.setattr(ppo, "_judge_on_ranks", lambda *_: found)
    monkeypatch.setattr(ppo, "_model_scores", lambda *_: None)
    answer = SimpleNamespace(scores=torch.zeros(2), scored=torch.ones(2, dtype=torch.bool))
    monkeypatch.setattr(ppo, "compute_advantages", lambda *_: (_ for _ in ()).throw(KeyError("it goes on")))
    rollouts = [Rollout(str(n), (5, 6), (9,) * n, (-1.0,) * n, True, 0, "x") for n in (3, 2)]
    row = SimpleNamespace(messages=(), id="p", meta={})
    run: Any = SimpleNamespace(
        config=config,
        agreement=Agreement.of(config, {"dtype": "float32"}, [{"dtype": "float32"}]),
        spans=SimpleNamespace(span=lambda name: contextlib.nullcontext()),
        seconds={},
        kl=SimpleNamespace(coef=0.0),
        session=SimpleNamespace(
            prompts=[row], pad_id=0, scorer=SimpleNamespace(total=lambda *_: answer, shape=lambda *_: answer.scores)
        ),
    )
    with pytest.raises(WeightSyncError if step == 0 else KeyError, match="start policy" if step == 0 else "goes on"):
        ppo.judge(run, step, ppo.Acted(rollouts, [0, 0], ["", ""]))


def test_the_controller_measures_the_rows_that_were_learned_from(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(ppo, "share", lambda value: value)
    config = tiny_config(tmp_path, tmp_path / "run", **{"batch.prompts_per_step": 4, "batch.responses_per_prompt": 2})
    batch = collect([Rollout(str(n), (5, 6), (9, 9), (-1.0, -1.0), True, 0, "x") for n in range(8)], 0)
    batch.response_mask[3:] = False
    learned = {"ratio_first": 0.0, "ratio_first_mean": 0.0, "updates_skipped": 0.0}
    run: Any = SimpleNamespace(
        config=config,
        agreement=Agreement.of(config, {"dtype": "float32"}, []),
        description={"packs": False},
        spans=SimpleNamespace(span=lambda name: contextlib.nullcontext()),
        seconds={},
        critic=None,
        session=SimpleNamespace(anchor=None),
        policy=SimpleNamespace(call=lambda *_: [learned]),
        updates_done=0,
        kl=AdaptiveKLController(1.0, target=10.0, horizon=100.0),
    )
    judged = Judged(batch, torch.zeros(8, 2), None)
    ppo.learn(run, 0, ppo.Verdict(judged, torch.zeros(8), torch.zeros(8), {"kl": 20.0}))
    assert run.kl.coef == pytest.approx(1 + 0.2 * 3 / 100)


@pytest.mark.parametrize("asked", ["before record", "after record", "never"])
def test_a_stop_is_committed_before_it_is_told(asked: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Whenever the signal arrives: a run that ends saying so has written its checkpoint, and has written it once."""
    stop, commits = StopRequest(), list[int]()
    run: Any = SimpleNamespace(
        config=tiny_config(tmp_path, tmp_path / "run"),
        step=0,
        last=dict.fromkeys(("score_mean", "kl", "entropy", "response_tokens_mean"), 0.0),
        profiled=lambda step: contextlib.nullcontext(),
        session=SimpleNamespace(stop=stop, store=SimpleNamespace(steps=lambda: commits)),
    )

    def record(run_: Any, step: int, *_: Any) -> None:
        if asked == "before record":
            stop.asked.set()
        run_.step = step + 1
        if stop.asked.is_set():
            ppo.commit(run_)

    def progress(*_: Any, **__: Any) -> None:
        if asked == "after record":
            stop.asked.set()

    for name in ("act", "judge", "learn", "share_policy"):
        monkeypatch.setattr(ppo, name, lambda *_: None)
    monkeypatch.setattr(ppo, "record", record)
    monkeypatch.setattr(ppo, "commit", lambda run_: commits.append(run_.step))
    monkeypatch.setattr(ppo, "finish", lambda _: {"whole": True})
    if asked == "never":
        assert ppo.train(run, progress) == {"whole": True} and commits == []
        return
    with pytest.raises(StoppedError, match="after step 1 of 2, checkpoint written"):
        ppo.train(run, progress)
    assert commits == [1]
