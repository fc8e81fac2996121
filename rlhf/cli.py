"""The command line: ``rlhf STAGE --config FILE [dotted.key=value ...]`` and its companions."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rlhf import __version__
from rlhf.config import STAGES, dump_yaml, is_pipeline, load_config, stage_of
from rlhf.errors import ConfigError, DataError, RlhfError
from rlhf.telemetry.console import get_console, print_header, print_next_commands, print_table
from rlhf.telemetry.logging import hold_libraries_back
from rlhf.telemetry.redaction import redact_text, redact_tracebacks
from rlhf.workers.lean import lean_imports

STAGE_HELP = {
    "sft": "supervised fine-tuning on demonstrations",
    "reward": "train a reward model on preferences (files, or store:PROJECT@vN)",
    "dpo": "train a policy on preferences alone, without a reward model or sampling",
    "ppo": "train the policy with PPO (or GRPO, RLOO, REINFORCE++) against scores",
    "sample": "draw K responses per prompt from a policy, for annotators",
    "evaluate": "win rate of a policy against a baseline on held-out prompts",
}
TITLES = {
    "sft": "SFT",
    "reward": "Reward model",
    "dpo": "DPO",
    "ppo": "PPO",
    "sample": "Sample",
    "evaluate": "Evaluate",
}

RESUMABLE = ("sft", "reward", "dpo", "ppo")
DELEGATES = {
    "prefs": ("preference_ui.cli", "the preference store: import, sample, export, stats, freeze, backup, verify"),
    "annotate": ("preference_ui.app.serve", "serve the page on which people rank responses"),
    "export": ("rlhf.stages.export", "write a run's policy as a model directory, merged or as an adapter"),
    "peft": ("rlhf.models.peft_support", "which adapter methods work where"),
    "submit": ("cluster.submit", "run a stage as a job of a Ray cluster"),
    "jobs": ("cluster.jobs", "list, follow and stop jobs of a Ray cluster"),
    "pipeline": ("cluster.pipeline", "sft, sample, rankings, reward, ppo, evaluate as jobs, resumable stage by stage"),
    "doctor": ("cluster.doctor", "check this machine, and the cluster, before a run does"),
    "plan": ("cluster.plan", "predict memory, steps and cost of a run on given GPUs"),
    "board": ("preference_ui.app.board", "a page with all runs: metrics live, samples, comparisons"),
    "top": ("rlhf.telemetry.top", "watch a run in the terminal"),
}

PROFILE_HELP = (
    "record where every step's time and memory go, in every worker: a table at the end, and in RUN/profile/ a picture "
    "(profile.svg), a trace for ui.perfetto.dev (trace.json) and all figures (profile.json); results stay the same; "
    "short for telemetry.profile=true"
)

EPILOG = """\
examples:
  rlhf quickstart                                              the whole loop, small, on this machine
  rlhf sft --config configs/sft/tiny_cpu.yaml model.name=PATH data.train=rows.jsonl
  rlhf ppo --config configs/ppo/tiny_cpu.yaml optim.learning_rate=1e-5 --dry-run
  rlhf config check configs/ppo/tiny_cpu.yaml
  rlhf chat runs/quickstart/ppo

exit codes: 0 done; 2 config or data; 3 a worker failed or the run was stopped (run the same command again to go on);
            4 run directory or checkpoint; 5 numerics; 6 no valid token; 7 run directory in use
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code that ``rlhf.errors`` documents."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if rest and hasattr(args, "dry_run") and not any(word.startswith("-") for word in rest):
        args.overrides += rest  # a stage's overrides on both sides of an option
    elif rest:
        if not hasattr(args, "rest"):
            getattr(args, "command", parser).error(f"unrecognized arguments: {' '.join(rest)}")
        args.rest = [*rest, *args.rest] if rest[0].startswith("-") else [*args.rest, *rest]
    if not hasattr(args, "run"):
        parser.print_help()
        return 2
    redact_tracebacks()
    logging.captureWarnings(True)
    logging.getLogger().addHandler(logging.NullHandler())  # records go to a run's files, never to the terminal
    hold_libraries_back()
    try:
        return args.run(args) or 0
    except RlhfError as error:
        get_console().print(f"\n[bold red]{type(error).__name__}[/]: ", end="")
        get_console().print(redact_text(str(error)), markup=False, soft_wrap=True)
        logging.getLogger(__name__).error("%s: %s", type(error).__name__, error)
        return error.exit_code
    except KeyboardInterrupt:
        get_console().print("\nstopped by the keyboard")
        return 130


