from __future__ import annotations

import io
import re
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from rlhf.telemetry import progress as progress_module
from rlhf.telemetry.console import format_figure, print_header, print_next_commands, print_table
from rlhf.telemetry.progress import format_seconds, stage_progress


def _console(terminal: bool, width: int = 100) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, highlight=False, color_system=None)
    return console, out


class Clock:
    """Moves when told, so that no busy machine is in the figures."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=found.monotonic))
    return found


def test_plain_lines_come_at_the_first_update_and_at_the_end() -> None:
    console, out = _console(terminal=False)
    with stage_progress("SFT", total=50, console=console) as progress:
        for step in range(1, 51):
            progress.update(step, loss=1 / step)
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert re.match(r"SFT +1/50 .*loss 1\.00", lines[0])
    assert re.match(r"SFT +50/50 .*loss 0\.020 .*done", lines[1])


def test_plain_lines_keep_coming_while_no_update_does(clock: Clock) -> None:
    console, out = _console(terminal=False)

    def lines() -> int:
        return len(out.getvalue().splitlines())

    with stage_progress("Reward model", console=console, plain_seconds=0.1):
        for number in range(1, 5):
            clock.now += 0.11
            deadline = time.monotonic() + 20
            while lines() < number and time.monotonic() < deadline:
                time.sleep(0.005)
            assert lines() == number
    assert lines() == 5, "one for each time that the pace has passed, and the last"


def test_a_line_is_never_wrapped_or_read_as_markup() -> None:
    console, out = _console(terminal=False, width=40)
    with stage_progress("PPO", total=2, console=console) as progress:
        progress.update(1, note="[red]x" * 20)
        progress.note("[bold]kept")
    lines = out.getvalue().splitlines()
    assert len(lines) == 3 and "[red]x" * 20 in lines[0] and "[bold]kept" in lines[1]


def test_an_error_is_named_in_the_last_line_and_not_swallowed() -> None:
    console, out = _console(terminal=False)
    with pytest.raises(KeyError), stage_progress("PPO", total=2, console=console):
        raise KeyError("x")
    assert out.getvalue().rstrip().endswith("stopped by KeyError")


def test_a_terminal_gets_a_bar_with_figures() -> None:
    console, out = _console(terminal=True)
    with stage_progress("PPO", total=4, console=console) as progress:
        progress.update(2, kl=0.5)
        progress.update(3, total=6, kl=0.75)
    final = out.getvalue()
    assert "3/6" in final and "kl 0.750" in final and "PPO" in final and "━" in final


def test_eta_is_the_pace_since_the_first_update(clock: Clock) -> None:
    console, _ = _console(terminal=False)
    with stage_progress("PPO", total=11, console=console) as progress:
        clock.now += 200  # loading: not part of the pace
        progress.update(1)
        clock.now += 10
        progress.update(3)
        assert progress.eta_seconds() == 40
        progress.update(11)
        assert progress.eta_seconds() is None


def test_tables_show_text_as_it_is_and_align_numbers() -> None:
    console, out = _console(terminal=False)
    print_table("Seconds", [["sft", 12.34], ["[b]ppo[/b]", 3]], columns=["stage", "time"], console=console)
    print_table("Result", {"win rate": 0.81234, "none": None}, console=console)
    text = out.getvalue()
    assert "[b]ppo[/b]" in text and "12.34" in text and "0.812" in text and "–" in text
    assert re.search(r"│ +3 │", text)


def test_a_long_command_stays_on_one_line() -> None:
    console, out = _console(terminal=False, width=40)
    command = "rlhf ppo --config configs/ppo/tiny_cpu.yaml model.name=" + "x" * 40
    print_header("Done", "all stages", console=console)
    print_next_commands([(command, "again")], console=console)
    assert command in out.getvalue()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (0.8123, "0.812"),
        (0.00012, "1.20e-04"),
        (12.345, "12.35"),
        (123.456, "123.5"),
        (123456, "123,456"),
        (True, "yes"),
        (None, "–"),
        (float("nan"), "nan"),
    ],
)
def test_figures(value: object, text: str) -> None:
    assert format_figure(value) == text


def test_seconds() -> None:
    assert [format_seconds(s) for s in (0, 59.4, 125, 3720)] == ["0s", "59s", "2m05s", "1h02m"]
