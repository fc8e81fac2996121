"""A rollout worker that serves from vLLM holds the same policy as one that serves from transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from rlhf.config import LoraConfig, ModelConfig, RolloutConfig
from rlhf.data.schema import Message
from rlhf.models import adapters
from rlhf.models.roles import POLICY
from rlhf.models.source import resolve_model
from rlhf.rollout.protocol import PromptTask
from rlhf.weights.snapshot import pack
from rlhf.workers.context import WorkerContext
from rlhf.workers.rollout import RolloutWorker

BASE = "builtin:helpline_base"
LORA = LoraConfig(r=8, alpha=16)


def test_a_worker_on_vllm_matches_one_on_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    torch.set_num_threads(1)
    model = ModelConfig(name=BASE, dtype="float32")
    rollout = RolloutConfig(engine="vllm", max_prompt_tokens=64, max_response_tokens=24, microbatch_sequences=16)
    shape = adapters.attach(AutoModelForCausalLM.from_pretrained(resolve_model(BASE, None).base),
                            adapters.peft_config(LORA), POLICY)  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    state = {k: torch.randn(p.shape, generator=generator) * 0.05 for k, p in adapters.adapter_parameters(shape, POLICY)}
    snapshot = pack(state, 1)
    found = {}
    for engine in ("transformers", "vllm"):
        settings = rollout if engine == "vllm" else None
        worker = RolloutWorker(WorkerContext("rollout", 0, 1, str(tmp_path)), model, LORA, microbatch=16, threads=1,
                               follows_trainer=True, rollout=settings)  # fmt: skip
        assert worker.install(snapshot)[0] == snapshot.sha256
        ids = list(worker.chat.encode_prompt((Message("user", "What should I eat today?"),)))
        tasks = [PromptTask(f"0/{i}/0", tuple(ids), 100 + i) for i in range(6)]
        rollouts = worker.generate(tasks, rollout, 1)
        assert {r.version for r in rollouts} == {1} and {r.adapter_sha256 for r in rollouts} == {snapshot.sha256}
        assert all(0 < len(r.response_ids) <= 24 for r in rollouts)
        found[engine] = worker.canary(ids, [50, 60, 70], 1.0)
    differences = [abs(a - b) for a, b in zip(found["transformers"], found["vllm"], strict=True)]
    assert max(differences) < 2e-4, found
