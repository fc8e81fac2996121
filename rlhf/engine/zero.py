"""DeepSpeed's config dictionary, generated from ours."""

from __future__ import annotations

from typing import Any

import torch

from rlhf.config import EngineConfig


def deepspeed_config(
    engine: EngineConfig,
    *,
    dtype: torch.dtype,
    microbatch: int | str,
    accumulation: int | str,
    max_grad_norm: float | str,
    minibatch: int | str | None = None,
) -> dict[str, Any]:
    """Builds the dictionary that ``deepspeed.initialize`` and a HF trainer take.

    Args:
        engine: ZeRO stage and offloading.
        dtype: compute precision; bfloat16 keeps fp32 master weights of what is trained.
        microbatch: sequences per rank and forward pass, or ``"auto"`` under a HF trainer.
        accumulation: micro-batches per optimizer step, or ``"auto"``.
        max_grad_norm: global gradient norm to clip at, or ``"auto"``.
        minibatch: sequences per optimizer step over all ranks, or ``"auto"``; None leaves it to be derived.
    """
    zero: dict[str, Any] = {"stage": engine.zero_stage, "reduce_bucket_size": engine.reduce_bucket_elements}
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if engine.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    if engine.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": microbatch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    if minibatch is not None:
        config["train_batch_size"] = minibatch
    return config
