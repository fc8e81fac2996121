"""What a checkpoint holds: every file with its size and sha256, and what it belongs to. Loads neither torch nor ray."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlhf.errors import CheckpointError

MANIFEST_FILE = "MANIFEST.json"
FORMAT = 1
BLOCK = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """One commit.

    Attributes:
        step: steps done; the run goes on with this step (0-based).
        identity: hashes and settings that must be those of the run that resumes, by name.
        token: fencing token of the run's claim, larger for every later claim of the directory.
        metric: what ``keep_best`` maximises, or None.
        files: path within the directory -> (bytes, sha256).
        state: the driver's own state, plain JSON.
    """

    step: int
    stage: str
    identity: dict[str, Any]
    token: int
    metric: float | None
    files: dict[str, tuple[int, str]]
    state: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def dump(self) -> str:
        """JSON text with a hash over itself, so that a flipped bit in the manifest is seen too."""
        body = asdict(self)
        return json.dumps({**body, "sha256": _seal(body)}, indent=1, sort_keys=True) + "\n"


def describe_files(directory: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 of every file below ``directory``, the manifest left out."""
    return {
        str(path.relative_to(directory)): (path.stat().st_size, file_sha256(path))
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST_FILE
    }


def file_sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """Reads a checkpoint's manifest; its files are not looked at.

    Raises:
        CheckpointError: missing, torn, changed, or written by a newer release.
    """
    path = directory / MANIFEST_FILE
    try:
        text = path.read_bytes()
        body = json.loads(text)
    except FileNotFoundError:
        raise CheckpointError(f"{directory} has no {MANIFEST_FILE}: it was never committed") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if not isinstance(body, dict):
        raise CheckpointError(f"{path} is not a manifest")
    seal = body.pop("sha256", None)
    if body.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {body.get('format')!r}, this release reads {FORMAT}: resume with the release that "
            "wrote it, or start a new run from its adapter"
        )
    if seal != _seal(body):
        raise CheckpointError(f"{path} was changed after it was written: its own sha256 does not fit")
    try:
        files = {name: (int(size), str(sha)) for name, (size, sha) in body.pop("files").items()}
        manifest = Manifest(files=files, **body)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a manifest: {error}") from None
    if manifest.dump().encode() != text:  # 1e-7 and 1E-7 differ by one bit
        raise CheckpointError(f"{path} was changed after it was written: it says the same in other bytes")
    return manifest


def verify(directory: Path) -> Manifest:
    """Reads the manifest and every file that it names.

    Raises:
        CheckpointError: naming the first file that is missing, cut, changed or unknown.
    """
    manifest = read_manifest(directory)
    for name, (size, sha) in manifest.files.items():
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        found = path.stat().st_size
        if found != size:
            raise CheckpointError(f"{path} has {found} bytes, committed were {size}")
        if file_sha256(path) != sha:
            raise CheckpointError(f"{path} was changed after the commit: its sha256 does not fit")
    present = {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST_FILE}
    if strangers := present - manifest.files.keys():
        raise CheckpointError(f"{directory / sorted(strangers)[0]} does not belong to this commit")
    return manifest


def _seal(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
