"""Every command that README.md, docs/ or a config's head shows can be given as it stands, and README's follow on."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.pipeline import check_pipeline
from cluster.plan import main as plan
from rlhf.cli import DELEGATES, build_parser, main
from rlhf.config import STAGES, load_config
from rlhf.config.base import Section

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
FILES = sorted((ROOT / "configs").glob("*/*.yaml"))
OWN_FILE = "my.yaml"
"""What pages call a config that the reader writes."""
IMPORT = ("rlhf", "prefs", "import")


def commands_of(text: str) -> list[list[str]]:
    """Words of each command in blocks and, after ``# Launch:``, ``# Before:``, ``# Estimate:``, in a config's head."""
    text = re.sub(r"\\\n\s*", "", text)
    found = re.findall(r"^(?: {4,}|# (?:Launch|Before|Estimate): |)((?:rlhf|make) .+)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in found]


def examples_of(text: str) -> list[list[str]]:
    """The words of each command under a help's ``examples:``, without what stands behind it in a column of its own."""
    text = re.sub(r"\\\n\s*", "", text.partition("examples:\n")[2])
    found = re.findall(r"^  (?:[A-Z_]+=\S+ )?((?:rlhf|python -m) .+?)(?: {2,}.*)?$", text, re.MULTILINE)
    return [shlex.split(line) for line in found]


def help_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What ``rlhf WORDS --help`` says."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        if words and words[0] in DELEGATES:
            importlib.import_module(DELEGATES[words[0]][0]).main([*words[1:], "--help"])
        elif words and words[0] == "python":
            importlib.import_module(words[2]).main(["--help"])
        else:
            build_parser().parse_args([*words, "--help"])
    return capsys.readouterr().out


def options(words: list[str]) -> tuple[str | None, str, list[str]]:
    """(config, stage, overrides) of ``rlhf STAGE`` or ``rlhf submit STAGE``; no config where it takes none."""
    words = words[2:] if words[1] == "submit" else words[1:]
    if words[0] not in STAGES or "--config" not in words:
        return None, words[0], []
    return words[words.index("--config") + 1], words[0], [w for w in words if re.match(r"[a-z_.]+=", w)]


def config_of(words: list[str]) -> Section | None:
    """What such a command reads, with its overrides."""
    file, stage, overrides = options(words)
    return None if file in (None, OWN_FILE) else load_config(stage, ROOT / str(file), overrides)


def texts(tree: Any) -> Iterator[str]:
    """Every text in a config."""
    if isinstance(tree, str):
        yield tree
    for value in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from texts(value)


def reads(config: Section) -> list[str]:
    """The runs and store projects that a config needs."""
    tree = config.model_dump(mode="json")
    del tree["run_dir"]
    return [text.split("@")[0] for text in texts(tree) if text.startswith(("runs/", "store:"))]


def missing(wanted: list[str], there: set[str]) -> list[str]:
    """What is neither there nor within something that is."""
    return [w for w in wanted if not any(w == t or w.startswith(t + "/") for t in there)]


class Parsed(Exception):
    """The command's own parser has taken all words; nothing was done yet."""


def parse_only(command: str, rest: list[str]) -> None:
    """Gives a command with a parser of its own its words, and ends it where it would begin to work."""

    def ending(take: Callable[..., Any]) -> Callable[..., Any]:
        def parsed(*args: Any) -> None:
            take(*args)
            raise Parsed

        return parsed

    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, ending(getattr(argparse.ArgumentParser, name)))
        with pytest.raises(Parsed):
            importlib.import_module(DELEGATES[command][0]).main(rest)


