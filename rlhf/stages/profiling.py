"""The profile of a PPO run: spans of driver and workers, gathered after every step, written when the run ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf.models.operations import UpdateCosts
from rlhf.models.role_shares import pass_shares, weight_shares
from rlhf.models.roles import CRITIC, POLICY, REFERENCE, REWARD
from rlhf.rollout.experience import Experience
from rlhf.telemetry.profile import STEP, StepSpans, summarise
from rlhf.telemetry.profile_files import write_profile
from rlhf.telemetry.spans import Recorder, Span
from rlhf.workers.footprint import Footprint
from rlhf.workers.group import WorkerGroup
from rlhf.workers.recorded import fetch_spans, record_spans

TRACED_STEPS = 10
"""Newest steps whose single spans are kept; of older ones the sums."""


class Profiler:
    """Does nothing unless it is on.

    Attributes:
        spans: the driver's recorder.
        costs: of a token, once a step is done.
    """

    def __init__(self, run_dir: Path, *, on: bool) -> None:
        self.on = on
        self.spans = Recorder()
        self.costs: UpdateCosts | None = None
        self._run_dir = run_dir
        self._steps: dict[int, dict[str, Any]] = {}
        self._last: deque[StepSpans] = deque(maxlen=TRACED_STEPS)
        self._judged: tuple[Experience, bool] | None = None
        self._late: dict[str, list[Span]] = {}
        if on:
            self.spans.switch(Footprint())

    def watch(self, group: WorkerGroup) -> WorkerGroup:
        """Lets a group's workers record, and its waits be recorded; returns the group."""
        if self.on:
            group.spans = self.spans
            record_spans(dict(enumerate(group.actors)))
        return group

    def note(self, batch: Experience, *, with_policy: bool) -> None:
        """Tells which sequences the step judges and learns from, and whether the policy is one of the judges."""
        if self.on:
            self._judged = batch, with_policy

    def step_done(
        self, step: int, actors: Mapping[str, Mapping[int, Any]], costs: UpdateCosts, *, shared_reward: bool
    ) -> None:
        """Gathers what a step has left behind; call it after the driver's span ``step`` has ended.

        Args:
            actors: living workers by role and rank.
            costs: of a token, as the training ranks count them.
            shared_reward: a reward model is one of the roles.
        """
        self.costs = costs
        shares = {} if self._judged is None else role_shares(costs, *self._judged, shared_reward)
        own = self.spans.take()
        whole = [span for span in own.done if span.name == STEP][-1]  # one that failed and is repeated came before
        driver = [span for span in own.done if span.start >= whole.start]
        workers, pss = {}, {"driver-0": own.pss or 0}
        for role, members in actors.items():
            for rank, found in fetch_spans(members).items():
                lane = f"{role}-{rank}"
                spans = [*self._late.pop(lane, []), *found.done, *found.running]
                workers[lane] = [span for span in spans if span.end > whole.start]
                self._late[lane] = [span for span in found.done if span.end > whole.end]
                pss[lane] = found.pss or 0
        done = StepSpans(step, driver, workers, shares, {lane: size for lane, size in pss.items() if size})
        self._steps[step] = summarise(done)
        self._last.append(done)

    def write(self) -> None:
        """Writes ``profile/`` of the run directory, if there is a step."""
        if self._last:
            write_profile(self._run_dir, [self._steps[step] for step in sorted(self._steps)], list(self._last))


def role_shares(
    costs: UpdateCosts, batch: Experience, with_policy: bool, shared_reward: bool
) -> dict[str, dict[str, float]]:
    """How the roles share the passes of a step, by counted operations, and the optimizer's, by weights."""
    lengths, responses = batch.lengths, int(batch.response_mask.sum())
    learning = [POLICY, CRITIC][: len(costs.adapters)]
    judging = [*([POLICY] if with_policy else []), REFERENCE, *learning[1:], *([REWARD] if shared_reward else [])]
    return {
        "learn": pass_shares(costs, learning, lengths, responses, trained=True),
        "optimizer": weight_shares(costs, learning),
        "score": pass_shares(costs, judging, lengths, responses, trained=False),
    }
