"""Time for files of the size of a model: whoever reads or writes them gives no sign of life for minutes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rlhf.config.stages import StageConfig
from rlhf.engine.engine import patient_collectives
from rlhf.workers.context import WorkerContext


@contextmanager
def large_files(context: WorkerContext, config: StageConfig) -> Iterator[None]:
    """While files are read or written, driver and peers wait ``checkpoint.write_timeout_seconds``. All ranks enter."""
    with patient_collectives(config.checkpoint.write_timeout_seconds):
        expect_silence(context, config)
        try:
            yield
        finally:
            context.expect_silence(0)


def expect_silence(context: WorkerContext, config: StageConfig) -> None:
    """The same for the driver alone, until the next sign of progress."""
    context.expect_silence(config.checkpoint.write_timeout_seconds - config.placement.call_timeout_seconds)
