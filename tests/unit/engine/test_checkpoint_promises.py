"""The page of promises names tests that exist, and the exit codes that errors have."""

from __future__ import annotations

import re
from pathlib import Path

import preference_ui.errors
import rlhf.errors
from cluster.plan import EXIT_FITS, EXIT_TOO_LARGE
from rlhf.errors import RlhfError

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_proof_exists() -> None:
    proofs = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(proofs) >= 30
    missing = [
        f"{path}::{name}"
        for path, name in proofs
        if not (ROOT / path).is_file() or f"\ndef {name}(" not in (ROOT / path).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_the_exit_codes_are_those_of_the_errors() -> None:
    told = {int(code) for code in re.findall(r"^\| (\d) \| ", PAGE, flags=re.MULTILINE)}
    errors = [
        found
        for module in (rlhf.errors, preference_ui.errors)
        for found in vars(module).values()
        if isinstance(found, type) and issubclass(found, RlhfError) and found is not RlhfError
    ]
    assert told == {EXIT_FITS, EXIT_TOO_LARGE} | {error.exit_code for error in errors}
    assert RlhfError.exit_code == 1
