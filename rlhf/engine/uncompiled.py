"""DeepSpeed's start without torch's compiler.

To see whether it knows an optimizer, DeepSpeed imports its own Muon, and that has torch compile three functions: the
whole compiler is loaded for an optimizer that is not used here, a second and a half of processor time in every rank.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

MUON = "deepspeed.runtime.zero.muon.muon_optimizer"


def import_muon() -> None:
    """Imports it, once, with its functions as they are written."""
    plain, torch.compile = torch.compile, _leave  # type: ignore[assignment]
    try:
        with suppress(ImportError):  # DeepSpeed goes on without it too
            importlib.import_module(MUON)
    finally:
        torch.compile = plain


def _leave(function: Callable[..., Any]) -> Callable[..., Any]:
    return function
