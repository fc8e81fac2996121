"""Metrics as Prometheus would scrape them, and a dashboard that asks for nothing else."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.workers.ray_metrics import FIGURES, exported_names, run_label

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "cluster" / "grafana" / "rlhf.json"

SCRIPT = """
import json, logging, sys, time, urllib.request
import ray
from rlhf.workers.ray_metrics import FIGURES, report_queue, report_restart, report_step
ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=2**27, log_to_driver=False,
         logging_level=logging.ERROR, configure_logging=False)
values = {figure.key: 1.5 for figure in FIGURES.values() if figure.key}
values |= {"seconds": {"act": 1.0, "judge": 1.0, "learn": 2.0, "share": 0.0}, "response_tokens_mean": 10.0,
           "loss": float("nan"), "prompt": "a secret prompt", "adapter_version": 7}
for step in range(3):
    report_step(values, run_dir="/home/alice/runs/ppo", num_sequences=8)
report_restart("rollout", run_dir="/home/alice/runs/ppo")
report_queue("rollout", 5, run_dir="/home/alice/runs/ppo")
port = ray.nodes()[0]["MetricsExportPort"]
text = ""
for _ in range(100):
    time.sleep(0.3)
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2).read().decode()
    except OSError:
        continue
    if "ray_rlhf_steps_total" in text and "ray_rlhf_queue_depth" in text and "} 3.0" in text:
        break
print("SCRAPED " + json.dumps([line for line in text.splitlines() if line.startswith("ray_rlhf")]))
ray.shutdown()
"""


@pytest.fixture(scope="module")
def scraped() -> dict[str, list[tuple[dict[str, str], float]]]:
    """(labels, value) by name, from the port that Prometheus would ask."""
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "the-token-of-this-test-run",
                   "RAY_metrics_report_interval_ms": "300", "RAY_worker_niceness": "0"}  # fmt: skip
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=180,
                          check=False)  # fmt: skip
    line = next((s for s in done.stdout.splitlines() if s.startswith("SCRAPED ")), None)
    assert line is not None, done.stdout[-1000:] + done.stderr[-2000:]
    assert "alice" not in line and "secret prompt" not in line, "no names, paths or prompts in what anybody can read"
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for row in json.loads(line.removeprefix("SCRAPED ")):
        match = re.match(r"(\w+)\{(.*)\} (\S+)$", row)
        assert match is not None, row
        labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
        found.setdefault(match[1], []).append((labels, float(match[3])))
    return found


def test_every_metric_reaches_prometheus(scraped: dict[str, list[tuple[dict[str, str], float]]]) -> None:
    unset = {"ray_rlhf_loss"}  # it was not finite
    assert set(scraped) == exported_names() - unset
    assert [v for _, v in scraped["ray_rlhf_steps_total"]] == [3.0]
    assert [v for _, v in scraped["ray_rlhf_nonfinite_steps_total"]] == [3.0]
    assert [v for _, v in scraped["ray_rlhf_tokens_per_second"]] == [8 * 10 / 4]
    assert [v for _, v in scraped["ray_rlhf_adapter_version"]] == [7.0]
    phases = {labels["phase"]: v for labels, v in scraped["ray_rlhf_step_seconds"]}
    assert phases == {"act": 1.0, "judge": 1.0, "learn": 2.0, "share": 0.0}
    labels, value = scraped["ray_rlhf_queue_depth"][0]
    assert (labels["role"], labels["run"], value) == ("rollout", run_label("/home/alice/runs/ppo"), 5.0)


def test_the_dashboard_asks_for_metrics_that_exist_and_for_all_of_them() -> None:
    dashboard = json.loads(DASHBOARD.read_text("utf-8"))
    asked = {name for p in dashboard["panels"] for t in p["targets"] for name in re.findall(r"ray_rlhf_\w+", t["expr"])}
    asked |= set(re.findall(r"ray_rlhf_\w+", json.dumps(dashboard["templating"])))
    assert asked == exported_names()
    labels = {"stage", "run", *(f.label for f in FIGURES.values() if f.label)}
    used = {
        word for p in dashboard["panels"] for t in p["targets"] for word in re.findall(r"{{(\w+)}}", t["legendFormat"])
    }
    assert used <= labels
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard["panels"]]
    assert len(set(places)) == len(places) and len({p["id"] for p in dashboard["panels"]}) == len(places)


def test_outside_a_runtime_nothing_happens() -> None:
    code = (
        "from rlhf.workers.ray_metrics import report_queue, report_restart, report_step; import ray; "
        "report_step({'kl': 1.0}); report_restart('rollout'); report_queue('rollout', 1); "
        "raise SystemExit(ray.is_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert run_label("") == "" and re.fullmatch("[0-9a-f]{8}", run_label("runs/ppo"))
