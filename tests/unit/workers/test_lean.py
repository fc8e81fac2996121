"""A worker's imports leave out what no worker uses, and the process is as it was afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.workers.import_cache import _kept

PROBE = """
import gc, json, sys
from rlhf.workers.lean import lean_imports
with lean_imports():
    import rlhf.workers.policy, rlhf.workers.sft
import importlib.metadata, torch
from rlhf.engine.uncompiled import import_muon
import_muon()
import deepspeed.runtime.zero.muon.muon_optimizer  # as DeepSpeed does when it starts
from transformers.utils import import_utils
from bitsandbytes.nn import Linear4bit
loaded = sorted({"sklearn", "scipy", "torch._inductor.compile_fx"} & set(sys.modules))
import scipy
models = import_utils.__file__.replace("utils/import_utils.py", "models")
kept = [import_utils.define_import_structure(models, prefix="models") for _ in range(2)]
found = import_utils.spread_import_structure(import_utils.create_import_structure_from_path(models))
found = {needs: {f"models.{name}": own for name, own in names.items()} for needs, names in found.items()}
layer = Linear4bit(64, 64, quant_type="nf4").requires_grad_(False).to("cpu")
print(json.dumps({
    "loaded": loaded, "scipy": scipy.__version__ > "1", "compile": torch.compile.__module__, "collects": gc.isenabled(),
    "nf4": list(layer(torch.zeros(2, 64)).shape), "exports": len(found) > 3 and kept == [found, found],
    "packages": import_utils.PACKAGE_DISTRIBUTION_MAPPING == importlib.metadata.packages_distributions(),
    "source": torch._library.utils.get_source.__module__,
}))
"""


def test_nothing_unused_is_loaded_and_everything_is_there_afterwards(tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found == {
        "loaded": [],
        "scipy": True,
        "compile": "torch",
        "collects": True,
        "nf4": [2, 64],
        "exports": True,
        "packages": True,
        "source": "torch._library.utils",
    }
    assert {path.name.partition("-")[0] for path in (tmp_path / "rlhf").iterdir()} == {"exports", "distributions"}


def test_a_kept_answer_is_that_of_the_same_question_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked: list[int] = []

    def find() -> dict[str, int]:
        asked.append(1)
        return {"answer": len(asked)}

    assert [_kept("x", [1], find), _kept("x", [1], find)] == [{"answer": 1}, {"answer": 1}]
    assert _kept("x", [2], find) == {"answer": 2}, "another question"
    for path in (tmp_path / "rlhf").iterdir():
        path.write_text(path.read_text()[:-3])
    assert _kept("x", [1], find) == {"answer": 3} == _kept("x", [1], find), "a damaged file is written anew"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("in the way")
    assert [_kept("x", [1], find), _kept("x", [1], find)] == [{"answer": 4}, {"answer": 5}], "no cache, no error"
