"""What transformers and torch work out anew in every process that imports them: a second of processor time each.

At import transformers reads all of its 2 000 source files to learn which names they export, twice, and the metadata of
all installed packages. Both depend on what is installed and on nothing else: they are kept on disk. Torch notes where
each of its operations is registered, and has the source of all modules searched to learn its own line.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

TARGET = "transformers.utils.import_utils"
REGISTRATION = "torch._library.utils"


def cache_folder() -> Path:
    """Where the files are: ``rlhf`` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlhf"


class KeptImports(MetaPathFinder):
    """A finder that finds nothing of its own: it hands transformers' module over with its search answered from disk.

    Files that are missing, damaged or of another installation are written anew; a cache that cannot be written costs
    the time that it would have saved, and nothing else.
    """

    def __init__(self) -> None:
        self._distributions = importlib.metadata.packages_distributions
        self._registration: Any = None
        self._get_source: Any = None

    def open(self) -> None:
        """Begins to answer."""
        sys.meta_path.insert(0, self)
        importlib.metadata.packages_distributions = self._kept_distributions

    def close(self) -> None:
        """Leaves everything as it was, but for the module that has been imported."""
        sys.meta_path.remove(self)
        importlib.metadata.packages_distributions = self._distributions
        if self._registration is not None:
            self._registration.get_source = self._get_source

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if self._registration is None and REGISTRATION in sys.modules:
            self._registration = sys.modules[REGISTRATION]
            self._get_source = getattr(self._registration, "get_source", None)
            self._registration.get_source = _line_of_caller
        if name != TARGET:
            return None
        spec = PathFinder.find_spec(name, path, target)
        loader: Any = spec.loader if spec is not None else None
        if spec is None or loader is None or not _is_installed(spec.origin):
            return None
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _answer_from_disk(module)

        loader.exec_module = exec_module
        return spec

    def _kept_distributions(self) -> Mapping[str, list[str]]:
        places = [(place, _changed(place)) for place in sys.path if _holds_distributions(place)]
        return _kept("distributions", places, lambda: dict(self._distributions()))


def _line_of_caller(stacklevel: int) -> str:
    """File and line of a frame, as torch writes them."""
    frame = sys._getframe(stacklevel)
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _answer_from_disk(module: Any) -> None:
    """Exported names of a package by file and by what they need, without reading the files."""
    search = getattr(module, "define_import_structure", None)
    if search is None:
        return

    def define_import_structure(module_path: Any, prefix: str | None = None) -> dict[frozenset[str], Any]:
        folder = Path(module_path)
        folder = folder.parent if folder.is_file() else folder
        if folder.name != "models":
            return search(module_path, prefix)
        known = [str(folder), _changed(folder), importlib.metadata.version("transformers"), prefix]
        rows = _kept("exports", known, lambda: _as_rows(search(module_path, prefix)))
        return {frozenset(needs): {name: set(own) for name, own in names.items()} for needs, names in rows}

    module.define_import_structure = define_import_structure


def _as_rows(found: dict[frozenset[str], dict[str, set[str]]]) -> list[Any]:
    return [[sorted(needs), {name: sorted(own) for name, own in names.items()}] for needs, names in found.items()]


def _is_installed(origin: str | None) -> bool:
    """Installed from a wheel: the files of a working copy change without notice."""
    places = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    return origin is not None and any(Path(origin).is_relative_to(place) for place in places)


def _holds_distributions(place: str) -> bool:
    """Others, such as a script's own folder, change all the time."""
    folder = Path(place)
    return folder.is_dir() and any(entry.suffix in (".dist-info", ".egg-info") for entry in folder.iterdir())


def _changed(place: str | Path) -> int:
    return Path(place or ".").stat().st_mtime_ns


def _kept(what: str, known: Any, find: Callable[[], Any]) -> Any:
    """A JSON value from disk, or found now and kept for the next process."""
    key = hashlib.sha256(json.dumps([sys.version, known]).encode()).hexdigest()
    path = cache_folder() / f"{what}-{key[:16]}.json"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["key"] == key:
            return held["value"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    value = find()
    _write(path, {"key": key, "value": value})
    return value


def _write(path: Path, held: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(held, file)
        Path(name).replace(path)
    except OSError:
        pass
