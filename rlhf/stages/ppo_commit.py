"""What a PPO run leaves on disk: a checkpoint that it goes on from exactly, and the records of a whole run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rlhf.config.held import held_of
from rlhf.engine.checkpoint.store import rank_file
from rlhf.models.source import RunRecord, base_fingerprint, resolve_model
from rlhf.stages.critic_ranks import STATE_DIR
from rlhf.stages.ppo_run import PpoRun
from rlhf.stages.run_dir import write_json
from rlhf.telemetry.environment import versions
from rlhf.workers.placement import CRITIC


def commit(run: PpoRun) -> Path:
    """Writes everything that the run needs to go on exactly as one directory."""
    session, store = run.session, run.session.store
    if run.ahead:
        run.ahead.clear()
        run.next_draw = run.step  # only a stop that was asked for comes here: what was drawn ahead is drawn again
    temporary = store.open()
    tag = f"global_step{run.step}"
    try:
        names = run.policy.call("save_state", str(temporary), tag)[0]
        critic_names = None if run.critic is None else run.critic.save_state(temporary, tag)
        _save(run, temporary / "policy")
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return store.commit(
        temporary,
        run.step,
        stage="ppo",
        identity=session.identity,
        parts=_parts(run),
        metric=run.last.get("score_mean"),
        versions=versions(),
        state={
            "tag": tag,
            "trained": names,
            "trained_critic": critic_names,
            "updates_done": run.updates_done,
            "kl": run.kl.state_dict(),
            "adapter_version": run.channel.version,
            "adapter_sha256": run.channel.sha256,
            "sync_history": run.channel.history,
            "seconds": run.total_seconds,
            "last": run.last,
        },
    )


def finish(run: PpoRun) -> dict[str, Any]:
    """Writes the policy, ``summary.json`` and, last of all, ``run.json``: its presence means that the run is whole."""
    config, session = run.config, run.session
    _save(run, session.run_dir)
    source = resolve_model(config.model.name, config.model.revision)
    history = run.channel.history
    summary = {
        "stage": "ppo",
        "engine": run.description["engine"],
        "zero_stage": run.description["zero_stage"],
        "num_ranks": run.description["world_size"],
        "trainable": run.description["trainable"] | ({} if run.critic is None else {CRITIC: run.critic.num_trained}),
        "num_steps": run.step,
        "seconds": run.total_seconds,
        **({} if run.critic is None else {"num_critic_ranks": config.placement.num_critic_ranks}),
        "seed": config.seed,
        "kl": run.last["kl"],
        "kl_limit": config.kl.limit,
        "score_mean": run.last["score_mean"],
        "sync": {
            "max_logprob_diff": max(h["max_logprob_diff"] for h in history),
            "mean_logprob_diff": max(h.get("mean_logprob_diff", 0.0) for h in history),  # older commits lack it
            "bytes": history[-1]["bytes"],
            "milliseconds": sorted(h["milliseconds"] for h in history)[len(history) // 2],
        },
        "adapter_version": run.channel.version,
        "adapter_sha256": run.channel.sha256,
        "restarts": {
            "ranks": session.restarts.count,
            "rollout_workers": run.fleet.num_restarts,
            "scorer_workers": 0 if run.scorers is None else run.scorers.num_restarts,
        },
    }
    write_json(session.run_dir / "summary.json", summary)
    RunRecord(
        stage="ppo",
        base=source.base,
        revision=source.revision,
        adapter="adapter" if config.policy_weights == "adapter" else None,
        chat_style=session.chat.style,
        chat_fingerprint=session.chat.fingerprint(),
        base_sha256=base_fingerprint(source.base),
        **held_of(config.model),
    ).write(session.run_dir)
    return summary


def _parts(run: PpoRun) -> list[str]:
    """A file of every rank that has saved its state."""
    critics = 0 if run.critic is None else run.config.placement.num_critic_ranks
    names = [rank_file(rank) for rank in range(run.config.placement.num_ranks)]
    return names + [f"{STATE_DIR}/{rank_file(rank)}" for rank in range(critics)]


def _save(run: PpoRun, directory: Path) -> None:
    """Policy, critic and tokenizer, whoever trains them."""
    run.policy.call("save", str(directory))
    if run.critic is not None:
        run.critic.save(directory)
