"""ZeRO-3: a model is cut into the ranks' pieces before DeepSpeed takes it, parameter by parameter."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn


def cut(module: nn.Module, config: dict[str, Any], dtype: torch.dtype) -> None:
    """Cuts every parameter and leaves this rank's piece on its device (or where ``config`` offloads it).

    ``deepspeed.initialize`` does the same with a model that is whole, but puts all of it on the device first: a model
    that only fits in pieces would not get there.

    Args:
        config: as for ``deepspeed.initialize``.
        dtype: of the parameters; bfloat16 rounds those that are wider, as ``deepspeed.initialize`` would.
    """
    if dtype == torch.bfloat16:
        for parameter in module.parameters():
            if parameter.dtype in (torch.float32, torch.float16):
                parameter.data = parameter.data.to(dtype)
    deepspeed.zero.Init(module=module, dtype=dtype, config_dict_or_path=config)
    device = torch.device(get_accelerator().current_device_name())
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)
