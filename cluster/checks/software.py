"""Versions against what the project was tested with, and what compilations leave behind."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cluster.checks.record import Record, fail, ok, warn

PROJECT = "rlhf"
Version = Callable[[str], str]


def check_python(version: str | None = None, requires: str | None = None) -> Record:
    """The interpreter against ``requires-python``."""
    found = version or platform.python_version()
    wanted = requires or importlib.metadata.metadata(PROJECT)["Requires-Python"] or ">=3.11"
    if found in SpecifierSet(wanted):
        return ok("python", found)
    return fail("python", f"{found}, needed {wanted}", "make a new environment: make setup PYTHON=/path/to/python3.11")


def check_packages(requirements: Iterable[str] | None = None, version: Version = importlib.metadata.version) -> Record:
    """Installed packages against the ranges that the project declares."""
    wanted = importlib.metadata.requires(PROJECT) if requirements is None else requirements
    wrong, count = [], 0
    for text in wanted or ():
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            found = version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found} (needed {requirement.specifier})")
    if wrong:
        return fail("packages", "; ".join(wrong), "pip install --constraint constraints.txt --editable .")
    return ok("packages", f"{count} in the declared ranges")


def check_constraints(file: Path | None = None, version: Version = importlib.metadata.version) -> Record:
    """Installed packages against the exact versions of ``constraints.txt``, where a checkout has one."""
    path = file or Path(__file__).parents[2] / "constraints.txt"
    if not path.is_file():
        return ok("tested versions", "no constraints.txt here (not a checkout)")
    different = []
    for line in path.read_text(encoding="utf-8").splitlines():
        name, separator, wanted = line.split("#")[0].strip().partition("==")
        if not separator:
            continue
        try:
            found = version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # other platforms and extras: what must be there is told by the ranges
        if found.split("+")[0] != wanted.split("+")[0]:
            different.append(f"{name} {found} (tested {wanted})")
    if different:
        shown = "; ".join(different[:4]) + (f"; {len(different) - 4} more" if len(different) > 4 else "")
        return warn("tested versions", shown, "pip install --constraint constraints.txt --editable .")
    return ok("tested versions", "as in constraints.txt")


def check_operations(directory: Path | None = None) -> Record:
    """Locks of compilations that were killed: who compiles the same extension later waits for them without a bound.

    Training itself needs none of DeepSpeed's compiled operations.
    """
    root = directory or Path(os.environ.get("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")))
    locks = sorted(str(path) for path in root.glob("**/lock"))
    if locks:
        return warn("DeepSpeed operations", f"{len(locks)} lock(s) of compilations: {', '.join(locks[:3])}",
                    "remove them when nothing is being compiled")  # fmt: skip
    built = sorted({path.stem for path in root.glob("**/*.so")})
    return ok("DeepSpeed operations", f"built: {', '.join(built)}" if built else "none built, none needed")


def same_versions(by_node: dict[str, dict[str, str]]) -> Record:
    """Package versions of all nodes against one another."""
    names = sorted({name for found in by_node.values() for name in found})
    different = []
    for name in names:
        values = {found.get(name, "missing") for found in by_node.values()}
        if len(values) > 1:
            where = ", ".join(f"{node} {found.get(name, 'missing')}" for node, found in sorted(by_node.items()))
            different.append(f"{name}: {where}")
    if different:
        return fail("versions on nodes", "; ".join(different), "use one image, or one lock file, on every node")
    return ok("versions on nodes", f"{len(names)} packages equal on {len(by_node)} node(s)")


def installed() -> dict[str, str]:
    """Versions whose difference between nodes breaks a run."""
    found = {"python": platform.python_version()}
    for name in ("rlhf", "torch", "ray", "deepspeed", "transformers", "trl", "peft", "bitsandbytes", "numpy"):
        try:
            found[name] = re.split(r"\+", importlib.metadata.version(name))[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
