"""Peak memory of a process tree, sampled by a thread."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import psutil

_MIB = 1024 * 1024


class MemorySample(NamedTuple):
    """One sample; `seconds` since the start, sizes summed over the processes."""

    seconds: float
    rss_mib: float
    pss_mib: float | None
    num_processes: int


class PeakMemory:
    """Samples the memory of this process, its descendants and some others until closed.

    RSS counts a page once per process that maps it, so a tree that shares memory (Ray's object store, forked
    libraries) is overstated; PSS divides shared pages by their users and is what the machine really needs.
    PSS costs the kernel a walk over the page tables, so it is sampled less often.

    Args:
        extra_pids: other processes to count, each with its descendants.
        interval_seconds: time between RSS samples.
        pss_every: take PSS at every n-th sample.

    Attributes:
        peak_rss_mib: largest sum of RSS seen.
        peak_pss_mib: largest sum of PSS seen, or None where the system does not tell. A process whose PSS is
            not readable counts with its RSS.
        series: all samples, in order.
    """

    def __init__(self, extra_pids: Iterable[int] = (), interval_seconds: float = 0.5, pss_every: int = 4) -> None:
        self.peak_rss_mib = 0.0
        self.peak_pss_mib: float | None = None
        self.series: list[MemorySample] = []
        self._roots = {os.getpid(), *extra_pids}
        self._interval = interval_seconds
        self._pss_every = max(1, pss_every)
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._started = time.monotonic()

    def add_pids(self, pids: Iterable[int]) -> None:
        """Counts these processes, with their descendants, from the next sample on."""
        with self._lock:
            self._roots.update(pids)

    def start(self) -> PeakMemory:
        """Takes a first sample and starts the thread."""
        self._started = time.monotonic()
        self.sample(with_pss=True)
        self._thread = threading.Thread(target=self._run, name="peak-memory", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends the thread; unblocks within one sample. A second call does nothing."""
        if self._thread is None:
            return
        self._stopped.set()
        self._thread.join()
        self._thread = None
        self.sample(with_pss=True)

    def __enter__(self) -> PeakMemory:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def sample(self, with_pss: bool) -> MemorySample:
        """Measures now and updates the peaks. Processes that end meanwhile are left out."""
        with self._lock:
            processes = _process_tree(self._roots)
            rss_bytes, pss_bytes, saw_pss = 0, 0, False
            for process in processes:
                try:
                    rss = process.memory_info().rss
                except psutil.Error:
                    continue
                rss_bytes += rss
                pss = read_pss_bytes(process.pid) if with_pss else None
                saw_pss = saw_pss or pss is not None
                pss_bytes += rss if pss is None else pss
            sample = MemorySample(
                seconds=time.monotonic() - self._started,
                rss_mib=rss_bytes / _MIB,
                pss_mib=pss_bytes / _MIB if saw_pss else None,
                num_processes=len(processes),
            )
            self.series.append(sample)
            self.peak_rss_mib = max(self.peak_rss_mib, sample.rss_mib)
            if sample.pss_mib is not None:
                self.peak_pss_mib = max(self.peak_pss_mib or 0.0, sample.pss_mib)
            return sample

    def _run(self) -> None:
        count = 0
        while not self._stopped.wait(self._interval):
            count += 1
            self.sample(with_pss=count % self._pss_every == 0)


def read_pss_bytes(pid: int) -> int | None:
    """Proportional set size of a process, or None where it is not readable (other user, not Linux, ended)."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None


def _process_tree(roots: Iterable[int]) -> list[psutil.Process]:
    found: dict[int, psutil.Process] = {}
    for pid in roots:
        try:
            process = psutil.Process(pid)
            for member in (process, *process.children(recursive=True)):
                found.setdefault(member.pid, member)
        except psutil.Error:
            continue
    return list(found.values())
