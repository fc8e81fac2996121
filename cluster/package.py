"""What travels with a job: an explicit list of files, zipped so that equal files give equal bytes."""

from __future__ import annotations

import fnmatch
import glob
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rlhf.errors import ConfigError

MAX_PACKAGE_MIB = 100
"""Ray's dashboard takes no larger request body."""
EXCLUDED_NAMES = (
    ".git", ".venv", "venv", "__pycache__", "runs", "checkpoints", ".mypy_cache", ".ruff_cache", ".pytest_cache",
    ".hypothesis", "node_modules", "*.egg-info", "*.pyc", ".env", "auth_token",
)  # fmt: skip
"""Never packaged, at any depth."""
OWN_CODE = ("rlhf", "cluster", "preference_ui")
PATH_KEYS = frozenset({"run_dir", "name", "baseline", "critic", "prompts", "train", "files", "evaluation",
                       "normalize_on", "run", "ca_file"})  # fmt: skip
"""Config keys whose values may be paths; ``file:PATH`` of a secret is meant on the nodes."""
DATA_KEYS = frozenset({"prompts", "train", "files", "evaluation", "normalize_on"})
"""Those that name data: files, globs or a project of the store, and no model of a hub."""
RUNS = "runs"


@dataclass(frozen=True)
class Package:
    """A list of files and what the job is told about them.

    Attributes:
        root: the directory that the archive's names are relative to.
        files: archive name -> file on this machine.
        overrides: ``key=value`` that replace paths which mean something else on the cluster.
        remote_paths: absolute paths that must exist on the cluster's nodes.
    """

    root: Path
    files: dict[str, Path]
    overrides: tuple[str, ...] = ()
    remote_paths: tuple[str, ...] = ()
    config_name: str | None = None
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of all files before compression."""
        return sum(self.sizes.values())

    def largest(self, count: int = 5) -> list[tuple[str, int]]:
        """The largest files."""
        return sorted(self.sizes.items(), key=lambda item: -item[1])[:count]


def collect(
    tree: Mapping[str, Any],
    config: Path | None,
    *,
    root: Path,
    cluster_root: str,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    code: bool = False,
) -> Package:
    """Decides what a stage needs.

    Args:
        tree: the resolved config as plain JSON values.
        config: the config file, which travels too.
        root: the project directory of the client; relative paths are meant from here.
        cluster_root: the directory on the cluster from which ``runs/...`` is meant.
        include / exclude: more paths (globs) to take, and patterns to leave out.
        code: also send this checkout's own packages instead of trusting those in the image.

    Raises:
        ConfigError: a path to include does not exist, or relative data.
    """
    files: dict[str, Path] = {}
    overrides: list[str] = []
    remote: list[str] = []
    missing: list[str] = []
    skip = (*EXCLUDED_NAMES, *exclude)
    config_name = None
    if config is not None:
        inside = config.resolve().is_relative_to(root)
        config_name = config.resolve().relative_to(root).as_posix() if inside else config.name
        files[config_name] = config
    for key, text in paths_in(tree):
        if Path(text).is_absolute():
            remote.extend([text] if key != "run_dir" else [])
        elif not _below_runs(text):
            found = _named_files(text, root, skip)
            if not found and key in DATA_KEYS and not text.startswith("store:"):
                missing.append(f"{key}={text}")
            files.update(found)
    for name, value in tree.items():
        moved = _move_runs(value, name, cluster_root)
        if moved != value:
            overrides.extend(_as_overrides(name, value, moved))
    for module in _modules_in(tree):
        if module not in OWN_CODE:
            files.update(_module_files(module, root, skip))
    if code:
        for module in OWN_CODE:
            files.update(_module_files(module, root, skip))
    for pattern in include:
        found = _named_files(pattern, root, skip)
        if not found:
            raise ConfigError(f"--include {pattern}: nothing there below {root}")
        files.update(found)
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: names nothing below {root} that a job could be sent; give the file that you mean, "
            "or an absolute path that every node has"
        )
    sizes = {name: file.stat().st_size for name, file in files.items()}
    return Package(root, dict(sorted(files.items())), tuple(overrides), tuple(remote), config_name, sizes)


def write_zip(package: Package, target: Path, *, max_mib: float = MAX_PACKAGE_MIB) -> int:
    """Writes the archive; equal contents give equal bytes, so that Ray need not upload them twice.

    Returns:
        The archive's size in bytes.

    Raises:
        ConfigError: it is larger than the limit; the message names the largest files.
    """
    # already compressed weights hardly shrink: far beyond the limit there is no need to try
    if package.num_bytes > 20 * max_mib * 2**20:
        raise _too_large(package, package.num_bytes, max_mib)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, file in package.files.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (0o755 if os.access(file, os.X_OK) else 0o644) << 16
            archive.writestr(info, file.read_bytes())
        if not package.files:
            archive.writestr(zipfile.ZipInfo(".keep", date_time=(1980, 1, 1, 0, 0, 0)), b"")
    size = target.stat().st_size
    if size > max_mib * 2**20:
        raise _too_large(package, size, max_mib)
    return size


def format_size(num_bytes: float) -> str:
    """``12 KiB``, ``3.4 MiB``."""
    if num_bytes < 2**20:
        return f"{num_bytes / 2**10:.0f} KiB"
    return f"{num_bytes / 2**20:.1f} MiB"


def _too_large(package: Package, size: int, max_mib: float) -> ConfigError:
    lines = "\n".join(f"  {format_size(n):>10}  {name}" for name, n in package.largest())
    return ConfigError(
        f"the package is {format_size(size)}, Ray takes at most {max_mib:g} MiB. Largest files:\n{lines}\n"
        "Put models and data where every node can read them and name them by absolute path, or leave files out "
        "with --exclude PATTERN"
    )


def paths_in(tree: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, value) of everything that may be a path."""
    if isinstance(tree, Mapping):
        for name, value in tree.items():
            yield from paths_in(value, name)
    elif key in PATH_KEYS and isinstance(tree, str):
        yield key, tree
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from paths_in(value, key)


