"""A process that votes until nothing is left, and writes down each vote the moment it is acknowledged.

Run as ``vote_writer.py STORE ACKS NAME...``; the test kills it. With GATE in the environment it waits, ready, for that
file to appear.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from preference_ui import queue
from preference_ui.db import open_store
from preference_ui.people import ensure_annotator
from preference_ui.queue import Vote


def main(url: str, acks: str, names: list[str]) -> None:
    store = open_store(url, create=False)
    people = [ensure_annotator(store, name).id for name in names]
    log = os.open(acks, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    gate = os.environ.get("GATE")
    while gate and not Path(gate).exists():
        time.sleep(0.002)
    idle = 0
    while idle < len(people):
        for person in people:
            task = queue.claim(store, "helpline", person)
            if task is None:
                idle += 1
                continue
            idle = 0
            order = sorted(range(len(task.responses)), key=lambda i: task.responses[i])
            receipt = queue.submit(store, person, task.lease_id, Vote([[i] for i in order]), task.revision)
            os.write(log, f"{receipt.judgment_id}\n".encode())


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
