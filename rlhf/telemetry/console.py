"""The one rich console of a process, and what the command line prints on it."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Mapping, Sequence

from rich.box import ROUNDED
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

_PLAIN_WIDTH = 100


@functools.cache
def get_console() -> Console:
    """The console to stdout, shared by bars, tables and messages so that they do not overwrite each other."""
    plain = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(highlight=False, width=_PLAIN_WIDTH if plain else None)


def print_header(title: str, subtitle: str = "", *, console: Console | None = None) -> None:
    """A titled rule, with one dim line under it."""
    console = console or get_console()
    console.print(Rule(Text(title, style="bold cyan"), align="left", style="cyan"))
    if subtitle:
        console.print(Text(subtitle, style="dim"))


def print_table(
    title: str,
    rows: Mapping[str, object] | Sequence[Sequence[object]],
    columns: Sequence[str] | None = None,
    *,
    console: Console | None = None,
) -> None:
    """A small table; the first column is the label, numbers are right-aligned.

    Args:
        title: printed above the table.
        rows: one sequence of cells per row, or a mapping for two columns. Text is shown as it is, never
            as markup.
        columns: column heads; without them the table has no head.
        console: where to print; the shared console by default.
    """
    cells = [list(row) for row in (rows.items() if isinstance(rows, Mapping) else rows)]
    width = max([len(columns or ()), *(len(row) for row in cells)], default=0)
    table = Table(title=Text(title, style="bold"), title_justify="left", box=ROUNDED)
    table.show_header = columns is not None
    for index in range(width):
        values = [row[index] for row in cells if index < len(row)]
        numeric = bool(values) and all(_is_number(value) for value in values)
        head = columns[index] if columns and index < len(columns) else ""
        style = "cyan" if index == 0 else None
        table.add_column(Text(head), justify="right" if numeric else "left", style=style)
    for row in cells:
        table.add_row(*(Text(format_figure(cell)) for cell in row))
    (console or get_console()).print(table)


def print_next_commands(
    commands: Sequence[tuple[str, str]], *, title: str = "Next", console: Console | None = None
) -> None:
    """Commands to try, each with what it does; the command itself is never wrapped, so it can be copied."""
    console = console or get_console()
    console.print(Text(f"\n{title}", style="bold"))
    for command, purpose in commands:
        console.print(Text(f"  {purpose}", style="dim"))
        console.print(Text(f"    {command}", style="bold green"), soft_wrap=True)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def format_figure(value: object) -> str:
    """A value for a person: floats to about four significant digits, counts with separators."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        size = abs(value)
        if value != value or size == float("inf"):
            return str(value)
        if size >= 10_000:
            return f"{value:,.0f}"
        if size >= 100:
            return f"{value:.1f}"
        if size >= 1 or value == 0:
            return f"{value:.2f}"
        return f"{value:.3f}" if size >= 0.01 else f"{value:.2e}"
    return str(value)
