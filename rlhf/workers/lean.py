"""Imports of a worker process without what no worker uses: it starts sooner and is smaller.

Transformers loads scikit-learn and SciPy where they are installed, for losses and decoding modes that are not used
here; bitsandbytes has torch load its whole compiler to wrap CPU fallbacks, which would then be compiled in the middle
of a run.
"""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from typing import Any

from rlhf.workers.import_cache import KeptImports

HIDDEN = ("sklearn", "scipy")


class _NoCompiling(MetaPathFinder):
    """A finder that finds nothing: it notices bitsandbytes being asked for and lets ``torch.compile`` do nothing."""

    def __init__(self) -> None:
        self._compile: Callable[..., Any] | None = None

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == "bitsandbytes" and self._compile is None:
            import torch

            self._compile, torch.compile = torch.compile, _leave  # type: ignore[assignment]

    def undo(self) -> None:
        if self._compile is not None:
            sys.modules["torch"].compile = self._compile  # type: ignore[attr-defined]


def _leave(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    return function if function is not None else _leave


@contextmanager
def lean_imports() -> Iterator[None]:
    """While open, ``HIDDEN`` are not found, bitsandbytes compiles nothing, transformers' searches are remembered.

    No garbage is looked for meanwhile: modules leave hardly any, and every look walks all that is imported so far.
    """
    hidden = [name for name in HIDDEN if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: the import system says "not found"
    finder, kept, collects = _NoCompiling(), KeptImports(), gc.isenabled()
    sys.meta_path.insert(0, finder)
    kept.open()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
        kept.close()
        sys.meta_path.remove(finder)
        finder.undo()
        for name in hidden:
            if sys.modules.get(name, finder) is None:
                del sys.modules[name]


def lean_class(cls: type | str) -> type:
    """The class itself, or what ``"module:Class"`` names, imported lean."""
    if not isinstance(cls, str):
        return cls
    module, _, name = cls.partition(":")
    with lean_imports():
        found: type = getattr(importlib.import_module(module), name)
    return found
