"""PPO on a real pretrained model with a planted reward, beside the most that any policy can gain at that KL.

The reward counts words of a short happy list in 48-token stories. The bound tilts samples of the initial policy
exponentially, per prompt: of all policies at one KL from the initial one, the tilted one has the highest mean score.

Usage: python benchmarks/stories.py [--model DIR] [--seeds 0 1 2] [--overlap 1] [--quick]

With ``--overlap`` every seed runs twice: in turn, and with rollouts that many steps ahead (importance cap 2); the
results stand side by side in a file of their own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.common import HERE, save
from benchmarks.tasks.happy_words import PROMPTS, score

ROOT = HERE.parent
CONFIG = "configs/ppo/stories_cpu.yaml"
FIT_RANGE = (2.0, 7.0)
"""KL range of the smooth fit from which the gain at KL = 4 is read."""


def sample_initial(model: str, count: int) -> dict[str, np.ndarray]:
    """Scores of the initial policy's stories, per prompt."""
    import torch

    from rlhf.config import ModelConfig, SamplingConfig
    from rlhf.rollout.protocol import PromptTask
    from rlhf.workers.context import WorkerContext
    from rlhf.workers.rollout import RolloutWorker

    torch.set_num_threads(2)
    config = ModelConfig(name=model, chat_style="plain")
    worker = RolloutWorker(
        WorkerContext("bound", 0, 1, tempfile.gettempdir()),
        config,
        None,
        microbatch=512,
        threads=2,
        follows_trainer=False,
    )
    sampling = SamplingConfig(temperature=1.0, max_response_tokens=48)
    from rlhf.data.schema import Message

    found: dict[str, list[float]] = {prompt: [] for prompt in PROMPTS}
    seed = 0
    while sum(map(len, found.values())) < count:
        tasks, names = [], []
        for prompt in PROMPTS:
            ids = tuple(worker.chat.encode_prompt((Message("text", prompt),)))
            for _ in range(64):
                seed += 1
                tasks.append(PromptTask(str(seed), ids, 10_000_000 + seed))
                names.append(prompt)
        rollouts = worker.generate(tasks, sampling, 0)
        texts = [worker.chat.decode_response(list(r.response_ids)) for r in rollouts]
        for name, value in zip(names, score(names, texts), strict=True):
            found[name].append(value)
    return {prompt: np.array(values) for prompt, values in found.items()}


def tilting_bound(samples: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """(kl, gain in initial deviations) of the tilted policies over a range of tilts."""
    everything = np.concatenate(list(samples.values()))
    mean, std = everything.mean(), everything.std()
    kls, gains = [], []
    for tilt in np.arange(0.0, 3.21, 0.1):
        kl, gain = [], []
        for values in samples.values():
            weight = np.exp(tilt * (values - values.max()))
            weight /= weight.sum()
            gain.append((weight * values).sum())
            kl.append((weight * np.log(np.maximum(weight * len(values), 1e-30))).sum())
        kls.append(float(np.mean(kl)))
        gains.append(float((np.mean(gain) - mean) / std))
    return {"kl": kls, "gain": gains, "mean": float(mean), "std": float(std), "num_samples": len(everything)}


def run_seed(model: str, seed: int, run_dir: Path, num_steps: int, overlap: int) -> dict:
    """One PPO run through the command line; its curve and samples."""
    command = [
        str(Path(sys.executable).with_name("rlhf")), "ppo", "--config", CONFIG, f"run_dir={run_dir}", f"seed={seed}",
        f"model.name={model}", f"num_steps={num_steps}", "sample_every_steps=13",
    ]  # fmt: skip
    if overlap:
        command += [f"rollout.overlap={overlap}", "loss.importance_cap=2.0", f"checkpoint.every={num_steps}"]
    started = time.perf_counter()
    subprocess.run(command, check=True, cwd=ROOT)
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().split("\n") if line]
    stories = [json.loads(line) for line in (run_dir / "rollouts.jsonl").read_text().split("\n") if line]
    return {
        "seconds": time.perf_counter() - started,
        "kl": [row["kl"] for row in rows],
        "score": [row["score_mean"] for row in rows],
        "entropy": [row["entropy"] for row in rows],
        "staleness": [row["staleness"] for row in rows],
        "explained_variance": [row["explained_variance"] for row in rows],
        "samples": [{k: s[k] for k in ("step", "prompt", "response", "score", "kl")} for s in stories],
    }


