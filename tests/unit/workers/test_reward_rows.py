"""Pairs on their way into the trainer, figures on their way out, and the reward head in between."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Trainer

from rlhf.config import ModelConfig, RewardConfig, build_config
from rlhf.config.model import LoraConfig
from rlhf.config.stages import DataConfig
from rlhf.data.chat import chat_format
from rlhf.data.layouts import DEFAULT_CHAT_TEMPLATE
from rlhf.data.schema import Message, PreferenceRow
from rlhf.errors import CheckpointError, DataError
from rlhf.models import adapters
from rlhf.models.scorer import ADAPTER, HEAD, RewardSettings, ScoreHead, build_reward_model, load_reward_model
from rlhf.models.source import RunRecord, base_fingerprint, resolve_model
from rlhf.stages.accuracy import bootstrap_interval, length_baseline, pair_accuracy, wilson_interval
from rlhf.stages.encode import encode_preferences, shortened_prompt
from rlhf.stages.pairs import read_pairs
from rlhf.stages.reward import sequences_to_normalize_on
from rlhf.workers import pair_figures
from rlhf.workers.dpo import DpoStageTrainer
from rlhf.workers.pair_figures import correct_against_majority, held_out_shares
from rlhf.workers.reward import RewardStageTrainer
from rlhf.workers.scorer import Answer, ScorerWorker


def _pair(name: str, prompt: str, chosen: str = "yes", rejected: str = "no", **more: float) -> PreferenceRow:
    return PreferenceRow(name, (Message("user", prompt),), chosen, rejected, **more)  # type: ignore[arg-type]


def test_pairs_of_one_prompt_weigh_together_one(tiny_model_dir: Path) -> None:
    chat = chat_format(AutoTokenizer.from_pretrained(tiny_model_dir), "default")
    rows = [
        _pair("a", "p"),
        _pair("b", "p", "sure", weight=3.0),
        _pair("c", "q", weight=0.5),
        _pair("d", "r", weight=0.0),
    ]
    data, keys = DataConfig(train="x"), {"use_margins": True, "weight_by_prompt": True}
    encoded, _ = encode_preferences(rows, chat, data, **keys)
    assert [row["weight"] for row in encoded] == [0.25, 0.75, 1.0, 0.0]
    plain, _ = encode_preferences(rows, chat, data, use_margins=True, weight_by_prompt=False)
    assert [row["weight"] for row in plain] == [1.0, 3.0, 0.5, 0.0]
    with pytest.raises(DataError, match="weight 0"):
        encode_preferences(rows[3:], chat, data, **keys)


@pytest.mark.parametrize(
    ("side", "said"),
    [("train", "all training pairs"), ("evaluation", r"all held-out \(data\.evaluation\) pairs")],
)
def test_pairs_of_weight_0_alone_are_refused_by_their_side(
    side: str, said: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    data = {}
    for number, name in enumerate(("train", "evaluation")):
        row = {"prompt": f"p {number}", "chosen": "yes", "rejected": "no", "weight": float(name != side)}
        data[name] = str(tmp_path / f"{name}.jsonl")
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    tree = {"run_dir": str(tmp_path / "run"), "model": {"name": str(tiny_model_dir)}, "data": data}
    chat = chat_format(AutoTokenizer.from_pretrained(tiny_model_dir), "default")
    with pytest.raises(DataError, match=f"{said} have weight 0"):
        read_pairs(build_config(RewardConfig, tree, source="test"), chat, tmp_path)


def test_pairs_end_with_the_stop_token_and_are_cut_only_in_the_prompt(tiny_model_dir: Path) -> None:
    chat = chat_format(AutoTokenizer.from_pretrained(tiny_model_dir), "default")
    row = _pair("long", "a question that goes on " * 5, "short", "a longer answer than the other", margin=0.5)
    keys = {"use_margins": False, "weight_by_prompt": True}
    whole, _ = encode_preferences([row], chat, DataConfig(train="x"), **keys)
    limit = len(whole[0]["rejected_ids"]) - 9
    data = DataConfig(train="x", max_sequence_tokens=limit, on_long_row="truncate")
    cut, counts = encode_preferences([row], chat, data, **keys)
    assert counts == {"truncate": 1} and whole[0]["margin"] == 0.0
    prompt, room = row.prompt[0].content.rstrip(), limit - len(chat.encode_response("a longer answer than the other"))
    ends = [chat.encode_prompt((Message("user", prompt[-n:] + " "),)) for n in range(1, len(prompt))]
    shown = [ids for ids in ends if len(ids) <= room][-1]
    assert cut[0]["chosen_ids"] == shown + chat.encode_response("short")
    assert cut[0]["rejected_ids"] == shown + chat.encode_response("a longer answer than the other")
    assert limit - 2 <= len(cut[0]["rejected_ids"]) <= limit
    with pytest.raises(DataError, match="longer than"):
        encode_preferences([row], chat, DataConfig(train="x", max_sequence_tokens=limit), **keys)


TALK = tuple(
    Message(role, f"{role} says {number} things, one after the other")
    for number, role in enumerate(("system", "user", "assistant", "user", "assistant", "user"))
)


@pytest.mark.parametrize("style", ["default", "plain"])
def test_a_shortened_prompt_is_a_prompt_as_ppo_writes_it(style: str, tiny_model_dir: Path) -> None:
    """Begin and turn markers stay, whatever has to go."""
    chat = chat_format(AutoTokenizer.from_pretrained(tiny_model_dir), style)
    words = (Message("text", "word " * 40 + "end"),) if style == "plain" else (Message("user", "word " * 40 + "end"),)
    whole = chat.encode_prompt(words)
    for room in range(1, len(whole) + 1):
        found = shortened_prompt(words, chat, room)
        possible = [words[0].content[-n:] for n in range(1, len(words[0].content) + 1)]
        encoded = [chat.encode_prompt((Message(words[0].role, text),)) for text in possible if text.strip()]
        if room < min(map(len, encoded)):
            assert found is None
        else:
            assert found in encoded and room - 2 <= len(found) <= room, room


def test_whole_exchanges_go_first_and_the_system_message_stays(tiny_model_dir: Path) -> None:
    chat = chat_format(AutoTokenizer.from_pretrained(tiny_model_dir), "default")
    whole, two, one = (chat.encode_prompt((TALK[0], *TALK[first:])) for first in (1, 3, 5))
    assert shortened_prompt(TALK, chat, len(whole)) == whole
    for room in (len(whole) - 1, len(two)):
        assert shortened_prompt(TALK, chat, room) == two
    for room in (len(two) - 1, len(one)):
        assert shortened_prompt(TALK, chat, room) == one
    cut = shortened_prompt(TALK, chat, len(one) - 1)
    last = TALK[-1].content
    assert cut in [chat.encode_prompt((TALK[0], Message("user", last[-n:]))) for n in range(1, len(last))]
    assert shortened_prompt(TALK, chat, 10) is None


def test_the_head_starts_with_deviation_one_over_root_d_plus_one() -> None:
    head = ScoreHead(4095).draw(3)
    assert float(head.weight.detach().std()) == pytest.approx(1 / 64, rel=0.05)
    assert torch.equal(head.weight, ScoreHead(4095).draw(3).weight)
    assert not torch.equal(head.weight, ScoreHead(4095).draw(4).weight)
    hidden = torch.randn(1, 2, 4095)
    expected = hidden @ head.weight.T
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.allclose(head(hidden), expected, atol=1e-5)


@pytest.fixture
def reward_run(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A reward run as the stage leaves it, with random adapter and head."""
    source, config = resolve_model(str(tiny_model_dir)), ModelConfig(name=str(tiny_model_dir))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model = build_reward_model(source, config, tokenizer)
    model.score.draw(0)
    model = adapters.attach(model, adapters.peft_config(LoraConfig(r=4), "SEQ_CLS"), ADAPTER)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    state = {name: p.detach() for name, p in adapters.adapter_parameters(model, ADAPTER)}
    head = next(p for name, p in model.named_parameters() if "score.modules_to_save" in name)
    folder = tmp_path / "run" / "adapter"
    adapters.save_adapter_file(folder, model.peft_config[ADAPTER], source.base, {**state, HEAD: head.detach()})
    RewardSettings(0.5, 2.0, 10, "float32", {"eval_accuracy": 0.7}).write(folder)
    tokenizer.save_pretrained(tmp_path / "run" / "tokenizer")
    chat = chat_format(tokenizer, "default")
    record = RunRecord(
        "reward", source.base, None, "adapter", "none", "default", chat.fingerprint(), base_fingerprint(source.base)
    )
    record.write(tmp_path / "run")
    ids = torch.tensor([chat.encode_prompt((Message("user", "hello"),)) + chat.encode_response("there")])
    with torch.no_grad():
        torch.save(model.eval()(input_ids=ids).logits[0, 0], tmp_path / "expected.pt")
    return tmp_path / "run"