def build_parser() -> argparse.ArgumentParser:
    """All commands."""
    parser = argparse.ArgumentParser(
        prog="rlhf",
        description="Distributed RLHF: SFT, human rankings, reward model and LoRA PPO on Ray and DeepSpeed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rlhf {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for stage, text in STAGE_HELP.items():
        _add_stage(commands, stage, text)
    _add_config(commands)
    _add_chat(commands)
    _add_quickstart(commands)
    _add_report(commands)
    _add_delegates(commands)
    return parser


def _add_stage(commands: Any, stage: str, text: str) -> None:
    command = commands.add_parser(stage, help=text, description=f"{TITLES[stage]}: {text}.", epilog=(
        f"All keys with their defaults: rlhf config schema {stage}. Overrides win over the file."))  # fmt: skip
    command.add_argument("--config", metavar="FILE", help="a YAML file, e.g. one of configs/")
    command.add_argument("--dry-run", action="store_true", help="print the resolved plan and start nothing")
    instead = " instead of going on from its checkpoint" if stage in RESUMABLE else ""
    earlier = command.add_mutually_exclusive_group()
    earlier.add_argument(
        "--fresh",
        action="store_true",
        help=f"set an earlier run in run_dir aside (renamed, never deleted){instead}",
    )
    earlier.add_argument(
        "--unless-finished",
        action="store_true",
        help="do nothing, with exit code 0, where run_dir holds this very run, finished; what submit and pipeline do",
    )
    command.add_argument("--no-next", action="store_true", help="at the end, leave out the commands to go on with")
    if stage == "ppo":
        command.add_argument("--profile", action="store_true", help=PROFILE_HELP)
    command.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, values as YAML")
    command.set_defaults(run=_run_stage, command=command, stage=stage, profile=False)


def _run_stage(args: argparse.Namespace) -> int:
    overrides = [*args.overrides, "telemetry.profile=true"] if args.profile else args.overrides
    config = load_config(args.stage, args.config, overrides)
    if args.dry_run:
        with lean_imports():
            from rlhf.stages.plan import plan_stage

        print_table(f"Plan of {args.stage} (nothing was started)", plan_stage(config), ("key", "value"))
        return 0
    from rlhf.stages.run_dir import finished_before
    from rlhf.telemetry.progress import stage_progress

    if args.unless_finished and finished_before(config):
        get_console().print(f"{config.run_dir} holds this run, finished before", markup=False, soft_wrap=True)
        return 0
    _prepare(config.run_dir, fresh=args.fresh)
    print_header(f"{TITLES[args.stage]} → {config.run_dir}", f"model {config.model.name}")
    with stage_progress(TITLES[args.stage]) as progress:
        summary = _runner(args.stage)(
            config, progress=lambda step, total, **figures: progress.update(step, total, **figures)
        )
    print_table(f"{TITLES[args.stage]} finished", _flat(summary))
    if args.stage != "sample":
        from rlhf.telemetry.report import write_run_report

        get_console().print(f"report: {write_run_report(config.run_dir)}", markup=False)
    if args.stage == "ppo" and config.telemetry.profile:
        from rlhf.telemetry.profile_files import print_profile

        print_profile(config.run_dir)
    if not args.no_next:
        from rlhf.stages.next_commands import next_commands

        print_next_commands(next_commands(args.stage, config))
    return 0


def _prepare(run_dir: str, *, fresh: bool) -> None:
    """Sets an earlier run aside where asked; otherwise says when the run goes on from a checkpoint."""
    from rlhf.stages.run_dir import CHECKPOINTS, set_aside

    if fresh:
        if (aside := set_aside(Path(run_dir))) is not None:
            get_console().print(f"the earlier run is now {aside}", style="dim", markup=False)
    elif found := sorted((Path(run_dir) / CHECKPOINTS).glob("step-*")):
        get_console().print(f"going on from {found[-1].name}, or the newest whole checkpoint", style="dim")


def _runner(stage: str) -> Callable[..., dict[str, Any]]:
    """The stage's recipe, imported only when it is wanted."""
    with lean_imports():
        return getattr(importlib.import_module(f"rlhf.stages.{stage}"), f"run_{stage}")


def _add_config(commands: Any) -> None:
    command = commands.add_parser("config", help="show, check or describe configs")
    actions = command.add_subparsers(metavar="ACTION", required=True)
    show = actions.add_parser("show", help="print a config with every default written out")
    check = actions.add_parser("check", help="check files; exit code 2 and the reason when one is wrong")
    for action in (show, check):
        action.add_argument("files", nargs="+", metavar="FILE")
        action.add_argument("--set", dest="overrides", action="append", default=[], metavar="key=value")
    show.set_defaults(run=_config_show, command=show)
    check.set_defaults(run=_config_check, command=check)
    schema = actions.add_parser("schema", help="print a stage's JSON schema with the meaning of every key")
    schema.add_argument("stage", choices=sorted(STAGES))
    schema.set_defaults(run=_config_schema, command=schema)


def _files(args: argparse.Namespace) -> list[str]:
    for file in args.files:
        if "=" in file and not Path(file).exists():
            raise ConfigError(f"{file!r} is no file; overrides stand behind --set, for each: --set {file}")
    return list(args.files)


def _config_show(args: argparse.Namespace) -> int:
    for file in _files(args):
        get_console().print(dump_yaml(load_config(stage_of(file), file, args.overrides)), markup=False, soft_wrap=True)
    return 0


def _config_check(args: argparse.Namespace) -> int:
    for file in _files(args):
        if is_pipeline(file):
            from cluster.pipeline import check_pipeline

            check_pipeline(Path(file))
        else:
            load_config(stage_of(file), file, args.overrides)
        get_console().print(f"{file}: good", markup=False)
    return 0


def _config_schema(args: argparse.Namespace) -> int:
    schema = json.dumps(STAGES[args.stage].model_json_schema(), indent=2)
    get_console().print(schema, markup=False, soft_wrap=True)
    return 0


def _add_chat(commands: Any) -> None:
    command = commands.add_parser("chat", help="talk to a trained policy", description="Talk to a run or a model.")
    command.add_argument("model", metavar="RUN", help="a run directory, model directory or hub id")
    command.add_argument("--temperature", type=float, default=0.7)
    command.add_argument("--max-response-tokens", type=int, default=128)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--prompt", action="append", help="answer this and leave; may be given several times")
    command.set_defaults(run=_run_chat, command=command)


def _run_chat(args: argparse.Namespace) -> int:
    if not args.model:
        raise ConfigError("RUN is empty: give a run directory, a model directory or a hub id")
    if not 0 < args.temperature < math.inf:
        raise ConfigError(f"--temperature {args.temperature:g} must be above 0; 0.01 takes nearly always the likeliest")
    if args.max_response_tokens < 1:
        raise ConfigError(f"--max-response-tokens {args.max_response_tokens} must be at least 1")
    from rlhf.config import ModelConfig, SamplingConfig

    with lean_imports():
        from rlhf.stages.chat import ChatSession, read_lines

    sampling = SamplingConfig(temperature=args.temperature, max_response_tokens=args.max_response_tokens)
    session = ChatSession(ModelConfig(name=args.model), sampling, seed=args.seed)
    console = get_console()
    if not args.prompt:
        console.print("type a message; /reset forgets the conversation, /quit leaves", style="dim")
    lines = iter(args.prompt) if args.prompt else read_lines(lambda: console.input("[bold cyan]you[/] "))
    for line in lines:
        if line == "/reset":
            session.reset()
            continue
        if args.prompt:
            session.reset()
        try:
            answer = session.answer(line)
        except DataError as error:
            if args.prompt:
                raise
            console.print(f"not answered: {error}", markup=False, soft_wrap=True)
            continue
        if session.num_forgotten:
            console.print(f"(the oldest {session.num_forgotten} turns had no room any more: forgotten)", style="dim")
        console.print("[bold green]policy[/] ", end="")
        console.print(answer if answer.strip() else "(a blank answer)", markup=False, soft_wrap=True)
    return 0


def _add_quickstart(commands: Any) -> None:
    command = commands.add_parser(
        "quickstart",
        help="the whole loop on a small helpline: SFT, rankings, reward model, PPO, evaluation",
        description="Runs the real system, small, on this machine's CPU: two to three minutes on two idle cores, five "
        "beside other work.",
    )
    command.add_argument("--run-dir", default="runs/quickstart")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument(
        "--fresh", action="store_true", help="set an earlier quickstart aside (renamed, never deleted)"
    )
    command.add_argument(
        "--annotate", action="store_true", help="stop before the rankings, so that people rank in the page"
    )
    command.add_argument("--rehearsal", action="store_true", help="a minute: every stage runs, nothing is learned")
    command.set_defaults(run=_run_quickstart, command=command)


def _run_quickstart(args: argparse.Namespace) -> int:
    with lean_imports():
        from rlhf.stages.quickstart import run_quickstart

    run_quickstart(
        Path(args.run_dir), seed=args.seed, fresh=args.fresh, annotate=args.annotate, rehearsal=args.rehearsal
    )
    return 0


def _add_report(commands: Any) -> None:
    command = commands.add_parser("report", help="write a run's self-contained report.html")
    command.add_argument("run_dir", metavar="RUN")
    command.set_defaults(run=_run_report, command=command)


def _run_report(args: argparse.Namespace) -> int:
    from rlhf.telemetry.report import write_run_report

    get_console().print(f"report: {write_run_report(args.run_dir)}", markup=False)
    return 0


def _add_delegates(commands: Any) -> None:
    for name, (module, text) in DELEGATES.items():
        command = commands.add_parser(name, help=text, add_help=False)
        command.add_argument("rest", nargs=argparse.REMAINDER)
        command.set_defaults(run=_run_delegate, module=module)


def _run_delegate(args: argparse.Namespace) -> int:
    """Commands with a parser of their own, imported only when they are wanted."""
    return importlib.import_module(args.module).main(args.rest)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        elif not isinstance(value, list):
            flat[prefix + key] = value
    return flat


if __name__ == "__main__":
    sys.exit(main())
