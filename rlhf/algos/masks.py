"""Masks, positions and reductions that stay finite whatever the padding holds.

The law of every function in ``rlhf.algos``: masks are bool, True = keep, and a masked slot is overwritten
*before* any nonlinearity. Multiplying by the mask lets NaN through (NaN * 0 = NaN); selecting afterwards
repairs the value but not the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def require_mask(mask: Tensor, *tensors: Tensor) -> None:
    """Refuse a mask that is not bool or does not have the shape of every tensor.

    A float or long mask would make ``~mask`` mean something else; a mask of another shape would broadcast
    silently.

    Raises:
        TypeError: the mask is not bool.
        ValueError: a shape differs.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"a mask must be bool (True = keep), got {mask.dtype}; compare it first, e.g. mask != 0")
    for tensor in tensors:
        if tensor.shape != mask.shape:
            raise ValueError(f"mask has shape {tuple(mask.shape)}, the tensor {tuple(tensor.shape)}")


def at_least_float32(x: Tensor) -> Tensor:
    """Return ``x`` in float32, or unchanged if it is wider: sums over tokens overflow half precision."""
    return x if x.dtype == torch.float64 else x.float()


def fill_masked(x: Tensor, mask: Tensor, value: float = 0.0) -> Tensor:
    """Return ``x`` in at least float32 with masked slots set to ``value`` and with zero gradient there."""
    require_mask(mask, x)
    return at_least_float32(x).masked_fill(~mask, value)


def response_mask_from_tokens(response_ids: Tensor, eos_ids: Sequence[int]) -> Tensor:
    """Mark the tokens of each response up to and including its first EOS.

    Args:
        response_ids: ``(batch, response)`` long, what was sampled, right-padded with anything.
        eos_ids: every id that ends a response; with none of them in a row, the whole row is response.

    Returns:
        ``(batch, response)`` bool.
    """
    is_eos = _is_any_of(response_ids, eos_ids)
    num_eos_before = is_eos.long().cumsum(dim=1) - is_eos.long()
    return num_eos_before == 0


def ends_with_eos(response_ids: Tensor, response_mask: Tensor, eos_ids: Sequence[int]) -> Tensor:
    """Tell for each row whether its last response token is an EOS; False for a row without response tokens.

    Returns:
        ``(batch,)`` bool.
    """
    require_mask(response_mask, response_ids)
    return (_is_any_of(response_ids, eos_ids) & last_token_mask(response_mask)).any(dim=1)


def last_token_mask(mask: Tensor) -> Tensor:
    """Keep only the last True of each row; a row without any stays all False.

    Args:
        mask: ``(batch, sequence)`` bool, gaps allowed.
    """
    require_mask(mask)
    num_kept_from_here = mask.long().flip(1).cumsum(dim=1).flip(1)
    return mask & (num_kept_from_here == 1)


def position_ids(attention_mask: Tensor) -> Tensor:
    """Number the real tokens of each row from 0, wherever the padding is; padded slots get 1.

    The value in padded slots is arbitrary but valid, so that no position embedding is indexed out of range.

    Args:
        attention_mask: ``(batch, sequence)`` bool.

    Returns:
        ``(batch, sequence)`` long.
    """
    require_mask(attention_mask)
    return (attention_mask.long().cumsum(dim=1) - 1).masked_fill(~attention_mask, 1)


def masked_sum(x: Tensor, mask: Tensor, *, dim: int | None = None) -> Tensor:
    """Sum ``x`` where ``mask`` is True, in at least float32; over everything, or over ``dim``."""
    kept = fill_masked(x, mask)
    return kept.sum() if dim is None else kept.sum(dim=dim)


def masked_mean(x: Tensor, mask: Tensor, *, denominator: Tensor | float | None = None) -> Tensor:
    """Sum ``x`` where ``mask`` is True and divide.

    Args:
        x: any shape.
        mask: bool, same shape.
        denominator: the count to divide by, e.g. the global number of response tokens; by default the number
            of True slots of this mask. With nothing kept and no denominator the mean is 0.

    Returns:
        A scalar, in at least float32.
    """
    if denominator is None:
        denominator = mask.sum().clamp(min=1)
    return masked_sum(x, mask) / denominator


def masked_var(x: Tensor, mask: Tensor) -> Tensor:
    """Return the biased (population) variance of ``x`` where ``mask`` is True; 0 if nothing is kept."""
    centred = fill_masked(x, mask) - masked_mean(x, mask)
    return masked_mean(centred.square(), mask)


def _is_any_of(token_ids: Tensor, ids: Sequence[int]) -> Tensor:
    return torch.isin(token_ids, torch.tensor(list(ids), dtype=token_ids.dtype, device=token_ids.device))
