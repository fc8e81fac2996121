"""Pickles, unread code and foreign adapters are refused by name, and nothing in them ever runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

from rlhf.config import ModelConfig
from rlhf.errors import CheckpointError, ConfigError, RlhfError
from rlhf.models import adapters
from rlhf.models.loading import build_empty, load_causal_lm
from rlhf.models.scorer import RewardSettings, check_reward_run, load_reward_model
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_tokenizer
from rlhf.models.trust import check_files, check_remote_code, code_fingerprint
from tests.support.pickles import bombs, careless, goes_off, open_model, open_run, plant_everywhere
from tests.support.runs import write_run
from tests.support.tiny import build_model, build_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("trust") / "base", num_hidden_layers=1)


def test_a_pickle_in_any_file_of_a_model_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    outcomes = plant_everywhere(base, tmp_path, open_model, extra_folders=(".",))
    assert len(outcomes) >= 2 * 10
    # published models often carry pickled weights beside their safetensors: these are left where they are
    assert careless(outcomes, ("pytorch_model.bin", ".bin", ".pt", ".pth", ".pkl")) == []
    assert all("pickle" in text for text in outcomes.values() if text != "used")


@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_a_pickle_in_any_file_of_a_run_is_refused_by_name(stage: str, base: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", base, stage)
    open_run(run)
    outcomes = plant_everywhere(run, tmp_path, open_run, extra_folders=(".", "adapter", "tokenizer"))
    assert len(outcomes) >= 2 * 20 and careless(outcomes, ()) == []


def test_pickled_weights_alone_are_refused(base: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", base)
    (run / "adapter" / "adapter_model.safetensors").unlink()
    mark = tmp_path / "mark"
    (run / "adapter" / "adapter_model.bin").write_bytes(bombs(mark)["torch"])
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin is a pickled file"):
        resolve_model(str(run))
    with pytest.raises(CheckpointError, match=r"holds no adapter_model\.safetensors; pickled adapters"):
        adapters.read_adapter_file(run / "adapter")
    assert not mark.exists() and goes_off(bombs(mark)["torch"], mark)


def test_an_index_leads_to_no_other_file(base: Path, tmp_path: Path) -> None:
    for shard in ("pytorch_model.bin", "../other/model.safetensors", "/etc/model.safetensors"):
        directory = tmp_path / shard.replace("/", "_")
        shutil.copytree(base, directory)
        index = {"metadata": {}, "weight_map": {"lm_head.weight": shard}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(CheckpointError, match=r"index\.json names"):
            resolve_model(str(directory))


def with_code(base: Path, target: Path, mark: Path, file: str) -> Path:
    shutil.copytree(base, target)
    config = json.loads((target / file).read_text())
    auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil", "AutoTokenizer": ["evil.T", None]}
    (target / file).write_text(json.dumps({**config, "model_type": "evil", "auto_map": auto_map}))
    (target / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    return target


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_runs_only_when_it_was_read_and_pinned(file: str, base: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    directory = with_code(base, tmp_path / "m", mark, file)
    source, pin = resolve_model(str(directory)), code_fingerprint(directory)

    def everything(config: ModelConfig) -> None:
        tokenizer = load_tokenizer(source, config)
        build_empty(source, config)
        load_causal_lm(source, config, tokenizer)

    with pytest.raises(ConfigError, match=rf"{file} wants to run Python files .* model\.revision={pin}"):
        everything(ModelConfig(name=str(directory)))
    with pytest.raises(ConfigError, match="are not the ones that were read"):
        everything(ModelConfig(name=str(directory), trust_remote_code=True, revision="a" * 40))
    assert not mark.exists()
    with pytest.raises((RlhfError, AttributeError)):  # it is allowed now, runs, and has no such class
        everything(ModelConfig(name=str(directory), trust_remote_code=True, revision=pin))
    assert mark.exists(), "the code of this test would not have run anyway"


def test_a_tokenizer_may_repeat_the_code_of_its_base_but_bring_none_of_its_own(base: Path, tmp_path: Path) -> None:
    model = with_code(base, tmp_path / "m", tmp_path / "mark", "config.json")
    tokenizer = with_code(base, tmp_path / "t", tmp_path / "mark", "tokenizer_config.json")
    trusting = ModelConfig(name="m", trust_remote_code=True, revision=code_fingerprint(model))
    check_remote_code((model, tokenizer), trusting)
    (tokenizer / "evil.py").write_text("changed")
    with pytest.raises(ConfigError, match="are not the ones that were read"):
        check_remote_code((model, tokenizer), trusting)
    (tokenizer / "evil.py").unlink()
    check_remote_code((model, tokenizer), trusting)  # it refers to the hub, where the commit is pinned
    with pytest.raises(ConfigError, match="wants to run Python files"):
        check_remote_code((tokenizer,), ModelConfig(name="m"))


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "abc123", "A" * 40, "a" * 39])
def test_only_a_full_commit_pins(revision: str | None) -> None:
    with pytest.raises(ValueError, match="full commit hash"):
        ModelConfig(name="some/repo", trust_remote_code=True, revision=revision)


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    other = build_model(tmp_path / "other", num_hidden_layers=1, seed=3)
    twin = shutil.copytree(base, tmp_path / "twin")
    run = write_run(tmp_path / "run", base)
    path = run / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text())
    for named, fits in ((str(other), False), ("some/repo", False), (7, False), (str(twin), True), (None, True)):
        path.write_text(json.dumps({**settings, "base_model_name_or_path": named}))
        if fits:
            assert resolve_model(str(run)).base == str(base)
        else:
            with pytest.raises(CheckpointError, match=r"adapter_config\.json belongs to the base"):
                resolve_model(str(run))
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "base": str(other)}))
    with pytest.raises(CheckpointError, match="fits only the base"):
        resolve_model(str(run))


def test_a_run_on_the_shipped_base_moves_to_a_machine_where_the_package_lies_elsewhere(tmp_path: Path) -> None:
    shipped = Path(resolve_model("builtin:helpline_base").base)
    run = write_run(tmp_path / "run", shipped)
    record = json.loads((run / "run.json").read_text())
    assert record["base"] == "builtin:helpline_base"
    path = run / "adapter" / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "base_model_name_or_path": "/elsewhere/rlhf/assets/helpline_base"}))
    assert resolve_model(str(run)).base == str(shipped)
    path.write_text(json.dumps({**settings, "base_model_name_or_path": "/elsewhere/other_base"}))
    with pytest.raises(CheckpointError, match="belongs to the base"):
        resolve_model(str(run))
    path.write_text(json.dumps(settings))
    (run / "run.json").write_text(json.dumps({**record, "base": "builtin:../../nowhere"}))
    with pytest.raises((CheckpointError, ConfigError, FileNotFoundError)):
        resolve_model(str(run))


@pytest.mark.parametrize("change", ["vocabulary", "template", "special"])
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_a_swapped_tokenizer_is_refused(stage: str, change: str, base: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", base, stage, chat_style="auto")
    tokenizer = build_tokenizer(vocab_size=290 if change == "vocabulary" else 300)
    if change == "template":
        tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + m['content'] + eos_token }}{% endfor %}"
    if change == "special":
        tokenizer.eos_token = "<s>"
    tokenizer.save_pretrained(run / "tokenizer")
    use = check_reward_run if stage == "reward" else open_run
    with pytest.raises(CheckpointError, match="is not the tokenizer that run"):
        use(run)
    if stage == "reward":
        with pytest.raises(CheckpointError, match="is not the tokenizer that run"):
            load_reward_model(run)


def test_a_reward_run_is_checked_without_its_base(base: Path, tmp_path: Path) -> None:
    check_reward_run(write_run(tmp_path / "good", base, "reward"))
    with pytest.raises(CheckpointError, match="not a finished reward run"):
        check_reward_run(write_run(tmp_path / "sft", base))
    headless = write_run(tmp_path / "headless", base)
    record = resolve_model(str(headless)).record
    assert record is not None
    replace(record, stage="reward").write(headless)
    RewardSettings(0.0, 1.0, 4, "float32", {}).write(headless / "adapter")
    with pytest.raises(CheckpointError, match="no reward head"):
        check_reward_run(headless)
    for std in (0, -1, "1", None, float("nan")):
        fields = {"mean": 0.0, "std": std, "num_samples": 1, "dtype": "float32"}
        (headless / "adapter" / "reward.json").write_text(json.dumps(fields))
        with pytest.raises(CheckpointError, match=r"reward\.json"):
            check_reward_run(headless)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\x00" * 100),
        ("config.json", b"[]"),
        ("config.json", b"[" * 100_000),
        ("tokenizer.json", b'"x"'),
        ("vocab.json", b"\xff"),
        ("chat_template.jinja", b"\xff\xfe"),
        ("model.safetensors.index.json", b"{}"),
    ],
)
def test_broken_files_are_named(name: str, content: bytes, base: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(base, tmp_path / "m")
    (directory / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        check_files(directory)


@pytest.mark.parametrize(
    "changes", [{"base": 3}, {"adapter": "/etc"}, {"adapter": "../other"}, {"adapter": []}, {"chat_fingerprint": None}]
)
def test_a_record_with_wrong_fields_is_refused(changes: dict[str, object], base: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", base)
    record = resolve_model(str(run)).record
    assert record is not None
    (run / "run.json").write_text(json.dumps({**asdict(record), **changes}))
    with pytest.raises(CheckpointError, match=r"run\.json is not a run record"):
        resolve_model(str(run))


def test_an_adapter_that_is_not_there(base: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", base)
    shutil.rmtree(run / "adapter")
    with pytest.raises(CheckpointError, match="adapter does not exist"):
        resolve_model(str(run))
    (run / "adapter").mkdir()
    save_file({}, run / "adapter" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json cannot be read"):
        resolve_model(str(run))
