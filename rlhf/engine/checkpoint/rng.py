"""The random number generators of one process as plain JSON: no pickle, and equal to the last bit."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch

from rlhf.errors import CheckpointError


def capture_rng() -> dict[str, Any]:
    """State of Python's, NumPy's and torch's generators, every CUDA device included."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, _encode(np.asarray(keys).tobytes()), int(position), int(has_gauss), float(cached)],
        "torch": _encode(torch.get_rng_state().numpy().tobytes()),
        "cuda": [_encode(s.numpy().tobytes()) for s in torch.cuda.get_rng_state_all()] if _has_cuda() else [],
    }


def restore_rng(state: dict[str, Any]) -> None:
    """Puts back what ``capture_rng`` found.

    Raises:
        CheckpointError: the state is not one, or was taken with another number of CUDA devices.
    """
    try:
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        kind, keys, position, has_gauss, cached = state["numpy"]
        np.random.set_state((kind, np.frombuffer(_decode(keys), dtype=np.uint32), position, has_gauss, cached))
        torch.set_rng_state(_tensor(state["torch"]))
        cuda = [_tensor(text) for text in state["cuda"]]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint's random state cannot be read: {error}") from None
    present = torch.cuda.device_count() if _has_cuda() else 0
    if len(cuda) != present:
        raise CheckpointError(
            f"the checkpoint holds random states of {len(cuda)} CUDA devices, this process sees {present}: "
            "resume on the same kind of machine, or start a new run from its adapter"
        )
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


def _has_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")


def _decode(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(_decode(text)), dtype=torch.uint8)
