"""The whole loop through the command line: real Ray, two DeepSpeed ranks, the real queue; small."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright
from sqlalchemy import select

from preference_ui.backup import verify
from preference_ui.db import open_store
from preference_ui.models import PolicyVersion, Prompt, Response
from preference_ui.overview import overview
from preference_ui.projects import create_project
from preference_ui.versions import load_preferences
from rlhf.cli import main
from tests.ui.app.ui_helpers import CHROMIUM, PASSWORD, Server, free_port

ROOT = Path(__file__).parents[2]
RLHF = str(Path(sys.executable).with_name("rlhf"))


def rlhf(*args: str, expect: int = 0) -> str:
    done = subprocess.run([RLHF, *args], cwd=ROOT, capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def rlhf_here(capsys: pytest.CaptureFixture[str], *args: str, expect: int = 0) -> str:
    """The same in this process, for a command that only refuses or asks: another one would take seconds to import."""
    capsys.readouterr()
    code = main(args)
    found = capsys.readouterr()
    assert code == expect, found.out[-3000:] + found.err[-3000:]
    return found.out


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("loop") / "quickstart"
    return root, rlhf("quickstart", "--run-dir", str(root), "--rehearsal", "--seed", "3")


def test_summary_holds_what_was_promised(quickstart: tuple[Path, str]) -> None:
    root, _ = quickstart
    summary = json.loads((root / "summary.json").read_text())
    assert set(summary["win_rate"]) == {"mean", "ci_low", "ci_high", "num_prompts", "too_few"}
    assert summary["win_rate"]["num_prompts"] == 16 and summary["win_rate"]["too_few"] is True
    assert 0 <= summary["win_rate"]["ci_low"] <= summary["win_rate"]["mean"] <= summary["win_rate"]["ci_high"] <= 1
    assert {"accuracy", "ceiling"} <= set(summary["reward_model"])
    assert summary["kl"] < summary["kl_limit"]
    assert {"sft", "ppo"} <= set(summary["mean_score"])
    assert summary["num_ranks"] == 2
    assert set(summary["engine"].values()) == {"DeepSpeedEngine"}
    assert {"sft", "sample", "rankings", "reward", "ppo", "evaluate", "total"} <= set(summary["seconds"])
    assert 500 < summary["peak_rss_mib"] < 8192
    assert summary["sync"]["max_logprob_diff"] <= 1e-4
    assert summary["sync"]["bytes"] > 10_000
    assert summary["seed"] == 3
    assert summary["versions"]["deepspeed"]


def test_output_ends_with_table_report_and_three_commands(quickstart: tuple[Path, str]) -> None:
    root, output = quickstart
    assert "win rate of PPO against SFT" in output
    assert output.count("    rlhf ") == 3
    html = (root / "report.html").read_text()
    assert "<svg" in html and 'src="http' not in html and 'href="http' not in html
    for stage in ("SFT", "Sampling", "Rankings", "Reward model", "PPO", "Evaluation"):
        assert stage in output


def test_votes_went_through_the_store(quickstart: tuple[Path, str]) -> None:
    root, _ = quickstart
    summary = json.loads((root / "summary.json").read_text())
    store = open_store(root.parent / "preferences.sqlite", create=False)
    try:
        assert verify(store).ok
        rows = load_preferences(f"store:{summary['project']}", store=store)
    finally:
        store.close()
    assert sum(row["votes"] for row in summary["annotators"]) == 2 * len({row.group for row in rows})
    assert {row["annotator"] for row in summary["annotators"]} >= {"random-rob", "careful-cora"}


def test_there_is_something_to_rank_for_whoever_follows_the_next_command(quickstart: tuple[Path, str]) -> None:
    root, output = quickstart
    summary = json.loads((root / "summary.json").read_text())
    assert "rlhf annotate --project helpline-compare" in output
    store = open_store(root.parent / "preferences.sqlite", create=False)
    try:
        state = overview(store, "helpline-compare")
    finally:
        store.close()
    samples = [json.loads(line) for line in (root / "samples.jsonl").read_text().splitlines()]
    differing = [row for row in samples if row["answers"]["sft"] != row["answers"]["ppo"]]
    assert (state.done, state.needed) == (0, len(differing)) and len(differing) > 4
    assert len(samples) == summary["win_rate"]["num_prompts"]


def test_every_rollout_carries_the_version_that_drew_it(quickstart: tuple[Path, str]) -> None:
    root, _ = quickstart
    lines = [json.loads(line) for line in (root / "ppo" / "rollouts.jsonl").read_text().split("\n") if line]
    assert {(line["step"], line["version"]) for line in lines} == {(0, 0), (1, 1)}
    metrics = [json.loads(line) for line in (root / "ppo" / "metrics.jsonl").read_text().split("\n") if line]
    assert metrics[0]["kl"] == 0.0
    assert all(row["ratio_first"] < 1e-4 for row in metrics)


def test_logs_are_one_file_per_role_and_rank(quickstart: tuple[Path, str]) -> None:
    root, _ = quickstart
    names = {path.name for path in (root / "ppo" / "logs").iterdir()}
    assert {"driver-0.log", "policy-0.log", "policy-1.log", "rollout-0.log", "rollout-1.log"} <= names


def test_a_finished_quickstart_is_not_overwritten(
    quickstart: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = quickstart
    assert "--fresh" in rlhf_here(capsys, "quickstart", "--run-dir", str(root), expect=4)


def rank_in_the_page(root: Path, project: str, num_tasks: int) -> None:
    """A person logs in with a browser and ranks by keyboard."""
    server = Server(root.parent / "preferences.sqlite", free_port(), project=project)
    server.start()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--headless=new", "--no-sandbox"])
            page = browser.new_page()
            page.set_default_timeout(60_000)
            page.goto(server.url)
            page.fill("[name=handle]", "root")
            page.fill("[name=password]", PASSWORD)
            page.click("button[type=submit]")
            page.wait_for_selector(".ranking")
            for _ in range(num_tasks):
                lease = page.get_attribute(".ranking", "data-lease")
                for key in ("2", "ArrowUp", "Control+Enter"):
                    page.keyboard.press(key)
                page.wait_for_function("o => document.querySelector('.ranking')?.dataset.lease !== o", arg=lease)
            browser.close()
    finally:
        server.kill()


def test_people_rank_in_the_page_and_the_run_goes_on_with_their_rankings(
    quickstart: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that ended after sampling is continued with ``--annotate``: it stops, people vote, it finishes."""
    done, root = quickstart[0], tmp_path / "people"
    for folder in ("data", "sft", "sample"):
        shutil.copytree(done / folder, root / folder)
    state = json.loads((done / "quickstart.json").read_text())
    kept = {key: state[key] for key in ("seed", "rehearsal")}
    kept |= {key: {k: state[key][k] for k in ("sft", "sample")} for key in ("seconds", "stages")}
    (root / "quickstart.json").write_text(json.dumps(kept))

    said = rlhf_here(capsys, "quickstart", "--run-dir", str(root), "--annotate")
    assert "rlhf annotate --project helpline" in said
    assert not (root / "reward").exists()
    assert "rlhf annotate" in rlhf_here(capsys, "quickstart", "--run-dir", str(root)), "without votes it asks again"
    rank_in_the_page(root, "helpline", 24)
    rlhf("quickstart", "--run-dir", str(root))
    summary = json.loads((root / "summary.json").read_text())
    assert [(row["annotator"], row["votes"]) for row in summary["annotators"]] == [("root", 24)]
    store = open_store(root.parent / "preferences.sqlite", create=False)
    try:
        rows = load_preferences("store:helpline", store=store)
        assert verify(store).ok
    finally:
        store.close()
    assert len({row.group for row in rows}) == 24
    trained = json.loads((root / "reward" / "summary.json").read_text())["rows"]
    assert trained["train"] + trained["evaluation"] == len(rows)
    assert summary["num_ranks"] == 2


