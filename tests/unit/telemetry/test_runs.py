"""A run directory read while it is written, and the frame that ``rlhf top`` draws of it."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlhf.errors import DataError
from rlhf.telemetry import top
from rlhf.telemetry.runs import MetricsTail, RunView, find_runs, open_run, sparkline

ROOT = Path(__file__).parents[3]


def ppo_record(step: int, **values: Any) -> dict[str, Any]:
    acts = {"seconds.act": 2.0, "seconds.judge": 1.0, "seconds.learn": 4.0, "seconds.share": 1.0}
    return {"time": 1000.0 + 8.0 * step, "stage": "ppo", "step": step, "score_mean": step / 10, "kl": step / 5,
            "entropy": 1.0, "response_tokens_mean": 20.0, "adapter_version": step + 1, **acts, **values}  # fmt: skip


def write_run(path: Path, records: list[dict[str, Any]], stage: str = "ppo", **config: Any) -> Path:
    (path / "logs").mkdir(parents=True, exist_ok=True)
    tree = {"num_steps": 10, "batch": {"prompts_per_step": 16, "responses_per_prompt": 2}, **config}
    (path / "config.json").write_text(json.dumps({"stage": stage, "started": "2026-01-01T00:00:00Z", "config": tree}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (path / ".lock").write_text(f"{os.getpid()}\n")
    return path


def drawn(run: RunView) -> str:
    console = Console(width=110, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    console.print(top.frame(run))
    return console.export_text()


def test_progress_of_a_live_run(tmp_path: Path) -> None:
    path = write_run(tmp_path / "ppo", [ppo_record(step) for step in range(4)])
    with (path / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = RunView(path)
        assert run.state == "running"
        assert (run.progress.step, run.progress.total) == (4, 10)
        assert run.progress.seconds_per_step == 8.0 and run.progress.eta_seconds == 48.0
    assert run.tokens_per_second == 32 * 20 / 8
    assert run.phases == {"act": 2.0, "judge": 1.0, "learn": 4.0, "share": 1.0}
    assert run.series("score_mean") == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3)]
    assert run.refresh().state == "stopped", "nobody holds the lock and there is no summary"
    assert run.progress.eta_seconds is None
    (path / "summary.json").write_text(json.dumps({"kl": 0.6}))
    assert run.refresh().state == "finished"


def test_training_stages_report_trained_tokens(tmp_path: Path) -> None:
    records = [{"time": 10.0 + s, "stage": "sft", "step": s, "loss": 2.0 - s / 10, "num_tokens": 500.0 * s}
               for s in range(1, 6)]  # fmt: skip
    run = RunView(write_run(tmp_path / "sft", records, "sft", num_steps=None, max_steps=None))
    assert run.tokens_per_second == 500
    assert run.progress.step == 5 and run.progress.total is None


def test_the_number_of_steps_is_what_a_run_says_not_its_bound(tmp_path: Path) -> None:
    records = [{"time": 10.0 + s, "stage": "sft", "step": s, "loss": 1.0} for s in range(1, 6)]
    path = write_run(tmp_path / "sft", records, "sft", num_steps=None, max_steps=10_000)
    assert RunView(path).progress.total is None, "rows are still being counted"
    described = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**described, "num_steps": 30}))
    with (path / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = RunView(path)
        assert run.progress.total == 30 and run.progress.eta_seconds == 25.0
    (path / "summary.json").write_text(json.dumps({"num_steps": 5}))
    assert run.refresh().progress.total == 5, "stopped early"


def test_metrics_are_read_as_they_grow(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.read() == []
    with path.open("a") as handle:
        handle.write('{"step": 0}\n{"step": 1, "lo')
        handle.flush()
        assert [r["step"] for r in tail.read()] == [0], "a torn line waits"
        handle.write('ss": 2}\n')
        handle.flush()
        assert [r["step"] for r in tail.read()] == [0, 1]
    replaced = tmp_path / "other"
    replaced.write_text('{"step": 0}\n')
    replaced.replace(path)
    assert [r["step"] for r in tail.read()] == [0], "a rewound file is read anew"


def test_a_step_written_again_counts_once(tmp_path: Path) -> None:
    run = RunView(write_run(tmp_path / "ppo", [ppo_record(0), ppo_record(1), ppo_record(1, score_mean=0.9)]))
    assert run.series("score_mean") == [(0, 0.0), (1, 0.9)]


def test_events_of_all_logs(tmp_path: Path) -> None:
    path = write_run(tmp_path / "ppo", [ppo_record(0)])
    line = "2026-01-01T00:00:{:02d}.000Z {} {} rlhf.x: {}\n"
    driver = [line.format(i, "INFO", "driver-0", f"step {i}") for i in range(20, 40)]
    (path / "logs" / "driver-0.log").write_text("".join(driver))
    for rank in (0, 1):
        text = line.format(5, "ERROR", f"policy-{rank}", "the disk is full") + "no line of ours\n"
        (path / "logs" / f"policy-{rank}.log").write_text(text)
    events = RunView(path).events(4)
    assert [e.text for e in events] == ["the disk is full", "step 37", "step 38", "step 39"]
    assert len(RunView(path).events(40)) == 21


def test_a_frame(tmp_path: Path) -> None:
    path = write_run(tmp_path / "ppo", [ppo_record(step) for step in range(4)])
    evil = "2026-01-01T00:00:01.000Z WARNING rollout-0 rlhf.x: [red]not markup[/red] \x1b[2Jand no codes\n"
    (path / "logs" / "rollout-0.log").write_text(evil)
    text = drawn(RunView(path))
    for words in (
        "step 4/10",
        "80.00 tokens/s",
        "▁▃▆█",
        "score",
        "act 2.00 s",
        "learn 4.00 s",
        "[red]not markup[/red]",
    ):
        assert words in text, words
    assert "\x1b[2J" not in text


def test_an_empty_run_draws_too(tmp_path: Path) -> None:
    text = drawn(RunView(write_run(tmp_path / "ppo", [])))
    assert "no figures yet" in text and "step 0/10" in text


def test_runs_are_found_newest_first(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "deep/er/b", "c")):
        path = write_run(tmp_path / name, [ppo_record(0)])
        for file in path.glob("*.*"):
            os.utime(file, (number + 1, number + 1))
    (tmp_path / "not-a-run").mkdir()
    (tmp_path / "not-a-run" / "config.json").write_text("{}")
    assert [str(p.relative_to(tmp_path)) for p in find_runs(tmp_path)] == ["c", "deep/er/b", "a"]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run"):
        open_run(tmp_path)
    with pytest.raises(DataError, match="not a directory"):
        open_run(tmp_path / "nothing")


@pytest.mark.parametrize(("values", "line"), [
    ([], ""), ([1.0], "▄"), ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"), ([3, float("nan"), 1], "█▁"),
])  # fmt: skip
def test_sparklines(values: list[float], line: str) -> None:
    assert sparkline(values) == line
    assert len(sparkline([float(i) for i in range(1000)], width=40)) == 40


def test_the_command(tmp_path: Path) -> None:
    path = write_run(tmp_path / "ppo", [ppo_record(step) for step in range(3)])
    code = (
        "import sys; from rlhf.telemetry.top import main; "
        f"code = main([{str(path)!r}, '--once']); "
        "sys.exit(code + any(m in sys.modules for m in ('torch', 'ray')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "step 3/10" in done.stdout
