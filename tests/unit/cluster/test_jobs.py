"""``rlhf jobs`` before any cluster is asked."""

from __future__ import annotations

import pytest

from cluster.jobs import main
from rlhf.errors import ConfigError


@pytest.mark.parametrize("seconds", ["-1", "nan"])
def test_a_wait_cannot_be_negative(seconds: str) -> None:
    with pytest.raises(ConfigError, match=f"--timeout-seconds {seconds} must be at least 0"):
        main(["stop", "july", "--timeout-seconds", seconds])
