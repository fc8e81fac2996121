"""One vLLM engine of two processes; prints the largest difference of canary log-probs to the transformers engine.

Runs as its own process: ``python -m tests.support.vllm_parallel MODEL_DIRECTORY``.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM

from rlhf.config import LoraConfig
from rlhf.models import adapters
from rlhf.rollout.transformers_engine import TransformersGenerator
from rlhf.rollout.vllm.engine import VllmGenerator, VllmSettings
from rlhf.weights.snapshot import pack


def main() -> None:
    """Two adapter versions."""
    torch.set_num_threads(1)
    directory = sys.argv[1]
    config = adapters.peft_config(LoraConfig(r=8, alpha=16))
    settings = VllmSettings(128, max_running=16, dtype="float32", tensor_parallel=2, extra={"enforce_eager": True})
    engine = VllmGenerator(directory, config, settings, stop_ids=(1,), suppress_ids=(2,))
    model = AutoModelForCausalLM.from_pretrained(directory)
    peer = TransformersGenerator(model, config, stop_ids=(1,), pad_id=2, microbatch=8, suppress_ids=(2,))
    worst, seen = 0.0, []
    for version in (0, 1):
        generator = torch.Generator().manual_seed(version)
        own = adapters.adapter_parameters(peer._model, "policy")
        published = pack({k: torch.randn(p.shape, generator=generator) * 0.1 for k, p in own}, version)
        engine.install(published)
        peer.install(published)
        seen.append(engine.score_tokens(list(range(20, 40)), [50, 60, 70], 0.7))
        expected = peer.score_tokens(list(range(20, 40)), [50, 60, 70], 0.7)
        worst = max(worst, *(abs(a - b) for a, b in zip(seen[-1], expected, strict=True)))
    engine.close()
    print("differs" if seen[0] != seen[1] else "same", worst)


if __name__ == "__main__":
    main()
