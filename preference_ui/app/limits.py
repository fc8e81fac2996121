"""A limit on how fast one visitor may write, so that a script cannot vote for a person or fill the disk."""

from __future__ import annotations

import threading
import time


class RateLimit:
    """Token buckets in memory, one per key. Restarting the server refills them, which harms nothing.

    Args:
        per_second: tokens that come back per second.
        burst: most tokens a key can save up.
    """

    def __init__(self, per_second: float, burst: float) -> None:
        self.per_second = per_second
        self.burst = burst
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def allows(self, key: str) -> bool:
        """Take one token of ``key``; False when none is left."""
        now = time.monotonic()
        with self._lock:
            if len(self._buckets) > 10_000:
                self._drop_full(now)
            tokens, then = self._buckets.get(key, (self.burst, now))
            tokens = min(self.burst, tokens + (now - then) * self.per_second)
            self._buckets[key] = (max(0.0, tokens - 1.0), now)
            return tokens >= 1.0

    def _drop_full(self, now: float) -> None:
        refill = self.burst / self.per_second
        self._buckets = {key: value for key, value in self._buckets.items() if now - value[1] < refill}
