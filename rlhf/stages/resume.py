"""Going on where a run stopped: what must be the same, which commit it is, and what is said about it."""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.config.claim import fencing_token
from rlhf.config.same import FREE_SECTIONS, flat, read_now, what_counts
from rlhf.config.sources import STORE_PREFIX, files_of
from rlhf.config.stages import DataConfig, StageConfig
from rlhf.data.chat import ChatFormat
from rlhf.engine.checkpoint.manifest import Manifest
from rlhf.engine.checkpoint.store import CheckpointStore
from rlhf.errors import CheckpointError, StoppedError
from rlhf.models.source import ModelSource, adapter_fingerprint, base_fingerprint
from rlhf.stages.run_dir import CHECKPOINTS
from rlhf.telemetry.events import EventLog
from rlhf.workers.group import WorkerGroup

logger = logging.getLogger(__name__)

SEEN_OTHERWISE = ("model.chat_style",)
"""Keys whose effect the identity holds itself."""


@dataclass(frozen=True)
class Resumed:
    """A commit that the run goes on from."""

    path: Path
    manifest: Manifest


def identity_of(config: StageConfig, *, source: ModelSource, chat: ChatFormat, data: Any) -> dict[str, Any]:
    """What a checkpoint belongs to; equal for the run that wrote it and the run that may read it.

    Args:
        source: the model that the run starts from; in PPO its adapter is the reference, read anew by every start.
        data: anything JSON can hold that names every row and its order.
    """
    tree = {key: value for key, value in config.model_dump(mode="json").items() if key not in FREE_SECTIONS}
    return {
        "config": flat(tree),
        "num_ranks": config.placement.num_ranks,
        "base_sha256": base_fingerprint(source.base),
        "adapter_sha256": adapter_fingerprint(source),
        "chat_fingerprint": chat.fingerprint(),
        "data_sha256": hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest(),
    }