def analyse(run: dict, bound: dict) -> dict:
    """Gains in initial deviations: at KL = 4 from a smooth fit, and the best one at KL <= 12."""
    kl = np.array(run["kl"])
    gain = (np.array(run["score"]) - bound["mean"]) / bound["std"]
    inside = (kl >= FIT_RANGE[0]) & (kl <= FIT_RANGE[1])
    degree = 2 if inside.sum() >= 5 else 1
    at_4 = float(np.polyval(np.polyfit(kl[inside], gain[inside], degree), 4.0)) if inside.sum() >= 2 else float("nan")
    limit_4 = float(np.interp(4.0, bound["kl"], bound["gain"]))
    allowed = kl <= 12
    return {
        "gain_at_kl_4": at_4,
        "bound_at_kl_4": limit_4,
        "share_of_bound_at_kl_4": at_4 / limit_4,
        "points_in_fit": int(inside.sum()),
        "best_gain_at_kl_12": float(gain[allowed].max()),
        "final_gain": float(gain[-1]),
        "final_kl": float(kl[-1]),
        "max_kl": float(kl.max()),
    }


def draw(runs: dict[int, dict], bound: dict, path: Path) -> None:
    """The reward-KL curve beside the bound."""
    from rlhf.telemetry.plots import reward_kl_curve

    points = {
        f"seed {seed}": [(k, (s - bound["mean"]) / bound["std"]) for k, s in zip(r["kl"], r["score"], strict=True)]
        for seed, r in runs.items()
    }
    trusted = [(k, g) for k, g in zip(bound["kl"], bound["gain"], strict=True) if k <= 4.5]
    path.write_text(reward_kl_curve(points, trusted), encoding="utf-8")


def compare(overlap: int, found: dict[int, dict], other: dict[int, dict], runs: dict, ahead: dict) -> None:
    """Differences of the seeds' gains beside the spread of the seeds."""
    result: dict = {"overlap": overlap, "in_turn": found, "ahead": other}
    for key in ("gain_at_kl_4", "best_gain_at_kl_12", "final_gain"):
        ours, theirs = (np.array([each[key] for each in side.values()]) for side in (found, other))
        noise = np.sqrt((ours.var(ddof=1) + theirs.var(ddof=1)) / len(ours)) if len(ours) > 1 else float("nan")
        result[key] = {"in_turn": float(ours.mean()), "ahead": float(theirs.mean()),
                       "difference": float((theirs - ours).mean()), "standard_error": float(noise)}  # fmt: skip
    sides = {"in_turn": runs, "ahead": ahead}
    result["seconds"] = {name: [run["seconds"] for run in side.values()] for name, side in sides.items()}
    result["curves"] = {
        name: {seed: {k: run[k] for k in ("kl", "score", "staleness")} for seed, run in side.items()}
        for name, side in sides.items()
    }
    save("stories-overlap", result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="../shared/models/stories260k")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--samples", type=int, default=20_480)
    parser.add_argument("--overlap", type=int, default=0, help="also with rollouts so many steps ahead")
    parser.add_argument("--quick", action="store_true", help="one seed, 10 steps, 2 048 samples")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.steps, args.samples = args.seeds[:1], 10, 2048
    bound = tilting_bound(sample_initial(args.model, args.samples))
    with tempfile.TemporaryDirectory() as folder:
        runs, ahead = {}, {}
        for seed in args.seeds:
            runs[seed] = run_seed(args.model, seed, Path(folder) / str(seed), args.steps, 0)
            if args.overlap:
                ahead[seed] = run_seed(args.model, seed, Path(folder) / f"{seed}-ahead", args.steps, args.overlap)
    found = {seed: analyse(run, bound) for seed, run in runs.items()}
    if args.overlap:
        compare(args.overlap, found, {seed: analyse(run, bound) for seed, run in ahead.items()}, runs, ahead)
        return
    path = save("stories", {"figures": found, "bound": bound, "runs": runs, "config": (ROOT / CONFIG).read_text()})
    draw(runs, bound, path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
