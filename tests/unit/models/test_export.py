"""An exported model is the trained model, or it is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from rlhf.config import LoraConfig, ModelConfig
from rlhf.data.chat import chat_format
from rlhf.data.schema import Message
from rlhf.errors import CheckpointError, ConfigError
from rlhf.models import adapters
from rlhf.models.export import export_run, open_run, probe_batch
from rlhf.models.loading import load_causal_lm
from rlhf.models.scorer import RewardSettings, load_reward_model
from rlhf.models.source import ModelSource, RunRecord, base_fingerprint, resolve_model
from rlhf.models.tokenizer import load_tokenizer
from rlhf.stages.export import main
from tests.support.tiny import build_model

ROOT = Path(__file__).parents[3]
SCALE = 0.15


def make_run(
    base: Path, directory: Path, *, stage: str = "ppo", quantization: str = "none", lora: LoraConfig | None = None
) -> Path:
    """A finished run with a random adapter, and a reward model's head where it is one."""
    config = ModelConfig.model_validate({"name": str(base), "quantization": quantization, "dtype": "float32"})
    source = ModelSource(str(base), None, str(base))
    tokenizer = load_tokenizer(source, config)
    peft_config = adapters.peft_config(lora or LoraConfig(r=4, alpha=8))
    model = adapters.attach(load_causal_lm(source, config, tokenizer), peft_config, "default")
    generator = torch.Generator().manual_seed(3)
    state = {
        key: torch.randn(p.shape, generator=generator) * SCALE
        for key, p in adapters.adapter_parameters(model, "default")
    }
    directory.mkdir(parents=True)
    if stage == "reward":
        state["score.weight"] = torch.randn(1, 64, generator=generator)
        peft_config.task_type = "SEQ_CLS"
    adapters.save_adapter_file(directory / "adapter", peft_config, str(base), state)
    if stage == "reward":
        RewardSettings(0.5, 2.0, 10, "float32", {}).write(directory / "adapter")
    tokenizer.save_pretrained(directory / "tokenizer")
    RunRecord(
        stage, str(base), None, "adapter", quantization, "default",
        chat_format(tokenizer, "default").fingerprint(), base_fingerprint(str(base)),
    ).write(directory)  # fmt: skip
    return directory


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(probe_batch(300)).logits


@pytest.fixture(scope="module")
def run(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tiny_base, tmp_path_factory.mktemp("export") / "ppo")


def live_logits(run: Path) -> torch.Tensor:
    """The run's adapter on its base, by other means than the export's."""
    source = resolve_model(str(run))
    base = AutoModelForCausalLM.from_pretrained(source.base)
    model = adapters.attach(base, adapters.read_peft_config(run / "adapter"), "x")
    adapters.write_adapter(model, "x", adapters.read_adapter_file(run / "adapter")[0])
    return logits(model)


def test_a_merged_export_stands_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "merged"
    assert main([str(run), "--merge", "--output", str(out)]) == 0
    model = AutoModelForCausalLM.from_pretrained(out)
    expected = live_logits(run)
    assert float((logits(model) - expected).abs().max()) < 2e-5
    base = AutoModelForCausalLM.from_pretrained(resolve_model(str(run)).base)
    assert float((logits(base) - expected).abs().max()) > 1, "the adapter moves this model: a copied base would show"
    report = json.loads((out / "export.json").read_text("utf-8"))
    assert report["kind"] == "merged" and report["max_difference"] < 2e-5 and report["max_logit"] > 1
    shown = capsys.readouterr().out
    assert "maximal logit difference, reloaded export against live model:" in shown
    assert {path.suffix for path in out.iterdir()} == {".safetensors", ".json", ".jinja"}
    with safe_open(out / "model.safetensors", "pt") as weights:
        assert not [name for name in weights.keys() if "lora" in name or "base_layer" in name]  # noqa: SIM118


def test_files_that_are_here_are_read_and_written_without_bars(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run), "--merge", "--output", str(tmp_path / "out")]) == 0
    source = resolve_model(str(run))
    config = ModelConfig(name=source.base)
    load_causal_lm(source, config, load_tokenizer(source, config))
    assert capsys.readouterr().err == ""
    assert transformers_logging.is_progress_bar_enabled(), "downloads keep theirs"


