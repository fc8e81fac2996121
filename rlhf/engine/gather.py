"""Whole tensors of parameters that ZeRO-3 has cut into pieces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import deepspeed
import torch
from torch import Tensor, nn


@contextmanager
def gathered(parameters: list[nn.Parameter], *, write_from_rank: int | None = None) -> Iterator[None]:
    """Makes partitioned parameters whole on every rank; does nothing for whole ones.

    Args:
        write_from_rank: this rank's changes inside the context become everyone's.
    """
    partitioned = [p for p in parameters if hasattr(p, "ds_id")]
    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=write_from_rank, enabled=bool(partitioned)):
        yield


def whole_state(named: Iterable[tuple[str, nn.Parameter]], *, keep: bool) -> dict[str, Tensor]:
    """CPU copies of parameters, one gathered at a time. All ranks must call it.

    Args:
        keep: whether this rank wants the copies; the others get an empty dictionary.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in named:
        with gathered([parameter]):
            if keep:
                state[name] = parameter.detach().to("cpu", copy=True)
    return state


def write_whole_state(named: Iterable[tuple[str, nn.Parameter]], state: dict[str, Tensor]) -> None:
    """Writes rank 0's tensors into the parameters of every rank. All ranks must call it."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    for name, parameter in named:
        with gathered([parameter], write_from_rank=0), torch.no_grad():
            if rank == 0:
                parameter.copy_(state[name].to(parameter))
        if not hasattr(parameter, "ds_id") and torch.distributed.is_initialized():
            torch.distributed.broadcast(parameter.data, src=0)
