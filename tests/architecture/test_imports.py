"""The import table of the design, executed: over every file, also for imports hidden inside functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = [*ROOT.glob("rlhf/**/*.py"), *ROOT.glob("cluster/**/*.py"), *ROOT.glob("preference_ui/**/*.py")]

ROWS = (
    ("rlhf.errors",),
    ("rlhf.config",),
    ("rlhf.algos", "rlhf.telemetry"),
    ("rlhf.data",),
    ("rlhf.models",),
    ("rlhf.engine",),
    ("rlhf.weights",),
    ("rlhf.rollout",),
    ("rlhf.workers",),
    ("rlhf.stages",),
    ("rlhf.cli",),
)
"""Low to high; a package imports itself and lower rows."""

OTHER_PACKAGES = {
    "cluster": ("rlhf.config", "rlhf.errors", "rlhf.telemetry.console", "cluster"),
    "preference_ui": ("rlhf.data.schema", "rlhf.errors", "preference_ui"),
}

EXCEPTIONS = {"preference_ui.app.board": ("rlhf.telemetry",)}
"""Packages within one of those that may import more (docs/adr/0005)."""

HOMES: dict[str, tuple[str, ...]] = {
    "ray": ("rlhf.workers", "cluster"),
    "deepspeed": ("rlhf.engine",),
    "trl": ("rlhf.workers",),
    "accelerate": ("rlhf.workers",),
    "peft": ("rlhf.models", "rlhf.rollout"),
    "transformers": ("rlhf.models", "rlhf.rollout", "rlhf.data", "rlhf.workers"),
    "bitsandbytes": ("rlhf.models", "rlhf.engine"),
    "gradio": ("preference_ui.app",),
    "vllm": ("rlhf.rollout.vllm",),
    "sqlalchemy": ("preference_ui",),
    "alembic": ("preference_ui",),
}

LIGHT = (
    "cluster.submit",
    "rlhf.config",
    "rlhf.data.schema",
    "rlhf.telemetry.metrics",
    "preference_ui.queue",
    "rlhf.errors",
)
HEAVY = ("torch", "ray", "transformers", "deepspeed", "trl", "peft", "gradio")

IN_EVERY_WORKER = ("rlhf.workers.group", "tests.support.workers", "tests.support.chaos_faults")
"""Loaded before a worker makes its imports lean (docs/adr/0010): Ray may be there, and nothing else that is heavy."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import statement at any depth; ``from a import b`` names both a and a.b."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (parent, node.module or "") if part)
            yield node.lineno, base
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def row_of(name: str) -> int | None:
    return next((i for i, row in enumerate(ROWS) if any(inside(name, package) for package in row)), None)


def broken_order(module: str, imported: str) -> bool:
    """Whether ``module`` may not import ``imported`` by the order of the house."""
    top = imported.split(".")[0]
    if module.startswith("rlhf"):
        if top in OTHER_PACKAGES:
            return not inside(module, "rlhf.cli") and not inside(module, "rlhf.stages")
        own, other = row_of(module), row_of(imported)
        if own is None or other is None:
            return False
        same_row_neighbour = own == other and module.split(".")[1] != imported.split(".")[1]
        return other > own or same_row_neighbour
    if top in ("rlhf", *OTHER_PACKAGES):
        allowed = OTHER_PACKAGES[module.split(".")[0]]
        allowed += tuple(name for home, names in EXCEPTIONS.items() if inside(module, home) for name in names)
        # "from rlhf import errors" names rlhf first; what counts is the longer name
        return imported != "rlhf" and not any(inside(imported, p) or inside(p, imported) for p in allowed)
    return False


def broken_home(module: str, imported: str) -> bool:
    homes = HOMES.get(imported.split(".")[0])
    return homes is not None and not any(inside(module, home) for home in homes)


def test_every_import_is_of_a_lower_row() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in LIBRARY
        for line, name in imports_of(path)
        if broken_order(module_name(path), name)
    ]
    assert not found, "\n".join(found)


def test_every_third_party_stays_at_home() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in LIBRARY
        for line, name in imports_of(path)
        if broken_home(module_name(path), name)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "imported", "broken"),
    [
        ("rlhf.data.schema", "rlhf.models.roles", True),
        ("rlhf.algos.kl", "rlhf.telemetry.metrics", True),
        ("rlhf.stages.ppo", "rlhf.workers.group", False),
        ("rlhf.workers.group", "rlhf.stages.ppo", True),
        ("preference_ui.queue", "rlhf.data.schema", False),
        ("preference_ui.queue", "rlhf.data.loading", True),
        ("preference_ui.app.board.render", "rlhf.telemetry.runs", False),
        ("preference_ui.app.dashboard", "rlhf.telemetry.runs", True),
        ("cluster.submit", "rlhf.workers.runtime", True),
        ("rlhf.data.loading", "preference_ui.export", True),
    ],
)
def test_the_order_itself_tells_right_from_wrong(module: str, imported: str, broken: bool) -> None:
    assert broken_order(module, imported) is broken


def test_hidden_imports_are_seen(tmp_path: Path) -> None:
    """The reader of import statements finds the one inside a function and resolves relative ones."""
    path = ROOT / "rlhf/algos/kl.py"
    names = {name for _, name in imports_of(path)}
    assert {"rlhf.algos.masks", "rlhf.errors", "torch"} <= names
    group = {name for _, name in imports_of(ROOT / "rlhf/workers/group.py")}
    assert "rlhf.telemetry.logging" in group  # imported within the actor's build step
    assert broken_home("rlhf.algos.kl", "ray.util") and not broken_home("rlhf.workers.group", "ray")


def heavy_after_each(modules: tuple[str, ...], heavy: tuple[str, ...]) -> list[str]:
    """What of ``heavy`` is there after which of the modules, imported one after the other in a fresh process."""
    code = f"""
import importlib, sys
for module in {modules!r}:
    importlib.import_module(module)
    print(module, *(name for name in {heavy!r} if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_light_modules_load_nothing_heavy() -> None:
    """Submitting a job and voting must start in a second."""
    assert heavy_after_each(LIGHT, HEAVY) == list(LIGHT)


def test_a_worker_loads_nothing_heavy_before_its_imports_are_lean() -> None:
    """Torch imported before is imported at its full price, in every process of every group."""
    heavy = tuple(name for name in HEAVY if name != "ray")
    assert heavy_after_each(IN_EVERY_WORKER, heavy) == list(IN_EVERY_WORKER)


def test_what_the_command_line_imports_otherwise_is_light() -> None:
    """A command that needs torch imports it lean, as workers do (docs/adr/0010)."""
    tree = ast.parse((ROOT / "rlhf/cli.py").read_text(encoding="utf-8"))
    lean = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.With) and ast.unparse(node.items[0].context_expr) == "lean_imports()"
        for inner in ast.walk(node)
    }
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and id(node) not in lean]
    own = tuple(node.module for node in imports if node.module and inside(node.module, "rlhf"))
    assert len(own) > 8 and len(lean) > 8
    assert heavy_after_each(own, HEAVY) == list(own)
