"""The whole loop on a small helpline: SFT, sampling, rankings, reward model, PPO, evaluation, report."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from preference_ui.db import STORE_VARIABLE, Store, open_store
from rlhf.config import EvaluateConfig, PlacementConfig, derive_seed, load_config
from rlhf.config.finished import SUMMARY_FILE, is_finished
from rlhf.data.helpline.rows import demonstrations, prompts
from rlhf.data.loading import load_prompts
from rlhf.data.schema import prompt_hash
from rlhf.data.splits import split_by_prompt
from rlhf.errors import CheckpointError
from rlhf.models.source import BUILTIN_PREFIX
from rlhf.stages import quickstart_people as people
from rlhf.stages.drawing import open_policy
from rlhf.stages.evaluate import draw_answers, judged_in_both_orders, make_judge, write_samples
from rlhf.stages.ppo import run_ppo
from rlhf.stages.preferences import read_preferences
from rlhf.stages.reward import run_reward
from rlhf.stages.run_dir import claim, release_run_dir, set_aside, write_json
from rlhf.stages.sample import CANDIDATES_FILE, run_sample
from rlhf.stages.sft import run_sft
from rlhf.stages.shipped import shipped_configs
from rlhf.stages.win_rate import win_rate
from rlhf.telemetry.console import get_console, print_header, print_next_commands, print_table
from rlhf.telemetry.environment import git_sha, versions
from rlhf.telemetry.memory import PeakMemory
from rlhf.telemetry.metrics import METRICS_FILE
from rlhf.telemetry.progress import stage_progress
from rlhf.telemetry.report import write_run_report
from rlhf.workers.group import WorkerGroup
from rlhf.workers.runtime import ray_runtime

OVERLAP = 2
MIN_HUMAN_VOTES = 20
STATE_FILE = "quickstart.json"


@dataclass(frozen=True)
class Sizes:
    """How much the quickstart does; ``overrides`` per stage on top of its shipped config."""

    demonstrations: int = 700
    prompts: int = 960
    heldout: int = 200
    overrides: dict[str, tuple[str, ...]] = field(default_factory=dict)


REHEARSAL = Sizes(
    demonstrations=64,
    prompts=32,
    heldout=16,
    overrides={
        "sft": ("max_steps=2",),
        "reward": ("max_steps=2", "batch.minibatch_pairs=16", "batch.microbatch_pairs_per_gpu=8"),
        "ppo": ("num_steps=2", "batch.prompts_per_step=32"),
    },
)
"""Everything runs, nothing is learned: does the system work here?"""


@dataclass
class Quickstart:
    """What the stages hand to each other; ``state`` survives an interruption."""

    root: Path
    seed: int
    store: Store
    sizes: Sizes
    state: dict[str, Any] = field(default_factory=dict)

    def config(self, stage: str) -> Any:
        """A shipped config with every path moved under this run."""
        name = "evaluation" if stage == "evaluate" else stage
        config = load_config(
            stage,
            shipped_configs("quickstart") / f"{stage}.yaml",
            [f"seed={self.seed}", *self.sizes.overrides.get(stage, ())],
        )
        text = config.model_dump_json().replace("runs/quickstart", str(self.root))
        text = text.replace('"store:helpline"', json.dumps(f"store:{self.state.get('project', 'helpline')}"))
        return type(config).model_validate_json(text).model_copy(update={"run_dir": str(self.root / name)})

    def save(self) -> None:
        """Keeps the state for a continued run."""
        write_json(self.root / STATE_FILE, {"seed": self.seed, **self.state})


def run_quickstart(
    root: Path, *, seed: int, fresh: bool, annotate: bool, rehearsal: bool = False
) -> dict[str, Any] | None:
    """Runs or continues the loop; returns the summary, or None when it stopped for people to vote.

    Args:
        fresh: set an earlier quickstart in ``root`` aside first.
        annotate: stop before the rankings, so that people vote in the page; the next call goes on.
        rehearsal: run every stage for a moment only, to see that the system works here.

    Raises:
        CheckpointError: a finished quickstart is there and ``fresh`` is not set.
        RunLockedError: a live process works in ``root``.
    """
    try:
        return _run(_open(root, seed, fresh, rehearsal), annotate)
    finally:
        release_run_dir(root)


def _run(quick: Quickstart, annotate: bool) -> dict[str, Any] | None:
    root, started = quick.root, time.perf_counter()
    print_header("Quickstart: from demonstrations to a better policy", f"{root}, seed {quick.seed}")
    placement = PlacementConfig(num_ranks=2, num_rollout_workers=2, gpus_per_rank=0, gpus_per_rollout_worker=0)
    if _sampled(quick) and (annotate or quick.state.get("people") == "real") and not _rankings(quick, annotate):
        return None  # told at once, without starting Ray
    with _store_variable(quick.store), PeakMemory() as memory, ray_runtime(placement, num_workers=4):
        _write_data(quick)
        _stage(quick, "sft", "SFT", run_sft)
        _stage(quick, "sample", "Sampling", run_sample)
        if not _rankings(quick, annotate):
            _keep_seconds(quick, started)
            return None
        _stage(quick, "reward", "Reward model", run_reward)
        _stage(quick, "ppo", "PPO", run_ppo)
        evaluation = _evaluate(quick)
        reward_model = _reward_against_ceiling(quick)
    quick.state["seconds"]["total"] = round(time.perf_counter() - started + quick.state.get("seconds_before", 0.0), 2)
    summary = _summary(quick, evaluation, reward_model, memory)
    write_json(root / SUMMARY_FILE, summary)
    _show(quick, summary)
    return summary


def _open(root: Path, seed: int, fresh: bool, rehearsal: bool) -> Quickstart:
    shipped_configs("quickstart")  # refuses before anything is set aside
    if fresh and root.exists():
        if not (root / STATE_FILE).is_file():
            raise CheckpointError(f"{root} is not a quickstart run: it was left as it is; choose another --run-dir")
        with _told(root):
            get_console().print(f"the earlier quickstart is now {set_aside(root)}", style="dim", markup=False)
    if (root / SUMMARY_FILE).is_file():
        raise CheckpointError(f"{root} holds a finished quickstart: add --fresh to set it aside, or choose --run-dir")
    state: dict[str, Any] = {"seconds": {}, "stages": {}, "rehearsal": rehearsal}
    if (root / STATE_FILE).is_file():
        state = json.loads((root / STATE_FILE).read_text(encoding="utf-8"))
        seed = state.pop("seed")
        get_console().print(f"continuing the quickstart in {root} (seed {seed})", markup=False)
    with _told(root):
        root.mkdir(parents=True, exist_ok=True)
        claim(root)
        write_json(root / STATE_FILE, {"seed": seed, **state})
    generator = random.Random(derive_seed(seed, "queue"))
    # A continued run keeps the size it was begun with.
    sizes = REHEARSAL if state.get("rehearsal", rehearsal) else Sizes()
    return Quickstart(root, seed, open_store(root.parent / "preferences.sqlite", rng=generator), sizes, state)


@contextmanager
def _told(root: Path) -> Iterator[None]:
    """What cannot be written is an error that says where."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"--run-dir {root} cannot be written: {error}; choose another --run-dir") from None


