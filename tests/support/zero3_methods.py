"""Trains adapter methods plainly and under ZeRO-3, one rank; prints {method: [losses, losses or the refusal]}.

Runs as its own process: ``python -m tests.support.zero3_methods MODEL_DIRECTORY METHOD ...``.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from rlhf.workers.lean import lean_imports

with lean_imports():
    import torch

    from rlhf.config import LoraConfig, ModelConfig, OptimConfig
    from rlhf.config.model import EngineConfig
    from rlhf.engine import engine as engine_module
    from rlhf.engine.clipping import ParameterGroup
    from rlhf.engine.engine import TrainEngine, init_process_group
    from rlhf.engine.zero import deepspeed_config
    from rlhf.errors import ConfigError
    from rlhf.models import adapters
    from rlhf.models.loading import load_causal_lm
    from rlhf.models.source import ModelSource
    from rlhf.models.tokenizer import load_tokenizer

NUM_STEPS = 3
IDS = torch.randint(3, 290, (2, 14), generator=torch.Generator().manual_seed(0))


def build(directory: str, method: str) -> Any:
    """A model with a fresh adapter, cut into pieces while it is loaded where ZeRO-3 is announced."""
    config = ModelConfig(name=directory, dtype="float32")
    source = ModelSource(directory, None, directory)
    base = load_causal_lm(source, config, load_tokenizer(source, config))
    torch.manual_seed(0)
    return adapters.fresh(base, LoraConfig(method=method, r=4, alpha=8), "default").eval()


def plain_losses(directory: str, method: str) -> list[float]:
    """Losses of three steps of torch alone."""
    model = build(directory, method)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    found = []
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        found.append(float(loss))
    return found


def releasing(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """A weight is whole only while its own layer runs: DeepSpeed would keep all of a model as small as this one."""
    found = deepspeed_config(*args, **kwargs)
    keys = ("param_persistence_threshold", "max_reuse_distance", "prefetch_bucket_size")
    found["zero_optimization"] |= {f"stage3_{key}": 0 for key in keys}
    return found


def zero3_losses(directory: str, method: str) -> list[float]:
    """The same under ZeRO-3."""
    from transformers.integrations import HfDeepSpeedConfig

    stage3 = EngineConfig(zero_stage=3)
    sizes: dict[str, Any] = {"dtype": torch.float32, "microbatch": 2, "accumulation": 1, "max_grad_norm": 1.0}
    announced = HfDeepSpeedConfig({**releasing(stage3, **sizes), "train_batch_size": 2})
    try:
        model = build(directory, method)
    finally:
        del announced
    groups = [ParameterGroup("policy", [p for p in model.parameters() if p.requires_grad], 1e-2, 1.0)]
    engine = TrainEngine(model, groups, OptimConfig(learning_rate=1e-2), stage3, dtype=torch.float32, microbatch=2)
    found = []
    for _ in range(NUM_STEPS):
        loss = engine._engine(input_ids=IDS, labels=IDS, use_cache=False).loss
        engine.backward(loss, last=True)
        engine.step({"policy": 1.0})
        found.append(float(loss))
        if any(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad):
            raise ValueError(f"{method}: a frozen weight has stayed whole, as it would not in a larger model")
    return found


def main() -> None:
    """All methods named on the command line."""
    torch.set_num_threads(1)
    init_process_group(60)
    engine_module.deepspeed_config = releasing
    found: dict[str, list[Any]] = {}
    for method in sys.argv[2:]:
        found[method] = [plain_losses(sys.argv[1], method)]
        try:
            found[method].append(zero3_losses(sys.argv[1], method))
        except ConfigError as error:
            found[method].append(str(error))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