def check(words: list[str]) -> None:
    """The real parser takes the command; its config loads; a plan is made, a pipeline checked.

    Raises:
        SystemExit, RlhfError: as the command would.
    """
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE), words
        return
    if words[0] == "python":
        importlib.import_module(words[2]).build_parser().parse_args(
            words[3 : words.index("--") if "--" in words else None]
        )
        return
    if words[1] in DELEGATES:
        parse_only(words[1], words[2:])
    elif words[1:3] == ["config", "check"]:
        assert main(words[1:]) == 0, words
    else:
        build_parser().parse_args(words[1:])
    config_of(words)
    if words[1] == "plan":
        assert plan(words[2:]) == 0, words
    if words[1] == "pipeline":
        check_pipeline(ROOT / words[2])


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", [*PAGES, *FILES], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_can_be_given_as_they_stand(path: Path) -> None:
    for words in commands_of(path.read_text("utf-8")):
        check(words)


HELPS = [[], *([name] for name in (*STAGES, "config", "chat", "quickstart", "report", *DELEGATES)),
         ["python", "-m", "cluster.start"]]  # fmt: skip


@pytest.mark.parametrize("words", HELPS, ids=lambda words: " ".join(words) or "rlhf")
def test_examples_of_a_help_can_be_given_as_they_stand(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(words, capsys)
    examples = examples_of(text)
    assert bool(examples) == ("examples:" in text)
    for example in examples:
        check(example)


def test_the_examples_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    found = {" ".join(words): len(examples_of(help_of(words, capsys))) for words in HELPS}
    assert {name for name, count in found.items() if count} >= {
        "", "export", "submit", "pipeline", "doctor", "plan", "board", "top", "annotate", "python -m cluster.start",
    }  # fmt: skip
    assert found["plan"] == 3 and found["annotate"] == 4


def test_each_command_of_the_readme_reads_what_an_earlier_one_has_written() -> None:
    commands, there = commands_of((ROOT / "README.md").read_text("utf-8")), set[str]()
    stages = []
    for words in commands:
        config = config_of(words)
        wanted = [w for w in words if w.startswith("runs/")] if config is None else reads(config)
        assert not missing(wanted, there), f"{' '.join(words)}: nothing before it writes {missing(wanted, there)}"
        if config is not None:
            there.add(config.model_dump()["run_dir"])
            stages.append(words[1])
        elif words[1] == "quickstart":
            there |= {"runs/quickstart", "store:helpline", "store:helpline-compare"}
        elif tuple(words[:3]) == IMPORT:
            there.add(f"store:{words[3]}")
        elif words[1] == "annotate":
            assert f"store:{words[words.index('--project') + 1]}" in there, words
    assert stages == ["sft", "sample", "reward", "ppo", "evaluate", "dpo"], "the loop on one's own model"


def test_every_run_that_a_shipped_config_reads_is_one_that_another_writes() -> None:
    by_file = {path: config_of(words) for path in FILES for words in commands_of(path.read_text("utf-8"))
               if options(words)[0] == path.relative_to(ROOT).as_posix()}  # fmt: skip
    before = [config_of(words) for path in FILES for words in commands_of(path.read_text("utf-8"))]
    there = {config.model_dump()["run_dir"] for config in before if config is not None} | {"runs/quickstart"}
    assert len(by_file) > 10
    for path, config in by_file.items():
        runs = [name for name in reads(config) if name.startswith("runs/")] if config is not None else []
        assert not missing(runs, there), f"{path.name} reads {missing(runs, there)}, which no shipped config writes"


def test_a_chain_that_breaks_is_seen() -> None:
    """The checks above, on what they have to find."""
    assert commands_of("    rlhf sft a=b   # text\ntext rlhf no\n# Launch: rlhf ppo \\\n  --config x") == [
        ["rlhf", "sft", "a=b"], ["rlhf", "ppo", "--config", "x"],
    ]  # fmt: skip
    assert missing(["runs/sft/a", "runs/sft_tiny", "store:b"], {"runs/sft", "store:a"}) == ["runs/sft_tiny", "store:b"]
    with pytest.raises(SystemExit):
        check(["rlhf", "prefs", "stats", "helpline", "--no-such-option"])
    config = config_of(shlex.split("rlhf ppo --config configs/ppo/tiny_cpu.yaml prompts=p.jsonl"))
    assert config is not None and reads(config) == ["runs/sft", "runs/reward"]