@contextmanager
def _store_variable(store: Store) -> Iterator[None]:
    """Stages find the quickstart's store where they look for every store."""
    before = os.environ.get(STORE_VARIABLE)
    os.environ[STORE_VARIABLE] = str(store.path)
    try:
        yield
    finally:
        os.environ.pop(STORE_VARIABLE) if before is None else os.environ.update({STORE_VARIABLE: before})


def _write_data(quick: Quickstart) -> None:
    data = quick.root / "data"
    if (data / "prompts_heldout.jsonl").is_file():
        return
    data.mkdir(exist_ok=True)
    _write_lines(data / "demonstrations.jsonl", demonstrations(quick.seed, quick.sizes.demonstrations))
    for split, count, name in (("train", quick.sizes.prompts, "train"), ("heldout", quick.sizes.heldout, "heldout")):
        rows = [
            {"id": f"{name}-{i}", "messages": [{"role": "user", "content": text}]}
            for i, text in enumerate(prompts(quick.seed, count, split))  # type: ignore[arg-type]
        ]
        _write_lines(data / f"prompts_{name}.jsonl", rows)


def _stage(quick: Quickstart, stage: str, title: str, run: Callable[..., dict[str, Any]]) -> None:
    config = quick.config(stage)
    directory = Path(config.run_dir)
    if is_finished(directory):
        if stage not in quick.state["stages"]:  # the process ended before it was noted
            _note(quick, stage, json.loads((directory / SUMMARY_FILE).read_text(encoding="utf-8")))
        return
    if directory.exists():
        shutil.rmtree(directory)  # an interrupted stage of this very quickstart starts over
    with _timed(quick, stage), stage_progress(title) as progress:
        summary = run(config, progress=lambda step, total, **f: progress.update(step, total, **_headline(stage, f)))
    _note(quick, stage, summary)


