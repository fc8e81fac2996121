"""TRL 1.12's PPOTrainer on the planted reward of ``score_vs_trl.py``: one process, its JSON line is read there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from datasets import Dataset
from tasks.happy_words import score
from torch import Tensor, nn
from transformers import AutoTokenizer, TrainerCallback
from trl_parts import QUIET, PPOConfig, make_trainer


class HappyWords(nn.Module):
    """A reward model that counts words of the decoded response; the trainer asks a backbone and then a head."""

    base_model_prefix = "backbone"

    def __init__(self, tokenizer: Any, prompts: list[list[int]]) -> None:
        super().__init__()
        self.tokenizer, self.prompts = tokenizer, prompts
        self.score = nn.Identity()

    def backbone(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> Any:
        """The count at every position of a row, (batch, sequence, 1)."""
        texts = [self._response(ids[keep].tolist()) for ids, keep in zip(input_ids, attention_mask.bool(), strict=True)]
        counts = torch.tensor(score([""] * len(texts), texts))
        return SimpleNamespace(hidden_states=[counts[:, None, None].expand(*input_ids.shape, 1)])

    def _response(self, ids: list[int]) -> str:
        prompt = next(p for p in self.prompts if ids[: len(p)] == p)
        whole, first = (self.tokenizer.decode(part, skip_special_tokens=True) for part in (ids, prompt))
        return whole[len(first) :]


class Scores(TrainerCallback):
    """What the trainer logs as its samples' mean score."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        if logs and "objective/scores" in logs:
            self.found.append(logs["objective/scores"])


def main(order: dict[str, Any]) -> dict[str, Any]:
    """Runs the steps."""
    torch.set_num_threads(order["threads"])
    torch.manual_seed(order["seed"])
    told, directory, prompts = order["settings"], order["model"], order["prompts"]
    count = told["samples_per_step"]
    tokenizer = AutoTokenizer.from_pretrained(directory, padding_side="left")
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    rows = Dataset.from_list([{"input_ids": ids} for ids in prompts * (count // len(prompts))])
    scores = Scores()
    args = PPOConfig(
        output_dir=order["output"], seed=order["seed"], per_device_train_batch_size=count,
        gradient_accumulation_steps=1, num_mini_batches=1, num_ppo_epochs=told["epochs"],
        total_episodes=count * order["steps"], response_length=told["response_tokens"],
        local_rollout_forward_batch_size=count, learning_rate=told["learning_rate"], lr_scheduler_type="constant",
        adam_epsilon=told["adam_eps"], kl_coef=told["kl_coef"], vf_coef=told["value_coef"], cliprange=told["clip"],
        cliprange_value=told["clip"], gamma=1.0, lam=0.95, whiten_rewards=False, stop_token="eos", **QUIET,
    )  # fmt: skip
    reward = HappyWords(tokenizer, prompts)
    trainer = make_trainer(
        args, directory, torch.float32, tokenizer, rows, told["lora_r"], reward=reward, callback=scores
    )
    trainer.train()
    return {"scores": scores.found}


if __name__ == "__main__":
    found = main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print(json.dumps(found))
