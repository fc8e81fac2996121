"""Exact resume at every step of every stage and ZeRO stage, its negative controls, and memory over many steps."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray

from benchmarks.chaos_common import Row, folder, runtime_and_pool, seconds_since, tiny
from rlhf.engine.checkpoint.manifest import MANIFEST_FILE, Manifest, describe_files, file_sha256, verify
from rlhf.errors import RlhfError
from rlhf.stages import ppo, ppo_run
from tests.ray.test_trl_resume import STEPS, only_commit, rows_of, train
from tests.support.chaos_runs import chaos_config, differences, outcome_of, watched
from tests.support.conversations import demonstrations, preferences, write_rows

CUTS = range(1, STEPS)
Edit = Callable[[Path, dict[str, Any]], None]


def exact_resume(quick: bool) -> Iterator[list[Row]]:
    """C05: SFT, reward and PPO under ZeRO 1, 2, 3, cut at every step."""
    rows = []
    with folder() as place, runtime_and_pool() as pool:
        base = tiny(place)
        files = training_files(place)
        for zero in (2,) if quick else (1, 2, 3):
            for stage in ("sft", "reward", "ppo"):
                began = time.monotonic()
                cuts = [STEPS // 2] if quick else list(CUTS)
                same = [resume_once(stage, base, files, place / f"{stage}-{zero}", zero, cut, pool) for cut in cuts]
                longest = round((time.monotonic() - began) / (len(cuts) + 1), 1)
                good = sum(not found for found in same)
                details = {"differences": [d for found in same for d in found][:20]}
                rows.append(
                    Row("C05", f"{stage}, ZeRO {zero}, cut at every step", len(cuts), len(cuts), good,
                        len(cuts) - good, longest, "seconds: mean of a run", details)
                )  # fmt: skip
                yield rows


def resume_once(
    stage: str, base: Path, files: dict[str, str], place: Path, zero: int, cut: int, pool: Any, edit: Edit | None = None
) -> list[str]:
    """Where the run that goes on from ``cut`` differs from the whole one, which is made on first use."""
    whole, run_dir = place / "whole", place / f"cut-{cut}"
    if not (whole / "run.json").is_file():
        complete(stage, base, files, whole, zero, pool)
    only_commit(whole, cut, run_dir)
    if edit is not None:
        change_state(run_dir, whole, edit)
    try:
        complete(stage, base, files, run_dir, zero, pool)
        found = compare(stage, whole, run_dir)
    except RlhfError as error:  # refused is noticed
        found = [f"{type(error).__name__}: {error}"[:200]]
    shutil.rmtree(run_dir)
    return found


def complete(stage: str, base: Path, files: dict[str, str], run_dir: Path, zero: int, pool: Any) -> None:
    """Runs a stage to its end in ``run_dir``, from a commit that may be there."""
    if stage != "ppo":
        train(stage, base, files, run_dir, zero)
        return
    changes = {"num_steps": STEPS, "engine.zero_stage": zero, "checkpoint.keep_last": 100}
    with watched(pool, ()):
        ppo.run_ppo(chaos_config(base, run_dir, **changes))


def compare(stage: str, whole: Path, run_dir: Path) -> list[str]:
    """What differs, but for what a clock wrote."""
    if stage == "ppo":
        return differences(*(outcome_of(d, json.loads((d / "summary.json").read_text()), {}) for d in (whole, run_dir)))
    found = [] if rows_of(run_dir) == rows_of(whole) else ["metrics"]
    names = [d / "adapter" / "adapter_model.safetensors" for d in (whole, run_dir)]
    return found + ([] if file_sha256(names[0]) == file_sha256(names[1]) else ["adapter"])


def change_state(run_dir: Path, whole: Path, edit: Edit) -> None:
    """Alters a commit as somebody would who knows the format: the seal fits again afterwards."""
    commit = next((run_dir / "checkpoints").glob("step-*"))
    manifest = verify(commit)
    edit(commit, manifest.state)
    body = {**manifest.__dict__, "files": describe_files(commit)}
    (commit / MANIFEST_FILE).write_text(Manifest(**body).dump(), encoding="utf-8")


def negative_controls(quick: bool) -> Iterator[list[Row]]:
    """C06: without any one piece of state the comparison must fail."""
    rows, cut = [], STEPS // 2
    with folder() as place, runtime_and_pool() as pool:
        base = tiny(place)
        files = training_files(place)
        for stage, item, edit in edits():
            differing = resume_once(stage, base, files, place / stage, 2, cut, pool, edit)
            noticed = int(bool(differing))
            rows.append(Row("C06", f"{stage} resumed without: {item}", 1, noticed, noticed, 1 - noticed, None,
                            f"first difference: {next(iter(differing), 'none')}"))  # fmt: skip
            yield rows
        for item in ("optimizer", "data position"):
            differing = forgetful_ppo(item, base, place, cut, pool)
            noticed = int(bool(differing))
            rows.append(Row("C06", f"ppo resumed without: {item}", 1, noticed, noticed, 1 - noticed, None,
                            f"first difference: {next(iter(differing), 'none')}"))  # fmt: skip
            yield rows


def edits() -> list[tuple[str, str, Edit]]:
    """(stage, piece of state, how it is taken out of a commit)."""

    def in_ranks(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Edit:
        def edit(commit: Path, _: dict[str, Any]) -> None:
            first = commit.parents[2] / "whole" / "checkpoints" / "step-00000001"
            for path in sorted(commit.glob("rank-*.json")):
                own = json.loads(path.read_text())
                change(own, json.loads((first / path.name).read_text()))
                path.write_text(json.dumps(own))

        return edit

    def no_watch(commit: Path, _: dict[str, Any]) -> None:
        empty = {"evaluations": [], "losses": [], "misses": 0, "best_loss": None, "best_step": -1}
        (commit / "watch.json").write_text(json.dumps(empty))
        (commit / "best.safetensors").unlink(missing_ok=True)

    return [
        ("sft", "random states", in_ranks(lambda own, first: own.update(rng=first["rng"]))),
        ("sft", "scheduler", in_ranks(lambda own, first: own.update(scheduler=first["scheduler"]))),
        ("sft", "token counter", in_ranks(lambda own, _: own.update(total_train_tokens=0.0))),
        ("sft", "best weights and evaluations", no_watch),
        ("ppo", "KL coefficient", lambda _, state: state["kl"].update(coef=2 * state["kl"]["coef"])),
        ("ppo", "updates done", lambda _, state: state.update(updates_done=0)),
    ]


def forgetful_ppo(item: str, base: Path, place: Path, cut: int, pool: Any) -> list[str]:
    """PPO resumed with fresh optimizer moments, or at another place of the prompt order."""
    whole, run_dir = place / "ppo" / "whole", place / "ppo" / f"without-{item.split()[0]}"
    only_commit(whole, cut, run_dir)
    changes = {"num_steps": STEPS, "engine.zero_stage": 2, "checkpoint.keep_last": 100}
    with pytest.MonkeyPatch.context() as patch, watched(pool, ()):
        if item == "optimizer":
            pool.substitutes = {"rlhf.workers.policy:PolicyWorker": "tests.support.faults:ForgetsOptimizer"}
        else:
            patch.setattr(ppo, "prompt_rows_of", lambda c, n, step: ppo_run.prompt_rows_of(c, n, step - cut))
        try:
            ppo.run_ppo(chaos_config(base, run_dir, **changes))
        except RlhfError as error:
            return [f"{type(error).__name__}: {error}"[:200]]
    return compare("ppo", whole, run_dir)


def training_files(place: Path) -> dict[str, str]:
    """Rows for SFT and reward training."""
    return {
        "sft": write_rows(place / "demonstrations.jsonl", demonstrations(24)),
        "sft_eval": write_rows(place / "held_out.jsonl", demonstrations(5, seed=9)),
        "reward": write_rows(place / "preferences.jsonl", preferences(24)),
        "reward_eval": write_rows(place / "held_out_pairs.jsonl", preferences(9, seed=9)),
    }


def memory(quick: bool) -> list[Row]:
    """R14: resident memory per step of every process of a long run, and the object store afterwards."""
    steps = 40 if quick else 200
    warm = steps // 4
    sizes: dict[str, list[float]] = {}
    with folder() as place, ExitStack() as stack:
        pool = stack.enter_context(runtime_and_pool())
        base = tiny(place)
        began = time.monotonic()
        changes = {"num_steps": steps, "checkpoint.every": 10, "engine.zero_stage": 2}
        before: float | None = None

        def sample(step: int, total: int, **_: Any) -> None:
            nonlocal before
            samples.clear()  # the benchmark's own notes are not the run's memory
            if before is None:
                before = object_store_bytes()
            for role, group in ((g.role, g) for g in processes.started):
                for rank, pid in enumerate(group.pids):
                    sizes.setdefault(f"{role} {rank}", []).append(psutil.Process(pid).memory_info().rss / 2**20)
            sizes.setdefault("driver", []).append(psutil.Process().memory_info().rss / 2**20)

        with watched(pool, ("policy", "rollout")) as (processes, samples):
            config = chaos_config(base, place / "run", **changes)
            ppo.run_ppo(config, progress=sample)
        after = object_store_bytes()
        seconds = seconds_since(began)
    rows = []
    for name, values in sizes.items():
        slope = float(np.polyfit(range(len(values) - warm), values[warm:], 1)[0])
        good = int(slope <= 1.0)
        details = {
            "slope_mib_per_step": round(slope, 4),
            "first_mib": round(values[warm]),
            "last_mib": round(values[-1]),
        }
        rows.append(
            Row("R14", f"{name}: {steps} steps", 1, 1, good, 1 - good, seconds, f"{slope:.3f} MiB per step", details)
        )
    details = {"after_step_1_bytes": before, "after_the_run_bytes": after}
    good = int(after <= (before or 0.0) * 1.05 + 2**20)
    note = f"{(before or 0) / 2**20:.2f} MiB after step 1, {after / 2**20:.2f} MiB after the run"
    return [*rows, Row("R14", "object store", 1, 1, good, 1 - good, seconds, note, details)]


def object_store_bytes() -> float:
    """Bytes that Ray's object store holds on this node."""
    from ray._private.internal_api import node_stats

    node = ray.nodes()[0]
    found = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
    return float(found.store_stats.object_store_bytes_used)


SECTIONS = {"C06": negative_controls, "R14": memory, "C05": exact_resume}
