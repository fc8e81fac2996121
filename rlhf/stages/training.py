"""What the SFT, reward and DPO recipes share: ranks that train, figures on their way out, the final records."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from rlhf.config import DataConfig, TrainerConfig
from rlhf.config.finished import SUMMARY_FILE
from rlhf.config.held import held_of
from rlhf.data.chat import ChatFormat
from rlhf.data.splits import overlap, split_by_prompt
from rlhf.engine.checkpoint.store import CheckpointStore
from rlhf.errors import ConfigError, DataError, WorkerError
from rlhf.models.source import ModelSource, RunRecord, base_fingerprint
from rlhf.stages.restarts import RankRestarts
from rlhf.stages.resume import (
    Resumed,
    StopRequest,
    digest_rows,
    find_commit,
    identity_of,
    open_store,
    require_shared,
    stop_on_signals,
)
from rlhf.stages.run_dir import CONFIG_JSON, write_json
from rlhf.telemetry.environment import versions
from rlhf.telemetry.events import EventLog
from rlhf.telemetry.metrics import MetricsWriter
from rlhf.workers.group import WorkerGroup, share
from rlhf.workers.ray_metrics import report_step
from rlhf.workers.runtime import gpus_per_worker, ray_runtime
from rlhf.workers.trl_checkpoint import CheckpointPlan

Progress = Callable[..., None]
TokenRow = dict[str, Any]
OVERLAP_FILE = "dropped_overlap.jsonl"


def refuse_full_training_on_adapter(config: TrainerConfig, source: ModelSource) -> None:
    """Full fine-tuning cannot start from a run that left an adapter, unless that is merged first."""
    if config.lora is None and source.adapter is not None:
        raise ConfigError(
            f"lora=null trains the whole model, but model.name={config.model.name!r} is a run with an adapter: "
            "export it with the adapter merged and start from there, or keep lora"
        )


def split(
    rows: list[Any], held_out: list[Any] | None, data: DataConfig, seed: int, run_dir: Path
) -> tuple[list[Any], list[Any]]:
    """(train, evaluation): the given held-out rows, or a share of the prompts by their hash; no prompt is in both.

    Raises:
        DataError: a held-out prompt is trained on and ``data.on_overlap=refuse``, or no other is left.
    """
    if held_out is None:
        return split_by_prompt(rows, eval_fraction=data.eval_fraction, seed=seed)
    train, shared = overlap(rows, held_out)
    if not shared:
        return rows, held_out
    shown = ", ".join(row.id for row in shared[:5]) + (", ..." if shared[5:] else "")
    found = f"{len(shared)} of {len(rows)} rows of data.train have a prompt that is in data.evaluation, too ({shown})"
    if data.on_overlap == "refuse":
        raise DataError(
            f"{found}: figures on what was learned say nothing; take them out of one of the two, leave them out of "
            "training with data.on_overlap=drop, or leave out data.evaluation (data.eval_fraction then holds out some "
            "prompts of data.train)"
        )
    if not train:
        raise DataError(f"{found}: data.on_overlap=drop leaves nothing to train on; name other files")
    lines = [json.dumps({"id": row.id, "reason": "its prompt is held out"}, ensure_ascii=False) for row in shared]
    (run_dir / OVERLAP_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return train, held_out


def train_on_ranks(
    worker: str,
    config: TrainerConfig,
    run_dir: Path,
    rows: tuple[list[Any], ...],
    num_steps: int,
    progress: Progress | None,
    *,
    source: ModelSource,
    chat: ChatFormat,
) -> dict[str, Any]:
    """Runs ``worker(context, config, num_steps, plan).train(*rows)`` on every rank; rank 0's figures.

    Every figure that a rank emits goes to ``metrics.jsonl`` and to ``progress(step, total, **figures)`` at once. A run
    directory with a checkpoint is gone on from; when a rank dies, all ranks are replaced from the last checkpoint.

    Raises:
        StoppedError: a signal asked for an end; the checkpoint is written.
    """
    telemetry, placement = config.telemetry, config.placement
    # whoever watches the run learns here how long it is
    write_json(run_dir / CONFIG_JSON, {**read_description(run_dir), "num_steps": num_steps})
    identity = identity_of(
        config,
        source=source,
        chat=chat,
        data=[digest_rows(part) for part in rows],
    )
    events = EventLog(run_dir)
    ranks: dict[str, int] = {config.stage: placement.num_ranks}
    restarts = RankRestarts(config.stage, ranks, config.recovery.max_restarts, events, run_dir)
    with (
        MetricsWriter(run_dir, tensorboard=telemetry.tensorboard, wandb_project=telemetry.wandb_project) as metrics,
        ray_runtime(placement, num_workers=placement.num_ranks) as resources,
        stop_on_signals() as stop,
    ):

        def on_event(event: dict[str, Any]) -> None:
            if event["kind"] != "metrics":
                return
            metrics.write(config.stage, event["step"], event["values"])
            report_step(event["values"], stage=config.stage, run_dir=run_dir)
            if progress is not None:
                progress(event["step"], num_steps, **event["values"])

        while True:
            store = open_store(config, run_dir)
            resumed = find_commit(config, store, identity, events, restarts.count)
            done = resumed.manifest.step if resumed else 0
            metrics.rewind(config.stage, done if resumed else -1)
            try:
                with ExitStack() as attempt:
                    group = WorkerGroup.launch(
                        worker,
                        config.stage,
                        size=placement.num_ranks,
                        placement=placement,
                        run_dir=str(run_dir),
                        args=(config, num_steps, _plan(config, store, identity, resumed)),
                        gpus_per_worker=gpus_per_worker(placement.gpus_per_rank, resources),
                        collective=True,
                        log_level=telemetry.log_level,
                        again=restarts.count > 0,
                    )
                    attempt.callback(group.close)
                    require_shared(group, run_dir)
                    restarts.resolved(done)
                    group.on_poll = partial(_pass_on, stop, group)
                    figures = group.call("train", *(share(part) for part in rows), on_event=on_event)[0]
            except WorkerError as error:
                restarts.again_or_raise(error)
                continue
            if (step := figures.get("stopped_at")) is not None:
                stop.raise_if_asked(step, num_steps)
            return {**figures, "restarts": restarts.count}


def _pass_on(stop: StopRequest, group: WorkerGroup) -> None:
    """Tells the ranks that a signal has asked for an end."""
    if stop.asked.is_set():
        group.ask_stop()


def _plan(
    config: TrainerConfig, store: CheckpointStore, identity: dict[str, Any], resumed: Resumed | None
) -> CheckpointPlan:
    return CheckpointPlan(
        directory=str(store.directory),
        stage=config.stage,
        token=store.token,
        every=config.checkpoint.every,
        keep_last=config.checkpoint.keep_last,
        keep_best=config.checkpoint.keep_best,
        identity=identity,
        versions=versions(),
        wait_seconds=config.checkpoint.write_timeout_seconds,
        resume_from=str(resumed.path) if resumed else None,
    )


def finish(
    config: TrainerConfig,
    run_dir: Path,
    source: ModelSource,
    chat: ChatFormat,
    description: dict[str, Any],
    figures: dict[str, Any],
) -> dict[str, Any]:
    """Writes ``summary.json`` and, last of all, ``run.json``: its presence means that the run is whole."""
    base = source.base if config.lora is not None else str(run_dir / "model")
    summary = {
        "stage": config.stage,
        "seed": config.seed,
        "zero_stage": config.engine.zero_stage,
        "config_hash": description["config_hash"],
        "git_sha": description["git_sha"],
        "versions": description["versions"],
        **figures,
    }
    write_json(run_dir / SUMMARY_FILE, summary)
    RunRecord(
        stage=config.stage,
        base=base,
        revision=source.revision if config.lora is not None else None,
        adapter="adapter" if config.lora is not None else None,
        chat_style=chat.style,
        chat_fingerprint=chat.fingerprint(),
        base_sha256=base_fingerprint(base),
        **held_of(config.model),
    ).write(run_dir)
    return summary


def read_description(run_dir: Path) -> dict[str, Any]:
    """What ``prepare_run_dir`` wrote about the run."""
    return json.loads((run_dir / CONFIG_JSON).read_text(encoding="utf-8"))
