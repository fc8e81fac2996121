"""``rlhf pipeline FILE``: stages as jobs, one after the other, with people in between; resumable step by step."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from cluster.judgments import Judgments, wait_for_judgments
from cluster.local_data import refuse_missing
from cluster.submit import build_parser as submit_parser
from cluster.submit import follow_job, prepare, send
from rlhf.config import STAGES, build_config, config_hash, load_config, read_tree
from rlhf.config.base import Section
from rlhf.config.claim import claim, release_run_dir
from rlhf.config.finished import is_finished
from rlhf.config.same import asks_for_the_same, holds_the_same
from rlhf.errors import CheckpointError, ConfigError
from rlhf.telemetry.console import get_console, print_table

STATE_FILE = "pipeline.json"

EPILOG = """\
The state is kept in RUN_DIR/pipeline.json after every step: the same command again goes on where the last one ended,
and a job that was stopped or failed gets another attempt, which resumes from its checkpoint. A stage counts as done
where its run directory holds this very run, finished.

examples:
  rlhf pipeline configs/pipelines/helpline.yaml --dry-run
  rlhf pipeline configs/pipelines/helpline.yaml --address http://HEAD:8265
  rlhf pipeline configs/pipelines/helpline.yaml --local          without a cluster, on this machine
"""


class Step(Section):
    """One step: a stage with its config, a command of ``rlhf``, or a wait for people."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    stage: str | None = None
    config: str | None = None
    overrides: tuple[str, ...] = ()
    """``dotted.key=value``; ``{run_dir}`` is the pipeline's own."""
    command: tuple[str, ...] = ()
    """Words after ``rlhf``, run where the pipeline is started."""
    wait_for_judgments: Judgments | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Step:
        kinds = [self.stage is not None, bool(self.command), self.wait_for_judgments is not None]
        if sum(kinds) != 1:
            raise ValueError(f"step {self.name!r} needs exactly one of stage, command, wait_for_judgments")
        if self.stage is not None and self.stage not in STAGES:
            raise ValueError(f"step {self.name!r}: stage must be one of {', '.join(STAGES)}")
        if self.stage is None and (self.config or self.overrides):
            raise ValueError(f"step {self.name!r}: config and overrides belong to a stage")
        return self


class PipelineConfig(Section):
    """Steps in order."""

    stage: Literal["pipeline"] = "pipeline"
    run_dir: str
    """Directory of the state, and by default parent of every stage's run directory."""
    steps: tuple[Step, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_differ(self) -> PipelineConfig:
        names = [step.name for step in self.steps]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"steps have equal names: {', '.join(twice)}")
        return self


@dataclass(frozen=True)
class Begun:
    """What a step was when it began.

    Attributes:
        config: of a stage, as plain JSON values.
    """

    digest: str
    config: dict[str, Any] | None = None


@dataclass
class Pipeline:
    """A pipeline and how far it is."""

    config: PipelineConfig
    args: argparse.Namespace
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def state_path(self) -> Path:
        return Path(self.config.run_dir) / STATE_FILE

    def fill(self, text: str) -> str:
        """Text with the pipeline's run directory in it."""
        return text.replace("{run_dir}", self.config.run_dir)

    def overrides(self, step: Step) -> list[str]:
        """A stage's overrides; its run directory is RUN_DIR/NAME unless it says otherwise."""
        given = [self.fill(item) for item in step.overrides]
        if any(item.startswith("run_dir=") for item in given):
            return given
        return [f"run_dir={self.config.run_dir}/{step.name}", *given]

    def stage_config(self, step: Step) -> Any:
        """The config of a step that is a stage."""
        return load_config(str(step.stage), step.config, self.overrides(step))

    def begun(self, step: Step) -> Begun:
        """What a step does, as its files say now; they may say something else when it ends."""
        if step.stage is not None:
            config = self.stage_config(step)
            return Begun(config_hash(config), config.model_dump(mode="json"))
        return Begun(hashlib.sha256(json.dumps(step.model_dump(mode="json"), sort_keys=True).encode()).hexdigest())

    def digest(self, step: Step) -> str:
        """Identity of what a step does."""
        return self.begun(step).digest

    def done(self, step: Step) -> bool:
        """Whether the step is over.

        Raises:
            ConfigError: it is, but was done with other settings.
        """
        record = self.state.get(step.name)
        if record is None:
            return False
        if record["digest"] != self.digest(step) and not self._same(step, record):
            raise ConfigError(
                f"step {step.name!r} was done with other settings{self._moved(step, record)}; undo the change, or "
                f"start over in another run_dir (state: {self.state_path})"
            )
        return True

    def _same(self, step: Step, record: dict[str, Any]) -> bool:
        """Whether a stage was done as it would be now: an earlier release has written another digest.

        Its run is where it is looked for: in the directory that was noted, or moved with the pipeline, and whole.
        """
        if step.stage is None:
            return False
        config = self.stage_config(step)
        folder = Path(config.run_dir)
        if "config" not in record:
            return holds_the_same(folder / "config.json", config)
        if folder.absolute() == Path(record["config"].get("run_dir", "")).absolute():
            return asks_for_the_same(record["config"], config)
        return is_finished(folder) and holds_the_same(folder / "config.json", config)

    def _moved(self, step: Step, record: dict[str, Any]) -> str:
        before = record.get("config", {}).get("run_dir")
        now = None if step.stage is None else self.stage_config(step).run_dir
        return f" (in run_dir={before}, and {now} does not hold that run)" if before not in (None, now) else ""

    def keep(self, step: Step, begun: Begun, seconds: float) -> None:
        """Remembers that a step is over, and what it was when it began."""
        self.state[step.name] = {
            "digest": begun.digest,
            **({} if begun.config is None else {"config": begun.config}),
            "seconds": round(seconds, 1),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        temporary = self.state_path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"steps": self.state}, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self.state_path)


