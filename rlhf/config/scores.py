"""Where scores come from (reward models, Python functions, reward servers) and what becomes of them."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from rlhf.config.base import Section
from rlhf.config.secret import SECRET_ERROR, Secret

OnError = Literal["fail", "drop"]


class RewardModelSource(Section):
    """A score from a trained reward model."""

    kind: Literal["reward_model"] = "reward_model"
    """``reward_model``."""
    run: str
    """Directory of a finished reward run."""
    weight: float = 1.0
    """Factor of the score in the sum; below 0 turns it round."""
    on_error: OnError = "fail"
    """A score that is not finite stops the run, or its response is left out of the step and counted."""


class FunctionSource(Section):
    """A score from ``module:function(prompts, responses) -> scores``, in a process of its own.

    A function with a third parameter, ``meta``, is told about the row of each response, too.
    """

    kind: Literal["function"] = "function"
    """``function``."""
    path: str
    """``module:function``; the working directory is importable."""
    weight: float = 1.0
    """Factor of the score in the sum; below 0 turns it round."""
    timeout_seconds: float = Field(2.0, gt=0)
    """Per response; a call with n of them may take n times as long, then its process is killed."""
    start_timeout_seconds: float = Field(120.0, gt=0)
    """For importing the module."""
    rows_per_call: int | None = Field(None, ge=1)
    """None: one call per step. 1 gives every response a deadline of its own."""
    isolate: bool = True
    """false calls it in the driver: no process to start, and nothing that could end a call that never returns."""
    on_error: OnError = "fail"
    """A failed call or a missing score stops the run, or its response is left out of the step and counted."""

    @model_validator(mode="after")
    def _has_colon(self) -> FunctionSource:
        if self.path.count(":") != 1:
            raise ValueError(f"path={self.path!r} must look like module.name:function")
        return self


class HttpSource(Section):
    """A score from a reward server: POST ``{"prompts": [...], "responses": [...]}``, answer ``{"scores": [...]}``."""

    kind: Literal["http"] = "http"
    """``http``."""
    url: str
    """Where requests are posted: ``https://host[:port]/path``, without user or password."""
    weight: float = 1.0
    """Factor of the score in the sum; below 0 turns it round."""
    token: Secret | None = None
    """Sent as ``Authorization: Bearer``; ``env:NAME`` or ``file:PATH``."""
    timeout_seconds: float = Field(30.0, gt=0)
    """For one whole request: connecting, sending, and the last byte of the answer."""
    retries: int = Field(3, ge=0, le=20)
    """Further attempts after the first."""
    backoff_seconds: float = Field(0.5, gt=0)
    """Longest wait before the first further attempt; it doubles with each, up to 30 s, and is drawn at random."""
    send_meta: bool = False
    """Also send ``"meta": [{...}, ...]``: of each response the ``id`` and the other columns of its prompt's row."""
    rows_per_request: int = Field(64, ge=1)
    """Most responses in one request."""
    concurrent_requests: int = Field(1, ge=1, le=64)
    """Requests under way at a time."""
    ca_file: str | None = None
    """Certificates to trust instead of the system's; verification cannot be turned off."""
    allow_plain_http: bool = False
    """Lets ``http://`` reach another machine: prompts and token are then readable on the way."""
    on_error: OnError = "fail"
    """A request that failed for good stops the run, or its responses are left out of the step and counted."""

    @field_validator("url")
    @classmethod
    def _is_url(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid:
            raise PydanticCustomError(SECRET_ERROR, "must look like https://host[:port]/path")
        if parts.username is not None or parts.password is not None:
            raise PydanticCustomError(
                SECRET_ERROR, "holds a user or password: leave it out and name the secret with token=env:NAME"
            )
        return value

    @model_validator(mode="after")
    def _plain_http_stays_here(self) -> HttpSource:
        parts = urlsplit(self.url)
        if parts.scheme == "http" and not self.allow_plain_http and not _is_loopback(parts.hostname or ""):
            raise ValueError(
                f"url={self.url} sends prompts and token unencrypted to another machine: use https, or set "
                "allow_plain_http=true on a network that is yours"
            )
        return self


ScoreSource = Annotated[RewardModelSource | FunctionSource | HttpSource, Field(discriminator="kind")]


class ScoreConfig(Section):
    """What happens to a score before it becomes a reward."""

    clip: float | None = Field(None, gt=0)
    """Scores are cut to [-clip, clip] after ``missing_eos``; reported scores are not. null: as they are."""
    missing_eos: Literal["keep", "subtract", "replace", "scale"] = "keep"
    """What becomes of the score of a response that was cut at the limit."""
    missing_eos_value: float | None = None
    """What is subtracted, or put in its place, or multiplied by: no value suits all scores."""
    whiten_rewards: bool = False
    """Scale the rewards per token, KL penalty included, to deviation 1 around their own mean; gae and
    reinforce_plus_plus only."""

    @model_validator(mode="after")
    def _missing_eos_has_its_value(self) -> ScoreConfig:
        rule, value = self.missing_eos, self.missing_eos_value
        if rule == "keep":
            return self
        if value is None:
            raise ValueError(
                f"score.missing_eos={rule} needs score.missing_eos_value: set it, e.g. 1.0 to subtract, -1.0 to "
                "replace (below the usual scores), 0.5 to scale"
            )
        if rule == "subtract" and not value > 0:
            raise ValueError(
                f"score.missing_eos_value={value:g} must be above 0 for score.missing_eos=subtract, which would reward "
                "cut responses else: give the size of the penalty"
            )
        if rule == "scale" and not 0 <= value <= 1:
            raise ValueError(
                f"score.missing_eos_value={value:g} must be from 0 to 1 for score.missing_eos=scale: set it, e.g. to "
                "0.5, or use subtract or replace"
            )
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
