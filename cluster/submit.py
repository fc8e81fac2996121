"""``rlhf submit STAGE``: check here, send only what is needed, run there, follow from here."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.auth import enable_token_auth
from cluster.package import MAX_PACKAGE_MIB, RUNS, Package, collect, format_size, write_zip
from rlhf.config import STAGES, config_hash, load_config
from rlhf.config.base import Section
from rlhf.config.same import holds_the_same
from rlhf.config.secret import holds_secret
from rlhf.errors import ConfigError
from rlhf.telemetry.console import get_console, print_next_commands

if TYPE_CHECKING:
    from cluster.client import Attempt, BoundedClient

ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
GRACE_VARIABLE = "RAY_JOB_STOP_WAIT_TIME_S"
AGENT_SECONDS = 60.0
STORE_VARIABLE = "RLHF_STORE"
FALLBACK_VARIABLE = "RLHF_STORE_DEFAULT"
DEFAULT_STORE = f"{RUNS}/preferences.sqlite"
ELSEWHERE = (
    "put it into a file on the nodes (file:PATH in a config, ~/.netrc for wandb, ~/.pgpass for a database's password) "
    "or export it where the nodes are started (python -m cluster.start)"
)
"""Where a secret belongs."""

EPILOG = """\
What travels: the config, the files and score modules it names, and --include. The code comes from the image, unless
--code sends this checkout's. Paths below runs/ mean the cluster's storage, --root (default: this directory).

The same run submitted again: says what is running and follows it; resumes what was stopped or failed as a new attempt
(NAME-a2, NAME-a3 ...) in the same run directory; does nothing when it has succeeded. With another config it is refused.

Secrets stay out of a submission: Ray keeps a job's variables in clear in its logs, in process lists and in what the job
server answers. Put them into files on the nodes (file:PATH in a config), or export them where the nodes are started.

Exit code: the job's own; 130 when it was stopped; before it starts 2 when something is wrong, 6 without a valid token.

examples:
  rlhf submit ppo --config configs/ppo/tiny_cpu.yaml --id july
  rlhf submit sft --config configs/sft/tiny_cpu.yaml --address http://HEAD:8265 --root /shared/rlhf --no-wait
  rlhf submit reward --config my.yaml num_epochs=2 --env-var WANDB_MODE=offline
"""


@dataclass(frozen=True)
class Job:
    """Everything about a submission that is known before the cluster is asked.

    Attributes:
        run: the run's name; the first attempt's submission id.
        environment: variables of the job; Ray keeps them in clear in its logs and process lists.
    """

    run: str
    stage: str
    run_dir: str
    entrypoint: str
    package: Package
    environment: dict[str, str]
    metadata: dict[str, str]
    config: Section
    """What the job will run with, as its nodes resolve it."""
    pip: tuple[str, ...] = ()


def main(rest: list[str]) -> int:
    """``rlhf submit``; returns the job's exit code."""
    args = build_parser().parse_intermixed_args(rest)
    job = prepare(args)
    client, submission_id = send(job, args.address, max_mib=args.max_package_mib)
    if submission_id is None:
        return 0
    if args.no_wait:
        print_next_commands(_next(submission_id, args.address))
        return 0
    return follow_job(client, submission_id, args.address)