def test_template_and_generation_settings_travel(run: Path, tmp_path: Path) -> None:
    export_run(open_run(str(run)), tmp_path / "out", merge=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    chat = chat_format(tokenizer, "model")
    trained = chat_format(AutoTokenizer.from_pretrained(run / "tokenizer"), "default")
    assert tokenizer.chat_template == trained.template and chat.stop_ids == trained.stop_ids
    settings = GenerationConfig.from_pretrained(tmp_path / "out")
    assert settings.eos_token_id == list(trained.stop_ids) and settings.pad_token_id == tokenizer.pad_token_id
    assert resolve_model(str(tmp_path / "out")).base == str(tmp_path / "out"), "an export is a base for the next run"


def test_an_adapter_export_names_its_base(run: Path, tmp_path: Path) -> None:
    report = export_run(open_run(str(run)), tmp_path / "out", merge=False)
    assert report.kind == "adapter" and report.max_difference < 1e-5
    saved = json.loads((tmp_path / "out" / "adapter_config.json").read_text("utf-8"))
    assert saved["base_model_name_or_path"] == resolve_model(str(run)).base
    assert not (tmp_path / "out" / "config.json").exists()


def test_a_4_bit_run_merges_onto_the_dequantized_base(tiny_base: Path, tmp_path: Path) -> None:
    run = make_run(tiny_base, tmp_path / "run", quantization="nf4")
    report = export_run(open_run(str(run)), tmp_path / "out", merge=True)
    assert report.max_difference < 0.02
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"))
    onto_original = float((live_logits(run) - found).abs().max())
    assert onto_original > 5 * report.max_difference, "the original weights are others than those it was trained on"
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))


@pytest.mark.parametrize("modules", ["all-linear", ("q_proj", "lm_head")], ids=["body", "head"])
def test_tied_embeddings(modules: str | tuple[str, ...], tmp_path: Path) -> None:
    base = build_model(tmp_path / "tied", tie_word_embeddings=True)
    run = make_run(base, tmp_path / "run", lora=LoraConfig(r=4, alpha=8, target_modules=modules))
    report = export_run(open_run(str(run)), tmp_path / "out", merge=True)
    assert report.max_difference < 2e-5
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert float((logits(model) - live_logits(run)).abs().max()) < 2e-5
    assert model.config.tie_word_embeddings is (modules == "all-linear")


def test_bfloat16_weights_are_asked_for(run: Path, tmp_path: Path) -> None:
    report = export_run(open_run(str(run)), tmp_path / "out", merge=True, dtype="bfloat16", max_difference=1.0)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    assert report.max_difference > 1e-4


def test_a_reward_run_becomes_a_classifier(tiny_base: Path, tmp_path: Path) -> None:
    run = make_run(tiny_base, tmp_path / "reward", stage="reward")
    report = export_run(open_run(str(run)), tmp_path / "out", merge=True)
    assert report.kind == "classifier" and report.max_difference < 2e-5
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    ids = [5, 60, 70, 80, 1]
    with torch.no_grad():
        raw = float(model(torch.tensor([ids])).logits)
    assert raw == pytest.approx(load_reward_model(run).raw_scores([ids])[0], abs=1e-4)
    assert json.loads((tmp_path / "out" / "reward.json").read_text("utf-8"))["mean"] == 0.5
    with pytest.raises(ConfigError, match="export it with --merge"):
        export_run(open_run(str(run)), tmp_path / "other", merge=False)


def test_the_page_s_programs_read_what_was_written(
    run: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = make_run(tiny_base, tmp_path / "made", stage="reward")
    monkeypatch.chdir(tmp_path)
    export_run(open_run(str(run)), Path("runs/ppo/export"), merge=True)
    export_run(open_run(str(run)), Path("adapters/helpline"), merge=False)
    export_run(open_run(str(reward)), Path("runs/reward/export"), merge=True)
    _, *blocks = (ROOT / "docs/export.md").read_text("utf-8").split("```python\n")
    texts, told = [block.partition("```")[0] for block in blocks], []
    spaces: list[dict[str, Any]] = [{"print": told.append} for _ in texts]
    for text, space in zip(texts, spaces, strict=True):
        exec(text, space)
    generating, adapted, scoring = spaces
    assert len(told) == 1 and generating["answer"].shape[1] > generating["ids"]["input_ids"].shape[1]
    assert float((logits(adapted["model"]) - live_logits(run)).abs().max()) < 1e-5
    own = load_reward_model(reward).score_texts([([Message("user", "Hello")], "Hi.")])[0]
    assert scoring["score"] == pytest.approx(own, abs=1e-4)


def test_refusals(run: Path, tiny_base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"differ .* nothing was left") as refused:
        export_run(open_run(str(run)), tmp_path / "out", merge=True, max_difference=0.0)
    assert refused.value.exit_code == 4 and not (tmp_path / "out").exists()
    critic = tmp_path / "critic"
    critic.mkdir()
    (critic / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="value head serves training only"):
        open_run(str(critic))
    with pytest.raises(ConfigError, match="RUN='nothing_here': there is no such run here"):
        open_run("nothing_here")
    with pytest.raises(ConfigError, match="not a run directory"):
        open_run(str(tiny_base))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(CheckpointError, match="not empty"):
        export_run(open_run(str(run)), tmp_path / "full", merge=True)


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_that_cannot_be_a_directory_is_refused(place: str, tiny_base: Path, tmp_path: Path) -> None:
    run = make_run(tiny_base, tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"--output .*/file is a file, a directory is wanted"):
        export_run(open_run(str(run)), tmp_path / place, merge=True)
    assert (tmp_path / "file").read_text() == "mine"
