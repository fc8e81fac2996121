"""Laws of style that a program can check."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARY = sorted(p for name in ("rlhf", "cluster", "preference_ui") for p in (ROOT / name).glob("**/*.py"))
MAY_CATCH_EVERYTHING = {"rlhf/workers/group.py", "rlhf/cli.py", "rlhf/stages/scoring_child.py"}
MAX_LINES = 400


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parsed() -> list[tuple[Path, ast.AST]]:
    """Every node of the library."""
    return [(path, node) for path in LIBRARY for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]


def nodes(kind: type) -> list[tuple[Path, ast.AST]]:
    return [(path, node) for path, node in parsed() if isinstance(node, kind)]


def catches_everything(handler: ast.ExceptHandler) -> bool:
    """Bare, Exception, or BaseException that is not raised again at the end of the handler."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = {getattr(kind, "id", None) for kind in kinds}
    if handler.type is None or "Exception" in names:
        return True
    return "BaseException" in names and not isinstance(handler.body[-1], ast.Raise)


def test_nobody_swallows_every_exception() -> None:
    found = [
        f"{shown(path)}:{node.lineno}"  # type: ignore[attr-defined]
        for path, node in nodes(ast.ExceptHandler)
        if catches_everything(node) and shown(path) not in MAY_CATCH_EVERYTHING  # type: ignore[arg-type]
    ]
    assert not found, found


def test_library_code_neither_prints_nor_asserts() -> None:
    calls = [
        f"{shown(path)}:{node.lineno} print"  # type: ignore[attr-defined]
        for path, node in nodes(ast.Call)
        if isinstance(node.func, ast.Name)  # type: ignore[attr-defined]
        and node.func.id == "print"  # type: ignore[attr-defined]
        and shown(path) != "rlhf/cli.py"
    ]
    asserts = [f"{shown(path)}:{node.lineno} assert" for path, node in nodes(ast.Assert)]  # type: ignore[attr-defined]
    assert not calls + asserts, calls + asserts


def test_files_stay_short() -> None:
    long = {
        shown(p): n
        for p in LIBRARY
        if (n := len(p.read_text("utf-8").splitlines())) > MAX_LINES and "versions" not in p.parts
    }
    assert not long, long


def test_every_wait_for_ray_has_a_deadline() -> None:
    """``ray.get`` without a timeout hangs for ever when a rank is gone."""
    found = [
        f"{shown(path)}:{node.lineno}"  # type: ignore[attr-defined]
        for path, node in nodes(ast.Call)
        if ast.unparse(node.func) in ("ray.get", "ray.wait")  # type: ignore[attr-defined]
        and "timeout" not in {k.arg for k in node.keywords}  # type: ignore[attr-defined]
    ]
    assert not found, found


def test_catching_is_judged_rightly() -> None:
    source = "try:\n  pass\nexcept {}:\n  {}"
    handler = lambda kind, body: ast.parse(source.format(kind, body)).body[0].handlers[0]  # type: ignore[attr-defined]  # noqa: E731
    assert catches_everything(handler("Exception", "raise"))
    assert catches_everything(handler("(OSError, Exception)", "pass"))
    assert catches_everything(handler("BaseException", "pass"))
    assert not catches_everything(handler("BaseException", "raise"))
    assert not catches_everything(handler("OSError", "pass"))


def test_no_two_test_files_share_a_name() -> None:
    """pytest collects files by their name alone."""
    names = [path.name for path in (ROOT / "tests").glob("**/test_*.py")]
    assert sorted(names) == sorted(set(names))
