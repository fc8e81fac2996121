"""``rlhf prefs ...``: the preference store from the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from preference_ui import commands, group_commands
from preference_ui.tables import Table


def main(argv: Sequence[str]) -> int:
    """Runs one command and prints its tables; errors are raised for the caller to show."""
    args = build_parser().parse_args(list(argv))
    found = args.run(args)
    for table in found if isinstance(found, list) else [found]:
        sys.stdout.write(table.render() + "\n\n")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """All actions on the store."""
    parser = argparse.ArgumentParser(
        prog="rlhf prefs",
        description="Import, export and look after rankings. The store is $RLHF_STORE, or runs/preferences.sqlite, or "
        "what --store says: a SQLite file or a postgresql:// URL.",
    )
    where: dict[str, Any] = {"metavar": "PLACE", "help": "SQLite file or PostgreSQL URL"}
    parser.add_argument("--store", **where)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    load = actions.add_parser("import", help="prompts and responses: JSONL, CSV, parquet, HH, TRL rows, OASST trees")
    load.add_argument("project")
    load.add_argument("files", nargs="+")
    load.add_argument("--format", dest="file_format", help="default: detected")
    load.add_argument("--without-rankings", action="store_true", help="take the texts, leave their rankings out")
    load.add_argument(
        "--group", default="", metavar="WORD",
        help="only people who have this group rank the files' tasks, e.g. da or medical; for files without a column "
        "'group' (a row with another group is an error, and nothing of its file is stored)",
    )  # fmt: skip
    load.set_defaults(run=_import)
    _add_sample(actions)
    save = actions.add_parser("export", help="preference rows for training")
    save.add_argument("project")
    save.add_argument("file")
    save.add_argument(
        "--format", dest="file_format", default="jsonl", help="jsonl, trl, hh, parquet, csv, sft or judgments"
    )
    _add_pair_options(save)
    save.set_defaults(run=_export)
    stats = actions.add_parser("stats", help="agreement, biases, reliability, and the ceiling for a reward model")
    stats.add_argument("project")
    stats.set_defaults(run=lambda a: commands.prefs_stats(a.store, a.project))
    freeze = actions.add_parser("freeze", help="make a numbered dataset version with a sha256 and a card")
    freeze.add_argument("project")
    _add_pair_options(freeze)
    freeze.set_defaults(run=_freeze)
    aside = actions.add_parser(
        "set-aside",
        help="take all votes of a person out of exports, statistics and progress; their tasks are asked again",
        description="Frozen versions stay as they are. --undo lets the votes count again, as late ones where somebody "
        "else has answered meanwhile. Close the account first if its owner should not be asked again.",
    )
    aside.add_argument("project")
    aside.add_argument("handle", help="the person's name")
    aside.add_argument("--reason", default="", help="why; kept in the audit chain")
    aside.add_argument("--undo", action="store_true", help="let votes that were set aside count again")
    aside.set_defaults(
        run=lambda a: commands.prefs_set_aside(a.store, a.project, a.handle, reason=a.reason, undo=a.undo)
    )
    groups = actions.add_parser(
        "groups",
        help="who gets the tasks of which group; with a person and --set, change it",
        description="A task with a group (a column of imported rows, or `rlhf prefs import --group`) goes only to "
        "people who have that group in the project, whatever their role; a task without one goes to anybody. --set "
        "replaces all groups that the person has in the project.",
    )
    groups.add_argument("project")
    groups.add_argument("handle", nargs="?", help="the person's name")
    groups.add_argument("--set", dest="words", metavar="WORDS", help="with commas between them; '' for none")
    groups.set_defaults(run=lambda a: group_commands.prefs_groups(a.store, a.project, a.handle, a.words))
    backup = actions.add_parser("backup", help="copy a live SQLite store")
    backup.add_argument("target")
    backup.set_defaults(run=lambda a: commands.prefs_backup(a.store, a.target))
    verify = actions.add_parser("verify", help="check the audit chain and the queue's invariants")
    verify.set_defaults(run=lambda a: commands.prefs_verify(a.store))
    for action in actions.choices.values():  # also behind the action; left out there, the one before it holds
        action.add_argument("--store", default=argparse.SUPPRESS, **where)
    return parser


def _add_sample(actions: Any) -> None:
    draw = actions.add_parser(
        "sample",
        help="let a policy answer prompts and queue its answers, each with run, adapter, seed and settings",
        description="Draw candidates with `rlhf sample` and import them as tasks, in one step. Without --prompts the "
        "project's own prompts are answered: those that this run has not answered yet first, then those with the "
        "fewest votes.",
    )
    draw.add_argument("project", nargs="?", help="default: the store's only project")
    draw.add_argument(
        "--run", dest="policy", required=True, metavar="RUN", help="the policy: a run directory, a model or a hub id"
    )
    draw.add_argument("--prompts", metavar="FILE", help="prompts to answer (JSONL and the like)")
    draw.add_argument("--count", type=int, default=100, help="prompts taken from the project (default: 100)")
    draw.add_argument("--k", type=int, default=4, help="responses per prompt, 2 to 9 (default: 4)")
    draw.add_argument("--seed", type=int, default=0)
    draw.add_argument("--config", metavar="FILE", help="a config of `rlhf sample` to start from")
    draw.add_argument("--run-dir", metavar="DIR", help="where it works (default: runs/samples/PROJECT-DATE-TIME)")
    draw.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="key=value",
        help="another key of `rlhf sample`, e.g. sampling.temperature=0.7",
    )  # fmt: skip
    draw.set_defaults(run=_sample)


def _sample(args: argparse.Namespace) -> Table:
    return commands.prefs_sample(
        args.store, args.project, run=args.policy, prompts=args.prompts, limit=args.count,
        responses_per_prompt=args.k, seed=args.seed, config=args.config, folder=args.run_dir,
        overrides=args.overrides,
    )  # fmt: skip


def _add_pair_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--votes", choices=("soft", "each"), default="soft", help="one soft row per pair, or a row per vote"
    )
    parser.add_argument("--ties", choices=("soft", "drop"), default="soft")
    parser.add_argument("--weight-by-reliability", action="store_true", help="trust reliable annotators more")
    parser.add_argument("--with-retired", action="store_true", help="keep the votes on tasks that a lead has retired")


def _import(args: argparse.Namespace) -> Table:
    return commands.prefs_import(
        args.store,
        args.project,
        args.files,
        file_format=args.file_format,
        keep_rankings=not args.without_rankings,
        group=args.group,
    )


def _export(args: argparse.Namespace) -> Table:
    return commands.prefs_export(
        args.store,
        args.project,
        args.file,
        file_format=args.file_format,
        votes=args.votes,
        ties=args.ties,
        weight_by_reliability=args.weight_by_reliability,
        with_retired=args.with_retired,
    )


def _freeze(args: argparse.Namespace) -> Table:
    return commands.prefs_freeze(
        args.store,
        args.project,
        votes=args.votes,
        ties=args.ties,
        weight_by_reliability=args.weight_by_reliability,
        with_retired=args.with_retired,
    )