def _modules_in(tree: Any) -> set[str]:
    """Top-level modules of score functions (``kind: function``)."""
    if isinstance(tree, Mapping):
        own = {str(tree["path"]).split(":")[0].split(".")[0]} if tree.get("kind") == "function" else set()
        return own.union(*(_modules_in(value) for value in tree.values()))
    if isinstance(tree, list | tuple):
        return set().union(*(_modules_in(value) for value in tree))
    return set()


def _below_runs(text: str) -> bool:
    return PurePosixPath(text).parts[:1] == (RUNS,)


def _move_runs(value: Any, key: str, cluster_root: str) -> Any:
    """The same tree with ``runs/...`` made absolute below the cluster's root."""
    if isinstance(value, Mapping):
        return {name: _move_runs(below, name, cluster_root) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [_move_runs(below, key, cluster_root) for below in value]
    if key in PATH_KEYS and isinstance(value, str) and _below_runs(value):
        return f"{cluster_root.rstrip('/')}/{value}"
    return value


def _as_overrides(key: str, before: Any, after: Any) -> Iterator[str]:
    """Dotted overrides for what changed; a list is given whole."""
    if isinstance(after, Mapping):
        for name, value in after.items():
            if value != before[name]:
                yield from _as_overrides(f"{key}.{name}", before[name], value)
    elif isinstance(after, str):
        yield f"{key}={after}"
    else:
        yield f"{key}={json.dumps(after)}"


def _module_files(module: str, root: Path, skip: Iterable[str]) -> dict[str, Path]:
    """``module.py`` or the package ``module/`` below the root; nothing when the image has to bring it."""
    if (root / f"{module}.py").is_file():
        return {f"{module}.py": root / f"{module}.py"}
    return _walk(root / module, root, skip) if (root / module).is_dir() else {}


def _named_files(text: str, root: Path, skip: Iterable[str]) -> dict[str, Path]:
    """Files that a relative path or glob names below the root."""
    found: dict[str, Path] = {}
    for name in matches(text, root):
        path = root / name
        if not path.resolve().is_relative_to(root):
            raise ConfigError(f"{text} lies outside {root}: only files below the project directory can be sent")
        if path.is_dir():
            found.update(_walk(path, root, skip))
        elif not _skipped(path.name, skip) and not _skipped(os.path.normpath(name), skip):
            found[os.path.normpath(name)] = path
    return found


def matches(text: str, root: Path) -> list[str]:
    """What a path or glob names, relative ones from ``root`` on, sorted."""
    return sorted(glob.glob(text, root_dir=root, recursive=True))  # noqa: PTH207 - Path.glob refuses '..'


def _walk(directory: Path, root: Path, skip: Iterable[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not _skipped(name, skip))
        for name in sorted(names):
            path = Path(folder) / name
            relative = path.relative_to(root).as_posix()
            if not _skipped(name, skip) and not _skipped(relative, skip) and path.is_file():
                found[relative] = path
    return found


def _skipped(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
