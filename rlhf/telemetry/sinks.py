"""Where metrics go beside the JSON lines. Each library is imported when its sink is made, not before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rlhf.errors import ConfigError


class TensorBoardSink:
    """Scalars to an event file through TensorBoard's pure Python writer."""

    def __init__(self, directory: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event = event_pb2.Event
        self._summary = summary_pb2.Summary
        self._writer = EventFileWriter(str(directory), flush_secs=10)

    def write(self, step: int, wall_time: float, scalars: Mapping[str, float]) -> None:
        """Queues one event; tags are ``stage/key``, `wall_time` is seconds since the epoch."""
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        if values:
            summary = self._summary(value=values)
            self._writer.add_event(self._event(wall_time=wall_time, step=step, summary=summary))

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()


class WandbSink:
    """Scalars to Weights & Biases; each stage has its own step axis."""

    def __init__(self, run_dir: Path, project: str) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ConfigError(
                f"wandb project {project!r} is set, but wandb is not installed: "
                "run `pip install 'rlhf[wandb]'`, or unset the project"
            ) from error
        self._run = wandb.init(project=project, dir=str(run_dir), name=run_dir.name)
        self._stages: set[str] = set()

    def write(self, stage: str, step: int, scalars: Mapping[str, float]) -> None:
        """Logs one record; keys are ``stage/key``."""
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/step")
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({**scalars, f"{stage}/step": step})

    def close(self) -> None:
        """Uploads what is left and ends the wandb run."""
        self._run.finish()
