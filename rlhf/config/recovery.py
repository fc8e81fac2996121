"""What a run keeps on disk, and how much trouble it takes before it stops."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rlhf.config.base import Section


class CheckpointConfig(Section):
    """Checkpoints: one directory is one commit of everything that a run needs to go on exactly."""

    every: int = Field(50, ge=1)
    """Optimizer-visible steps between commits; at most this many are repeated after a kill."""
    keep_last: int = Field(3, ge=1)
    """Newest commits that are kept; older ones are removed (but see ``keep_best``)."""
    write_timeout_seconds: float = Field(1800.0, gt=0)
    """While ranks write or read the files of a checkpoint, or write the final model, they may be silent for so long,
    and wait so long for one another. Whole models on a slow network disk may need more: twice their bytes by its
    speed."""
    keep_best: bool = True
    """Also keep the commit with the best score (PPO) or held-out loss (SFT, reward)."""
    resume: Literal["auto", "must", "never"] = "auto"
    """Go on from the newest valid commit in run_dir; ``must`` refuses to start without one, ``never`` with one."""


class RecoveryConfig(Section):
    """Faults that a run survives, and their bounds."""

    max_restarts: int = Field(2, ge=0)
    """Times that the training ranks are rebuilt from the last commit after one died, froze or lost its node."""
    max_rollout_restarts: int = Field(10, ge=0)
    """Rollout workers replaced in one run before it stops."""
    max_scorer_restarts: int = Field(3, ge=0)
    """Scorer workers replaced in one run before it stops."""
    generate_timeout_seconds: float = Field(600.0, gt=0)
    """A rollout worker that has neither answered nor run its model for so long is killed and replaced."""
    rollout_deadline_seconds: float | None = Field(None, gt=0)
    """A step waits so long for a rollout worker that is slow and getting on; then one with nothing left to do draws the
    same responses too, and whoever is first counts. After twice as long the slow one is killed and replaced. Choose
    several times what a step's responses take; null: a slow worker is waited for."""
    sync_timeout_seconds: float = Field(300.0, gt=0)
    """The same for taking an adapter and for the canary."""
    max_nonfinite_updates: int = Field(2, ge=0)
    """Consecutive updates that may be skipped because a loss or gradient is not finite; one more stops the run."""
