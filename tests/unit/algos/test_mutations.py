"""The list of faults that ``scripts/mutate_algos.py`` plants keeps up with the code (the script takes minutes)."""

import ast
import json
from pathlib import Path

import pytest

import rlhf.algos

SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in Path(rlhf.algos.__file__).parent.glob("[a-z]*.py")}
MUTATIONS = json.loads(Path(__file__).with_name("mutations.json").read_text(encoding="utf-8"))


def names_with_a_body(module):
    """Functions, and classes that have methods: what only declares fields has nothing to break."""
    for node in ast.parse(SOURCES[module]).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and any(
            isinstance(inner, ast.FunctionDef) for inner in ast.walk(node)
        ):
            yield node.name


@pytest.mark.parametrize("module", SOURCES)
def test_every_function_has_a_fault_planted(module):
    planted = {mutation["function"].split(".")[0] for mutation in MUTATIONS[module]}
    helpers = {"_is_any_of", "_non_negative"}  # one-liners whose faults are those of their callers
    assert set(names_with_a_body(module)) - planted <= helpers


@pytest.mark.parametrize("module", MUTATIONS)
def test_every_fault_can_be_planted(module):
    for mutation in MUTATIONS[module]:
        where = f"{mutation['function']}, {mutation['fault']}"
        assert SOURCES[module].count(mutation["old"]) == 1, where
        compile(SOURCES[module].replace(mutation["old"], mutation["new"]), module, "exec")
