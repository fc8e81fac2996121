"""The fast part of fuzzing: valid input, damaged at random, into every reader. ``make fuzz`` goes on for hours."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "60"))
TOKENS = (
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\r\n", b"\0", b"\xff", b"\xef\xbb\xbf", b"\xe2\x80\xa8",
    b"null", b"NaN", b"-Infinity", b"1e999", b"-0", b"true", b"\\ud83d", b"\\u0000", b"9" * 400, b"[" * 2000, b"&a *a",
    b"<<: ", b"!!python/name:os.system ", b"? ", b"\n\nHuman: ", b"\n\nAssistant:", b'"role": "system"', b'"prompt":',
    b"\x80\x04", b"PK\x03\x04", b"-- ", b"\t", "é".encode(), "\U0001f642".encode(),
)  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.just([]) | st.just({})


@st.composite
def damaged(draw: st.DrawFn, seeds: tuple[bytes, ...]) -> bytes:
    """A seed after a few cuts, insertions and splices; now and then pure noise."""
    if not seeds or draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = draw(st.sampled_from(seeds))
    if draw(st.booleans()):
        data = _with_another_value(draw, data)
    for _ in range(draw(st.integers(0, 3))):
        at, to = sorted(draw(st.tuples(st.integers(0, len(data)), st.integers(0, len(data)))))
        piece = draw(st.sampled_from([*TOKENS, data[at:to], b""]) | st.binary(max_size=4))
        data = data[:at] + piece + data[to if draw(st.booleans()) else at :]
    return data


def _with_another_value(draw: st.DrawFn, data: bytes) -> bytes:
    """One value of a JSON line replaced, or one key renamed."""
    lines = data.split(b"\n")
    index = draw(st.integers(0, len(lines) - 1))
    try:
        tree = json.loads(lines[index])
    except ValueError:
        return data
    node: Any = tree
    while isinstance(node, dict | list) and node:
        keys = sorted(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw(st.sampled_from(keys))
        if draw(st.booleans()) or not isinstance(node[key], dict | list):
            if isinstance(node, dict) and draw(st.integers(0, 3)) == 0:
                node[draw(st.text(max_size=5))] = node.pop(key)
            else:
                node[key] = draw(LEAVES | st.just(node[key]).map(lambda value: [value]))
            break
        node = node[key]
    lines[index] = json.dumps(tree).encode()
    return b"\n".join(lines)


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_only_typed_errors_come_out(name: str) -> None:
    target = TARGETS[name]
    for seed in target.seeds:
        target.consume(seed)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize="FUZZ_EXAMPLES" not in os.environ,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(data=damaged(target.seeds))
    def attack(data: bytes) -> None:
        target.consume(data)

    attack()


def test_seeds_are_valid_and_targets_can_fail() -> None:
    """A reader that lets everything through, or a target that swallows every error, would prove nothing."""
    assert len(TARGETS) >= 12
    from tests.fuzz import targets

    @targets.target((), (b"x",))
    def planted(data: bytes) -> None:
        raise KeyError("untyped")

    with pytest.raises(KeyError):
        TARGETS.pop("planted").consume(b"x")