def main(rest: list[str]) -> int:
    """``rlhf pipeline``; the exit code is that of the step that ended it, 0 when all are over."""
    parser = build_parser()
    args = parser.parse_args(rest)
    if args.local and (args.address or args.root or args.code or args.env_var or args.secrets_in_clear):
        parser.error(
            "--local starts no job: --address, --root, --code, --env-var and --secrets-in-clear do not go with it"
        )
    pipeline = open_pipeline(args.file, args)
    if args.dry_run:
        return show(pipeline)
    with claimed(pipeline):
        return run(pipeline)


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="rlhf pipeline",
        description="Run stages one after the other as jobs of a cluster, and wait for people in between.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("file", metavar="FILE", type=Path, help="e.g. configs/pipelines/helpline.yaml")
    add("--address", metavar="URL", help="the head's dashboard, e.g. http://HEAD:8265; default as for 'rlhf submit'")
    add("--root", metavar="DIR", help="directory on the cluster that runs/... is meant from (default: this one)")
    add("--run-dir", metavar="DIR", help="instead of the file's run_dir")
    add("--local", action="store_true", help="run the stages here instead of as jobs")
    add("--no-wait", action="store_true", help="leave when it is the people's turn; the same command goes on")
    add("--code", action="store_true", help="send this checkout's code instead of trusting the image's")
    add("--env-var", action="append", default=[], metavar="NAME[=VALUE]",
        help="a variable for every job; not for secrets, see 'rlhf submit --help'")  # fmt: skip
    add("--secrets-in-clear", action="store_true", help="as for 'rlhf submit'")
    add("--dry-run", action="store_true", help="check every config, show what is done and what comes")
    return parser


def check_pipeline(file: Path) -> None:
    """Reads a pipeline and every config it names.

    Raises:
        ConfigError: something is wrong.
    """
    open_pipeline(file, build_parser().parse_args([str(file)]))


def open_pipeline(file: Path, args: argparse.Namespace) -> Pipeline:
    """Reads a pipeline, its state, and every config it names.

    Raises:
        ConfigError: something is wrong; nothing has been started.
    """
    tree = read_tree(file)
    if not isinstance(tree, dict):
        raise ConfigError(f"{file} must hold a mapping of keys to values")
    if isinstance(stage := tree.get("stage"), str) and stage in STAGES:
        raise ConfigError(
            f"{file} is a config of stage {stage!r}, no pipeline: run 'rlhf {stage} --config {file}', or name one of "
            "configs/pipelines/"
        )
    if args.run_dir:
        tree["run_dir"] = args.run_dir
    pipeline = Pipeline(build_config(PipelineConfig, tree, source=str(file)), args)
    pipeline.state = read_state(pipeline.state_path)
    for step in pipeline.config.steps:
        pipeline.digest(step)
        if step.stage is not None and Path(pipeline.stage_config(step).run_dir) == Path(pipeline.config.run_dir):
            raise ConfigError(f"step {step.name!r}: run_dir={pipeline.config.run_dir} is the pipeline's own: leave it "
                              "out, or name a directory below")  # fmt: skip
    return pipeline