def _note(quick: Quickstart, stage: str, summary: dict[str, Any]) -> None:
    quick.state["stages"][stage] = {k: v for k, v in summary.items() if not isinstance(v, list)}
    quick.save()


def _sampled(quick: Quickstart) -> bool:
    return (quick.root / "sample" / SUMMARY_FILE).is_file()


def _keep_seconds(quick: Quickstart, started: float) -> None:
    """The time so far counts in the total, the days that people take to vote do not."""
    quick.state["seconds_before"] = round(quick.state.get("seconds_before", 0.0) + time.perf_counter() - started, 2)
    quick.save()


def _rankings(quick: Quickstart, annotate: bool) -> bool:
    """Fills the queue once and has it voted on; False when people are asked to vote first."""
    if "project" not in quick.state:
        name, items = people.fill_queue(quick.store, quick.root / "sample" / CANDIDATES_FILE, overlap=OVERLAP)
        quick.state.update(project=name, items=items, people="real" if annotate else "simulated")
        quick.save()
    project = quick.state["project"]
    if quick.state["people"] == "real":
        votes = people.num_votes(quick.store, project)
        if votes < MIN_HUMAN_VOTES:
            get_console().print(f"\n{quick.state['items']} items wait for people in project {project!r}.", markup=False)
            annotate_command = f"rlhf annotate --project {project} --store {quick.store.path} --admin NAME"
            print_next_commands([(annotate_command, f"rank answers in the page (at least {MIN_HUMAN_VOTES})"),
                                 (f"rlhf quickstart --run-dir {quick.root}", "then go on from here")])  # fmt: skip
            return False
        return True
    if "votes" not in quick.state:
        with _timed(quick, "rankings"), stage_progress("Rankings", quick.state["items"] * OVERLAP) as progress:
            quick.state["votes"] = people.simulate(quick.store, project, seed=quick.seed)
            progress.update(sum(quick.state["votes"].values()))
        quick.save()
    return True


def _evaluate(quick: Quickstart) -> dict[str, Any]:
    config: EvaluateConfig = quick.config("evaluate")
    directory = Path(config.run_dir)
    directory.mkdir(exist_ok=True)
    rows = load_prompts(config.prompts)
    base = config.model.model_copy(update={"name": f"{BUILTIN_PREFIX}helpline_base"})
    models = [config.model, config.baseline_model, base]
    with _timed(quick, "evaluate"), stage_progress("Evaluation") as progress:
        policies = [open_policy(model, rows, config.sampling) for model in models]
        judge = make_judge(config, str(directory))
        texts = draw_answers(policies, rows, config, str(directory), lambda s, t, **f: progress.update(s, t))
        ppo_scores, sft_scores = judged_in_both_orders(judge, rows, texts[0], texts[1])
        base_scores = judge(rows, texts[2])
    answers = {"base": texts[2], "sft": texts[1], "ppo": texts[0]}
    write_samples(
        quick.root / "samples.jsonl", rows, answers, {"base": base_scores, "sft": sft_scores, "ppo": ppo_scores}
    )
    if "compare" not in quick.state:
        runs = {"sft": str(quick.root / "sft"), "ppo": str(quick.root / "ppo")}
        quick.state["compare"] = people.queue_comparison(
            quick.store, quick.root / "samples.jsonl", like=quick.state["project"], runs=runs, folder=directory
        )
    win = win_rate(ppo_scores, sft_scores, [prompt_hash(row.messages) for row in rows])
    means = {"base": sum(base_scores) / len(rows), "sft": float(sft_scores.mean()), "ppo": float(ppo_scores.mean())}
    return {"win_rate": asdict(win), "mean_score": means}


def _reward_against_ceiling(quick: Quickstart) -> dict[str, Any]:
    """Accuracy of the reward model on votes about held-out prompts, beside what the true order would reach there."""
    config = quick.config("reward")
    rows = read_preferences(config.data, config.data.train, Path(config.run_dir))
    _, held_out = split_by_prompt(rows, eval_fraction=config.data.eval_fraction, seed=config.seed)
    groups = {row.group for row in held_out}
    pairs = [p for p in people.pair_votes(quick.store, quick.state["project"]) if p.group in groups]
    with _timed(quick, "reward_check"):
        group = WorkerGroup.launch(
            "rlhf.workers.scorer:ScorerWorker", "scorer", size=1, placement=config.placement,
            run_dir=config.run_dir, args=((config.run_dir,), config.placement.threads_per_worker),
        )  # fmt: skip
        try:
            texts = [(p.prompt, t) for p in pairs for t in (p.first, p.second)]
            scores = group.call("score", texts)[0]
        finally:
            group.close()
    found = people.vote_accuracy(pairs, scores[0::2], scores[1::2])
    ceiling = people.vote_accuracy(pairs, *people.gold_scores(pairs))
    return {**found, "ceiling": ceiling["accuracy"], "num_pairs": len(pairs), "num_prompts": len(groups)}


