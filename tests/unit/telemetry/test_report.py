from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rlhf.errors import DataError
from rlhf.telemetry.curves import Plot, stage_plots
from rlhf.telemetry.headline import Card, Gauge, format_bytes, headline_cards, summary_sentence
from rlhf.telemetry.metrics import MetricsWriter
from rlhf.telemetry.report import Report, Sample, report_from_run, write_report, write_run_report

VOID = {"meta", "link", "br", "img", "hr", "input"}
HOSTILE = "</script></style><xss onload=\"x()\" src='http://evil.example/x'>&amp; \u202e\ud800 ${x}"

SUMMARY: dict[str, Any] = {
    "win_rate": {"mean": 0.83, "ci_low": 0.76, "ci_high": 0.89, "num_prompts": 60},
    "reward_model": {"accuracy": 0.79, "ceiling": 0.81},
    "kl": 6.21,
    "kl_limit": 10.0,
    "mean_score": {"sft": 0.31, "ppo": 2.37},
    "num_ranks": 2,
    "engine": {"sft": "EngineA", "ppo": "EngineB"},
    "seconds": {"sft": 48.2, "ppo": 121.0, "total": 247.0},
    "peak_rss_mib": 4810,
    "sync": {"max_logprob_diff": 2.1e-6, "bytes": 118784, "milliseconds": 22.4},
    "seed": 3,
    "git_sha": "0123456789abcdef0123456789abcdef01234567-dirty",
    "versions": {"torch": "2.11"},
    "annotators": [{"name": "Ada", "votes": 120, "reliability": 0.94}],
    "next_commands": [["rlhf chat runs/x", "Talk to it"]],
}


