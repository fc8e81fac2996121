"""What the kernel says about this process's mappings of a file, and about its memory."""

from __future__ import annotations

import re
from pathlib import Path

MIB = 2**20


def file_pages(file: Path) -> dict[str, int]:
    """Bytes of this process's mappings of a file: ``rss`` resident, ``pss`` shared out, ``own`` written to."""
    fields = {"Rss": "rss", "Pss": "pss", "Private_Dirty": "own"}
    found, inside = dict.fromkeys(fields.values(), 0), False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(str(file.resolve()))
        elif inside and (name := fields.get(line.split(":")[0])):
            found[name] += int(line.split()[1]) * 1024
    return found


def mapped_from(address: int) -> str:
    """The file that lies at an address, or nothing."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        start, stop = (int(number, 16) for number in line.split()[0].split("-"))
        if start <= address < stop:
            return line.split(maxsplit=5)[5] if len(line.split()) > 5 else ""
    return ""


def resident_bytes() -> int:
    """Memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
