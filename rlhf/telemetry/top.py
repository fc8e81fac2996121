"""``rlhf top RUN``: a run in the terminal, live. Reads the run directory's files and nothing else."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from rich.box import ROUNDED, SIMPLE
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlhf.telemetry.console import format_figure, get_console
from rlhf.telemetry.progress import format_seconds
from rlhf.telemetry.runs import RunView, open_run, sparkline

FIGURES: dict[str, tuple[tuple[str, str], ...]] = {
    "ppo": (
        ("score_mean", "score"),
        ("kl", "KL (nats per response)"),
        ("entropy", "entropy (nats per token)"),
        ("value_loss", "value loss"),
        ("clip_fraction", "clipped"),
        ("response_tokens_mean", "response tokens"),
    ),
    "reward": (
        ("loss", "loss"),
        ("eval_loss", "held-out loss"),
        ("accuracy", "accuracy"),
        ("eval_accuracy", "held-out accuracy"),
        ("grad_norm", "gradient norm"),
    ),
    "dpo": (
        ("loss", "loss"),
        ("eval_loss", "held-out loss"),
        ("accuracy", "accuracy"),
        ("eval_accuracy", "held-out accuracy"),
        ("reward_margin", "reward margin"),
        ("eval_reward_margin", "held-out margin"),
        ("grad_norm", "gradient norm"),
    ),
}
_TRAINING = (
    ("loss", "loss"),
    ("eval_loss", "held-out loss"),
    ("entropy", "entropy (nats per token)"),
    ("mean_token_accuracy", "token accuracy"),
    ("grad_norm", "gradient norm"),
)
STATES = {"running": "bold green", "finished": "bold cyan", "stopped": "bold yellow"}
PHASE_STYLES = ("cyan", "magenta", "green", "yellow")
EPILOG = """\
examples:
  rlhf top runs/ppo                 a new frame every two seconds, until the run ends or Ctrl+C
  rlhf top runs/ppo --once          one frame, for a log or a pipe
"""


def main(rest: list[str]) -> int:
    """Runs ``rlhf top``."""
    parser = argparse.ArgumentParser(
        prog="rlhf top",
        description="Watch a run: stage, step, time left, figures, seconds per act, last events of the logs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--once", action="store_true", help="print one frame and leave")
    parser.add_argument("--interval", type=float, default=2.0, metavar="SECONDS", help="between frames (default 2)")
    parser.add_argument("--events", type=int, default=6, metavar="N", help="lines of the logs (default 6)")
    args = parser.parse_args(rest)
    run, console = open_run(args.run), get_console()
    if args.once or not console.is_terminal:
        console.print(frame(run, args.events))
        return 0
    watch(run, console, interval=max(0.2, args.interval), num_events=args.events)
    return 0


def watch(run: RunView, console: Console, *, interval: float, num_events: int = 6) -> None:
    """Draws frames until the run has ended; the last one stays on the screen."""
    with Live(frame(run, num_events), console=console, auto_refresh=False, screen=False) as live:
        while run.state == "running":
            time.sleep(interval)
            live.update(frame(run.refresh(), num_events), refresh=True)


def frame(run: RunView, num_events: int = 6) -> RenderableType:
    """One picture of a run."""
    parts: list[RenderableType] = [_head(run), _bar(run), _figures(run)]
    if run.phases:
        parts.append(_phases(run.phases))
    parts.append(_events(run, num_events))
    return Panel(Group(*parts), title=Text(f"{run.stage or 'run'} · {run.path}"), box=ROUNDED, border_style="cyan")


def _head(run: RunView) -> Text:
    progress = run.progress
    line = Text(run.state, style=STATES[run.state])
    total = f"/{progress.total}" if progress.total is not None else ""
    line.append(f"  step {progress.step}{total}", style="bold default")
    if progress.seconds_per_step is not None:
        line.append(f"  {progress.seconds_per_step:.2f} s per step", style="default")
    if run.tokens_per_second is not None:
        line.append(f"  {format_figure(run.tokens_per_second)} tokens/s", style="default")
    if progress.eta_seconds is not None:
        line.append(f"  {format_seconds(progress.eta_seconds)} left", style="default")
    if (version := run.last("adapter_version")) is not None:
        line.append(f"  adapter {version:.0f}", style="dim")
    return line


def _bar(run: RunView) -> RenderableType:
    progress = run.progress
    if progress.total is None:
        return Text("")
    return ProgressBar(total=max(1, progress.total), completed=min(progress.step, progress.total), width=60)


def _figures(run: RunView) -> RenderableType:
    table = Table(box=SIMPLE, show_header=True, pad_edge=False)
    table.add_column("", style="cyan")
    table.add_column("over the run")
    table.add_column("first", justify="right", style="dim")
    table.add_column("now", justify="right", style="bold")
    rows = 0
    for key, name in FIGURES.get(run.stage, _TRAINING):
        values = [value for _, value in run.series(key)]
        if values:
            rows += 1
            table.add_row(name, sparkline(values), format_figure(values[0]), format_figure(values[-1]))
    return table if rows else Text("no figures yet", style="dim")


def _phases(seconds: dict[str, float]) -> Text:
    total = sum(seconds.values()) or 1.0
    line = Text("last step  ")
    for value, style in zip(seconds.values(), PHASE_STYLES, strict=False):
        line.append("█" * max(1, round(30 * value / total)), style=style)
    for (name, value), style in zip(seconds.items(), PHASE_STYLES, strict=False):
        line.append(f"  {name} {value:.2f} s", style=style)
    return line


def _events(run: RunView, limit: int) -> Text:
    lines: Sequence[Text] = [
        Text.assemble(
            (event.time[11:19], "dim"),
            (f" {event.level:<7}", {"INFO": "default", "WARNING": "yellow"}.get(event.level, "bold red")),
            (f" {event.who:<10} ", "cyan"),
            "".join(c if c.isprintable() else "�" for c in event.text)[:400],
        )
        for event in run.events(limit)
    ]
    told = Text("\n", no_wrap=True, overflow="ellipsis").join(lines)
    return told if lines else Text("no events in the logs", style="dim")
