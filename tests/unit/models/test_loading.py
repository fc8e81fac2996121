"""Which files are loaded, in which precision, and which are refused."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from rlhf.config import ModelConfig
from rlhf.errors import CheckpointError, ConfigError
from rlhf.models.loading import build_empty, load_causal_lm
from rlhf.models.source import RunRecord, base_fingerprint, resolve_model
from rlhf.models.tokenizer import load_tokenizer
from tests.support.pages import mapped_from
from tests.support.tiny import build_model


def load(directory: Path, **settings: object) -> torch.nn.Module:
    config = ModelConfig(name=str(directory), **settings)  # type: ignore[arg-type]
    source = resolve_model(config.name)
    return load_causal_lm(source, config, load_tokenizer(source, config))


@pytest.mark.parametrize(
    ("stored", "asked", "found"),
    [
        (torch.bfloat16, "auto", torch.bfloat16 if torch.cuda.is_available() else torch.float32),
        (torch.bfloat16, "bfloat16", torch.bfloat16),
        (torch.bfloat16, "float32", torch.float32),
        (torch.float32, "bfloat16", torch.bfloat16),
    ],
)
def test_precision_is_the_config_s_not_the_checkpoint_s(
    stored: torch.dtype, asked: str, found: torch.dtype, tmp_path: Path
) -> None:
    model = load(build_model(tmp_path / "m", dtype=stored), dtype=asked)
    assert {p.dtype for p in model.parameters()} == {found}


@pytest.mark.parametrize(("asked", "mapped"), [("bfloat16", True), ("float32", False)])
def test_weights_of_the_wanted_precision_are_the_file_s_own_pages(asked: str, mapped: bool, tmp_path: Path) -> None:
    base = build_model(tmp_path / "m", dtype=torch.bfloat16)
    file = base / "model.safetensors"
    model, before = load(base, dtype=asked), file.read_bytes()
    homes = {mapped_from(parameter.data_ptr()) == str(file.resolve()) for parameter in model.parameters()}
    assert homes == {mapped}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    assert file.read_bytes() == before
    assert all(bool((p != 7.0).any()) for p in load(base, dtype=asked).parameters() if p.dim() > 1)


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    model = load(build_model(tmp_path / "m", tie_word_embeddings=True))
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_pickled_weights_are_refused(tiny_base: Path, tmp_path: Path) -> None:
    directory = tmp_path / "pickled"
    directory.mkdir()
    (directory / "config.json").write_text((tiny_base / "config.json").read_text())
    torch.save({}, directory / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"no \.safetensors.*never loaded"):
        resolve_model(str(directory))


def test_remote_code_needs_a_pinned_revision() -> None:
    with pytest.raises(ValueError, match="set revision"):
        ModelConfig(name="some/repo", trust_remote_code=True)
    assert ModelConfig(name="some/repo", trust_remote_code=True, revision="a" * 40).revision


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "runs/none", "builtin:nothing", "no/such/run"])
def test_names_that_lead_nowhere(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.name='{name}'"):
        resolve_model(name)
    with pytest.raises(ConfigError, match=rf"^baseline='{name}'"):
        resolve_model(name, key="baseline")


def test_a_missing_run_is_told_from_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist, .*: train it first, or check the path"):
        resolve_model("runs/none")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file, "):
        resolve_model(str(tmp_path / "file"))


def test_directories_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match="bare adapter"):
        resolve_model(str(tmp_path))


def write_record(run_dir: Path, base: Path, **changes: object) -> RunRecord:
    (run_dir / "adapter").mkdir(parents=True, exist_ok=True)
    (run_dir / "adapter" / "adapter_config.json").write_text("{}")
    fields = {
        "stage": "sft",
        "base": str(base),
        "revision": None,
        "adapter": "adapter",
        "quantization": "none",
        "chat_style": "auto",
        "chat_fingerprint": "f" * 64,
        "base_sha256": base_fingerprint(str(base)),
        **changes,
    }
    record = RunRecord(**fields)  # type: ignore[arg-type]
    record.write(run_dir)
    return record


def test_a_run_is_found_and_a_changed_base_is_refused(tmp_path: Path) -> None:
    base = build_model(tmp_path / "base")
    record = write_record(tmp_path / "run", base)
    source = resolve_model(str(tmp_path / "run"))
    assert source.record == record and source.adapter == tmp_path / "run" / "adapter"
    assert source.tokenizer == str(tmp_path / "run" / "tokenizer")
    build_model(base, seed=1)
    with pytest.raises(CheckpointError, match="fits only the base"):
        resolve_model(str(tmp_path / "run"))


def test_a_run_of_a_relative_base_is_read_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = build_model(tmp_path / "models" / "base")
    monkeypatch.chdir(tmp_path)
    source = resolve_model("models/base")
    assert source.base == str(base), "this is what a run records"
    write_record(tmp_path / "run", Path(source.base))
    old = write_record(tmp_path / "old", Path("models/base"))
    monkeypatch.chdir(tmp_path / "models")
    assert resolve_model(str(tmp_path / "run")).base == str(base)
    monkeypatch.chdir(tmp_path)
    assert old.base == "models/base" and resolve_model("old").base == str(base)


def test_what_a_job_brought_along_stays_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "working_dir_files" / "_ray_pkg_1"
    build_model(place / "models" / "base")
    monkeypatch.chdir(place)
    assert resolve_model("models/base").base == "models/base"


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({"stage": "sft"})])
def test_a_broken_record_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"run\.json is not a run record"):
        resolve_model(str(tmp_path))


def test_record_round_trip(tmp_path: Path, tiny_base: Path) -> None:
    record = write_record(tmp_path / "run", tiny_base)
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == asdict(record)
    assert not list((tmp_path / "run").glob(".*"))


def test_plans_need_no_weights(tiny_base: Path) -> None:
    empty = build_empty(resolve_model(str(tiny_base)), ModelConfig(name=str(tiny_base)))
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert [p.shape for p in empty.parameters()] == [p.shape for p in load(tiny_base).parameters()]
