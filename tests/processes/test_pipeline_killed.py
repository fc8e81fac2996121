"""A pipeline that is killed between a stage's last file and its own note of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tests.support.tiny import build_model

ROOT = Path(__file__).parents[2]


def test_a_pipeline_goes_on_after_a_stage_whose_end_it_did_not_see(tmp_path: Path) -> None:
    base = build_model(tmp_path / "base")
    rows = [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "sft.yaml").write_text(
        f"stage: sft\nrun_dir: x\nmodel: {{name: {base}, chat_style: plain}}\ndata: {{train: {tmp_path}/rows.jsonl}}\n"
        "lora: {r: 2, alpha: 4}\nbatch: {minibatch_sequences: 4, microbatch_sequences_per_gpu: 4}\nmax_steps: 1\n"
        "engine: {zero_stage: 0}\n"
    )
    steps = [{"name": "sft", "stage": "sft", "config": "sft.yaml"}]
    tree = {"stage": "pipeline", "run_dir": str(tmp_path / "runs"), "steps": steps}
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "rlhf", "pipeline", "pipeline.yaml", "--local"]
    where = {"cwd": tmp_path, "env": {**os.environ, "RAY_AUTH_MODE": "token", "PYTHONPATH": str(ROOT)}}
    record, state = tmp_path / "runs" / "sft" / "run.json", tmp_path / "runs" / "pipeline.json"
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, **where)
        try:
            deadline = time.monotonic() + 240
            while not record.is_file() and first.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
        finally:
            first.kill()
            first.wait()
    assert record.is_file() and not state.exists(), (tmp_path / "log").read_text()
    before = record.read_bytes()
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, **where)
    assert done.returncode == 0 and "holds this run, finished before" in done.stdout, done.stdout + done.stderr
    assert list(json.loads(state.read_text())["steps"]) == ["sft"] and record.read_bytes() == before