def _summary(
    quick: Quickstart, evaluation: dict[str, Any], reward_model: dict[str, Any], memory: PeakMemory
) -> dict[str, Any]:
    stages = quick.state["stages"]
    ppo = stages["ppo"]
    _join_metrics(quick.root)
    project = quick.state["project"]
    return {
        "run_name": "quickstart",
        **evaluation,
        "reward_model": reward_model,
        "kl": ppo["kl"],
        "kl_limit": ppo["kl_limit"],
        "num_ranks": ppo["num_ranks"],
        "engine": {stage: stages[stage]["engine"] for stage in ("sft", "reward", "ppo")},
        "zero_stage": {stage: stages[stage]["zero_stage"] for stage in ("sft", "reward", "ppo")},
        "seconds": quick.state["seconds"],
        "peak_rss_mib": memory.peak_rss_mib,
        "peak_pss_mib": memory.peak_pss_mib,
        "sync": ppo["sync"],
        "seed": quick.seed,
        "git_sha": git_sha(shipped_configs("quickstart")),
        "versions": versions(),
        "annotators": people.annotator_table(quick.store, project, quick.state.get("votes", {}), quick.seed),
        "project": project,
        "store": str(quick.store.path),
        "next_commands": _next_commands(quick),
    }


def _next_commands(quick: Quickstart) -> list[list[str]]:
    ppo, config = quick.root / "ppo", shipped_configs("quickstart") / "ppo.yaml"
    config = config.relative_to(Path.cwd()) if config.is_relative_to(Path.cwd()) else config
    store = f"--store {quick.store.path}"
    return [
        [f"rlhf chat {ppo}", "talk to the trained policy"],
        [f"rlhf annotate --project {quick.state['compare']} {store} --admin me",
         "judge for yourself in the page: SFT's or PPO's answer, without being told which is which"],
        [f"rlhf ppo --config {config} run_dir={quick.root}/ppo2 kl.coef=0.02 --dry-run",
         "plan another PPO run with a weaker KL penalty"],
    ]  # fmt: skip


def _show(quick: Quickstart, summary: dict[str, Any]) -> None:
    report = write_run_report(quick.root, [(c, text) for c, text in summary["next_commands"]])
    win, reward, means = summary["win_rate"], summary["reward_model"], summary["mean_score"]
    print_table(
        "Quickstart",
        {
            "win rate of PPO against SFT": f"{win['mean']:.2f}  (95% {win['ci_low']:.2f} to {win['ci_high']:.2f}, "
            f"{win['num_prompts']} held-out prompts{', too few to say' if win['too_few'] else ''})",
            "mean gold score": f"base {means['base']:.2f}, SFT {means['sft']:.2f}, PPO {means['ppo']:.2f}",
            "reward model accuracy": f"{reward['accuracy']:.2f}  (the votes allow {reward['ceiling']:.2f})",
            "KL to SFT": f"{summary['kl']:.1f} nats per response (limit {summary['kl_limit']:g})",
            "adapter sync": f"{summary['sync']['bytes'] / 1024:.0f} KiB in {summary['sync']['milliseconds']:.0f} ms, "
            f"canary off by {summary['sync']['max_logprob_diff']:.1e}",
            "engine": f"{summary['engine']['ppo']} on {summary['num_ranks']} ranks",
            "peak memory of all processes": f"{summary['peak_rss_mib']:.0f} MiB",
            "seconds": f"{summary['seconds']['total']:.0f}",
            "report": str(report),
        },
    )
    print_next_commands([(command, text) for command, text in summary["next_commands"]])


def _headline(stage: str, figures: dict[str, Any]) -> dict[str, Any]:
    wanted = {"sft": ("loss", "eval_loss"), "reward": ("loss", "accuracy", "eval_accuracy")}.get(stage)
    return {k: v for k, v in figures.items() if wanted is None or k in wanted}


@contextmanager
def _timed(quick: Quickstart, name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    quick.state["seconds"][name] = round(time.perf_counter() - started, 2)


def _join_metrics(root: Path) -> None:
    with (root / METRICS_FILE).open("w", encoding="utf-8") as handle:
        for stage in ("sft", "reward", "ppo"):
            handle.write((root / stage / METRICS_FILE).read_text(encoding="utf-8"))


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