def read_state(path: Path) -> dict[str, Any]:
    """What a pipeline has kept; nothing before its first step.

    Raises:
        ConfigError: the file is something else.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["steps"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not a pipeline's state: {error}") from None


@contextmanager
def claimed(pipeline: Pipeline) -> Iterator[None]:
    """Takes the run directory for this process: two that run one pipeline would run each step twice.

    Raises:
        RunLockedError: a live process has it.
        CheckpointError: it cannot be written.
    """
    folder = Path(pipeline.config.run_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        claim(folder)
    except OSError as error:
        raise CheckpointError(f"run_dir={folder} cannot be written: {error}; name another with --run-dir") from None
    try:
        pipeline.state = read_state(pipeline.state_path)  # another process may have gone on until now
        yield
    finally:
        release_run_dir(folder)


def show(pipeline: Pipeline) -> int:
    """What is done and what comes.

    Raises:
        ConfigError: data of a stage that would run here is not here.
    """
    rows, next_found = [], False
    made = [pipeline.config.run_dir, *(pipeline.stage_config(s).run_dir for s in pipeline.config.steps if s.stage)]
    for step in pipeline.config.steps:
        done = pipeline.done(step)
        if pipeline.args.local and step.stage is not None and not done:
            refuse_missing(step.name, pipeline.stage_config(step).model_dump(mode="json"), made)
        state = "done" if done else "later" if next_found else "next"
        next_found = next_found or not done
        rows.append((step.name, state, describe(pipeline, step)))
    print_table(f"Pipeline in {pipeline.config.run_dir} (nothing was started)", rows, ("step", "state", "what"))
    return 0


def describe(pipeline: Pipeline, step: Step) -> str:
    """A step in one line."""
    if step.stage is not None:
        return f"{step.stage} with {step.config}"
    if step.command:
        return pipeline.fill("rlhf " + " ".join(step.command))
    wanted = step.wait_for_judgments
    return f"wait for {wanted.count} judgments in project {wanted.project}" if wanted else ""


def run(pipeline: Pipeline) -> int:
    """Runs what is not done yet."""
    console, total = get_console(), len(pipeline.config.steps)
    for number, step in enumerate(pipeline.config.steps, 1):
        head = f"[{number}/{total}] {step.name}"
        if pipeline.done(step):
            console.print(f"{head}: done before", markup=False)
            continue
        console.print(f"{head}: {describe(pipeline, step)}", markup=False, soft_wrap=True)
        started, begun = time.monotonic(), pipeline.begun(step)
        code = run_step(pipeline, step)
        if code is None:
            return 0
        if code != 0:
            console.print(f"{head}: exit code {code}; the same command goes on from here", markup=False)
            return code
        pipeline.keep(step, begun, time.monotonic() - started)
    console.print(f"all {total} steps are done: {pipeline.config.run_dir}", markup=False, soft_wrap=True)
    return 0


def run_step(pipeline: Pipeline, step: Step) -> int | None:
    """Exit code of one step; None when it is the people's turn and nobody waits here."""
    if step.wait_for_judgments is not None:
        return wait_for_judgments(step.wait_for_judgments, wait=not pipeline.args.no_wait)
    if step.command:
        return _rlhf([pipeline.fill(word) for word in step.command])
    if pipeline.args.local:
        config = ["--config", step.config] if step.config else []
        return _rlhf([str(step.stage), "--unless-finished", *config, *pipeline.overrides(step)])
    return run_job(pipeline, step)


def run_job(pipeline: Pipeline, step: Step) -> int:
    """Runs a stage as a job and follows it."""
    args, name = pipeline.args, Path(pipeline.config.run_dir).name
    words = [str(step.stage), *pipeline.overrides(step), "--id", f"{name}-{step.name}"]
    words += ["--config", step.config] if step.config else []
    words += ["--root", args.root] if args.root else []
    words += ["--code"] if args.code else []
    words += ["--secrets-in-clear"] if args.secrets_in_clear else []
    words += [word for item in args.env_var for word in ("--env-var", item)]
    client, submission_id = send(prepare(submit_parser().parse_intermixed_args(words)), args.address)
    return 0 if submission_id is None else follow_job(client, submission_id, args.address)


def _rlhf(words: list[str]) -> int:
    return subprocess.run([sys.executable, "-m", "rlhf", *words], check=False).returncode
