"""Small workers that misbehave in known ways, and one that becomes another without a new process."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf.errors import DataError, WorkerError
from rlhf.telemetry.logging import setup_logging
from rlhf.workers.context import WorkerContext
from rlhf.workers.lean import lean_imports


class Reusable:
    """Holds a real worker and builds the next one in the same process: starting a process costs seconds."""

    def __init__(self, context: WorkerContext, target: str, *args: Any, **kwargs: Any) -> None:
        self._context = context
        self.rebuild(context.role, target, args, kwargs, context.run_dir)

    def rebuild(self, role: str, target: str, args: Sequence[Any], kwargs: dict[str, Any], run_dir: str) -> None:
        context = self._context
        context.role, context.run_dir, context.stop_requested = role, run_dir, False
        setup_logging(run_dir, context.role, context.rank, level=context.log_level)
        self._worker = None
        _forget_trainer()
        gc.collect()
        module, _, name = target.partition(":")
        with lean_imports():
            made = getattr(importlib.import_module(module), name)
        gc.freeze()  # what is imported stays: ZeRO-3 has all of it looked through for garbage at every start
        self._worker = made(self._context, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_worker"], name)


def _forget_trainer() -> None:
    """A trainer leaves its settings behind in accelerate and transformers, which then refuse another one."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        unset_hf_deepspeed_config()


class Oddity(Exception):
    """A type that the driver has no use for, and that cannot be pickled."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.unpicklable = lambda: None


class Probe:
    """Does on request what workers do when they go wrong."""

    def __init__(self, context: WorkerContext, greeting: str, *, fail_on_rank: int | None = None) -> None:
        self.context, self.greeting = context, greeting
        if fail_on_rank == context.rank:
            raise DataError("rows.jsonl line 3: no prompt")

    def echo(self, value: Any) -> tuple[str, int, int, Any]:
        return self.greeting, self.context.rank, self.context.num_ranks, value

    def environment(self, names: list[str]) -> dict[str, str | None]:
        return {name: os.environ.get(name) for name in names}

    def directory(self) -> str:
        return str(Path.cwd())

    def fail(self, rank: int, kind: str) -> int:
        """Fails on one rank; the others work on for a while."""
        if self.context.rank != rank:
            time.sleep(0.2)
            return self.context.rank
        if kind == "typed":
            raise DataError("rows.jsonl line 3: no prompt")
        if kind == "worker":
            raise WorkerError("inner", 9, "nested")
        if kind == "unpicklable":
            raise Oddity("the odd message")
        return 1 // 0

    def die(self, rank: int) -> None:
        if self.context.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(120)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def work(self, seconds: float, stuck: float) -> float:
        """Takes small steps for a while; then hangs."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.1)
            self.context.beat()
        time.sleep(stuck)
        return seconds

    def report(self, count: int) -> int:
        """Emits ``count`` events over about a second."""
        for index in range(count):
            self.context.emit("metrics", step=index, values={"x": index * 1.0})
            time.sleep(1.0 / count)
        return count