def send(job: Job, address: str | None, *, max_mib: float = MAX_PACKAGE_MIB) -> tuple[BoundedClient, str | None]:
    """Packs and submits; says what is sent.

    Returns:
        The client, and the submission id to follow, or None when the run has succeeded before.
    """
    console = get_console()
    with tempfile.TemporaryDirectory(prefix="rlhf-submit-") as folder:
        archive = Path(folder) / "package.zip"
        size = write_zip(job.package, archive, max_mib=max_mib)
        console.print(f"{job.run}: {job.stage} into {job.run_dir}", markup=False, soft_wrap=True)
        console.print(f"package: {len(job.package.files)} files, {format_size(size)} compressed", markup=False)
        for path in job.package.remote_paths:
            console.print(f"expected on the nodes: {path}", markup=False, soft_wrap=True)
        enable_token_auth()
        from cluster.client import open_client

        client = open_client(address)
        return client, submit(client, job, archive)


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="rlhf submit",
        description="Run a stage as a job of a Ray cluster and follow it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("stage", choices=sorted(STAGES))
    add("overrides", nargs="*", metavar="key=value", help="dotted overrides, as for the stage itself")
    add("--config", metavar="FILE", type=Path, help="the stage's YAML file")
    add("--address", metavar="URL", help="the head's dashboard, e.g. http://HEAD:8265; on its loopback it is reached "
        "by 'ssh -N -L 8265:127.0.0.1:8265 HEAD'. Default: RAY_API_SERVER_ADDRESS, an http RAY_ADDRESS, or "
        "http://127.0.0.1:8265")  # fmt: skip
    add("--id", metavar="NAME", help="name of the run and of the job; the run directory becomes runs/NAME")
    add("--profile", action="store_true", help="of ppo: record where every step's time and memory go, see rlhf ppo -h")
    add("--no-wait", action="store_true", help="leave after the job was accepted")
    add("--root", metavar="DIR", help="directory on the cluster that runs/... is meant from (default: this one)")
    add("--include", action="append", default=[], metavar="PATH", help="more files to send; globs allowed")
    add("--exclude", action="append", default=[], metavar="PATTERN", help="files to leave out")
    add("--code", action="store_true", help="send this checkout's code instead of trusting the image's")
    add("--pip", action="append", default=[], metavar="PACKAGE", help="install at job start; nothing by default")
    add("--env-var", action="append", default=[], metavar="NAME[=VALUE]",
        help="a variable for the job; a bare NAME takes this shell's value; not for secrets, see below")  # fmt: skip
    add("--secrets-in-clear", action="store_true",
        help="send what looks like a secret all the same: Ray logs it, and the job server tells it")  # fmt: skip
    add("--stop-grace-seconds", type=int, default=120, metavar="N",
        help="what 'rlhf jobs stop' leaves the job to finish its step and save (default: %(default)s)")  # fmt: skip
    add("--max-package-mib", type=float, default=MAX_PACKAGE_MIB, metavar="N", help=argparse.SUPPRESS)
    return parser


def prepare(args: argparse.Namespace, *, root: Path | None = None) -> Job:
    """Checks and packs everything that needs no cluster.

    Raises:
        ConfigError: the config is wrong; nothing has been sent.
    """
    if args.stop_grace_seconds < 0:
        raise ConfigError(f"--stop-grace-seconds {args.stop_grace_seconds} must be at least 0")
    root = (root or Path.cwd()).resolve()
    overrides = list(args.overrides)
    if args.profile:
        overrides.append("telemetry.profile=true")
    if args.id is not None and not any(item.startswith("run_dir=") for item in overrides):
        overrides.append(f"run_dir={RUNS}/{args.id}")
    config = load_config(args.stage, args.config, overrides)
    tree = config.model_dump(mode="json", exclude_unset=True)
    run = args.id or run_name(config.run_dir)
    if not ID_PATTERN.fullmatch(run):
        raise ConfigError(f"--id {run!r}: letters, digits, '.', '_' and '-' only, beginning with a letter or digit")
    cluster_root = str(Path(args.root or root))
    if not Path(cluster_root).is_absolute():
        raise ConfigError(f"--root {cluster_root}: must be an absolute path on the cluster's nodes")
    package = collect(
        tree,
        args.config,
        root=root,
        cluster_root=cluster_root,
        include=args.include,
        exclude=args.exclude,
        code=args.code,
    )
    replaced = {item.partition("=")[0] for item in package.overrides}
    moved = [*(item for item in overrides if item.partition("=")[0] not in replaced), *package.overrides]
    if config.placement.ray_address is None:
        moved.append("placement.ray_address=auto")
    moved_config = load_config(args.stage, args.config, moved)
    run_dir = moved_config.run_dir
    if not Path(run_dir).is_absolute():
        raise ConfigError(
            f"run_dir={run_dir} is relative: a job's working directory goes with the job. Use {RUNS}/NAME, which is "
            "meant from --root, or an absolute path"
        )
    config_part = ["--config", package.config_name] if package.config_name else []
    words = ["python", "-m", "rlhf", args.stage, "--unless-finished", *config_part, *moved]
    return Job(
        run=run,
        stage=args.stage,
        run_dir=run_dir,
        entrypoint=shlex.join(words),
        package=package,
        environment=job_environment(
            args.env_var, args.stop_grace_seconds, cluster_root, in_clear=args.secrets_in_clear
        ),
        metadata={"run": run, "stage": args.stage, "run_dir": run_dir, "config_hash": config_hash(config)},
        config=moved_config,
        pip=tuple(args.pip),
    )


def run_name(run_dir: str) -> str:
    """A run directory as a name: ``runs/helpline/ppo`` is ``helpline-ppo``."""
    parts = [part for part in Path(run_dir).parts if part not in ("/", ".", "..")]
    return "-".join(parts[parts.index(RUNS) + 1 :] if RUNS in parts[:-1] else parts[-1:])


