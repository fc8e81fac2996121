"""Which filesystem a path lies on: SQLite's write-ahead log needs shared memory that network mounts lack."""

from __future__ import annotations

from pathlib import Path

from preference_ui.errors import StoreError

_MOUNT_TABLE = Path("/proc/self/mountinfo")
_REFUSED = ("nfs", "cifs", "smb", "fuse", "9p", "afs", "ceph", "glusterfs", "lustre", "beegfs")


def filesystem_type(path: Path, mount_table: str) -> str:
    """Type of the mount that holds ``path``.

    Args:
        path: absolute path; need not exist.
        mount_table: text of ``/proc/self/mountinfo``: mount point is field 5, the type follows ``" - "``.
    """
    best, kind = -1, ""
    for line in mount_table.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        # Spaces and the like are written as octal escapes in this table.
        point = Path(fields[4].encode("latin-1", "replace").decode("unicode_escape"))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), right.split()[0]
    return kind


def refuse_network_filesystem(path: Path, mount_table: str | None = None) -> None:
    """Raise StoreError when ``path`` lies on a mount on which SQLite can lose committed votes."""
    if mount_table is None:
        if not _MOUNT_TABLE.exists():
            return
        mount_table = _MOUNT_TABLE.read_text(encoding="utf-8", errors="replace")
    kind = filesystem_type(path.resolve(), mount_table)
    if kind.startswith(_REFUSED):
        raise StoreError(
            f"{path} lies on a {kind} filesystem, where SQLite's write-ahead log is unsafe; put the file on a "
            "local disk, or give a postgresql:// URL instead"
        )