class _Page(HTMLParser):
    """Checks nesting while it collects elements and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def headings(self) -> list[str]:
        return [attrs["id"] for tag, attrs in self.elements if tag == "section"]


def _fill_run(run: Path) -> Path:
    with MetricsWriter(run, tensorboard=False) as writer:
        for step in range(5):
            writer.write("sft", step, {"loss": 3.0 - step / 2})
            writer.write("reward", step, {"loss": 0.7 - step / 50, "accuracy": 0.5 + step / 20, "ceiling": 0.81})
            writer.write(
                "ppo", step, {"score_mean": step, "score_std": 1.0, "kl": step, "kl_limit": 10.0, "kl_coef": 0.1}
            )
    (run / "summary.json").write_text(json.dumps(SUMMARY))
    row = {
        "prompt": "May I eat figs?",
        "answers": {"base": "figs figs", "sft": "maybe", "ppo": "Yes, a few."},
        "scores": {"base": -1.0, "sft": 0.25, "ppo": 2.0},
    }
    (run / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(10)))
    (run / "config.yaml").write_text("seed: 3\nmodel:\n  name: tiny\n")
    return run


def test_a_full_run_gives_every_section(tmp_path: Path) -> None:
    path = write_run_report(_fill_run(tmp_path / "demo"))
    assert path == tmp_path / "demo" / "report.html"
    page = _Page(path.read_text("utf-8"))
    assert page.headings() == ["answers", "curves", "annotators", "time", "next", "config"]
    for text in ("demo", "83%", "76% to 89%", "0.31 → 2.37", "79%", "6.21", "4m07s", "0123456789-dirty"):
        assert text in page.text, text
    for text in (
        "EngineA, EngineB",
        "May I eat figs?",
        "Yes, a few.",
        "Ada",
        "rlhf chat runs/x",
        "name: tiny",
    ):
        assert text in page.text, text
    assert "2 more prompts" in page.text
    labels = [attrs["aria-label"] for tag, attrs in page.elements if tag == "svg"]
    assert "1 more curve" in page.text and "1 more curves" not in page.text
    assert len(labels) == 6 and any("ceiling 0.81" in label for label in labels)
    captions = [tag for tag, _ in page.elements if tag == "caption"]
    assert len(captions) == sum(tag == "table" for tag, _ in page.elements) == 3
    assert not list((tmp_path / "demo").glob("*.tmp"))


def test_the_page_asks_for_nothing(tmp_path: Path) -> None:
    text = write_run_report(_fill_run(tmp_path)).read_text("utf-8")
    page = _Page(text)
    assert not {"script", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.elements}
    for tag, attrs in page.elements:
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "xlink:href", "srcset", "action", "poster", "data"}:
                assert value.startswith("#") or value == "data:,", (tag, name, value)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "@import" not in text
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_identifiers_are_unique_and_links_lead_somewhere(tmp_path: Path) -> None:
    page = _Page(write_run_report(_fill_run(tmp_path)).read_text("utf-8"))
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    for tag, attrs in page.elements:
        for name in ("href", "xlink:href"):
            if attrs.get(name, "").startswith("#"):
                assert attrs[name][1:] in ids, (tag, attrs)
        for target in attrs.get("aria-labelledby", "").split():
            assert target in ids


def test_hostile_text_stays_text_wherever_it_stands(tmp_path: Path) -> None:
    report = Report(
        run_name=HOSTILE,
        lead=HOSTILE,
        facts=[(HOSTILE, HOSTILE)],
        cards=[Card(HOSTILE, HOSTILE, HOSTILE, HOSTILE, Gauge(0, 1, 0.5, (0.4, 0.6), 0.5, HOSTILE), HOSTILE)],
        plots={HOSTILE: [Plot("<svg></svg>", HOSTILE)]},
        samples=[Sample(HOSTILE, {HOSTILE: HOSTILE, "sft": ""}, {HOSTILE: 1.0})],
        annotators=[{HOSTILE: HOSTILE, "votes": HOSTILE}],
        seconds={HOSTILE: 1.0},
        next_commands=[(HOSTILE, HOSTILE)],
        config=HOSTILE,
        versions={HOSTILE: HOSTILE},
    )
    page = _Page(write_report(tmp_path / "r.html", report).read_text("utf-8"))
    assert "xss" not in {tag for tag, _ in page.elements} and "script" not in {tag for tag, _ in page.elements}
    assert not any(name in {"onload", "src"} for _, attrs in page.elements for name in attrs)
    shown = HOSTILE.replace("\ud800", "\\ud800")
    assert page.text.count(shown) >= 19


@pytest.mark.parametrize(
    ("report", "sections"),
    [
        (Report("empty"), []),
        (Report("ppo", samples=[Sample("p", {"ppo": "a"})]), ["answers"]),
        (Report("times", seconds={"sft": 1.0}), ["time"]),
        (Report("curves", plots={"sft": stage_plots("sft", [{"step": 1, "loss": 1.0}])}), ["curves"]),
        (Report("none", plots={"sft": []}, samples=[Sample("p", {})], annotators=[{}], config=" "), []),
    ],
)
def test_missing_parts_leave_their_section_out(tmp_path: Path, report: Report, sections: list[str]) -> None:
    page = _Page(write_report(tmp_path / "r.html", report).read_text("utf-8"))
    assert page.headings() == sections
    assert [attrs["href"][1:] for tag, attrs in page.elements if tag == "a"] == sections


def test_an_empty_run_directory_and_a_sft_only_run_give_a_page(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    assert _Page(write_run_report(tmp_path / ".").read_text("utf-8")).headings() == []
    with MetricsWriter(tmp_path / "sft", tensorboard=False) as writer:
        writer.write("sft", 1, {"loss": 1.0})
        writer.write("sft", 2, {"loss": float("nan")})
    with (tmp_path / "sft" / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "sft", "st')
    report = report_from_run(tmp_path / "sft", next_commands=[("a", "b")])
    assert report.run_name == "sft" and list(report.plots) == ["sft"] and report.next_commands == [("a", "b")]


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a directory"):
        report_from_run(tmp_path / "absent")
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(DataError, match=r"summary\.json"):
        report_from_run(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "samples.jsonl").write_text('{"prompt": "p", "answers": {}}\n{"prompt": "p"}\n')
    with pytest.raises(DataError, match=r"samples\.jsonl, line 2"):
        report_from_run(tmp_path)


def test_a_directory_without_a_run_gets_no_report(tmp_path: Path) -> None:
    (tmp_path / "notes.yaml").write_text("mine: true")
    with pytest.raises(DataError, match="holds no run"):
        write_run_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.yaml"]


@pytest.mark.parametrize(("config", "command"), [('{"stage": "sft"}', "rlhf sft"), (None, "rlhf quickstart")])
def test_a_broken_summary_is_written_again_by_the_stage_it_is_of(
    config: str | None, command: str, tmp_path: Path
) -> None:
    (tmp_path / "summary.json").write_text("{")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(DataError, match=rf"summary\.json is not JSON .* with `{command} --fresh`"):
        report_from_run(tmp_path)


def test_only_the_best_score_of_a_row_is_marked(tmp_path: Path) -> None:
    sample = Sample("p", {"base": "a", "sft": "b", "ppo": "c"}, {"base": 0.5, "sft": 2.0, "ppo": 1.0})
    text = write_report(tmp_path / "r.html", Report("r", samples=[sample])).read_text("utf-8")
    assert re.findall(r'class="pill best">([^<]*)<', text) == ["2.00"]
    assert re.findall(r'class="pill">([^<]*)<', text) == ["0.50", "1.00"]


def test_chat_prompts_are_shown_by_role(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    rows = [{"prompt": chat, "answers": {"ppo": "x"}}, {"prompt": chat[1:], "answers": {"ppo": "y"}}]
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [s.prompt for s in report_from_run(tmp_path).samples] == ["system: Be kind.\nuser: Hello", "Hello"]


def test_headline_says_whether_it_is_good() -> None:
    def tones(**changes: Any) -> dict[str, str]:
        return {card.label: card.tone for card in headline_cards({**SUMMARY, **changes})}

    assert tones()["Win rate"] == "good" and tones()["Distance from SFT"] == ""
    assert tones(win_rate={"mean": 0.6, "ci_low": 0.45, "ci_high": 0.7})["Win rate"] == ""
    assert tones(win_rate={"mean": 0.3, "ci_low": 0.2, "ci_high": 0.4})["Win rate"] == "bad"
    few = {"mean": 1.0, "ci_low": 0.72, "ci_high": 1.0, "num_prompts": 10, "too_few": True}
    assert tones(win_rate=few)["Win rate"] == "" and "too few to say." in summary_sentence({"win_rate": few})
    assert "too few" not in summary_sentence({"win_rate": {**few, "num_prompts": 20, "too_few": False}})
    assert tones(kl=10.5)["Distance from SFT"] == "bad"
    assert headline_cards({}) == [] and summary_sentence({}) == ""
    assert "over its limit of 10" in summary_sentence({**SUMMARY, "kl": 10.5})


@pytest.mark.parametrize("low", [0.925, 0.915, 0.935, 0.5, 0.0, 1.0, 0.2949])
def test_shares_are_rounded_as_the_console_rounds_them(low: float) -> None:
    sentence = summary_sentence({"win_rate": {"mean": 0.95, "ci_low": low, "ci_high": 0.975}})
    console = f"{low:.2f}"
    assert f"interval {int(console.replace('.', ''))}% to" in sentence


@pytest.mark.parametrize(("before", "after"), [(0.514, 0.936), (0.515, 0.9449), (-0.004, 0.0051), (1.2, 1.2)])
def test_the_change_of_a_score_is_that_of_the_scores_shown(before: float, after: float) -> None:
    (card,) = headline_cards({"mean_score": {"sft": before, "ppo": after}})
    first, last = map(float, card.value.split(" → "))
    assert card.detail.endswith(f"a change of {last - first:+.2f}")


def test_bytes() -> None:
    assert [format_bytes(n) for n in (640, 118784, 2.5 * 2**20)] == ["640 B", "116 KiB", "2.5 MiB"]


EVALUATED: dict[str, Any] = {
    "stage": "evaluate",
    "policy": "runs/dpo",
    "baseline": "runs/sft",
    "win_rate": {"mean": 0.61, "ci_low": 0.52, "ci_high": 0.7, "num_prompts": 40},
    "mean_score": {"policy": 1.5, "baseline": 0.25},
    "seconds": 61.0,
}


def test_an_evaluation_names_what_it_compared() -> None:
    cards = {card.label: card for card in headline_cards(EVALUATED)}
    assert "prefers dpo's answer to sft's 61%" in summary_sentence(EVALUATED)
    assert cards["Win rate"].detail.endswith("dpo against sft, ties count half")
    assert (cards["Mean score"].value, cards["Mean score"].detail) == ("0.25 → 1.50", "sft → dpo, a change of +1.25")
    alike = {**EVALUATED, "policy": "first/ppo", "baseline": "second/ppo/"}
    assert "first/ppo's answer to second/ppo/'s" in summary_sentence(alike)
    assert "PPO's answer to SFT's" in summary_sentence(SUMMARY), "a quickstart compares these two"


REWARD: dict[str, Any] = {
    "stage": "reward",
    "reward_model": {
        "accuracy": 0.79, "ci_low": 0.71, "ci_high": 0.86, "vote_accuracy": 0.7, "vote_ceiling": 0.81,
        "length_baseline": {"rule": "shorter", "accuracy": 0.44},
    },
    "seconds": 75.0,
    "num_ranks": 2,
}  # fmt: skip


def test_a_reward_run_shows_what_makes_its_accuracy_readable(tmp_path: Path) -> None:
    (card,) = [card for card in headline_cards(REWARD) if card.label == "Reward model accuracy"]
    assert card.value == "79%" and card.gauge is not None
    for words in ("71% to 86%", "single votes 70%", "allows 81%", "choosing the shorter answer gets 44%"):
        assert words in card.detail, words
    assert (card.gauge.interval, card.gauge.mark, card.gauge.low) == ((0.71, 0.86), 0.44, 0.44)
    assert "orders 70% of single held-out votes" in summary_sentence(REWARD)
    assert "allows 81%" in summary_sentence(REWARD)
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        for step in range(3):
            writer.write("reward", step, {"eval_accuracy": 0.6, "eval_vote_accuracy": 0.55})
    (tmp_path / "summary.json").write_text(json.dumps(REWARD))
    page = _Page(write_run_report(tmp_path).read_text("utf-8"))
    (label,) = [attrs["aria-label"] for tag, attrs in page.elements if tag == "svg"]
    assert "ceiling 0.81" in label and "by length 0.44" in label
    certain = {**REWARD["reward_model"], "vote_ceiling": 1.0}
    (card,) = [c for c in headline_cards({**REWARD, "reward_model": certain}) if c.label == "Reward model accuracy"]
    assert "allows" not in card.detail, "one answer per pair says nothing about disagreement"


@pytest.mark.parametrize("summary", [EVALUATED, REWARD])
def test_the_time_of_one_stage_is_shown(summary: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = _Page(write_run_report(tmp_path).read_text("utf-8"))
    assert page.headings() == ["time"]
    assert [card.value for card in headline_cards(summary) if card.label == "Time"] == [
        "1m01s" if summary is EVALUATED else "1m15s"
    ]
