"""One run, one directory: claimed by one live process, described before anything is started."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rlhf.config import config_hash, dump_yaml
from rlhf.config.base import Section
from rlhf.config.claim import claim, release_run_dir
from rlhf.config.finished import is_finished
from rlhf.config.job_copy import in_job_copy
from rlhf.config.same import holds_the_same
from rlhf.engine.checkpoint.store import CheckpointStore
from rlhf.errors import CheckpointError, ConfigError
from rlhf.telemetry.environment import git_sha, machine, versions
from rlhf.telemetry.logging import setup_logging

CONFIG_YAML = "config.yaml"
CONFIG_JSON = "config.json"

CHECKPOINTS = "checkpoints"


def prepare_run_dir(config: Section, *, git_cwd: str | Path = ".") -> Path:
    """Creates and claims ``config.run_dir``, writes the resolved config beside its hash, and opens the driver's log.

    The claim is a file lock that ends with this process, so a killed run never blocks the next one. An unfinished
    directory may be entered again (that is how a run resumes); a finished one may not.

    Returns:
        The directory as an absolute path: workers on a joined cluster have a working directory of their own.

    Args:
        config: a stage's config (it has ``run_dir``, ``stage`` and ``telemetry``).
        git_cwd: a directory of the work tree whose commit is recorded.

    Raises:
        CheckpointError: the directory holds a finished run, belongs to another live process, or cannot be written.
        ConfigError: it would lie in a copy of the working directory that Ray removes.
    """
    tree = config.model_dump(mode="json")
    named = Path(tree["run_dir"])
    path = named.absolute()
    if not named.is_absolute() and in_job_copy(path):
        raise ConfigError(
            f"run_dir={named} is relative, and this job runs in a copy of the working directory that Ray removes "
            "afterwards: name a directory that stays (run_dir=/shared/runs/...), or use rlhf submit, which does so"
        )
    if is_finished(path):
        raise CheckpointError(
            f"{path} holds a finished run: set run_dir to a new directory, or set this one aside with --fresh "
            "(with --unless-finished the command that made it ends well and leaves it as it is)"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
        # a copy of a run's directory may have come without its lock
        claim(path, above=CheckpointStore(path / CHECKPOINTS).largest_token())
        write_atomic(path / CONFIG_YAML, dump_yaml(config))
        write_json(path / CONFIG_JSON, describe_run(config, git_cwd=git_cwd))
    except OSError as error:
        raise CheckpointError(f"run_dir={path} cannot be written: {error}; set run_dir elsewhere") from None
    level = tree.get("telemetry", {}).get("log_level", "INFO")
    setup_logging(path, "driver", 0, level=level)
    return path


def finished_before(config: Section) -> bool:
    """Whether ``config.run_dir`` holds this very run, and whole: its last file is there, and its settings are these.

    A run that ended while nobody was left to note its end is told so from one that has to go on.
    """
    path = Path(config.model_dump(mode="json")["run_dir"])
    return is_finished(path) and holds_the_same(path / CONFIG_JSON, config)


def describe_run(config: Section, *, git_cwd: str | Path = ".") -> dict[str, Any]:
    """What a run stands on: config and its hash, commit, package versions, machine, time of start (UTC)."""
    return {
        "stage": config.model_dump(mode="json")["stage"],
        "config_hash": config_hash(config),
        "git_sha": git_sha(git_cwd),
        "versions": versions(),
        "machine": machine(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "config": config.model_dump(mode="json"),
    }


def set_aside(path: Path) -> Path | None:
    """Renames a run directory, so that the same command starts over; returns the new name, None without a directory.

    Raises:
        RunLockedError: a live process works in it.
    """
    if not path.is_dir():
        return None
    claim(path)
    try:
        aside = path.with_name(f"{path.name}.before-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}")
        path.rename(aside)
    finally:
        release_run_dir(path)
    return aside


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON; a half-written file never appears under its name."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_atomic(path: Path, text: str) -> None:
    """Writes text through a temporary file in the same directory."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def rewind_samples(path: Path, step: int) -> None:
    """Drops the samples of ``step`` and later ones, which the run is about to write again."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").split("\n")
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] < step]
    write_atomic(path, "".join(f"{line}\n" for line in kept))