def test_a_reloaded_reward_model_scores_alike_whatever_the_padding(reward_run: Path) -> None:
    scorer = load_reward_model(reward_run, microbatch=3)
    texts = [((Message("user", "hello"),), "there"), ((Message("user", "who are you"),), "a friend of the little dog")]
    expected = (float(torch.load(reward_run.parent / "expected.pt")) - 0.5) / 2.0
    found = scorer.score_texts(texts)
    assert found[0] == pytest.approx(expected, abs=1e-5) and found[0] != pytest.approx(found[1], abs=1e-3)
    assert scorer.score_texts(texts[::-1])[::-1] == pytest.approx(found, abs=1e-5)


def test_a_text_that_the_template_rewrites_is_named_with_its_run_or_left_out(reward_run: Path) -> None:
    scorer = load_reward_model(reward_run)
    thinking = DEFAULT_CHAT_TEMPLATE.replace("message['content'] +", "message['content'].split('</think>')[-1] +")
    assert thinking != DEFAULT_CHAT_TEMPLATE
    scorer.tokenizer.chat_template = thinking
    scorer.chat = chat_format(scorer.tokenizer, "model")
    ask = (Message("user", "hello"),)
    texts = [(ask, "there"), (ask, "hm</think>there"), (ask, "a friend")]
    plain = scorer.score_texts([texts[0], texts[2]])
    with pytest.raises(DataError, match=r"runs?.* cannot read 'hm</think>there'.*with a=b$") as caught:
        scorer.score_texts(texts, can_skip="a=b")
    assert str(reward_run) in str(caught.value) and "chat_style=default" in str(caught.value)
    worker = ScorerWorker.__new__(ScorerWorker)
    worker.scorers = [scorer]
    with pytest.raises(DataError, match=r"every text as it is$"):  # an evaluation cannot leave answers out
        worker.score(texts)
    piece = [Answer(prompt, response, ()) for prompt, response in texts]
    with pytest.raises(DataError, match=r"every text as it is, or leave .* with on_error=drop in its entry of scores$"):
        worker.score_pieces([piece], [False], [False])
    found = scorer.score_texts(texts, skip_unwritable=True)
    assert math.isnan(found[1]) and [found[0], found[2]] == pytest.approx(plain, abs=1e-5)


