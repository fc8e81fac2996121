"""One log file per role and rank: plain text, UTC, every line says who wrote it, no secrets."""

from __future__ import annotations

import logging
import re
import sys
import time
from pathlib import Path

from rlhf.errors import ConfigError
from rlhf.telemetry.redaction import redact_text

_OWN_PACKAGES = ("rlhf", "cluster", "preference_ui")
_LIBRARIES = ("ray", "DeepSpeed", "deepspeed", "transformers", "trl", "peft", "accelerate", "datasets")
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")
_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_WRITTEN = "_rlhf_written"

_installed: logging.Handler | None = None


class LineFormatter(logging.Formatter):
    """``2026-01-31T10:00:00.123Z INFO policy-0 rlhf.stages.ppo: text``; each line has the prefix."""

    def __init__(self, role: str, rank: int, redact: bool) -> None:
        super().__init__("%(message)s")
        self._who = f"{role}-{rank}"
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        """Formats a record, its traceback included, as one or more prefixed lines without ANSI codes."""
        text = _ANSI.sub("", super().format(record))
        if self._redact:
            # Before the split: a secret with a line break in it must be seen whole.
            text = redact_text(text)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        prefix = f"{moment}.{int(record.msecs):03d}Z {record.levelname} {self._who} {record.name}: "
        return "\n".join(prefix + line for line in text.splitlines() or [""])


class _Admission(logging.Filter):
    """Lets own records through at their level, library records from WARNING, and each record once.

    Libraries reset their logger's level and propagation when they are imported, so neither is relied on: the
    handler hangs on the root and on each library logger, and this filter decides.
    """

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        own = record.name.split(".", 1)[0] in _OWN_PACKAGES
        if record.levelno < (self._level if own else logging.WARNING) or hasattr(record, _WRITTEN):
            return False
        setattr(record, _WRITTEN, True)
        return True


def setup_logging(run_dir: str | Path, role: str, rank: int, level: str = "INFO", redact: bool = True) -> Path:
    """Sends this process's log records to ``run_dir/logs/{role}-{rank}.log``.

    A second call replaces the first: a process has one role. Library loggers write there from WARNING on and
    leave the console; Python warnings go there too.

    Args:
        run_dir: the run directory; ``logs/`` is created in it.
        role: the worker's role, e.g. ``"policy"`` or ``"driver"``.
        rank: index of the worker in its group.
        level: lowest level written for this system's own loggers.
        redact: mask secrets (see `rlhf.telemetry.redaction`).

    Returns:
        The log file.

    Raises:
        ConfigError: the role is not a file-safe word, the rank is negative, or the level is unknown.
    """
    global _installed
    if not _ROLE.fullmatch(role):
        raise ConfigError(f"role {role!r} names a log file: use letters, digits, '_' and '-' only")
    if rank < 0:
        raise ConfigError(f"rank {rank} is negative: ranks count from 0")
    if level.upper() not in _LEVELS:
        raise ConfigError(f"log level {level!r} is unknown: use one of {', '.join(_LEVELS)}")
    path = Path(run_dir) / "logs" / f"{role}-{rank}.log"
    path.parent.mkdir(parents=True, exist_ok=True)

    close_logging()
    handler = logging.FileHandler(path, mode="a", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(LineFormatter(role, rank, redact))
    handler.addFilter(_Admission(logging.getLevelName(level.upper())))
    for name in (None, *_LIBRARIES):
        logging.getLogger(name).addHandler(handler)
    for name in _OWN_PACKAGES:
        logging.getLogger(name).setLevel(level.upper())
    _installed = handler
    hold_libraries_back()
    quiet_libraries()
    logging.captureWarnings(True)
    return path


class _ToTheRoot(logging.Filter):
    """Hands a library's records to the root's handlers, and none to the console handler that the library installs."""

    def filter(self, record: logging.LogRecord) -> bool:
        logging.getLogger().handle(record)
        return False


def hold_libraries_back() -> None:
    """Keeps what libraries say when they are imported off the terminal; files of a run get it. To be called before.

    DeepSpeed warns that there is no GPU, bitsandbytes that a kernel is missing which no CPU needs.
    """
    deepspeed = logging.getLogger("DeepSpeed")
    if not any(isinstance(found, _ToTheRoot) for found in deepspeed.filters):
        deepspeed.addFilter(_ToTheRoot())
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """Takes library loggers off the console and raises them to WARNING.

    Call again after a heavy import: DeepSpeed and transformers install console handlers when imported.
    """
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        for handler in list(logger.handlers):
            on_console = isinstance(handler, logging.StreamHandler) and handler.stream in (
                sys.stdout,
                sys.stderr,
                sys.__stdout__,
                sys.__stderr__,
            )
            if on_console:
                logger.removeHandler(handler)


def close_logging() -> None:
    """Closes the log file of this process, if there is one; records then go where Python sends them."""
    global _installed
    if _installed is None:
        return
    for name in (None, *_LIBRARIES):
        logging.getLogger(name).removeHandler(_installed)
    _installed.close()
    _installed = None
    logging.captureWarnings(False)


def get_logger(name: str) -> logging.Logger:
    """The logger of a module; pass ``__name__``. Names outside this system are put under ``rlhf``."""
    if name.split(".", 1)[0] not in _OWN_PACKAGES:
        name = f"rlhf.{name}"
    return logging.getLogger(name)
