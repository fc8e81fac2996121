"""``rlhf plan``: bytes per role and GPU, steps, GPU-hours and cost of a run, by arithmetic alone."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from cluster.memory_model import parts
from cluster.plan_cost import GPUS, Estimate, Speed, estimate
from cluster.plan_fit import Budget, advise, gpus_needed, host_memory, ranks_that_fit
from cluster.plan_notes import notes_on
from cluster.plan_roles import GIB, RolePlan, Setting, plan_roles, reward_models
from cluster.shapes import SHAPES, ModelShape, find_shape, held_by_run
from rlhf.config import PpoConfig, load_config, stage_of
from rlhf.config.base import Section
from rlhf.config.held import held_as, models_of
from rlhf.config.sources import DataSource, files_of, sources_of
from rlhf.errors import ConfigError
from rlhf.telemetry.console import get_console, print_header, print_table

StageT = TypeVar("StageT", bound=Section)
EXIT_FITS, EXIT_TOO_LARGE = 0, 1
PROCESSES = {"trainer": "rank", "rollout": "rollout_worker", "scorer": "scorer_worker", "critic": "critic_rank"}

DESCRIPTION = """\
Predicts what a run needs before anything is started: bytes per role and GPU, whether they fit and what to change,
steps, tokens, GPU-hours and cost. Reads the config and the model's config.json; loads no model and no torch.
"""
EPILOG = """\
examples:
  rlhf plan --config configs/ppo/7b_lora_zero3_8gpu.yaml --shape qwen2.5-7b --gpus 8 --memory 80GiB --price 2.5
  rlhf plan --config configs/reward/7b_lora_zero3_8gpu.yaml --shape llama-3-8b --gpu h100 --rows 100000 num_epochs=2
  rlhf plan --config configs/sft/qlora_7b_1gpu.yaml --gpu l4 --rows 10000 --json

