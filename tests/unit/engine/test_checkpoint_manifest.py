"""Manifests: what was written comes back, and nothing else is taken for one."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlhf.engine.checkpoint.manifest import MANIFEST_FILE, Manifest, _seal, read_manifest, verify
from rlhf.errors import CheckpointError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
GOOD: dict[str, Any] = {
    "step": 3,
    "stage": "ppo",
    "identity": {"base_sha256": "a"},
    "token": 1,
    "metric": None,
    "files": {"policy/x": [3, "ab"]},
    "state": {"kl": {"coef": 0.1}},
    "versions": {"torch": "2"},
    "format": 1,
}


FOLDER = tempfile.TemporaryDirectory(prefix="manifest-")


def written(text: bytes | str) -> Path:
    folder = Path(FOLDER.name)
    (folder / MANIFEST_FILE).write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return folder


def sealed(body: dict[str, Any]) -> str:
    return json.dumps({**body, "sha256": _seal(body)}, indent=1, sort_keys=True) + "\n"


@settings(max_examples=150, deadline=None)
@given(
    step=st.integers(0, 10**8 - 1),
    metric=st.none() | FINITE,
    coef=FINITE,
    files=st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(st.integers(0, 2**60), st.text(max_size=64))),
)
def test_what_was_written_comes_back_to_the_last_digit(
    step: int, metric: float | None, coef: float, files: dict[str, tuple[int, str]]
) -> None:
    manifest = Manifest(step, "ppo", {"data": "é"}, 7, metric, files, {"kl": {"coef": coef}})
    found = read_manifest(written(manifest.dump()))
    assert found == manifest and repr(found.state["kl"]["coef"]) == repr(coef) and repr(found.metric) == repr(metric)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=400))
@example(b"[" * 100_000)
@example(b'{"format": 1e999}')
@example(b"\xff\xfe{}")
def test_arbitrary_bytes_are_no_manifest(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        verify(written(data))


@settings(max_examples=300, deadline=None)
@given(key=st.sampled_from(sorted(GOOD)), value=JSON, drop=st.booleans())
def test_a_sealed_manifest_with_any_other_value_ends_in_a_typed_error(key: str, value: Any, drop: bool) -> None:
    """Written by somebody who knows the format; its file is not there, so no variant may be taken as whole."""
    body = {k: v for k, v in GOOD.items() if k != key} if drop else {**GOOD, key: value}
    folder = written(sealed(body))
    try:
        found = verify(folder)
    except CheckpointError:
        return
    assert key == "files" and not found.files, "only a commit without files has nothing that could be missing"


@pytest.mark.parametrize("number", [0, 2, "1", None])
def test_another_release_s_format_is_refused_with_what_to_do(number: Any) -> None:
    folder = written(sealed({**GOOD, "format": number, "unknown_to_us": {"x": 1}}))
    with pytest.raises(CheckpointError, match=f"has format {number!r}, this release reads 1: resume with the release"):
        read_manifest(folder)


def test_a_directory_without_one_was_never_committed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no MANIFEST\.json: it was never committed"):
        verify(tmp_path)
