"""One frozen base per GPU: a training rank lends its tensors to the rollout worker beside it, by CUDA's memory handles.

Both processes then read the same bytes on the device. What one maps stays valid while the lender lives; a run ends or
rebuilds both together. On CPUs files' pages are shared anyway (ADR 15).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import reduce_tensor

logger = logging.getLogger(__name__)

QUANTIZED = ("absmax", "code", "offset")
"""Tensors beside a 4-bit matrix, also of its nested state (arXiv:2305.14314 sec. 3)."""


@dataclass(frozen=True)
class Loan:
    """Handles of a base's tensors by name, and the device on which they lie."""

    device: str
    handles: dict[str, tuple[Callable[..., Tensor], tuple[Any, ...]]]


def lendable(base: nn.Module) -> dict[str, Tensor]:
    """All tensors of a base on a GPU, by name; call it before adapters stand between the names."""
    return {name: tensor.detach() for name, tensor, _ in _places(base)}


def lend(tensors: dict[str, Tensor]) -> Loan | None:
    """Handles of tensors that all lie on this process's GPU; None where there is none."""
    if not tensors or not all(tensor.is_cuda for tensor in tensors.values()):
        return None
    return Loan(_device(), {name: reduce_tensor(tensor) for name, tensor in tensors.items()})


def borrow(base: nn.Module, loans: Sequence[Loan | None]) -> bool:
    """Lets a base, loaded anywhere, use the tensors of the loan on this GPU instead of its own.

    Returns:
        False, and nothing is changed, where none is on this GPU, other tensors are lent, or handles cannot be opened.
    """
    if not torch.cuda.is_available():
        return False
    loan = next((found for found in loans if found is not None and found.device == _device()), None)
    if loan is None:
        return False
    places = list(_places(base))
    try:
        lent = {name: rebuild(*arguments) for name, (rebuild, arguments) in loan.handles.items()}
    except RuntimeError as error:
        logger.warning("the base of the rank on this GPU cannot be opened, a second one is held: %s", error)
        return False
    odd = {name for name, tensor, _ in places if name not in lent or not _alike(lent[name], tensor)}
    if odd or len(lent) != len(places):
        logger.warning(
            "the rank on this GPU holds another base, e.g. %s", min(odd | (lent.keys() ^ {n for n, *_ in places}))
        )
        return False
    for name, _, put in places:
        put(lent[name])
    torch.cuda.empty_cache()
    return True


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _places(base: nn.Module) -> Iterator[tuple[str, Tensor, Callable[[Tensor], None]]]:
    """Every tensor of a base once: its name, itself, and how another takes its place."""
    for name, parameter in base.named_parameters():
        yield name, parameter, _put_data(parameter)
        state = getattr(parameter, "quant_state", None)
        prefix = name
        while state is not None:
            for key in QUANTIZED:
                if isinstance(tensor := getattr(state, key, None), Tensor):
                    yield f"{prefix}.{key}", tensor, _put_attribute(state, key)
            prefix, state = f"{prefix}.state2", getattr(state, "state2", None)
    for name, buffer in base.named_buffers():
        yield name, buffer, _put_data(buffer)


def _put_data(place: Any) -> Callable[[Tensor], None]:
    def put(tensor: Tensor) -> None:
        place.data = tensor

    return put


def _put_attribute(owner: Any, key: str) -> Callable[[Tensor], None]:
    return lambda tensor: setattr(owner, key, tensor)


def _device() -> str:
    return str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