Memory is a peak that the tests hold to measured tensors; times are estimates from data-sheet figures.
exit codes: 0 fits, 1 does not fit, 2 config
"""


@dataclass(frozen=True)
class Report:
    """A plan, ready to be shown."""

    shape: ModelShape
    roles: list[RolePlan]
    budget: Budget
    needed: float
    fits: bool
    changes: dict[str, Any] | None
    ranks: int | None
    cost: Estimate | None
    price: float | None
    notes: tuple[str, ...] = ()


def main(rest: list[str]) -> int:
    """Runs ``rlhf plan``; returns 0 when everything fits, 1 when not."""
    parser = _parser()
    args = parser.parse_args(rest)
    _check_numbers(args)
    config = _as_trained(load_config(stage_of(args.config), args.config, args.overrides))
    report = make_plan(
        config,
        shape=SHAPES[args.shape] if args.shape else find_shape(config.model.name),
        gpus=args.gpus,
        speed=_speed(args),
        memory=parse_memory(args.memory) if args.memory else None,
        price=args.price,
        num_rows=args.rows if args.rows is not None else _count_rows(config),
        reserve=args.reserve,
        separate_reward=SHAPES[args.reward_shape] if args.reward_shape else None,
        critic=_critic_shape(config, args.critic_shape),
    )
    if args.json:
        get_console().print(json.dumps(as_json(report), indent=2), markup=False, soft_wrap=True)
    else:
        show(report)
    return EXIT_FITS if report.fits else EXIT_TOO_LARGE


def make_plan(
    config: Section,
    *,
    shape: ModelShape,
    gpus: int | None,
    speed: Speed,
    memory: float | None = None,
    price: float | None = None,
    num_rows: int | None = None,
    reserve: float = 0.08,
    separate_reward: ModelShape | None = None,
    critic: ModelShape | None = None,
) -> Report:
    """Plans a run.

    Args:
        gpus: GPUs at hand; None: as many as the config asks for; 0, or a config that asks for none: CPUs.
        memory: bytes of a GPU, or of the host that all processes on CPUs share; None: the kind's, or this host's.
        reserve: share of the memory left to fragmentation.
        critic: shape of the critic's base, where it has one of its own; None: the policy's.
    """
    setting = Setting(separate_reward=separate_reward, critic=critic)
    if gpus == 0 or not gpus_needed(plan_roles(config, shape, setting)):
        setting = replace(setting, on_gpu=False)

    def planner(config: Section) -> list[RolePlan]:
        return plan_roles(config, shape, setting)

    roles = planner(config)
    needed = gpus_needed(roles)
    if memory is None:
        memory = speed.memory_gib * GIB if setting.on_gpu else host_memory()
    budget = Budget(int(needed) if gpus is None else gpus, memory * (1 - reserve), one_host=not setting.on_gpu)
    small_enough = budget.overrun(roles) <= 0
    changes = None if small_enough else advise(config, planner, budget)
    done = small_enough or changes is not None or budget.one_host
    ranks = None if done else ranks_that_fit(config, planner, budget)
    separate = reward_models(config, setting)[1] if isinstance(config, PpoConfig) else 0
    elsewhere = (separate_reward or shape,) * separate
    cost = estimate(config, shape, speed, needed, num_rows, elsewhere, critic)
    if cost is not None and not setting.on_gpu:
        cost = replace(cost, seconds={})  # the speed is a GPU's
    fits = small_enough and needed <= budget.gpus
    return Report(shape, roles, budget, needed, fits, changes, ranks, cost, price, notes_on(config, setting, gpus))


def show(report: Report) -> None:
    """Prints a plan."""
    names = [name for name, _ in parts(report.roles[0].memory)]
    columns = [
        [*(_size(value) for _, value in parts(r.memory)), _size(r.memory.total), _size(report.budget.limit(r))]
        for r in report.roles
    ]
    heads = [*(name.replace("_", " ") for name in names), "total", "usable"]
    print_header(f"Plan for {report.shape.name}", f"{report.shape.parameters:,} parameters")
    where = "per GPU" if report.needed else "per process"
    print_table(f"Memory {where}", list(zip(heads, *columns, strict=True)),
                ["", *(f"{r.processes} x {r.role}" for r in report.roles)])  # fmt: skip
    console = get_console()
    for line in verdict(report):
        console.print(line, markup=False, soft_wrap=True)
    for note in report.notes:
        console.print(note, style="dim", markup=False, soft_wrap=True)
    if report.cost is not None:
        print_table("Estimate", _cost_rows(report.cost, report.price))
    else:
        console.print("Steps and hours: give --rows, the number of training rows (it is not known here).", markup=False)


def _fewer_gpus(roles: list[RolePlan]) -> str:
    """Which counts to lower, and how different roles share GPUs where none does so yet."""
    keys = [PROCESSES[role.role] for role in roles]
    lower = " or ".join(f"placement.num_{key}s" for key in keys)
    if len(keys) < 2 or any(0 < role.gpus_each < 1 for role in roles):
        return lower
    shares = {2: (0.5, 0.5), 3: (0.4, 0.3, 0.3)}.get(len(keys), (0.4, 0.2, 0.2, 0.2))
    parts = " ".join(f"placement.gpus_per_{key}={part:g}" for key, part in zip(keys, shares, strict=True))
    return f"{lower}, or let them share GPUs with placement.layout=colocated {parts}"


def verdict(report: Report) -> list[str]:
    """Sentences: fits or not, and what to change."""
    lines = []
    if report.needed > report.budget.gpus:
        lines.append(
            f"Does not fit: the config asks for {report.needed:g} GPUs, {report.budget.gpus} are there. Lower "
            f"{_fewer_gpus(report.roles)}."
        )
    over = report.budget.overrun(report.roles)
    if over <= 0 and report.budget.one_host:
        share = report.budget.taken(report.roles) / report.budget.usable_bytes
        return [*lines, f"Fits: all processes together take {share:.0%} of the host's usable memory."]
    if over <= 0:
        worst = max(report.roles, key=lambda r: r.memory.total / report.budget.limit(r))
        share = worst.memory.total / report.budget.limit(worst)
        return lines or [f"Fits: the fullest process, {worst.role}, takes {share:.0%} of the usable memory."]
    lines.append(f"Does not fit: {_size(over)} too much.")
    if report.changes:
        lines.append("It would fit with: " + " ".join(f"{k}={_plain(v)}" for k, v in report.changes.items()))
    elif report.ranks:
        apart = any(role.role == "critic" for role in report.roles)
        critics = f" placement.num_critic_ranks={report.ranks}" if apart else ""
        lines.append(
            "It would fit with engine.zero_stage=3 model.gradient_checkpointing=true "
            f"placement.num_ranks={report.ranks}{critics} and micro-batches of 1 (the batch must divide evenly)."
        )
    else:
        larger = "a host with more memory" if report.budget.one_host else "larger GPUs"
        lines.append(f"No setting makes it fit: take {larger}, shorter sequences or a smaller model.")
    return lines


def as_json(report: Report) -> dict[str, Any]:
    """The plan for programs; bytes, seconds and the currency of the price."""
    cost = report.cost
    return {
        "model": {"name": report.shape.name, "parameters": report.shape.parameters},
        "roles": [
            {"role": r.role, "processes": r.processes, "gpus_each": r.gpus_each, **dict(parts(r.memory)),
             "total": r.memory.total, "usable": report.budget.limit(r)}
            for r in report.roles
        ],
        "gpus_needed": report.needed,
        "gpus": report.budget.gpus,
        "fits": report.fits,
        "changes": report.changes,
        "notes": list(report.notes),
        "estimate": None if cost is None else {
            "steps": cost.steps, "upper_bound": cost.upper_bound,
            "updates": cost.updates, "tokens": cost.tokens, "seconds": cost.seconds,
            "hours": cost.hours if cost.seconds else None, "gpu_hours": cost.gpu_hours if cost.seconds else None,
            "cost": None if report.price is None or not cost.seconds else cost.gpu_hours * report.price,
        },
    }  # fmt: skip


def _cost_rows(cost: Estimate, price: float | None) -> dict[str, object]:
    rows: dict[str, object] = {
        "steps": ("at most " if cost.upper_bound else "")
        + f"{cost.steps:,}"
        + (f" ({cost.updates:,} optimizer steps)" if cost.updates else ""),
        "tokens through the model": f"{cost.tokens:,.0f}",
    }
    if not cost.seconds:  # on CPUs: how fast they are is not known
        return rows
    rows |= {
        "hours": f"{cost.hours:.2f} ({', '.join(f'{k} {v / 3600:.2f}' for k, v in cost.seconds.items())})",
        "GPU-hours": f"{cost.gpu_hours:.1f} on {cost.gpus:g} GPUs",
    }
    if price is not None:
        rows["cost"] = f"{cost.gpu_hours * price:,.2f} at {price:g} per GPU-hour"
    return rows


def _size(value: float) -> str:
    if value < 0.5:
        return "–"
    return f"{value / GIB:.2f} GiB" if value >= GIB / 100 else f"{value / 2**20:.2f} MiB"


def _critic_shape(config: Section, named: str | None) -> ModelShape | None:
    if not isinstance(config, PpoConfig) or config.roles.critic is None:
        if named is not None:
            raise ConfigError("--critic-shape needs roles.critic: without it the critic stands on the policy's base")
        return None
    return SHAPES[named] if named else find_shape(config.roles.critic, "--critic-shape")


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _speed(args: argparse.Namespace) -> Speed:
    speed = GPUS[args.gpu]
    return replace(speed, utilization=args.utilization or speed.utilization)


def _check_numbers(args: argparse.Namespace) -> None:
    """Refuses numbers that no run could have."""
    rules: dict[str, tuple[Any, Callable[[Any], bool], str]] = {
        "gpus": (args.gpus, lambda x: x >= 0, "0 or more (0: CPUs)"),
        "reserve": (args.reserve, lambda x: 0 <= x < 1, "a share from 0 to below 1, such as 0.08"),
        "utilization": (args.utilization, lambda x: 0 < x <= 1, "a share above 0 and up to 1, such as 0.35"),
        "rows": (args.rows, lambda x: x >= 1, "at least 1"),
        "price": (args.price, lambda x: 0 <= x < float("inf"), "0 or more"),
    }
    for name, (value, fits, wanted) in rules.items():
        if value is not None and not fits(value):
            raise ConfigError(f"--{name} {value:g} must be {wanted}")


def parse_memory(text: str) -> float:
    """``80GiB``, ``24 GB`` or ``80`` (GiB) in bytes.

    Raises:
        ConfigError: not a size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GiB|GB|MiB|MB|)\s*", text, re.IGNORECASE)
    if not found or not float(found[1]):
        raise ConfigError(f"--memory {text!r} is no size: write for example 80GiB")
    units = {"gib": 2**30, "gb": 1e9, "mib": 2**20, "mb": 1e6, "": 2**30}
    return float(found[1]) * units[found[2].lower()]


