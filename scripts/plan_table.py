"""Writes docs/plan.md and docs/plan.svg: what fits where, from 0.5B to 72B parameters on 1 to 64 GPUs.

Run it again after a change of the memory model; ``--check`` says whether the files are those of today's model.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cluster.memory_model import LIVE_ELEMENTS
from cluster.plan import Report, make_plan
from cluster.plan_cost import GPUS
from cluster.plan_roles import GIB, Setting
from cluster.shapes import SHAPES
from rlhf.config import STAGES, EngineConfig, build_config
from rlhf.config.base import Section

ROOT = Path(__file__).parents[1]
MODELS = ("qwen2.5-0.5b", "llama-3.2-1b", "qwen2.5-3b", "llama-7b", "llama-3-8b", "llama-13b", "qwen2.5-32b",
          "llama-3-70b", "qwen2.5-72b")  # fmt: skip
GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64)
SPEED = GPUS["a100"]
PROMPT, RESPONSE = 512, 512

HEAD = """\
# What fits where

`rlhf plan` predicts a run before anything is started: bytes per role and GPU, fits or not and what to change, steps,
GPU-hours, cost.

```
rlhf plan --config configs/ppo/7b_lora_zero3_8gpu.yaml --shape qwen2.5-7b --gpus 8 --memory 80GiB --price 2.5
```

The model's sizes come from its `config.json`, or from a known name with `--shape`. The command loads no torch. When a
run does not fit it names the fewest settings that make it fit.

## How far to trust it

