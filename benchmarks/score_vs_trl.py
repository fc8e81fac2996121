"""Whether PPO here learns what TRL 1.12's PPOTrainer learns from the same number of samples: a planted reward.

    python benchmarks/score_vs_trl.py [--model DIR] [--seeds 0 1 2] [--steps 20]

A small pretrained model continues the prompts of ``tasks/happy_words.py`` and is paid for every happy word. Both
sides: 48 tokens, LoRA rank 8 on all linear layers, 64 samples per step, 4 epochs of one update each (TRL's gradient
accumulation counts across minibatches, so more of them would not be more updates there), the same learning rate,
Adam, clipping, KL penalty and discount, the log-probs of sampling for the old ones; a critic each. TRL trains every
weight of its critic, this system an adapter of rank 8 on the policy's base, at three times the rate (``--critic-
learning-rate``; at the policy's rate its scores stay 0.6 behind after 20 steps). Scores are those of the samples
drawn, so step k shows what k steps have taught. The figure is the difference of the mean score of the last five steps
beside the spread over the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from common import HERE, save
from peer import install_peer, run_peer
from tasks.happy_words import PROMPTS

LAST = 5
SETTINGS = {
    "samples_per_step": 64,
    "response_tokens": 48,
    "epochs": 4,
    "lora_r": 8,
    "learning_rate": 1e-3,
    "critic_learning_rate": 3e-3,
    "kl_coef": 0.05,
    "value_coef": 0.5,
    "clip": 0.2,
    "adam_eps": 1e-5,
}


def prompt_ids(model: str) -> list[list[int]]:
    """The tokens of each prompt as this system encodes them; both sides see them."""
    from rlhf.config import ModelConfig
    from rlhf.data.chat import chat_format
    from rlhf.data.schema import Message
    from rlhf.models.source import resolve_model
    from rlhf.models.tokenizer import load_tokenizer

    config = ModelConfig(name=model, chat_style="plain")
    chat = chat_format(load_tokenizer(resolve_model(model), config), "plain")
    return [list(chat.encode_prompt((Message("text", prompt),))) for prompt in PROMPTS]


def run_ours(model: str, seed: int, steps: int, folder: Path) -> list[float]:
    """Mean score of every step's samples."""
    from rlhf.config import PpoConfig, build_config
    from rlhf.stages.ppo import run_ppo
    from rlhf.telemetry.metrics import read_metrics

    count = SETTINGS["samples_per_step"]
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS), encoding="utf-8")
    tree = {
        "run_dir": str(folder / f"ours-{seed}"),
        "seed": seed,
        "model": {"name": model, "chat_style": "plain", "dtype": "float32"},
        "prompts": str(path),
        "scores": [{"kind": "function", "path": "benchmarks.tasks.happy_words:score"}],
        "critic_learning_rate": SETTINGS["critic_learning_rate"],
        "lora": {"r": SETTINGS["lora_r"], "alpha": 2 * SETTINGS["lora_r"]},
        "optim": {
            "learning_rate": SETTINGS["learning_rate"], "eps": SETTINGS["adam_eps"], "schedule": "constant",
            "max_grad_norm": 1e6,
        },
        "engine": {"zero_stage": 0},
        "checkpoint": {"every": 10**6},
        "num_steps": steps,
        "kl": {"coef": SETTINGS["kl_coef"]},
        "loss": {
            "clip_low": SETTINGS["clip"], "clip_high": SETTINGS["clip"], "value_clip": SETTINGS["clip"],
            "value_coef": SETTINGS["value_coef"], "old_logprobs": "rollout",
        },
        "rollout": {"max_response_tokens": SETTINGS["response_tokens"], "max_prompt_tokens": 32},
        "placement": {"num_ranks": 1, "num_rollout_workers": 1, "threads_per_worker": os.cpu_count() or 1},
        "batch": {
            "prompts_per_step": len(PROMPTS), "responses_per_prompt": count // len(PROMPTS),
            "minibatch_sequences": count, "microbatch_sequences_per_gpu": count, "epochs": SETTINGS["epochs"],
        },
        "telemetry": {"tensorboard": False},
    }  # fmt: skip
    run_ppo(build_config(PpoConfig, tree, source="benchmark"))
    return [row["score_mean"] for row in read_metrics(folder / f"ours-{seed}")]


def run_trl(model: str, seed: int, steps: int, folder: Path, prompts: list[list[int]]) -> list[float]:
    """Mean score of every step's samples."""
    order = {"settings": SETTINGS, "model": model, "prompts": prompts, "steps": steps, "seed": seed,
             "threads": os.cpu_count() or 1, "output": str(folder / f"trl-{seed}")}  # fmt: skip
    return run_peer("trl_ppo_score.py", order, folder)["scores"]


def summarize(ours: dict[int, list[float]], trl: dict[int, list[float]]) -> dict[str, Any]:
    """Means of the last steps over the seeds, their difference, and its standard error."""
    ends = {
        side: [statistics.mean(run[-LAST:]) for run in runs.values()] for side, runs in (("ours", ours), ("trl", trl))
    }
    starts = [run[0] for runs in (ours, trl) for run in runs.values()]
    found: dict[str, Any] = {"start": round(statistics.mean(starts), 3)}
    for side, values in ends.items():
        found[side] = {"mean": round(statistics.mean(values), 3), "seeds": [round(v, 3) for v in values]}
    if len(ours) > 1:
        error = (sum(statistics.variance(v) for v in ends.values()) / len(ours)) ** 0.5
        difference = statistics.mean(ends["ours"]) - statistics.mean(ends["trl"])
        found |= {"difference": round(difference, 3), "standard_error": round(error, 3)}
    return found


def main() -> None:
    """Runs both sides in turn for every seed and writes one dated file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(HERE.parents[1] / "shared" / "models" / "stories260k"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--critic-learning-rate", type=float, default=SETTINGS["critic_learning_rate"], help="here")
    parser.add_argument("--quick", action="store_true", help="one seed, 8 steps")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.steps = args.seeds[:1], 8
    SETTINGS["critic_learning_rate"] = args.critic_learning_rate
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    install_peer()
    ours: dict[int, list[float]] = {}
    trl: dict[int, list[float]] = {}
    prompts = prompt_ids(args.model)
    with tempfile.TemporaryDirectory(prefix="score-") as place:
        for seed in args.seeds:
            ours[seed] = run_ours(args.model, seed, args.steps, Path(place))
            trl[seed] = run_trl(args.model, seed, args.steps, Path(place), prompts)
            print(seed, json.dumps({"ours": ours[seed][-1], "trl": trl[seed][-1]}), file=sys.stderr)
    name = "score-vs-trl" + ("-quick" if args.quick else "")
    save(
        name, {**summarize(ours, trl), "steps": args.steps, "settings": SETTINGS, "curves": {"ours": ours, "trl": trl}}
    )


if __name__ == "__main__":
    main()
