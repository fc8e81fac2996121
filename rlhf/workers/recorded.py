"""Spans of workers: switched on, and fetched while the workers are busy."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from rlhf.telemetry.spans import Recorded

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0


def record_spans(actors: Mapping[int, Any], on: bool = True) -> None:
    """Lets workers record spans, or no longer."""
    _answers({rank: actor.record_spans.remote(on) for rank, actor in actors.items()})


def fetch_spans(actors: Mapping[int, Any]) -> dict[int, Recorded]:
    """What each worker has recorded since the last call; one that is dead or does not answer in time is missing."""
    return _answers({rank: actor.spans.remote() for rank, actor in actors.items()})


def _answers(refs: dict[int, Any]) -> dict[int, Any]:
    ready, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=ANSWER_SECONDS)
    found = {}
    for rank, ref in refs.items():
        if ref not in ready:
            logger.warning("worker %d has not handed over its spans in %g s", rank, ANSWER_SECONDS)
            continue
        try:
            found[rank] = ray.get(ref, timeout=ANSWER_SECONDS)
        except RayError as error:
            logger.warning("spans of worker %d are lost: %s", rank, type(error).__name__)
    return found
