"""PPO, read top to bottom: act, judge, learn, share, record."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from rlhf.algos.kl import kl_k3, sequence_kl
from rlhf.algos.losses import truncated_importance_weights
from rlhf.algos.masks import masked_mean
from rlhf.config import PpoConfig, derive_seed
from rlhf.data.meta import about
from rlhf.data.schema import Message
from rlhf.errors import NumericsError, WeightSyncError, WorkerError
from rlhf.rollout.experience import Experience, collect
from rlhf.rollout.protocol import PromptTask, Rollout
from rlhf.stages.agreement import refuse_mismatch, refuse_ratio, refuse_reference
from rlhf.stages.judging import Judged, compute_advantages, row_means
from rlhf.stages.passes import anchoring_passes, in_step_order, judging_passes, learning_passes
from rlhf.stages.ppo_commit import commit, finish
from rlhf.stages.ppo_run import SAMPLES_FILE, PpoRun, open_session, prompt_rows_of, start
from rlhf.stages.scoring import prompt_text
from rlhf.workers.group import share
from rlhf.workers.ppo_loss import Demonstrations
from rlhf.workers.ray_metrics import report_step
from rlhf.workers.scorer import Answer
from rlhf.workers.scorers import Asked

Progress = Callable[..., None]


@dataclass(frozen=True)
class Acted:
    """A step's rollouts; row i answers prompt ``prompt_rows[i]``."""

    rollouts: list[Rollout]
    prompt_rows: list[int]
    responses: list[str]
    redispatched: int = 0


@dataclass(frozen=True)
class Verdict:
    """What judging adds to the rollouts.

    Attributes:
        scores: (rows,), NaN where there is none.
        kl: (rows,) nats, from the reference.
        figures: for the step's metrics; means are over the rows that the step learns from.
    """

    judged: Judged
    scores: torch.Tensor
    kl: torch.Tensor
    figures: dict[str, Any]


