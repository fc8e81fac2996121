"""The shipped base model and the script that builds it."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.data.helpline.corpus import END_MARK, generate_corpus
from rlhf.data.helpline.rows import demonstrations

ROOT = Path(__file__).parents[4]
BASE = ROOT / "rlhf" / "assets" / "helpline_base"
MOST_NATS_PER_TOKEN = 0.55


@pytest.fixture(autouse=True)
def one_deterministic_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_base_model", ROOT / "scripts" / "build_base_model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_base_model"] = module
    spec.loader.exec_module(module)
    return module


def mean_loss(texts: list[str]) -> float:
    """Nats per token of the shipped model on whole documents, each between <s> and </s>."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE).eval()
    nats = num_tokens = 0.0
    for text in texts:
        ids = [tokenizer.bos_token_id, *tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        row = torch.tensor([ids])
        with torch.no_grad():
            nats += float(model(input_ids=row, labels=row).loss) * (len(ids) - 1)
        num_tokens += len(ids) - 1
    return nats / num_tokens


def test_model_is_the_one_on_its_card() -> None:
    digest = hashlib.sha256((BASE / "model.safetensors").read_bytes()).hexdigest()
    assert f"sha256 of model.safetensors | `{digest}`" in (BASE / "README.md").read_text(encoding="utf-8")


def test_model_knows_the_language_of_documents_it_has_not_seen() -> None:
    heldout = generate_corpus(20_000, 100)
    fluent = mean_loss(heldout)
    assert fluent < MOST_NATS_PER_TOKEN
    scrambled = [" ".join(reversed(text.split())) for text in heldout[:20]]
    assert mean_loss(scrambled) > 5 * fluent


def test_tokenizer_has_three_distinct_specials_no_chat_template_and_encodes_anything() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    assert len(tokenizer) == 1024
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer.chat_template is None
    for text in (
        "Ünïcode 🙂\n\ttabs",
        "User: a b\nAssistant: c",
        " ".join(generate_corpus(9, 8)).replace(END_MARK, ""),
    ):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.all_special_ids)
    answers = [row["messages"][1]["content"] for row in demonstrations(0, 300)]
    num_tokens = sum(len(ids) for ids in tokenizer(answers)["input_ids"])
    assert num_tokens < 1.5 * sum(len(re.findall(r"\w+|[^\w\s]", answer)) for answer in answers)
    assert 20 < num_tokens / len(answers) < 40


def test_building_twice_gives_the_same_bytes(script: ModuleType, tmp_path: Path) -> None:
    recipe = script.Recipe(
        steps=3, seed=1, num_documents=400, rows_per_step=4, learning_rate=1e-3, num_heldout_documents=60
    )
    for name in ("a", "b"):
        script.build(tmp_path / name, recipe, threads=1)
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    card = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    assert "medical advice" in card and "--steps 3 --seed 1" in card


def test_learning_rate_warms_up_and_decays(script: ModuleType) -> None:
    recipe = script.Recipe(steps=1000, seed=0, num_documents=1, rows_per_step=1, learning_rate=1.0)
    rates = [script.learning_rate(step, recipe) for step in range(1000)]
    assert rates[0] == pytest.approx(0.05) and rates[20] == pytest.approx(1.0)
    assert all(a < b for a, b in itertools.pairwise(rates[:20]))
    assert all(a > b for a, b in itertools.pairwise(rates[20:]))
    assert math.isclose(rates[-1], 0.02, abs_tol=1e-3)