def digest_rows(rows: list[Any]) -> str:
    """sha256 over encoded rows in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def open_store(config: StageConfig, run_dir: Path) -> CheckpointStore:
    """The run's checkpoints, cleaned of what killed commits left; call it under the run's claim."""
    settings = config.checkpoint
    store = CheckpointStore(
        run_dir / CHECKPOINTS,
        token=fencing_token(run_dir),
        keep_last=settings.keep_last,
        keep_best=settings.keep_best,
    )
    if left := store.clean():
        logger.warning("removed %d unfinished checkpoints of a killed process", len(left))
    store.preflight()
    return store


def find_commit(
    config: StageConfig, store: CheckpointStore, identity: dict[str, Any], events: EventLog, num_restarts: int = 0
) -> Resumed | None:
    """The newest whole commit, when the run is to go on from one.

    Args:
        num_restarts: of this very run; what it has committed itself it may read, whatever ``checkpoint.resume`` says
            of an earlier run's.

    Raises:
        CheckpointError: no commit is whole, the commit belongs to another run, or ``checkpoint.resume`` forbids it.
    """
    found = store.newest()
    mode = config.checkpoint.resume
    if found is None:
        if mode == "must":
            raise CheckpointError(f"checkpoint.resume=must, and {store.directory} holds no checkpoint")
        return None
    path, manifest, wrong = found
    if mode == "never" and num_restarts == 0:
        raise CheckpointError(
            f"checkpoint.resume=never, and {store.directory} holds {path.name}: set another run_dir, or set this one "
            "aside with --fresh"
        )
    _compare(path, manifest.identity, identity, config)
    for reason in wrong:
        events.write("checkpoint_refused", reason=reason)
    events.write("resumed", step=manifest.step, checkpoint=path.name, refused=len(wrong))
    logger.info("going on from %s", path.name)
    return Resumed(path, manifest)


def require_shared(group: WorkerGroup, run_dir: Path) -> None:
    """Checks that every rank sees the driver's run directory: a commit needs the files of all ranks in one place.

    Args:
        run_dir: as the ranks have been told it, so that what they see is what they will write to.

    Raises:
        CheckpointError: naming the ranks that do not.
    """
    probe = run_dir / f".seen-{uuid.uuid4().hex[:8]}"
    probe.write_text("")
    try:
        blind = [rank for rank, seen in enumerate(group.call_host("sees", str(probe))) if not seen]
    finally:
        probe.unlink()
    if blind:
        raise CheckpointError(
            f"{group.role} ranks {blind} do not see run_dir={run_dir}: put run_dir on a file system that all nodes "
            "share (checkpoints of several ranks are one directory), or keep the ranks on one node"
        )


def _compare(path: Path, saved: dict[str, Any], present: dict[str, Any], config: StageConfig) -> None:
    """Refuses a commit of another config, base, tokenizer, data set or number of ranks, naming what differs."""
    saved = present | saved  # commits of earlier releases lack what was not compared then
    if saved == present:
        return
    if saved.get("num_ranks") != present["num_ranks"]:
        raise CheckpointError(
            f"{path} was written by {saved.get('num_ranks')} ranks, this run has {present['num_ranks']}: set "
            f"placement.num_ranks={saved.get('num_ranks')}, or start a new run from its adapter"
        )
    if (critics := present.get("num_critic_ranks")) and saved.get("num_critic_ranks", critics) != critics:
        raise CheckpointError(
            f"{path} was written by {saved['num_critic_ranks']} critic ranks, this run has {critics}: set "
            f"placement.num_critic_ranks={saved['num_critic_ranks']}"
        )
    now = what_counts(present["config"])
    before = read_now(saved.get("config", {}), config) or what_counts(saved.get("config", {}))
    keys = (before.keys() | now.keys()) - set(SEEN_OTHERWISE)
    changed = sorted(key for key in keys if before.get(key) != now.get(key))
    if changed:
        key = changed[0]
        others = f" (and {', '.join(changed[1:6])})" if changed[1:] else ""
        raise CheckpointError(
            f"{path} was written with {key}={before.get(key)!r}, this run has {now.get(key)!r}{others}: put the old "
            "value back to go on, set another run_dir, or set this one aside with --fresh"
        )
    names = {
        "base_sha256": "the base model's weights have",
        "adapter_sha256": "the adapter of the run that it starts from has",
        "reward_sha256": "a reward model has",
        "critic_base_sha256": "the weights of the critic's base have",
        "chat_fingerprint": "the tokenizer or chat template has",
        "data_sha256": "the data has",
        "meta_sha256": "what the prompts' rows tell the score functions (their other columns) has",
    }
    differ = [key for key in saved.keys() | present.keys() if key != "config" and saved.get(key) != present.get(key)]
    if not differ:
        return
    if differ == ["data_sha256"] and (live := live_votes(config)):
        project = live[0].removeprefix(STORE_PREFIX)
        raise CheckpointError(
            f"{path}: the votes of {live[0]} have changed since the checkpoint was written, as votes do while people "
            "rank: set this run aside with --fresh, or set another run_dir. A run on a frozen version can go on: rlhf "
            f"prefs freeze {project.rpartition('#')[2]}, and name what it makes ({STORE_PREFIX}{project}@vN)"
        )
    what = next((text for key, text in names.items() if key in differ), "its description has")
    raise CheckpointError(
        f"{path}: {what} changed since the checkpoint was written: put the old files back to go on, set another "
        "run_dir, or set this one aside with --fresh. Where the files are the old ones, another release has read them "
        "otherwise (CHANGELOG.md; model.chat_style says in which chat format)"
    )


def live_votes(config: StageConfig) -> list[str]:
    """Projects of the preference store that a config trains on as they stand, without a frozen version."""
    data = getattr(config, "data", None)
    if not isinstance(data, DataConfig):
        return []
    named = [files_of(given) for given in (data.train, data.evaluation) if given is not None]
    found = [name for names in named for name in ([names] if isinstance(names, str) else names)]
    return [name for name in found if name.startswith(STORE_PREFIX) and "@" not in name.rpartition("#")[2]]


@dataclass
class StopRequest:
    """Set by SIGTERM or SIGINT: the step that runs is finished and committed, then the run ends."""

    asked: threading.Event = field(default_factory=threading.Event)
    name: str = ""

    def raise_if_asked(self, step: int, total: int) -> None:
        """Ends the run, its checkpoint being written.

        Raises:
            StoppedError: a stop was asked for.
        """
        if self.asked.is_set():
            raise StoppedError(
                f"stopped by {self.name} after step {step} of {total}, checkpoint written: run the same command again "
                "to go on"
            )


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGTERM (``ray job stop``, preemption) and the first Ctrl-C ask for a stop; a second Ctrl-C is immediate."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def ask(number: int, _: Any) -> None:
        request.name = signal.Signals(number).name
        request.asked.set()
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
