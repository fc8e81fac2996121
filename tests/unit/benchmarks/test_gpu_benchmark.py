"""The GPU benchmark's arithmetic: shapes, what is skipped and why, shares of a GPU, and how its result is put together.

Its whole way through the system: ``python benchmarks/gpu.py --device cpu --shapes tiny``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import common
import gpu
import gpu_cases
import gpu_models
import pytest
import torch
from transformers import AutoModelForCausalLM

from cluster.memory_model import Memory
from cluster.plan_roles import GIB, RolePlan

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
PLENTY = gpu_cases.Room(139 * GIB, 200 * GIB, 200 * GIB, 480.0)
WORK = gpu_cases.Work(prompts=64)


def plan_of(name: str, precision: str = "bf16", gib: float = 139, work: Any = WORK) -> Any:
    return gpu_cases.plan_case(work, precision, gpu_cases.KNOWN[name], gib * GIB)[0]


@pytest.mark.parametrize("name", ["tiny", *gpu_cases.DEFAULT_SHAPES, "llama-7b"])
def test_the_model_that_is_built_has_the_shape_that_is_planned(name: str) -> None:
    shape, tokenizer = gpu_cases.KNOWN[name], SimpleNamespace(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(gpu_models.model_config(shape, tokenizer), dtype=torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == shape.parameters
    assert gpu_cases.weight_bytes(shape) == 2 * shape.parameters


def test_nothing_of_the_drawn_model_is_left_when_its_memory_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[weakref.ref[Any]] = []
    left: list[bool] = []
    draw = AutoModelForCausalLM.from_config

    def remembered(*args: Any, **kwargs: Any) -> Any:
        model = draw(*args, **kwargs)
        drawn.append(weakref.ref(model.get_input_embeddings().weight))
        return model

    monkeypatch.setattr(gpu_models, "AutoModelForCausalLM", SimpleNamespace(from_config=remembered))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append(drawn[0]() is not None))
    work = replace(WORK, device="cpu", prompts=8, prompt_tokens=16, response_tokens=16, steps=2, microbatch=2)
    gpu_models.build(work, gpu_cases.TINY, tmp_path / "tiny")
    assert left == [False]
    assert (tmp_path / "tiny" / "reward-nf4" / "adapter").is_dir()
    assert len((tmp_path / "tiny" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()) == 16


@pytest.mark.parametrize(
    ("room", "reason"),
    [
        ({}, None),
        ({"disk": 16 * GIB}, "17.0 GiB of disk are needed for the weights, 16.0 are free"),
        ({"host": 4 * GIB}, "main memory"),
        ({"seconds": 60.0}, "60 s are left, it takes at least 111 s"),
    ],
)
def test_a_case_is_skipped_for_want_of_room(room: dict[str, float], reason: str | None) -> None:
    shape = gpu_cases.KNOWN["qwen2.5-7b"]
    found = gpu_cases.why_skipped("bf16", shape, plan_of("qwen2.5-7b"), replace(PLENTY, **room), [])
    assert found is None if reason is None else reason in str(found)


def test_a_case_is_skipped_when_the_plan_says_so() -> None:
    small, shape = replace(PLENTY, gpu=24 * GIB), gpu_cases.KNOWN["qwen2.5-7b"]
    found = gpu_cases.why_skipped("bf16", shape, plan_of("qwen2.5-7b", gib=24), small, [])
    assert found is not None and found.startswith("rlhf plan, 24.0 GiB free: Does not fit") and "it fit" in found


def test_nf4_without_bitsandbytes_is_skipped_and_bf16_is_not() -> None:
    shape, report = gpu_cases.KNOWN["qwen2.5-0.5b"], plan_of("qwen2.5-0.5b", "nf4")
    assert gpu_cases.why_skipped("nf4", shape, report, PLENTY, ["bitsandbytes"]) == "bitsandbytes is not installed"
    assert gpu_cases.why_skipped("bf16", shape, report, PLENTY, ["bitsandbytes"]) is None


def test_nothing_is_planned_onto_a_gpu_that_is_not_there() -> None:
    report = plan_of("tiny", gib=1, work=replace(WORK, device="cpu"))
    assert report.needed == 0
    assert gpu_cases.why_skipped("bf16", gpu_cases.TINY, report, PLENTY, []) is None


def test_the_shares_of_a_gpu_are_one_gpu_in_all() -> None:
    for part in range(1, 100):
        roles = [RolePlan(name, 1, 0.5, Memory(weights=w)) for name, w in (("trainer", part), ("rollout", 100 - part))]
        shares = gpu_cases.shares_of(roles)
        assert shares == (part / 100, (100 - part) / 100)
        assert sum(shares) <= 1.0, "Ray would have none that is large enough"


def test_the_whole_gpu_is_planned_with() -> None:
    report = plan_of("qwen2.5-0.5b", gib=24)  # half a GPU each would be too little for the trainer
    assert report.fits and report.needed == pytest.approx(1)


def test_processes_that_share_a_gpu_take_turns_with_their_working_memory() -> None:
    trainer = Memory(weights=10.0 * GIB, optimizer=2.0 * GIB, activations=6.0 * GIB, workspace=1.5 * GIB)
    rollout = Memory(adapters=0.5 * GIB, kv_cache=3.0 * GIB, workspace=2.0 * GIB)  # one GiB of each is the driver's
    roles = [RolePlan(name, 1, 0.5, memory) for name, memory in (("trainer", trainer), ("rollout", rollout))]
    resident, acts = 10 + 2 + 0.5 + 1 + 1, (6 + 0.5, 3 + 1)
    assert gpu_cases.device_bytes(roles) == pytest.approx((resident + max(acts)) * GIB)
    for name, wanted in gpu_cases.MEMORY_WANTED.items():
        shape, _, precision = name.rpartition("-")
        if shape == "qwen2.5-7b":
            planned = plan_of(shape, precision, work=gpu_cases.Work())
            assert gpu_cases.device_bytes(planned.roles) < wanted, name


def row(**changes: float) -> dict[str, float]:
    common = {
        "seconds.act": 4.0, "seconds.judge": 2.0, "seconds.learn": 8.0, "seconds.share": 0.5,
        "response_tokens_mean": 256.0, "sync.milliseconds": 100.0, "sync.bytes": 1e6,
        "speed.learn_tflops": 1.0, "speed.learn_peak_share": 0.1,
    }  # fmt: skip
    return common | changes


def test_speed_is_scaled_from_a_step_to_1024_prompts() -> None:
    shape = gpu_cases.KNOWN["qwen2.5-0.5b"]
    rows = [row(), row(**{"seconds.act": 6.0, "sync.milliseconds": 300.0})]
    found = gpu_cases.speed_figures(WORK, shape, rows, [16.0, 18.0], peak=1e15)
    assert found["seconds_per_1024_prompts"] == {
        "generate": 80.0, "judge": 32.0, "learn": 128.0, "sync": 8.0, "other": 24.0, "total": 272.0
    }  # fmt: skip
    assert found["tokens_per_second"]["generate"] == round(64 * 256 / 5, 1)
    assert found["tokens_per_second"]["step"] == round(64 * 512 / 17, 1)
    assert found["adapter_sync"] == {"milliseconds": 200.0, "bytes": 1_000_000}
    assert found["share_of_peak"]["learn"] == pytest.approx(found["tflops"]["learn"] / 1e3, abs=1e-4)


def test_operations_grow_with_roles_epochs_and_tokens() -> None:
    shape = gpu_cases.KNOWN["qwen2.5-7b"]
    found = gpu_cases.operations(WORK, shape, 256)
    tokens = 64 * 512
    assert found["generate"] == pytest.approx(2 * shape.matrices * tokens, rel=0.1)  # + adapters, attention, logits
    assert 3.8 < found["judge"] / found["generate"] < 4
    assert found["learn"] == pytest.approx(2 * 4 * shape.matrices * tokens, rel=0.1)
    assert gpu_cases.operations(replace(WORK, epochs=3), shape, 256)["learn"] == 3 * found["learn"]


def test_memory_is_compared_by_role_without_what_the_driver_takes() -> None:
    report = plan_of("qwen2.5-0.5b")
    trainer, rollout = (role.memory.total - GIB for role in report.roles)
    first = {
        "policy": {"tensors": 0.5 * trainer, "reserved": trainer},
        "rollout": {"tensors": rollout, "reserved": 1.0},
    }
    later = {
        "policy": {"tensors": trainer / 1.1, "reserved": 2 * trainer},
        "rollout": {"tensors": 1.0, "reserved": 1.0},
    }
    whole = gpu_cases.device_bytes(report.roles)
    found = gpu_cases.memory_figures(report, [first, later], whole / 0.9)
    assert found["policy"]["ratio"] == 1.1 and found["rollout"]["ratio"] == 1.0 and found["device"]["ratio"] == 0.9
    assert found["policy"]["reserved_gib"] == pytest.approx(2 * trainer / GIB, abs=1e-3)
    assert found["within"]
    assert not gpu_cases.memory_figures(report, [first], whole)["within"]  # twice what was measured


def test_without_a_gpu_nothing_is_compared() -> None:
    report = plan_of("tiny", work=replace(WORK, device="cpu"))
    reading = {"policy": {"process": 1e9}, "rollout": {"process": 1e9}}
    found = gpu_cases.memory_figures(report, [reading], None)
    assert "within" not in found and "ratio" not in found["policy"] and found["comparison"].startswith("none")


def test_the_result_is_json_and_says_what_was_scaled() -> None:
    cases = {"qwen2.5-7b-nf4": {"skipped": "bitsandbytes is not installed"}}
    found = json.loads(json.dumps(gpu_cases.assemble(WORK, {"kind": "cuda", "name": "X"}, 7e14, 400.0, cases)))
    assert found["matrix_peak_tflops"] == 700 and "steps of 64, multiplied by 16" in found["scaled"]
    assert found["cases"] == cases and found["workload"]["device"] == "cuda"


def test_every_shape_has_a_turn_before_any_has_its_second() -> None:
    shapes = [gpu_cases.KNOWN[name] for name in gpu_cases.DEFAULT_SHAPES]
    found = [(shape.name, precision) for shape, precision in gpu_cases.in_turn(shapes, gpu_cases.PRECISIONS)]
    large, small, middle = gpu_cases.DEFAULT_SHAPES
    assert found[:2] == [(large, "bf16"), (large, "nf4")]
    assert found[2:] == [(small, "bf16"), (middle, "bf16"), (small, "nf4"), (middle, "nf4")]


def test_a_case_leaves_time_for_shapes_that_have_no_figure_yet() -> None:
    cases = gpu_cases.in_turn([gpu_cases.KNOWN[name] for name in gpu_cases.DEFAULT_SHAPES], gpu_cases.PRECISIONS)
    least = {shape.name: gpu_cases.least_seconds(shape) for shape, _ in cases}
    waiting = sum(least[name] + 10 for name in gpu_cases.DEFAULT_SHAPES[1:])
    assert gpu_cases.seconds_of(cases, 1, 480, 150, 10) == 150
    assert gpu_cases.seconds_of(cases, 1, 140 + waiting, 150, 10) == pytest.approx(130)
    assert gpu_cases.seconds_of(cases, 1, 50 + waiting, 150, 10) == least["qwen2.5-7b"], "not for nothing"
    assert gpu_cases.seconds_of(cases, 3, 140, 150, 10) == 130, "all others have had theirs"


def test_weights_are_drawn_where_they_fit() -> None:
    shape = gpu_cases.KNOWN["qwen2.5-7b"]
    assert gpu_cases.why_not_drawn(shape, replace(PLENTY, gpu=15 * GIB)) is None
    assert "14.2 GiB of the device are needed" in str(gpu_cases.why_not_drawn(shape, replace(PLENTY, gpu=14 * GIB)))


def test_a_shape_that_cannot_be_built_is_skipped_and_the_next_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[dict[str, Any]] = []

    def build(work: Any, shape: Any, folder: Path) -> None:
        (folder / "model").mkdir(parents=True)
        if shape.name == "first":
            raise OSError("No space left on device")

    first, second = (replace(gpu_cases.TINY, name=name) for name in ("first", "second"))
    monkeypatch.setattr(gpu_cases, "KNOWN", {"first": first, "second": second})
    monkeypatch.setattr(gpu_models, "build", build)
    monkeypatch.setattr(gpu_models, "matrix_peak", lambda _: 1e12)
    monkeypatch.setattr(gpu, "measure", lambda *_: {"steps_measured": 1})
    monkeypatch.setattr(common, "save", lambda _, result: saved.append(json.loads(json.dumps(result["cases"]))))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = ["--device", "cpu", "--shapes", "first,second", "--precisions", "bf16", "--directory", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    gpu.main()
    reason = "its weights could not be written: OSError: No space left on device"
    assert saved == [
        {"first-bf16": {"skipped": reason}},
        {"first-bf16": {"skipped": reason}, "second-bf16": {"steps_measured": 1}},
    ]


def test_without_a_gpu_it_says_what_to_do() -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--shapes", "tiny"]
    environment = {"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "--device cpu --shapes tiny" in done.stderr