def job_environment(
    asked: list[str], stop_grace_seconds: int, cluster_root: str, *, in_clear: bool = False
) -> dict[str, str]:
    """Variables of the job.

    Args:
        in_clear: secrets may be among them, although Ray writes a job's variables into its logs.

    Raises:
        ConfigError: a secret was typed on the command line or would be sent, or a named variable is not set here.
    """
    found = {GRACE_VARIABLE: str(stop_grace_seconds), FALLBACK_VARIABLE: f"{cluster_root}/{DEFAULT_STORE}"}
    if store := os.environ.get(STORE_VARIABLE):
        found[STORE_VARIABLE] = store
    for item in asked:
        name, separator, value = item.partition("=")
        if separator and holds_secret(name, value):
            raise ConfigError(f"--env-var {name}=...: secrets do not belong on a command line; {ELSEWHERE}")
        if not separator:
            if name not in os.environ:
                raise ConfigError(f"--env-var {name}: not set in this shell")
            value = os.environ[name]
        found[name] = value
    secret = [] if in_clear else [name for name, value in found.items() if holds_secret(name, value)]
    if secret:
        raise ConfigError(
            f"{', '.join(secret)} holds a secret, and Ray keeps a job's variables in clear: in its logs and process "
            f"lists on every node, and in what the job server answers; {ELSEWHERE}, or say --secrets-in-clear"
        )
    return found


def submit(client: BoundedClient, job: Job, archive: Path) -> str | None:
    """Sends the job, unless its run is already running or done.

    Returns:
        The submission id to follow, or None when the run has succeeded before.
    """
    from cluster.client import attempts, explained

    console = get_console()
    earlier = attempts(client, job.run)
    last = earlier[-1] if earlier else None
    if last is not None and (last.live or last.status == "SUCCEEDED"):
        return _already(last, job)
    number = (max(a.number for a in earlier) + 1) if earlier else 1
    submission_id = job.run if number == 1 else f"{job.run}-a{number}"
    environment: dict[str, Any] = {"working_dir": str(archive), "env_vars": job.environment}
    if job.pip:
        environment["pip"] = list(job.pip)
    metadata = {**job.metadata, "attempt": str(number)}
    with explained(client.get_address()):
        submit_patiently(
            lambda: client.submit_job(
                entrypoint=job.entrypoint, submission_id=submission_id, runtime_env=environment, metadata=metadata
            )
        )
    if last is None:
        console.print(f"submitted as {submission_id}", markup=False)
    else:
        console.print(
            f"{last.submission_id} ended as {last.status}: submitted as {submission_id}, to resume in {job.run_dir}",
            markup=False,
            soft_wrap=True,
        )
    return submission_id


def submit_patiently(send_once: Callable[[], object], limit_seconds: float = AGENT_SECONDS) -> None:
    """Submits; a cluster that has just been started answers before any of its nodes can take a job.

    Raises:
        ConfigError: no node takes jobs within ``limit_seconds``.
        RuntimeError: anything else, as Ray raises it.
    """
    deadline = time.monotonic() + limit_seconds
    while True:
        try:
            send_once()
            return
        except RuntimeError as error:
            if "No available agent" not in str(error):
                raise
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"the cluster answers, and within {limit_seconds:.0f} s none of its nodes takes a job. On the head "
                    "the end of /tmp/ray/session_latest/logs/dashboard_agent.log says why; where another cluster has "
                    "the agent's port: python -m cluster.start head -- --dashboard-agent-listen-port=N"
                ) from None
        time.sleep(0.5)


def follow_job(client: BoundedClient, submission_id: str, address: str | None) -> int:
    """Follows a job; Ctrl-C leaves it running."""
    from cluster.follow import follow

    try:
        return follow(client, submission_id)
    except KeyboardInterrupt:
        get_console().print(f"\nno longer following; {submission_id} runs on", markup=False)
        print_next_commands(_next(submission_id, address))
        return 130


def _already(last: Attempt, job: Job) -> str | None:
    """What to say about a run that needs no new job."""
    state = "is running" if last.live else "has succeeded"
    same = last.metadata.get("config_hash") == job.metadata["config_hash"]
    if not same and not holds_the_same(Path(job.run_dir) / "config.json", job.config):
        raise ConfigError(
            f"run {job.run} {state} (job {last.submission_id}) with another config: choose another --id"
            + (", or stop it first: rlhf jobs stop " + last.submission_id if last.live else "")
        )
    get_console().print(f"run {job.run} {state} as job {last.submission_id}: {last.entrypoint}", markup=False,
                        soft_wrap=True)  # fmt: skip
    return last.submission_id if last.live else None


def _next(submission_id: str, address: str | None) -> list[tuple[str, str]]:
    where = f" --address {address}" if address else ""
    return [
        (f"rlhf jobs logs {submission_id}{where}", "follow the log"),
        (f"rlhf jobs stop {submission_id}{where}", "finish the step, save, stop"),
    ]