def run_ppo(config: PpoConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Trains a policy; returns the summary that is also written to ``summary.json``.

    A run directory with a checkpoint is gone on from; a training rank that dies is replaced, with all ranks, from the
    last checkpoint.

    Args:
        progress: called as ``progress(step, total, **figures)`` after every step.

    Raises:
        RlhfError: see ``rlhf.errors``; nothing is skipped silently.
    """
    with ExitStack() as stack:
        session = open_session(config, stack)
        while True:
            try:
                with ExitStack() as attempt:
                    return train(start(session, attempt), progress)
            except WorkerError as error:
                session.restarts.again_or_raise(error)
                session.started = time.perf_counter()


def train(run: PpoRun, progress: Progress | None) -> dict[str, Any]:
    """All steps that are left, then the records of a whole run."""
    total = run.config.num_steps
    for step in range(run.step, total):
        with run.profiled(step):
            acted = act(run, step)
            verdict = judge(run, step, acted)
            learned = learn(run, step, verdict)
            synced = share_policy(run, learned)
            record(run, step, acted, verdict, learned, synced)
        if progress is not None:
            progress(step + 1, total, **_headline(run.last))
        stop = run.session.stop
        if stop.asked.is_set() and run.step not in run.session.store.steps():
            commit(run)  # asked for after ``record`` had looked
        stop.raise_if_asked(step + 1, total)
    return finish(run)


def act(run: PpoRun, step: int) -> Acted:
    """Takes the step's responses, and starts drawing ahead as far as ``rollout.overlap`` and checkpoints allow."""
    with _timed(run, "act"):
        _draw(run, upto=step)
        drawn_for, rows, batch = run.ahead.popleft()
        if drawn_for != step:
            raise WeightSyncError(f"step {step} was handed the rollouts of step {drawn_for}")
        rollouts = run.fleet.collect(batch)
        run.channel.check(batch.version, {r.version for r in rollouts}, {r.adapter_sha256 for r in rollouts})
        _draw(run, upto=min(step + run.config.rollout.overlap, _last_before_commit(run.config, step)))
        decode = run.session.chat.decode_response
        return Acted(rollouts, rows, [decode(list(r.response_ids)) for r in rollouts], batch.redispatched)


def judge(run: PpoRun, step: int, acted: Acted) -> Verdict:
    """Scores, old and reference log-probs, values; then advantages over the whole batch."""
    with _timed(run, "judge"):
        config, prompts = run.config, run.session.prompts
        batch = collect(acted.rollouts, run.session.pad_id)
        messages = [prompts[row].messages for row in acted.prompt_rows]
        asked = _ask_scorers(run, acted, messages)  # they score while the ranks judge
        with_policy = _judges_policy(config, step)
        found = _judge_on_ranks(run, batch, with_policy)
        model_scores = _model_scores(run, found, asked)
        batch = batch.with_judgement(
            old_logprobs=found.get("old_logprobs", batch.behaviour_logprobs),
            ref_logprobs=found["ref_logprobs"],
            values=found.get("values"),
        )
        scorer = run.session.scorer
        with run.spans.span("scores"):
            meta = [about(prompts[row]) for row in acted.prompt_rows]
            answer = scorer.total([prompt_text(m) for m in messages], acted.responses, model_scores, meta)
        kl = sequence_kl(batch.old_logprobs, batch.ref_logprobs, batch.response_mask)  # (batch,) nats
        if step == 0:
            refuse_reference(run.agreement.reference, batch)
        groups = torch.tensor(acted.prompt_rows)
        shaped = scorer.shape(answer.scores, batch.finished)
        judged = compute_advantages(batch, shaped, config, run.kl.coef, groups, answer.scored)
        staleness = run.channel.version - acted.rollouts[0].version
        figures: dict[str, Any] = {
            "staleness": staleness,
            "unscored": int((~answer.scored).sum()),
            "reward_errors_total": sum(scorer.errors.values()),
            "kl_coef": run.kl.coef,  # in force in this step: learning ends with the next step's
            **row_means(judged, kl),
        }
        if with_policy:  # otherwise the first update tells
            entropy = float(masked_mean(found["entropy"], judged.batch.response_mask))
            figures |= {"entropy": entropy, **mismatch(batch)}
            if staleness == 0:
                refuse_mismatch(config.mismatch_limit, step, figures["mismatch_mean"])
        judged, weights = weigh(judged, config.loss.importance_cap)
        run.session.profiler.note(judged.batch, with_policy=with_policy)
        return Verdict(judged, answer.scores, kl, {**figures, **weights})


def learn(run: PpoRun, step: int, verdict: Verdict) -> dict[str, Any]:
    """Epochs x minibatches of clipped updates on all ranks."""
    with _timed(run, "learn"):
        config, batch = run.config, verdict.judged.batch
        plans = learning_passes(config, batch.lengths, step, run.description["packs"])
        with run.spans.span("put"):
            ref = share(batch)
            anchor = _share_anchor(run)
        asked = None if run.critic is None else run.critic.ask_to_learn(ref, batch.lengths, step, run.updates_done)
        learned = run.policy.call("learn", ref, plans, run.updates_done, run.kl.coef, anchor)[0]
        if run.critic is not None and asked is not None:
            with _timed(run, "critic"):  # what is left of it when the policy's ranks are done
                learned = run.critic.join(learned, asked)
        learned = {key: value for key, value in learned.items() if key != "norms"}
        run.updates_done += config.batch.epochs * config.minibatches
        if _judges_policy(config, step):
            refuse_ratio(run.agreement.ratio, step, learned)
        else:
            refuse_mismatch(config.mismatch_limit, step, learned["mismatch_mean"])
        run.kl.update(verdict.figures["kl"], int(verdict.judged.rows.sum()))
        return learned


def share_policy(run: PpoRun, learned: dict[str, Any]) -> dict[str, float]:
    """Publishes the new adapter and checks the canary on every rollout worker."""
    with _timed(run, "share"):
        for _, _, batch in run.ahead:
            run.fleet.collect(batch)  # drawn by the version before; only then may the workers take the next
        moved = learned["policy_trained"] > 0 and learned.get("grad_norm.policy", 0.0) > 0
        return run.channel.publish(must_differ=moved)


def record(
    run: PpoRun,
    step: int,
    acted: Acted,
    verdict: Verdict,
    learned: dict[str, Any],
    synced: dict[str, float],
) -> None:
    """Writes the step's metrics, some samples, and a checkpoint when due; enforces the limits on KL and entropy."""
    config, session, batch = run.config, run.session, verdict.judged.batch
    run.last = {
        "score_mean": float(verdict.scores.nanmean()),
        "score_std": float(verdict.scores[~verdict.scores.isnan()].std()),
        "kl_limit": config.kl.limit,
        "explained_variance": verdict.judged.explained_variance,
        **learned,
        **verdict.figures,
        "adapter_version": run.channel.version,
        "redispatched": acted.redispatched,
        "sync": synced,
        "seconds": dict(run.seconds),
    }
    session.metrics.write("ppo", step, run.last)
    report_step(run.last, run_dir=session.run_dir, num_sequences=batch.num_sequences)
    if step % config.sample_every_steps == 0 or step == config.num_steps - 1:
        _write_samples(run, step, acted, verdict)
    _refuse_beyond_limits(config, step, run.last)
    run.step = step + 1
    if run.step % config.checkpoint.every == 0 or session.stop.asked.is_set():
        with _timed(run, "checkpoint"):
            commit(run)


def mismatch(batch: Experience) -> dict[str, float]:
    """How far the sampler's log-probs are from the trainer's: mean and largest difference, KL (k3), nats per token."""
    mask, drift = batch.response_mask, (batch.behaviour_logprobs - batch.old_logprobs).abs()
    return {
        "mismatch_mean": float(masked_mean(drift, mask)),
        "mismatch_max": float(drift.masked_fill(~mask, 0).max()),
        "mismatch_kl": float(masked_mean(kl_k3(batch.behaviour_logprobs, batch.old_logprobs, mask), mask)),
    }


def weigh(judged: Judged, cap: float | None) -> tuple[Judged, dict[str, float]]:
    """Truncated importance weights for tokens that another policy, or another engine, has drawn.

    The policy loss is linear in the advantages, so weighing these weighs each token's term (truncation as in
    arXiv:1802.01561); values and returns stay.
    """
    if cap is None:
        return judged, {}
    batch = judged.batch
    weights = truncated_importance_weights(batch.old_logprobs, batch.behaviour_logprobs, batch.response_mask, cap=cap)
    figures = {
        "importance_mean": float(masked_mean(weights, batch.response_mask)),
        "importance_capped": float(masked_mean((weights >= cap).float(), batch.response_mask)),
    }
    return replace(judged, batch=batch.with_judgement(advantages=batch.advantages * weights)), figures


def _draw(run: PpoRun, *, upto: int) -> None:
    """Submits rollouts up to a step; equal keys and seeds give equal responses on any worker."""
    config, session = run.config, run.session
    while run.next_draw <= min(upto, config.num_steps - 1):
        step = run.next_draw
        tasks, prompt_rows, taken = [], [], Counter[int]()
        for row in prompt_rows_of(config, len(session.prompts), step):
            first = taken[row]  # where two epochs meet, a step may hold a prompt twice: not the same samples again
            taken[row] += config.batch.responses_per_prompt
            for sample in range(first, taken[row]):
                key = (step, session.prompts[row].id, sample)
                seed = derive_seed(config.seed, "rollout", *key)
                tasks.append(PromptTask(f"{step}/{key[1]}/{sample}", session.prompt_ids[row], seed))
                prompt_rows.append(row)
        batch = run.fleet.submit(tasks, config.rollout, run.channel.version)
        run.ahead.append((step, prompt_rows, batch))
        run.next_draw += 1


def _last_before_commit(config: PpoConfig, step: int) -> int:
    """Last step that may be drawn during ``step``: a commit is made with nothing under way, so it can be exact."""
    every = config.checkpoint.every
    return (step // every + 1) * every - 1


def _refuse_beyond_limits(config: PpoConfig, step: int, values: dict[str, Any]) -> None:
    if config.kl.limit is not None and values["kl"] > config.kl.limit:
        raise NumericsError(
            f"step {step}: KL to the reference is {values['kl']:.2f} nats per response, above "
            f"kl.limit={config.kl.limit:g}; "
            "raise kl.coef or set kl.target, or lower optim.learning_rate"
        )
    floor = config.loss.entropy_floor
    if floor is not None and values["entropy"] < floor:
        raise NumericsError(
            f"step {step}: entropy is {values['entropy']:.3g} nats per token, below loss.entropy_floor={floor:g}: the "
            "policy has collapsed; raise loss.entropy_coef or kl.coef, or lower optim.learning_rate"
        )


def _judges_policy(config: PpoConfig, step: int) -> bool:
    """Whether a step's old log-probs are the trainer's; otherwise they are the rollout engine's."""
    return config.loss.old_logprobs == "trainer" or step == 0


def _share_anchor(run: PpoRun) -> Any:
    """The demonstrations of the coming updates, in the object store; None without any."""
    anchor, config = run.session.anchor, run.config
    if anchor is None:
        return None
    batch = anchor.batch(run.updates_done, config.batch.epochs * config.minibatches)
    plans = anchoring_passes(config, batch.lengths, anchor.ptx.sequences_per_update)
    return share(Demonstrations(batch, plans, anchor.ptx.coef))


def _ask_scorers(run: PpoRun, acted: Acted, messages: list[tuple[Message, ...]]) -> Asked | None:
    if run.scorers is None:
        return None
    rows = zip(messages, acted.responses, acted.rollouts, strict=True)
    return run.scorers.submit([Answer(prompt, text, (*r.prompt_ids, *r.response_ids)) for prompt, text, r in rows])


def _model_scores(run: PpoRun, found: dict[str, torch.Tensor], asked: Asked | None) -> torch.Tensor:
    """(rows, sources): scores of the reward models in their columns, whoever holds them."""
    models, rows = run.session.reward_models, found["ref_logprobs"].shape[0]
    scores = torch.zeros(rows, len(run.config.scores))
    if models.shared_index is not None:
        scores[:, models.shared_index] = found["scores"]
    if run.scorers is not None and asked is not None:
        with _timed(run, "scorers"):  # what is left of it when the ranks are done
            scores[:, [model.index for model in run.scorers.models]] = run.scorers.collect(asked)
    return scores


def _judge_on_ranks(run: PpoRun, batch: Experience, with_policy: bool) -> dict[str, torch.Tensor]:
    plan = judging_passes(run.config, batch.lengths)
    with run.spans.span("put"):
        ref = share(batch)
    asked = None if run.critic is None else run.critic.ask_for_values(ref, batch.lengths)
    rows = [(ref, passes) for passes in plan.ranks]
    found = in_step_order(plan, run.policy.scatter("judge", rows, with_policy=with_policy))
    if run.critic is not None and asked is not None:
        found["values"] = run.critic.values(asked)
    return found


class _timed:
    """Adds the wall time of an act to the step's seconds, and to the profile."""

    def __init__(self, run: PpoRun, name: str) -> None:
        self._run, self._name, self._span = run, name, run.spans.span(name)

    def __enter__(self) -> None:
        self._span.__enter__()
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._run.seconds[self._name] = time.perf_counter() - self._started
        self._span.__exit__(None, None, None)


def _write_samples(run: PpoRun, step: int, acted: Acted, verdict: Verdict) -> None:
    with (run.session.run_dir / SAMPLES_FILE).open("a", encoding="utf-8") as handle:
        for index in range(0, len(acted.rollouts), max(1, len(acted.rollouts) // 8)):
            row = {
                "step": step,
                "key": acted.rollouts[index].key,
                "version": acted.rollouts[index].version,
                "prompt": prompt_text(run.session.prompts[acted.prompt_rows[index]].messages),
                "response": acted.responses[index],
                "score": float(verdict.scores[index]) if verdict.scores[index].isfinite() else None,
                "kl": float(verdict.kl[index]),
            }
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")


def _headline(values: dict[str, Any]) -> dict[str, Any]:
    keys = {"score": "score_mean", "kl": "kl", "entropy": "entropy", "tokens": "response_tokens_mean"}
    return {name: values[key] for name, key in keys.items()}
