"""``rlhf plan`` as people call it: fits or not, what to change, cost; without torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.plan import main, make_plan, parse_memory
from cluster.plan_cost import GPUS, backward_factor, pass_flops
from cluster.plan_fit import changed
from cluster.shapes import SHAPES
from rlhf.config import load_config
from rlhf.errors import ConfigError
from rlhf.models.source import RunRecord
from scripts import plan_table
from tests.support.planned import plan

ROOT = Path(__file__).parents[3]
PPO = str(ROOT / "configs/ppo/7b_lora_zero3_8gpu.yaml")
SFT = str(ROOT / "configs/sft/full_1b_zero3_8gpu.yaml")


def test_seven_billion_on_eight_large_gpus_fits(capsys: pytest.CaptureFixture[str]) -> None:
    code, found = plan(
        capsys, "--config", PPO, "--shape", "qwen2.5-7b", "--gpus", "8", "--memory", "80GiB", "--price", "2.5"
    )
    assert code == 0 and found["fits"] and found["gpus_needed"] == 8
    trainer, rollout = found["roles"]
    assert rollout["weights"] == 2 * 7_615_616_512
    assert trainer["weights"] == pytest.approx(2 * 7_615_616_512 / 4, rel=0.02)
    estimate = found["estimate"]
    assert estimate["steps"] == 200 and estimate["updates"] == 200 * 2 * 4
    assert estimate["cost"] == pytest.approx(2.5 * estimate["gpu_hours"])


def test_the_advice_fits_and_nothing_in_it_is_superfluous(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--config", PPO, "--shape", "qwen2.5-14b", "--memory", "24GiB"]
    code, found = plan(capsys, *small)
    assert code == 1 and not found["fits"] and found["changes"]
    overrides = {key: str(value).lower() for key, value in found["changes"].items()}
    code, again = plan(capsys, *small, *(f"{k}={v}" for k, v in overrides.items()))
    assert code == 0 and again["fits"]
    for left_out in overrides:
        fewer = [f"{k}={v}" for k, v in overrides.items() if k != left_out]
        assert plan(capsys, *small, *fewer)[0] == 1, f"{left_out} is not needed"


def test_activations_are_those_of_the_largest_pass(capsys: pytest.CaptureFixture[str]) -> None:
    def activations(*overrides: str) -> float:
        words = ["model.gradient_checkpointing=false", *overrides]
        return plan(capsys, "--config", PPO, "--shape", "qwen2.5-0.5b", *words)[1]["roles"][0]["activations"]

    plain = activations()
    ptx = ("ptx.train=talks.jsonl", "ptx.sequences_per_update=8")
    assert activations(*ptx, "ptx.max_sequence_tokens=16") == plain, "short demonstrations: PPO's passes are larger"
    assert activations(*ptx, "ptx.max_sequence_tokens=32768") > 2 * plain
    few, many = (activations(f"batch.microbatch_tokens_per_gpu={tokens}") for tokens in (4096, 16384))
    assert 3.5 * few < many <= 4 * few  # a chunk of logits is as large, whatever the pass


def test_reward_models_of_their_own_have_workers_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    def roles(*rest: str) -> dict[str, Any]:
        found = plan(capsys, "--config", PPO, "--shape", "llama-7b", *rest)[1]
        return {role["role"]: role for role in found["roles"]} | {"gpus": found["gpus_needed"], "notes": found["notes"]}

    shared = roles("roles.layout=shared")
    assert "scorer" not in shared and shared["gpus"] == 8
    assert {k: v for k, v in roles().items()} == shared, "auto is shared where nothing speaks against it"
    small = roles("--reward-shape", "llama-3.2-1b", "placement.num_scorer_workers=2")
    tied = SHAPES["llama-3.2-1b"].parameters
    assert small["scorer"]["weights"] == pytest.approx(2 * tied, rel=0.001) and small["gpus"] == 10
    assert small["trainer"]["adapters"] < shared["trainer"]["adapters"], "no reward adapter on the ranks"
    assert small["trainer"]["weights"] == shared["trainer"]["weights"], "and no second base"
    same = roles("roles.layout=separate", "placement.gpus_per_scorer_worker=0.5")
    assert same["gpus"] == 8.5 and any("policy's shape" in note for note in same["notes"])
    with pytest.raises(ConfigError, match=r"roles\.layout=shared has room for one"):
        roles("--reward-shape", "llama-3.2-1b", "roles.layout=shared")


def test_a_critic_on_a_base_of_its_own_has_ranks_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def found(*rest: str) -> tuple[dict[str, Any], dict[str, Any]]:
        plain = plan(capsys, "--config", PPO, "--shape", "llama-3.2-1b", *rest)[1]
        return {role["role"]: role for role in plain["roles"]}, plain

    shared, before = found("engine.zero_stage=2")
    apart = ("--critic-shape", "llama-7b", "roles.critic=runs/reward_7b", "placement.num_critic_ranks=2")
    roles, after = found(*apart, "engine.zero_stage=2")
    assert "critic" not in shared and roles["critic"]["processes"] == 2
    assert after["gpus_needed"] == before["gpus_needed"] + 2
    assert roles["critic"]["weights"] == pytest.approx(2 * SHAPES["llama-7b"].parameters)
    assert roles["trainer"]["optimizer"] < 0.6 * shared["trainer"]["optimizer"], "the ranks hold no critic"
    assert roles["trainer"]["activations"] < shared["trainer"]["activations"]
    four, _ = found(*apart, "engine.zero_stage=2", "placement.num_critic_ranks=4")
    assert four["critic"]["optimizer"] == pytest.approx(roles["critic"]["optimizer"] / 2, rel=1e-3)
    cut, _ = found(*apart, "engine.zero_stage=3")
    assert cut["critic"]["weights"] == pytest.approx(roles["critic"]["weights"] / 2, rel=0.01)
    seconds = after["estimate"]["seconds"]
    assert seconds["learn"] > 2 * before["estimate"]["seconds"]["learn"], "the larger critic is waited for"
    large = ("--gpu", "l4", "--critic-shape", "llama-3-70b", "roles.critic=runs/reward_70b")
    assert main(["--config", PPO, "--shape", "llama-3.2-1b", *large]) == 1
    answer = capsys.readouterr().out
    assert re.search(r"would fit with engine.zero_stage=3 .*num_ranks=(\d+) placement.num_critic_ranks=\1 and", answer)
    assert "held as that run was trained" in answer
    with pytest.raises(ConfigError, match=r"'runs/reward_7b' is not known here; give --critic-shape"):
        found("roles.critic=runs/reward_7b")
    with pytest.raises(ConfigError, match=r"--critic-shape needs roles\.critic"):
        found("--critic-shape", "llama-7b")


def test_too_few_gpus_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", PPO, "--shape", "llama-7b", "--gpus", "2"]) == 1
    assert "asks for 8 GPUs, 2 are there" in capsys.readouterr().out


@pytest.mark.parametrize(("gpu", "answer"), [("a100", "It would fit with engine.zero_stage=3"), ("t4", "No setting")])
def test_seventy_billion_whole_on_one_card(gpu: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    rest = ["--config", SFT, "--shape", "llama-3-70b", "--gpu", gpu, "--rows", "10", "placement.num_ranks=1"]
    assert main(rest) == 1
    assert answer in capsys.readouterr().out


def test_sharing_a_gpu_halves_the_limit() -> None:
    shares = ["placement.gpus_per_rank=0.5", "placement.gpus_per_rollout_worker=0.5"]
    config = load_config("ppo", PPO, ["placement.layout=colocated", *shares])
    report = make_plan(config, shape=SHAPES["llama-7b"], gpus=4, speed=GPUS["a100"])
    assert report.needed == 4
    assert report.budget.limit(report.roles[0]) == report.budget.usable_bytes / 2


def test_a_rollout_worker_on_a_ranks_gpu_needs_no_base_of_its_own() -> None:
    def weights(*words: str) -> float:
        sharing = ["placement.layout=colocated", "placement.gpus_per_rank=0.6", "placement.gpus_per_rollout_worker=0.4"]
        config = load_config("ppo", "configs/ppo/qlora_7b_1gpu.yaml", [*sharing, *words])
        return make_plan(config, shape=SHAPES["llama-7b"], gpus=1, speed=GPUS["a100"]).roles[1].memory.weights

    assert weights() == 0
    assert weights("placement.layout=split") > 3 * 2**30
    assert weights("engine.zero_stage=3") > 3 * 2**30, "a piece is nothing to lend"
    assert weights("placement.gpus_per_rank=1", "placement.gpus_per_rollout_worker=1") > 3 * 2**30


def test_an_engine_over_several_gpus_is_counted_on_all_of_them() -> None:
    def report(*words: str) -> Any:
        config = load_config("ppo", PPO, ["rollout.engine=vllm", "placement.gpus_per_rollout_worker=null", *words])
        return make_plan(config, shape=SHAPES["llama-7b"], gpus=None, speed=GPUS["a100"])

    one, four = report(), report("rollout.tensor_parallel=4")
    rollout = four.roles[1]
    assert (rollout.gpus_each, four.needed) == (4, one.needed + 3 * rollout.processes)
    assert rollout.memory.weights == one.roles[1].memory.weights / 4


def test_a_borrowed_base_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    one = ("--config", "configs/ppo/qlora_7b_1gpu.yaml", "--shape", "llama-7b")
    told = [any("base of the rank on their GPU" in n for n in plan(capsys, *one, *words)[1]["notes"])
            for words in ((), ("placement.layout=split",))]  # fmt: skip
    assert told == [True, False]


def test_gates_that_are_made_again_are_not_kept() -> None:
    def activations(*words: str) -> float:
        plain = ["model.gradient_checkpointing=false", "engine.zero_stage=1", "model.quantization=none", *words]
        config = load_config("ppo", PPO, plain)
        return make_plan(config, shape=SHAPES["qwen2.5-7b"], gpus=8, speed=GPUS["h100"]).roles[0].memory.activations

    assert activations("roles.recompute_feed_forward=true") < 0.45 * activations()


def test_each_setting_moves_its_part() -> None:
    config = load_config("ppo", PPO)
    shape = SHAPES["qwen2.5-7b"]

    def trainer(**changes: Any) -> Any:
        new = changed(config, {key.replace("__", "."): value for key, value in changes.items()})
        return make_plan(new, shape=shape, gpus=8, speed=GPUS["a100"]).roles[0].memory

    plain = trainer()
    assert trainer(engine__zero_stage=0).weights > 3.8 * plain.weights
    assert trainer(engine__offload_optimizer=True).optimizer == 0 < trainer(engine__offload_optimizer=True).host
    assert trainer(model__gradient_checkpointing=False).activations > 2 * plain.activations
    assert trainer(model__quantization="nf4").weights < 0.45 * plain.weights
    whole = trainer(model__gradient_checkpointing=False).activations
    alone = trainer(model__gradient_checkpointing=False, advantage__method="reinforce_plus_plus").activations
    assert alone < 0.8 * whole, "without a critic one pass is kept, not two"
    assert trainer(engine__offload_parameters=True).weights == 0


def test_a_whole_policy_is_a_second_model_with_its_training_state() -> None:
    config = load_config("ppo", PPO)
    shape = SHAPES["llama-7b"]

    def roles(**changes: Any) -> Any:
        new = changed(config, {"engine.zero_stage": 0, **changes})
        return make_plan(new, shape=shape, gpus=8, speed=GPUS["a100"]).roles

    (trainer, rollout), (whole, workers) = roles(), roles(policy_weights="full")
    assert whole.memory.weights == pytest.approx(2 * trainer.memory.weights)
    assert whole.memory.adapters < trainer.memory.adapters
    moments = whole.memory.optimizer - trainer.memory.optimizer
    assert moments == pytest.approx(8 * shape.parameters, rel=0.02), "Adam's two fp32 moments of every weight"
    assert workers.memory.adapters == 0 < rollout.memory.adapters


def test_floating_point_operations_of_a_known_model() -> None:
    """Six per parameter and token for training a whole model; the embedding table is no matrix product."""
    shape = SHAPES["llama-7b"]
    flops = pass_flops(shape, 1.0, 1)
    products = shape.parameters - shape.vocab * shape.hidden
    assert flops == pytest.approx(2 * products, rel=0.001)
    assert flops * backward_factor(full=True, checkpointing=False) == pytest.approx(6 * products, rel=0.001)


@pytest.mark.parametrize(("text", "size"), [("80GiB", 80 * 2**30), ("24 GB", 24e9), ("16", 16 * 2**30)])
def test_sizes_of_memory(text: str, size: float) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "0", "much", "-3GiB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="80GiB"):
        parse_memory(text)


def test_planning_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from cluster.plan import main; "
        f"main(['--config', {PPO!r}, '--shape', 'llama-7b']); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'ray', 'transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Fits" in done.stdout


def test_the_page_of_the_docs_is_what_the_model_says_today() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/plan_table.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_on_a_single_gpu_the_page_counts_both_who_share_it() -> None:
    alone, apart = (plan_table.report("PPO, LoRA", "llama-7b", gpus) for gpus in (1, 2))
    trainer, rollout = (role.memory.total for role in alone.roles)
    assert plan_table.fullest_gpu(alone) == trainer + rollout
    assert alone.roles[1].memory.weights == 0, "one base for both"
    assert plan_table.fullest_gpu(apart) == max(role.memory.total for role in apart.roles)
    large = plan_table.report("PPO, LoRA", "qwen2.5-32b", 1)
    assert all(role.memory.total < large.budget.usable_bytes for role in large.roles)
    assert plan_table.cell(large) == "77", "each alone would fit, both do not"


def test_what_is_taken_for_granted_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    _, found = plan(capsys, "--config", PPO, "--shape", "llama-7b", "lora.method=lokr")
    assert any("lora.method=lokr" in note for note in found["notes"])
    assert any("--reward-shape" in note for note in found["notes"])
    _, found = plan(capsys, "--config", PPO, "--shape", "llama-7b", "--reward-shape", "llama-3.2-1b")
    assert found["notes"] == []
    for quantization, shared in (("none", True), ("int8", False)):
        order = ("--config", PPO, "--shape", "llama-3.2-1b", "--gpus", "0", f"model.quantization={quantization}")
        _, found = plan(capsys, *order)
        assert any("once per host" in note for note in found["notes"]) is shared


def test_the_rows_counted_are_those_that_a_stage_uses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "p", "completion": "c"}\n' * 1000)

    def steps(config: str, *words: str) -> dict[str, Any]:
        return plan(capsys, "--config", str(ROOT / config), "--shape", "qwen2.5-0.5b", "--gpu", "a100", *words)[1]

    def sft(*words: str) -> int:
        more = [f"data.train={rows}", "num_epochs=1", "max_steps=null", "batch.minibatch_sequences=8",
                "batch.microbatch_sequences_per_gpu=1", "placement.num_ranks=1", *words]  # fmt: skip
        return steps("configs/sft/qlora_7b_1gpu.yaml", *more)["estimate"]["steps"]

    assert sft("data.eval_fraction=0") == 125
    assert sft("data.eval_fraction=0.2") == 100
    assert sft("data.eval_fraction=0.2", f"data.evaluation={rows}") == 125
    assert sft("data.eval_fraction=0.5", "data.limit=160") == 10
    assert sft("data.eval_fraction=0", "data.limit=17", "num_epochs=0.5") == 2, "rounded up, as the stage does"
    evaluate = ("configs/evaluate/tiny_cpu.yaml", f"prompts={rows}", "microbatch_sequences=1",
                "placement.num_rollout_workers=1")  # fmt: skip
    assert steps(*evaluate, "limit=null")["estimate"]["steps"] == 2000
    assert steps(*evaluate, "limit=30")["estimate"]["steps"] == 60


def test_dpo_holds_and_reads_a_reference(capsys: pytest.CaptureFixture[str]) -> None:
    def found(stage: str, *words: str) -> tuple[dict[str, Any], dict[str, Any]]:
        more = ["--shape", "llama-3.2-1b", "--rows", "640", "data.max_sequence_tokens=1024", "engine.zero_stage=2"]
        path = str(ROOT / f"configs/{stage}/qlora_7b_1gpu.yaml")
        report = plan(capsys, "--config", path, *more, "model.quantization=none", *words)[1]
        return report["roles"][0], report["estimate"]

    (reward, cheap), (dpo, dear) = found("reward"), found("dpo")
    assert dpo["adapters"] == pytest.approx(2 * reward["adapters"], rel=0.001), "the reference is an adapter more"
    assert dear["steps"] == cheap["steps"] and dear["tokens"] == cheap["tokens"]
    # of forward passes: 2 for the policy and 1 for recomputing; the reference costs one more
    assert dear["seconds"]["learn"] == pytest.approx(4 / 3 * cheap["seconds"]["learn"], rel=0.001)
    whole, _ = found("dpo", "lora=null")
    assert whole["weights"] + whole["adapters"] == pytest.approx(2 * dpo["weights"], rel=0.001), "two whole models"


def test_a_run_s_quantization_is_taken_over_as_its_stage_does(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "sft"
    run.mkdir()
    RunRecord("sft", str(tiny_model_dir), None, "adapter", "nf4", "auto", "f" * 64, "f" * 64).write(run)
    words = ["--config", str(ROOT / "configs/dpo/tiny_cpu.yaml"), "--rows", "64", "--memory", "1GiB"]
    given = plan(capsys, *words, f"model.name={tiny_model_dir}", "model.quantization=nf4")[1]
    taken = plan(capsys, *words, f"model.name={run}")[1]
    assert taken["roles"] == given["roles"]
    assert taken["roles"] != plan(capsys, *words, f"model.name={tiny_model_dir}")[1]["roles"]
    plain = RunRecord("sft", str(tiny_model_dir), None, "adapter", "nf4", "auto", "f" * 64, "f" * 64, False)
    plain.write(run)
    single = plan(capsys, *words, f"model.name={run}")[1]["roles"]
    own = [f"model.name={tiny_model_dir}", "model.quantization=nf4", "model.double_quantization=false"]
    assert single == plan(capsys, *words, *own)[1]["roles"] != taken["roles"]
    with pytest.raises(ConfigError, match=r"leave model\.quantization out"):
        main([*words, f"model.name={run}", "model.quantization=int8"])


def test_packed_rows_are_an_upper_bound(capsys: pytest.CaptureFixture[str]) -> None:
    def found(packing: str) -> dict[str, Any]:
        return plan(capsys, "--config", SFT, "--shape", "qwen2.5-0.5b", "--rows", "100", f"packing={packing}")[1]

    assert found("true")["estimate"]["upper_bound"] and any("--dry-run" in note for note in found("true")["notes"])
    assert not found("false")["estimate"]["upper_bound"]
    main(["--config", SFT, "--shape", "qwen2.5-0.5b", "--rows", "100", "packing=true"])
    assert "at most" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "value"), [
    ("gpus", "-1"), ("reserve", "2"), ("reserve", "nan"), ("utilization", "0"), ("utilization", "1.5"), ("rows", "-3"),
    ("rows", "0"), ("price", "-1"),
])  # fmt: skip
def test_numbers_that_no_run_could_have_are_refused(option: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^--{option} {value} must be "):
        main(["--config", SFT, "--shape", "qwen2.5-7b", f"--{option}", value])


def test_the_advice_to_share_gpus_can_be_followed(capsys: pytest.CaptureFixture[str]) -> None:
    """Fractions alone put two ranks on one GPU, which NCCL refuses; a stage with one role has nobody to share with."""
    few = ["--config", PPO, "--shape", "llama-7b", "--gpu", "h100", "--gpus", "4",
           "rollout.microbatch_sequences=16"]  # fmt: skip
    assert main(few) == 1
    told = " ".join(capsys.readouterr().out.split())
    advice = re.findall(r"placement\.(?:layout|gpus_per)\S*=[\w.]*\w", told)
    assert advice[0] == "placement.layout=colocated" and len(advice) == 3
    assert main([*few, *advice]) == 0
    capsys.readouterr()
    assert main(["--config", SFT, "--shape", "llama-7b", "--gpu", "h100", "--gpus", "4", "--rows", "10"]) == 1
    told = " ".join(capsys.readouterr().out.split())
    assert "Lower placement.num_ranks." in told and "colocated" not in told
