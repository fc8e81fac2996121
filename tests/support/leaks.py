"""A worker that does what careless libraries do: it logs its environment and puts a password into its error."""

from __future__ import annotations

import logging
import os
import warnings
from typing import Any

from rlhf.workers.sft import SftWorker


class LeakingSft(SftWorker):
    """Trains like the real one, talks about secrets before, and fails afterwards."""

    def train(self, *args: Any) -> dict[str, Any]:
        canaries = {name: value for name, value in os.environ.items() if "CANARY" in value or "canary" in value}
        logging.getLogger("rlhf.workers.sft").info("environment: %s", canaries)
        logging.getLogger("transformers").warning("using token %s", list(canaries.values()))
        warnings.warn(f"deprecated login {canaries}", stacklevel=1)
        self.context.emit("metrics", step=0, values={"note": "before"})
        figures = super().train(*args)
        raise RuntimeError(f"cannot log in with {canaries} after {figures.get('steps', 'all')}")