def test_chat_talks_to_the_trained_policy(quickstart: tuple[Path, str]) -> None:
    root, _ = quickstart
    output = rlhf("chat", str(root / "ppo"), "--prompt", "How do I store spare insulin?", "--seed", "1")
    answer = output.split("policy", 1)[1].strip()
    assert len(answer.split()) >= 3


def test_candidates_of_a_run_become_tasks_with_their_origin(quickstart: tuple[Path, str], tmp_path: Path) -> None:
    root, _ = quickstart
    store_file, run, prompts = tmp_path / "store.sqlite", root / "ppo", tmp_path / "prompts.jsonl"
    questions = ["How do I store spare insulin?", "What can I eat before sport?"]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in questions))
    place = ("--store", str(store_file))
    store = open_store(store_file)
    create_project(store, "fresh")
    store.close()
    order = ("--run", str(run), "--prompts", str(prompts), "--k", "3", "--seed", "5")
    rlhf("prefs", *place, "sample", "fresh", *order, "--run-dir", str(tmp_path / "drawn"))
    sha = json.loads((run / "summary.json").read_text())["adapter_sha256"]
    store = open_store(store_file, create=False)
    try:
        with store.read() as session:
            versions = session.scalars(select(PolicyVersion)).all()
            rows = session.execute(
                select(Prompt.messages_json, Response.sampling_json).join(Response, Response.prompt_id == Prompt.id)
            ).all()
    finally:
        store.close()
    assert [(v.run, v.step, v.uri, v.sha256) for v in versions] == [(str(run), 2, str(run / "adapter"), sha)]
    assert {json.loads(messages)[-1]["content"] for messages, _ in rows} == set(questions)
    settings = [json.loads(text) for _, text in rows]
    assert 4 <= len(rows) <= 6 and len({s["seed"] for s in settings}) == len(rows)
    assert all(s["temperature"] > 0 and s["max_response_tokens"] > 0 for s in settings)
