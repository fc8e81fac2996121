"""The job server of a cluster, with a bound on every request and errors that say what to do. Imports ray."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from rlhf.errors import AuthError, ConfigError, WorkerError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
SDK_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")
RUN_KEY, ATTEMPT_KEY = "run", "attempt"


@dataclass(frozen=True)
class Attempt:
    """One job of a run; a run that was stopped or failed gets another attempt.

    Attributes:
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        started / ended: seconds since 1970, or None.
        exit_code: of the job's process, where Ray knows it.
    """

    submission_id: str
    run: str
    number: int
    status: str
    entrypoint: str
    message: str
    started: float | None
    ended: float | None
    exit_code: int | None
    metadata: dict[str, str]

    @property
    def live(self) -> bool:
        """Waiting or running."""
        return self.status in ("PENDING", "RUNNING")


class BoundedClient(JobSubmissionClient):
    """Ray's client without requests that wait for ever."""

    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> requests.Response:
        kwargs.setdefault("timeout", (CONNECT_SECONDS, READ_SECONDS))
        return super()._do_request(method, endpoint, **kwargs)


def resolve_address(address: str | None) -> str:
    """The given address, one from the environment, or this machine's dashboard."""
    if address is None:
        ray_address = os.environ.get("RAY_ADDRESS", "")
        inherited = ray_address if ray_address.startswith("http") else None
        address = os.environ.get(ADDRESS_VARIABLE) or inherited or DEFAULT_ADDRESS
    if "://" not in address:
        address = f"http://{address}"
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"--address {address}: must be the dashboard's, e.g. http://HEAD:8265")
    return address


def open_client(address: str | None) -> BoundedClient:
    """Connects to a cluster's job server; ``cluster.auth.enable_token_auth`` comes first.

    Raises:
        ConfigError: nobody answers there, or the token is refused.
    """
    found = resolve_address(address)
    for name in SDK_LOGGERS:  # they write every upload to the terminal
        logging.getLogger(name).setLevel(logging.WARNING)
    # Ray lets these variables win over the argument; what was typed must win
    before = os.environ.get(ADDRESS_VARIABLE)
    os.environ[ADDRESS_VARIABLE] = found
    try:
        with explained(found):
            return BoundedClient(found)
    finally:
        if before is None:
            del os.environ[ADDRESS_VARIABLE]
        else:
            os.environ[ADDRESS_VARIABLE] = before


@contextmanager
def explained(address: str) -> Iterator[None]:
    """Turns what Ray's client raises into errors that name the remedy."""
    try:
        yield
    except AuthenticationError as error:
        reason = str(error).split(". ")[0].splitlines()[0]
        raise AuthError(
            f"{address} refuses this machine's token ({reason}): copy ~/.ray/auth_token from the head node, mode 0600"
        ) from None
    except (requests.Timeout, requests.ConnectionError, ConnectionError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ConfigError(
            f"no job server answers at {address} ({reason}): is the cluster up, and the address right? A dashboard on "
            "the head's loopback is reached through 'ssh -L 8265:127.0.0.1:8265 HEAD' and http://127.0.0.1:8265"
        ) from None
    except (requests.RequestException, RuntimeError) as error:
        raise WorkerError("job server", 0, f"{address}: {error}") from None


def attempts(client: BoundedClient, run: str | None = None) -> list[Attempt]:
    """All jobs, or those of one run, oldest first."""
    with explained(client.get_address()):
        found = [_attempt(job) for job in client.list_jobs() if job.submission_id]
    chosen = [a for a in found if run is None or a.run == run or a.submission_id == run]
    return sorted(chosen, key=lambda a: (a.started or 0.0, a.number, a.submission_id))


def get_attempt(client: BoundedClient, submission_id: str) -> Attempt:
    """One job as it is now."""
    with explained(client.get_address()):
        return _attempt(client.get_job_info(submission_id))


def _attempt(job: Any) -> Attempt:
    metadata = job.metadata or {}
    number = metadata.get(ATTEMPT_KEY, "1")
    status = job.status.value if isinstance(job.status, JobStatus) else str(job.status)
    return Attempt(
        submission_id=job.submission_id,
        run=metadata.get(RUN_KEY, job.submission_id),
        number=int(number) if number.isdigit() else 1,
        status=status,
        entrypoint=job.entrypoint,
        message=job.message or "",
        started=job.start_time / 1e3 if job.start_time else None,
        ended=job.end_time / 1e3 if job.end_time else None,
        exit_code=job.driver_exit_code,
        metadata=metadata,
    )
