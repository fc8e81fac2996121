"""Six canary secrets, a real run that succeeds and one that crashes with them in its error: nothing shows them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.tiny import build_model

CANARIES = {
    "HF_TOKEN": "hf_CANARY0000aaaaBBBBccccDDDD",
    "WANDB_API_KEY": "canary1111wandb2222eeee3333ffff4444",
    "OPENAI_API_KEY": "sk-canary5555GGGGhhhh6666IIIIjjjj",
    "AWS_SECRET_ACCESS_KEY": "CANARY7777/kkkk+LLLL/8888mmmmNNNN0000",
    "RAY_AUTH_TOKEN": "canary9999oooo0000pppp1111qqqq2222",
    "PREFERENCE_DATABASE": "postgresql://ann:CANARYpass3333@db.example.org/prefs",
}
PLANTED = [*(v for k, v in CANARIES.items() if k != "PREFERENCE_DATABASE"), "CANARYpass3333"]

DRIVER = """
import sys
from rlhf.workers.lean import lean_imports
with lean_imports():
    import rlhf.stages.sft as sft
from rlhf.cli import main
from rlhf.config import PlacementConfig
from rlhf.workers.runtime import ray_runtime

real = sft.train_on_ranks
with ray_runtime(PlacementConfig(), num_workers=2):
    good = main(["sft", "--config", sys.argv[1], f"run_dir={sys.argv[2]}/good"])
    sft.train_on_ranks = lambda worker, *rest, **named: real("tests.support.leaks:LeakingSft", *rest, **named)
    bad = main(["sft", "--config", sys.argv[1], f"run_dir={sys.argv[2]}/bad"])
print("codes", good, bad)
raise RuntimeError("uncaught " + __import__("os").environ["OPENAI_API_KEY"])
"""


def test_no_output_of_a_run_holds_a_secret(tmp_path: Path) -> None:
    base = build_model(tmp_path / "base")
    rows = [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "run.yaml").write_text(
        f"stage: sft\nrun_dir: x\nmodel: {{name: {base}, chat_style: plain}}\ndata: {{train: {tmp_path}/rows.jsonl}}\n"
        "lora: {r: 2, alpha: 4}\nbatch: {minibatch_sequences: 4, microbatch_sequences_per_gpu: 4}\nmax_steps: 1\n"
        "engine: {zero_stage: 0}\nrecovery: {max_restarts: 0}\n"
    )
    runs = tmp_path / "runs"
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path / "run.yaml"), str(runs)],
        env={**os.environ, **CANARIES, "RAY_AUTH_MODE": "token", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=300,
    )
    printed = done.stdout + done.stderr
    assert "codes 0 3" in done.stdout, printed
    assert "cannot log in with" in done.stdout and "uncaught ***" in done.stderr, printed  # the leaks were there
    logs = "".join(path.read_text() for path in (runs / "bad" / "logs").iterdir())
    assert logs.count("***") > 15 and "PREFERENCE_DATABASE" in logs
    files = [path for path in runs.rglob("*") if path.is_file()]
    assert len(files) > 15
    hits = [f"{path}: {value}" for path in files for value in PLANTED if value.encode() in path.read_bytes()]
    hits += [f"printed: {value}" for value in PLANTED if value in printed]
    assert not hits, hits