def _count_rows(config: Any) -> int | None:
    """Rows that the stage will use of local JSON lines files; None for anything else.

    A held-out share is taken as it is named: which prompts it holds is known once the rows are read.
    """
    data = getattr(config, "data", None)
    named = data.train if data is not None else config.prompts
    sources = sources_of(named) or (DataSource(files=files_of(named)),)
    counts = [(_count_lines(source.files), source) for source in sources]
    if any(count is None for count, _ in counts):
        return None
    count = round(sum(min(count or 0, source.limit or count or 0) * source.weight for count, source in counts))
    limit = data.limit if data is not None else getattr(config, "limit", None)
    count = count if limit is None else min(count, limit)
    if data is None or data.evaluation is not None:
        return count
    return max(1, round(count * (1 - data.eval_fraction)))


def _count_lines(named: str | tuple[str, ...]) -> int | None:
    files = [Path(name) for name in ([named] if isinstance(named, str) else named)]
    if not all(f.suffix == ".jsonl" and f.is_file() for f in files):
        return None
    count = 0
    for file in files:
        with file.open("rb") as handle:
            count += sum(1 for line in handle if line.strip())
    return count


def _as_trained(config: StageT) -> StageT:
    """The config with the quantization of every run that it reads, as the stage itself takes it over.

    Raises:
        ConfigError: the config says otherwise.
    """
    taken = {}
    for key, model in models_of(config).items():
        trained_on = held_by_run(model.name)
        if trained_on is not None:
            taken[key] = held_as(model, trained_on, model.name, key=key)
    return config.model_copy(update=taken)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rlhf plan", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a stage's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, values as YAML")
    parser.add_argument("--shape", choices=sorted(SHAPES), metavar="NAME",
                        help=f"size of the model instead of reading model.name: {', '.join(SHAPES)}")  # fmt: skip
    parser.add_argument("--reward-shape", choices=sorted(SHAPES), metavar="NAME",
                        help="reward models stand on another base of this size, in scorer workers")  # fmt: skip
    parser.add_argument("--critic-shape", choices=sorted(SHAPES), metavar="NAME",
                        help="size of the critic's base instead of reading roles.critic")  # fmt: skip
    parser.add_argument(
        "--gpus", type=int, metavar="N", help="GPUs at hand (default: what the config asks for; 0: processes on CPUs)"
    )
    parser.add_argument("--gpu", choices=sorted(GPUS), default="a100", help="kind, for memory and speed (default a100)")
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="memory of one GPU, e.g. 80GiB (default: the kind's); on CPUs of the host (default: this one's)",
    )
    parser.add_argument("--reserve", type=float, default=0.08, metavar="SHARE",
                        help="share of the memory left to fragmentation (default 0.08)")  # fmt: skip
    parser.add_argument("--utilization", type=float, metavar="SHARE", help="share of peak speed reached (default 0.35)")
    parser.add_argument("--rows", type=int, metavar="N", help="training rows, when the data is not here to be counted")
    parser.add_argument("--price", type=float, metavar="X", help="price of a GPU-hour")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    return parser
