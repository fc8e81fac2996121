"""Plans of the shipped configs: all fit, their heads tell the plan's minutes, those for CPUs are planned on CPUs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.plan import main
from cluster.plan_fit import host_memory
from cluster.shapes import SHAPES
from tests.support.planned import plan

ROOT = Path(__file__).parents[3]
SHIPPED = [
    p for p in sorted((ROOT / "configs").glob("**/*.yaml")) if f"\nstage: {p.parent.name}\n" in p.read_text("utf-8")
]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_shipped_config_can_be_planned(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    on_cpus = path.stem.endswith("_cpu") or path.parent.name == "quickstart"
    words = ["--config", str(path), "--shape", "qwen2.5-0.5b", "--rows", "100", "--gpu", "a100"]
    words += ["--memory", "200GiB"] if on_cpus else []  # two processes in fp32, and all of them on one host
    code, found = plan(capsys, *words)
    assert code == 0 and found["fits"], "half a billion parameters fit under every shipped config"
    if on_cpus:
        assert plan(capsys, *words, "--gpus", "0")[1] == found, "such a config is planned on CPUs without being told"
        assert found["gpus_needed"] == 0 and found["estimate"]["steps"] and found["estimate"]["hours"] is None
    else:
        assert found["gpus_needed"] >= 1 and found["estimate"]["hours"] > 0
    assert all(role["total"] > 2**30 for role in found["roles"]), "more than the driver alone"


ESTIMATED = [path for path in SHIPPED if "\n# Estimate: " in path.read_text("utf-8")]


@pytest.mark.parametrize("path", ESTIMATED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_minutes_of_a_config_s_head_are_the_plan_s(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    head = path.read_text("utf-8")
    (minutes,) = re.findall(r"^# Expected minutes: (\d+) on .*\(an estimate; not run\)$", head, re.MULTILINE)
    (words,) = re.findall(r"^# Estimate: rlhf plan (.*)$", head, re.MULTILINE)
    assert int(minutes) == round(60 * plan(capsys, *words.split())[1]["estimate"]["hours"])


def test_every_config_for_gpus_is_estimated() -> None:
    assert [path for path in SHIPPED if path.stem.endswith("gpu")] == ESTIMATED


def test_processes_on_cpus_share_their_host(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config", str(ROOT / "configs/sft/tiny_cpu.yaml"), "--shape", "llama-3-8b", "--rows", "1000"]
    ranks = ("placement.num_ranks=2", "batch.minibatch_sequences=32")
    code, found = plan(capsys, *words, *ranks, "--memory", "70GiB")
    role = found["roles"][0]
    assert role["weights"] == 4 * SHAPES["llama-3-8b"].parameters, "fp32, not a GPU's bf16"
    assert role["total"] < role["usable"] < 2 * role["total"] and code == 1 and not found["fits"]
    assert plan(capsys, *words, *ranks, "--memory", "1000GiB")[0] == 0
    usable = plan(capsys, *words)[1]["roles"][0]["usable"]
    assert usable == pytest.approx(0.92 * host_memory()), "this host's memory, where none is given"
    assert main([*words, "--gpus", "4", "--memory", "1000GiB"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "asks for no GPU" in told and "of the host's usable memory" in told
    assert "hours" not in told and "optimizer steps" in told