def test_a_reward_run_without_head_or_settings_is_refused(reward_run: Path) -> None:
    state, _ = adapters.read_adapter_file(reward_run / "adapter")
    config = adapters.read_peft_config(reward_run / "adapter")
    base = resolve_model(str(reward_run)).base
    adapters.save_adapter_file(reward_run / "adapter", config, base, state)
    with pytest.raises(CheckpointError, match="no reward head"):
        load_reward_model(reward_run)
    (reward_run / "adapter" / "reward.json").unlink()
    with pytest.raises(CheckpointError, match=r"reward\.json"):
        load_reward_model(reward_run)


def test_accuracy_counts_ties_half_and_votes_by_their_share() -> None:
    found = pair_accuracy([1.0, -1.0, 0.0, 2.0, -3.0], [1.0, 0.75, 1.0, 0.5, 0.25], list("aabbc"), seed=0)
    assert found["accuracy"] == pytest.approx((1 + 0 + 0.5 + 1) / 4)
    assert (found["num_pairs"], found["num_prompts"], found["num_ties"]) == (4, 3, 1)
    assert found["vote_accuracy"] == pytest.approx((1 + 0.25 + 0.5 + 0.5 + 0.75) / 5)
    assert found["vote_ceiling"] == pytest.approx((1 + 0.75 + 1 + 0.5 + 0.75) / 5)
    signs = correct_against_majority(
        torch.tensor([1.0, -1.0, 0.0, 2.0, -3.0]), torch.tensor([1.0, 0.75, 1.0, 0.5, 0.25])
    )
    assert signs.tolist() == [1.0, 0.0, 0.5, 1.0]


def test_the_curve_and_the_summary_count_the_same_pairs() -> None:
    differences, votes = [1.0, -1.0, 0.0, 2.0, -3.0], [1.0, 0.75, 1.0, 0.5, 0.25]
    curve = held_out_shares(torch.tensor(differences, dtype=torch.float64), torch.tensor(votes))
    summary = pair_accuracy(differences, votes, list("abcde"), seed=0)
    assert curve == pytest.approx({key: summary[key] for key in ("accuracy", "vote_accuracy")})
    assert held_out_shares(torch.ones(2), torch.ones(2)) == {"accuracy": 1.0}, "whole votes: the same figure twice"
    assert "accuracy" not in held_out_shares(torch.ones(2), torch.full((2,), 0.5))


