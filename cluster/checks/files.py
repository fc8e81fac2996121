"""Run directories: writable, free, without what killed processes leave behind."""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from pathlib import Path

from cluster.checks.record import Record, fail, ok, size, warn

LOCK_FILE = ".lock"
RUN_DIR = "run directory"
OLD_SECONDS = 3600


def check_writable(run_dir: Path) -> Record:
    """A file can be made, read again and removed there."""
    probe = run_dir / f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        probe.write_text("probe", encoding="utf-8")
        same = probe.read_text(encoding="utf-8") == "probe"
        probe.unlink()
    except OSError as error:
        return fail(
            RUN_DIR, f"{run_dir}: {error.strerror or error}", "set run_dir elsewhere, or fix its owner and mode"
        )
    if not same:
        return fail(RUN_DIR, f"{run_dir} gives back other bytes than were written", "check the disk or the mount")
    return ok(RUN_DIR, f"{run_dir} can be written")


def check_lock(run_dir: Path) -> Record:
    """Whether a live process holds the run; the file that a dead one left is harmless."""
    path = run_dir / LOCK_FILE
    if not path.is_file():
        return ok("run lock", "not held")
    descriptor = os.open(path, os.O_RDONLY)
    try:
        owner = os.read(descriptor, 64).decode(errors="replace").strip() or "unknown"
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return warn("run lock", f"{run_dir} belongs to the live process {owner}", "wait for it, or end it")
    finally:
        os.close(descriptor)
    return ok("run lock", f"not held (its last owner, {owner}, is gone)")


def check_leftovers(run_dir: Path) -> Record:
    """Half-written files: never read, but they take room."""
    found = [p for pattern in ("**/.*.tmp", "**/*.tmp", "**/*.partial") for p in run_dir.glob(pattern)]
    files = sorted({p for p in found if p.is_file()})
    if not files:
        return ok("leftover files", "none")
    total = sum(p.stat().st_size for p in files)
    shown = ", ".join(str(p.relative_to(run_dir)) for p in files[:3]) + (" ..." if len(files) > 3 else "")
    return warn("leftover files", f"{len(files)} half-written, {size(total)}: {shown}",
                f"find {run_dir} -name '*.tmp' -delete, when no run is going on there")  # fmt: skip


def check_ray_sessions(root: Path = Path("/tmp/ray"), *, now: float | None = None) -> Record:
    """Directories of Ray runtimes that are gone."""
    moment = time.time() if now is None else now
    sessions = [p for p in root.glob("session_*") if p.is_dir() and not p.is_symlink()]
    old = [p for p in sessions if moment - p.stat().st_mtime > OLD_SECONDS and not _in_use(p)]
    total = sum(_bytes_below(p) for p in old)
    if total > 1 << 30:
        return warn("old Ray sessions", f"{len(old)} under {root}, {size(total)}",
                    f"remove the session_* directories under {root} when no Ray runs here")  # fmt: skip
    return ok("old Ray sessions", f"{len(old)} under {root}, {size(total)}")


def _in_use(session: Path) -> bool:
    """A session whose sockets somebody still listens on."""
    try:
        listening = Path("/proc/net/unix").read_text(encoding="utf-8")
    except OSError:
        return True
    return f"{session.name}/sockets/" in listening


def _bytes_below(root: Path) -> int:
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                total += (Path(folder) / name).lstat().st_size
            except OSError:
                continue  # removed in the meantime
    return total
