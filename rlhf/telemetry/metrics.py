"""Numbers of a run: one JSON line per record, always; TensorBoard and wandb beside it.

Loads neither torch nor ray: TensorBoard's own writer is plain Python.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rlhf.errors import DataError
from rlhf.telemetry.sinks import TensorBoardSink, WandbSink

METRICS_FILE = "metrics.jsonl"
_RESERVED = frozenset({"time", "stage", "step", "nonfinite"})


class MetricsWriter:
    """Appends records to ``run_dir/metrics.jsonl`` and mirrors their numbers to TensorBoard and wandb.

    One process per run directory writes (the driver). Every line is handed to the operating system in one
    call, so a killed process loses nothing that was written and tears at most the last line; opening the file
    again for a resumed run drops a torn line.

    Args:
        run_dir: the run directory, created if missing.
        tensorboard: write event files under ``run_dir/tensorboard``.
        wandb_project: also log to this Weights & Biases project.

    Raises:
        ConfigError: wandb is asked for and not installed.
    """

    def __init__(self, run_dir: str | Path, *, tensorboard: bool = True, wandb_project: str | None = None) -> None:
        self.run_dir = Path(run_dir)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.path = self.run_dir / METRICS_FILE
        self._lock = threading.Lock()
        self._wandb = WandbSink(self.run_dir, wandb_project) if wandb_project else None
        self._tensorboard = TensorBoardSink(self.run_dir / "tensorboard") if tensorboard else None
        _drop_torn_tail(self.path)
        self._fd: int | None = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, stage: str, step: int, values: Mapping[str, Any]) -> None:
        """Appends one record. Safe to call from several threads.

        Args:
            stage: ``"sft"``, ``"reward"``, ``"ppo"`` ...
            step: the optimizer-visible step that the values belong to.
            values: numbers, strings, booleans, None, lists of these, or mappings of these; a mapping is
                flattened, its keys joined by dots. Zero-dimensional arrays and tensors count as numbers. A
                float that is not finite becomes null, and its key is listed under ``"nonfinite"``.

        Raises:
            TypeError: a value cannot be a metric; the message names its key.
            ValueError: a key is one of time, stage, step, nonfinite; or the writer is closed.
        """
        nonfinite: list[str] = []
        flat = _flatten(values, nonfinite)
        clash = _RESERVED & flat.keys()
        if clash:
            raise ValueError(f"metric keys {sorted(clash)} are reserved: rename them")
        now = time.time()
        record: dict[str, Any] = {"time": round(now, 3), "stage": stage, "step": int(step), **flat}
        if nonfinite:
            record["nonfinite"] = nonfinite
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        scalars = {f"{stage}/{key}": float(v) for key, v in flat.items() if isinstance(v, (bool, int, float))}
        with self._lock:
            if self._fd is None:
                raise ValueError(f"{self.path} is closed: write metrics before close()")
            _write_all(self._fd, line.encode("utf-8", "backslashreplace"))
            if self._tensorboard:
                self._tensorboard.write(int(step), now, scalars)
            if self._wandb:
                self._wandb.write(stage, int(step), scalars)

    def rewind(self, stage: str, step: int) -> int:
        """Drops a stage's records after `step`, which a run resumed from there is about to write again.

        The file is replaced in one move. Event files keep the old points beside the new ones.

        Returns:
            How many records were dropped.
        """
        with self._lock:
            if self._fd is None:
                raise ValueError(f"{self.path} is closed: rewind before close()")
            kept, dropped = [], 0
            for line in self.path.read_bytes().splitlines(keepends=True):
                record = _parse_object(line) or {}
                if record.get("stage") == stage and record.get("step", step) > step:
                    dropped += 1
                else:
                    kept.append(line)
            if dropped:
                partial = self.path.with_name(f"{METRICS_FILE}.tmp")
                partial.write_bytes(b"".join(kept))
                partial.replace(self.path)
                os.close(self._fd)
                self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            return dropped

    def close(self) -> None:
        """Flushes and closes everything; a second call does nothing."""
        with self._lock:
            if self._fd is None:
                return
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = None
            if self._tensorboard:
                self._tensorboard.close()
            if self._wandb:
                self._wandb.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(run_dir_or_file: str | Path, stage: str | None = None) -> list[dict[str, Any]]:
    """Reads the records of a run in file order, ignoring a last line that a killed process tore.

    Args:
        run_dir_or_file: a run directory or a metrics file.
        stage: keep this stage's records only.

    Raises:
        DataError: the file is missing, or a line before the last is not a JSON object.
    """
    path = Path(run_dir_or_file)
    path = path / METRICS_FILE if path.is_dir() else path
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: is this the directory of a run that has started?") from None
    last = max((i for i, line in enumerate(lines) if line.strip()), default=-1)
    records: list[dict[str, Any]] = []
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        record = _parse_object(line)
        if record is None:
            if index == last:
                break
            raise DataError(f"{path}, line {index + 1}: not a JSON object; remove the line to read the rest")
        if stage is None or record.get("stage") == stage:
            records.append(record)
    return records


def _parse_object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _flatten(values: Mapping[str, Any], nonfinite: list[str], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(_flatten(value, nonfinite, f"{name}."))
        else:
            flat[name] = _plain(name, value, nonfinite)
    return flat


def _plain(name: str, value: Any, nonfinite: list[str]) -> Any:
    """A JSON value; notes `name` in `nonfinite` where a float had to become null."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        if name not in nonfinite:
            nonfinite.append(name)
        return None
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_plain(name, item, nonfinite) for item in value]
    # NumPy and torch scalars, known by what they do: neither library is imported here.
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        return _plain(name, item(), nonfinite)
    raise TypeError(f"metric {name!r} is a {type(value).__name__}: give a number, string, boolean, None or list")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _drop_torn_tail(path: Path) -> None:
    """Cuts what follows the last line break unless it is a whole record, which then gets its line break."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        data = file.read()
        tail = data[data.rfind(b"\n") + 1 :]
        if not tail:
            return
        if _parse_object(tail) is not None:
            file.write(b"\n")
        else:
            file.truncate(len(data) - len(tail))
