"""DeepSpeed's bf16 step without ZeRO, for gradients that are known to be finite.

It looks at every gradient twice, for values that are not finite and for its norm, and divides it by a loss scale, which
is 1 in bf16: 226 adapter matrices took 14 ms of a processor's time per update, of which this leaves 4. The rest of the
wrapper (its master weights in fp32, their checkpoint) stays DeepSpeed's. Its own global norm and its clipping, which
``GroupClipping`` replaces, are not there any more.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer


def shorten_step(optimizer: Any) -> bool:
    """Makes the optimizer of an engine skip what its caller has measured; False where it is another one."""
    if type(optimizer) is not FP16_UnfusedOptimizer or optimizer.fused_lamb_legacy or optimizer.loss_scale != 1.0:
        return False
    optimizer.step = MethodType(_step, optimizer)
    return True


def _step(optimizer: Any, closure: None = None) -> bool:
    """One step of the master weights, which the weights of the model then follow; never an overflow."""
    low = [parameter for group in optimizer.fp16_groups for parameter in group]
    high = [parameter for group in optimizer.fp32_groups for parameter in group]
    for master, parameter in zip(high, low, strict=True):
        gradient = parameter.grad
        master.grad = torch.zeros_like(master) if gradient is None else gradient.to(master.dtype)
    optimizer.optimizer.step()
    for master in high:
        master.grad = None
    with torch.no_grad():
        torch._foreach_copy_(low, high)
    optimizer._update_scale(False)
    optimizer.overflow = False
    return False
