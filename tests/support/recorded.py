"""A rollout worker without a model: it returns what was recorded. It imports neither torch nor transformers."""

from __future__ import annotations

import random
from typing import Any

import xxhash


class RecordedRollout:
    """Answers every task with a response of full length; ``install`` takes an adapter and throws it away."""

    def __init__(self, context: Any, num_tokens: int) -> None:
        generator = random.Random(context.rank)
        self._ids = tuple(generator.randrange(30_000) for _ in range(num_tokens))
        self._logprobs = tuple(-generator.random() for _ in range(num_tokens))
        self._sha = ""

    def install(self, adapter: Any) -> tuple[str, float]:
        self._sha = xxhash.xxh3_128_hexdigest(adapter)  # the fingerprint that a real worker's check takes
        return self._sha, 0.0

    def generate(self, tasks: list[tuple[str, tuple[int, ...], int]], version: int) -> list[tuple[Any, ...]]:
        """(key, prompt tokens, response tokens, log-probs, finished, version, sha256): the fields of a rollout."""
        return [(key, prompt, self._ids, self._logprobs, False, version, self._sha) for key, prompt, _ in tasks]