@pytest.mark.parametrize("stage", [DpoStageTrainer, RewardStageTrainer])
def test_a_step_without_a_majority_is_logged_without_an_accuracy(stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[dict[str, float]] = []
    monkeypatch.setattr(pair_figures, "sum_over_ranks", lambda values, device: values)
    monkeypatch.setattr(Trainer, "log", lambda self, logs, start_time=None: logged.append(logs))
    trainer = stage.__new__(stage)
    trainer.settings, trainer.model = SimpleNamespace(beta=0.1), SimpleNamespace(training=True)
    trainer.accelerator = SimpleNamespace(gather=lambda number: number)
    trainer._metrics, trainer._total_train_tokens = {"train": defaultdict(list)}, 0
    for votes in ([0.5, 0.5], [0.5, 1.0], [0.5, 0.5]):
        probability, mask = torch.tensor(votes), torch.ones(4, 3, dtype=torch.bool)
        if stage is DpoStageTrainer:
            trainer._note(torch.arange(4.0), {"probability": probability, "attention_mask": mask})
        else:
            trainer._note(torch.arange(2.0), torch.arange(2.0) + 2, probability)
        trainer.log({"loss": 0.7})
    assert [row.get("accuracy") for row in logged] == [None, 0.0, None]
    assert all(row["reward_margin" if stage is DpoStageTrainer else "score_difference"] < 0 for row in logged)


def test_intervals_against_known_values_and_numpy() -> None:
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)
    generator = np.random.default_rng(0)
    values, groups = generator.random(60), [str(i // 3) for i in range(60)]
    low, high = bootstrap_interval(values.tolist(), groups, seed=1)
    means = values.reshape(20, 3).mean(axis=1)
    draws = np.percentile(means[generator.integers(0, 20, (4000, 20))].mean(axis=1), [2.5, 97.5])
    assert (low, high) == pytest.approx(tuple(draws), abs=0.01) and not math.isnan(low)


def test_the_length_rule_learns_its_direction_on_training_pairs() -> None:
    def row(chosen: int, rejected: int) -> dict:
        return {
            "chosen_ids": [0] * chosen,
            "rejected_ids": [0] * rejected,
            "probability": 1.0,
            "group": str((chosen, rejected)),
        }

    held_out = [row(5, 3), row(2, 8), row(4, 4), row(9, 1)]
    longer = length_baseline([row(3, 1), row(4, 1), row(1, 2)], held_out, seed=0)
    shorter = length_baseline([row(1, 3), row(1, 4), row(2, 1)], held_out, seed=0)
    assert (longer["rule"], longer["accuracy"]) == ("longer", 0.625)
    assert (shorter["rule"], shorter["accuracy"]) == ("shorter", 0.375)


@pytest.mark.parametrize("on_long_row", ["truncate", "drop"])
def test_long_rows_to_normalize_on_keep_their_answers_and_are_accounted_for(
    on_long_row: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    """Scores are read at the last token: it is the answer's stop token, whatever is cut."""
    words, answer = "a question that goes on " * 20, "an answer to it all"
    rows = [
        {"id": "short", "prompt": "Hi", "completion": "Hello"},
        {"id": "long", "prompt": words, "completion": answer},
        {"id": "no room", "prompt": "Hi", "completion": words},
    ]
    pairs = [{"prompt": f"p {n}", "chosen": "yes", "rejected": "no"} for n in range(20)]
    for name, records in (("rows", rows), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records), encoding="utf-8")
    tree = {
        "run_dir": "x",
        "model": {"name": str(tiny_model_dir), "chat_style": "default"},
        "data": {"train": str(tmp_path / "pairs.jsonl"), "max_sequence_tokens": 40, "on_long_row": on_long_row},
        "normalize_on": str(tmp_path / "rows.jsonl"),
    }
    config = build_config(RewardConfig, tree, source="test")
    chat = chat_format(AutoTokenizer.from_pretrained(tiny_model_dir), "default")
    train = read_pairs(config, chat, tmp_path).train
    samples, counts = sequences_to_normalize_on(config, train, chat, tmp_path)
    truncates = on_long_row == "truncate"
    assert len(samples) == counts["normalize"] == (2 if truncates else 1)
    stop = chat.encode_response(answer)[-1]
    assert all(ids[-1] == stop and len(ids) <= 40 for ids in samples)
    assert samples[0] == chat.encode_prompt((Message("text", "Hi"),)) + chat.encode_response("Hello")
    if truncates:
        ids = chat.encode_response(answer)
        assert samples[1][-len(ids) :] == ids
    wanted = {"truncate": 1, "drop": 1} if truncates else {"drop": 2}
    assert counts["long_normalize"] == wanted
    listed = (tmp_path / "long_rows_normalize.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["id"] for line in listed] == ["long", "no room"]
