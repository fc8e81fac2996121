"""Two ranks that start an engine on one base; prints what each then holds, as a JSON list.

Runs as its own process: ``python -m tests.support.alike_ranks MODEL_DIRECTORY STORE_FILE``. Rank 1 begins with a frozen
tensor and adapters of its own.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

from rlhf.workers.lean import lean_imports

with lean_imports():
    import torch
    from torch import Tensor

    from rlhf.config import LoraConfig, ModelConfig, OptimConfig
    from rlhf.config.model import EngineConfig
    from rlhf.engine import alike
    from rlhf.engine.engine import ParameterGroup, TrainEngine, init_process_group
    from rlhf.models import adapters
    from rlhf.models.loading import load_causal_lm
    from rlhf.models.source import ModelSource
    from rlhf.models.tokenizer import load_tokenizer
    from tests.support.pages import file_pages

IDS = torch.arange(3, 43).view(2, 20)


def digest(tensors: list[Tensor]) -> str:
    """Of all bytes in order."""
    return hashlib.sha256(b"".join(t.detach().numpy().tobytes() for t in tensors)).hexdigest()


def main(directory: str, rank: int, store: str) -> dict[str, Any]:
    """Joins, starts the engine, takes one step."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    init_process_group(60)
    source, config = ModelSource(directory, None, directory), ModelConfig(name=directory, dtype="float32")
    base: Any = load_causal_lm(source, config, load_tokenizer(source, config))
    torch.manual_seed(rank)
    model: Any = adapters.attach(base, adapters.peft_config(LoraConfig(r=2, alpha=4)), "default").eval()
    odd = base.model.norm.weight
    with torch.no_grad():
        odd += rank
    trained = [p for p in model.parameters() if p.requires_grad]
    engine = TrainEngine(
        model,
        [ParameterGroup("policy", trained, 1e-2, 1.0)],
        OptimConfig(),
        EngineConfig(),
        dtype=torch.float32,
        microbatch=2,
    )
    start = {
        "base": digest([p for p in model.parameters() if not p.requires_grad]),
        "adapters": digest(trained),
        "marks": sum(hasattr(p, alike.UNSENT) for p in model.parameters()),
    }
    loss = engine._engine(input_ids=IDS, labels=IDS, use_cache=False).loss
    engine.backward(loss, last=True)
    engine.step({"policy": 1.0})
    torch.distributed.barrier()
    pages = file_pages(Path(directory) / "model.safetensors")
    torch.distributed.barrier()
    shared = model(input_ids=IDS, use_cache=False).logits
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    private = model(input_ids=IDS, use_cache=False).logits
    return {**start, **pages, "stepped": digest(trained), "same_logits": torch.equal(shared, private)}


if __name__ == "__main__":
    directory, store = sys.argv[1:]
    with multiprocessing.get_context("fork").Pool(2) as pool:  # the libraries are imported once
        print(json.dumps(pool.starmap(main, [(directory, rank, store) for rank in range(2)], chunksize=1)))