Weights, adapters, gradients and optimizer state are compared in `tests/ray/test_plan_bytes.py` with the tensors of two
real DeepSpeed ranks under ZeRO 0 to 3, and activations in `tests/unit/cluster/test_memory_model.py` with the tensors
that autograd saves, all within 5%. The peak of a whole training step, every live tensor followed through every
operation on a CPU, is met within 15%. A GPU's own counters have not been read yet, and the hours are estimates from
data-sheet figures (a share of peak speed for training, bandwidth or kernel launches for decoding). 8% of a GPU is left
to fragmentation and 1 GiB to the driver. A config that asks for no GPU is counted on CPUs: in fp32, all processes
together on one host's memory (`--memory`, or this machine's), steps without hours.
"""


def ppo(gpus: int, **changes: Any) -> Section:
    """PPO with LoRA: half of the GPUs train, half roll out; a single GPU is shared, and its base too."""
    ranks = max(1, gpus // 2)
    share, layout = (0.5, "colocated") if gpus == 1 else (1, "split")
    tree: dict[str, Any] = {
        "stage": "ppo",
        "run_dir": "runs/plan",
        "model": {"name": "plan", "gradient_checkpointing": True, **changes.pop("model", {})},
        "prompts": "prompts.jsonl",
        "scores": [{"kind": "reward_model", "run": "runs/reward"}],
        "engine": {"zero_stage": 3 if ranks > 1 else 2},
        "placement": {"num_ranks": ranks, "num_rollout_workers": ranks, "gpus_per_rank": share,
                      "gpus_per_rollout_worker": share, "layout": layout},
        "rollout": {"max_prompt_tokens": PROMPT, "max_response_tokens": RESPONSE, "microbatch_sequences": 16},
        "batch": {"prompts_per_step": 256, "minibatch_sequences": 64, "microbatch_sequences_per_gpu": 1, "epochs": 2},
    }  # fmt: skip
    return build_config(STAGES["ppo"], tree, source="table")


def sft(gpus: int, **changes: Any) -> Section:
    """Supervised fine-tuning on all GPUs."""
    tree: dict[str, Any] = {
        "stage": "sft",
        "run_dir": "runs/plan",
        "model": {"name": "plan", "gradient_checkpointing": True, **changes.pop("model", {})},
        "data": {"train": "rows.jsonl", "max_sequence_tokens": PROMPT + RESPONSE},
        "engine": {"zero_stage": 3 if gpus > 1 else 2},
        "placement": {"num_ranks": gpus},
        "batch": {"minibatch_sequences": 64, "microbatch_sequences_per_gpu": 1},
        **changes,
    }
    return build_config(STAGES["sft"], tree, source="table")


NF4 = {"model": {"quantization": "nf4"}}
METHODS = {
    "PPO, LoRA": lambda gpus: ppo(gpus),
    "PPO, LoRA on a 4-bit base": lambda gpus: ppo(gpus, **NF4),
    "SFT, LoRA": lambda gpus: sft(gpus),
    "SFT, whole model": lambda gpus: sft(gpus, lora=None),
}


def report(method: str, model: str, gpus: int) -> Report:
    """The plan of one cell."""
    return make_plan(METHODS[method](gpus), shape=SHAPES[model], gpus=gpus, speed=SPEED, num_rows=50_000)


def fullest_gpu(found: Report) -> float:
    """Bytes on the fullest GPU: those of the largest process, or of all that share a single GPU."""
    sizes = [role.memory.total for role in found.roles]
    return sum(sizes) if found.needed <= 1 else max(sizes)


def cell(found: Report) -> str:
    """The fullest GPU in GiB; in bold when that fits, whatever fractions of a GPU its processes are given."""
    size = fullest_gpu(found)
    return f"**{size / GIB:.0f}**" if size <= found.budget.usable_bytes else f"{size / GIB:.0f}"


def table(method: str) -> list[str]:
    """One table: models down, GPUs across."""
    lines = [f"| model | {' | '.join(str(n) for n in GPU_COUNTS)} |", "|---|" + "--:|" * len(GPU_COUNTS)]
    lines += [f"| {model} | {' | '.join(cell(report(method, model, n)) for n in GPU_COUNTS)} |" for model in MODELS]
    return lines


def cost_table() -> list[str]:
    """PPO on eight GPUs: the parts of a trainer, and GPU-hours."""
    heads = ["model", "weights", "adapters", "gradients + optimizer", "activations", "workspace", "rollout",
             "GPU-hours for 200 steps"]  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---|" + "--:|" * (len(heads) - 1)]
    for model in MODELS:
        found = report("PPO, LoRA", model, 8)
        trainer, rollout = (role.memory for role in found.roles)
        state = trainer.gradients + trainer.optimizer
        sizes = (trainer.weights, trainer.adapters, state, trainer.activations, trainer.workspace, rollout.total)
        hours = found.cost.gpu_hours * 2 if found.cost else 0  # the config plans 100 steps
        lines.append(f"| {model} | {' | '.join(f'{s / GIB:.1f}' for s in sizes)} | {hours:,.0f} |")
    return lines


def page() -> str:
    """docs/plan.md."""
    lines = [HEAD, "## Gibibytes on the fullest GPU\n"]
    lines.append(
        f"GPUs of {SPEED.memory_gib:g} GiB; **bold fits**. Prompts and responses of {PROMPT} tokens, r = 16 on all "
        "matrices, bf16, gradient checkpointing, one sequence per GPU and pass, ZeRO-3 from two ranks on. In PPO half "
        "of the GPUs train and half roll out (16 sequences at a time). On a single GPU both share it and one base "
        "(`placement.layout=colocated`, fractions by what each needs): the column is their sum. Elsewhere a rollout "
        "worker holds the whole base: in bf16, from 3B parameters and four GPUs on it, not the trainer, is the fuller "
        "one.\n"
    )
    lines.append("![What fits on 80 GiB GPUs](plan.svg)\n")
    for method in METHODS:
        lines += [f"### {method}\n", "Number of GPUs across.\n", *table(method), ""]
    lines += ["## PPO with LoRA on eight GPUs, GiB per GPU\n", *cost_table(), ""]
    bucket = EngineConfig().reduce_bucket_elements
    lines.append(
        f"The workspace is mostly parameters that ZeRO-3 has gathered for use, up to {LIVE_ELEMENTS / 1e9:g} billion "
        f"elements ({2 * LIVE_ELEMENTS / GIB:.1f} GiB), and the GPU's driver ({Setting().runtime_bytes / GIB:g} GiB). "
        f"The reduction bucket of {bucket / 1e6:g} million elements, held for the whole run, is "
        f"{2 * bucket / GIB:.2f} GiB; fp32 gradients for the step are 0.4 at most.\n"
    )
    lines.append("This page is written by `python scripts/plan_table.py`.\n")
    return "\n".join(lines)


def picture() -> str:
    """docs/plan.svg: the fullest GPU against the number of GPUs, for every method."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    colors = matplotlib.colormaps["viridis"].resampled(len(MODELS) + 1)
    for index, method in enumerate(METHODS):
        axes = figure.add_subplot(2, 2, index + 1)
        for at, model in enumerate(MODELS):
            sizes = [fullest_gpu(report(method, model, n)) / GIB for n in GPU_COUNTS]
            axes.plot(GPU_COUNTS, sizes, marker="o", markersize=3, color=colors(at), label=model)
        axes.axhline(SPEED.memory_gib * 0.92, color="#c0392b", linestyle="--", linewidth=1.2, label="usable")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_ylim(1.5, 2000)
        axes.xaxis.set_major_locator(FixedLocator(list(GPU_COUNTS)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_title(method, loc="left", fontsize=10, fontweight="bold")
        axes.set_xlabel("GPUs", fontsize=9)
        axes.set_ylabel("GiB on the fullest GPU", fontsize=9)
        axes.grid(True, color="#dddddd", linewidth=0.6)
        if index == 0:
            handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    path = ROOT / "docs" / "plan.svg"
    with matplotlib.rc_context({"svg.hashsalt": "plan", "svg.fonttype": "none"}):
        figure.savefig(path, format="svg", metadata={"Date": None})
    return str(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare docs/plan.md with what would be written")
    args = parser.parse_args()
    path = ROOT / "docs" / "plan.md"
    text = page()
    if args.check:
        same = path.is_file() and path.read_text(encoding="utf-8") == text
        print("docs/plan.md is up to date" if same else "docs/plan.md is not what scripts/plan_table.py writes")
        return 0 if same else 1
    path.write_text(text, encoding="utf-8")
    print(path, picture())
    return 0


if __name__ == "__main__":
    sys.exit(main())
