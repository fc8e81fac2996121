"""Where the vLLM benchmark and its tests run."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import vllm_engine


def test_float32_runs_where_no_gpu_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def note(what: str, answer: dict[str, Any]) -> Any:
        return lambda *_, **__: (seen.append((what, os.environ["CUDA_VISIBLE_DEVICES"])), answer)[1]

    monkeypatch.setattr(sys, "argv", ["vllm_engine.py"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0"))
    monkeypatch.setattr(vllm_engine, "run_tests", note("tests", {"exit_code": 0}))
    monkeypatch.setattr(vllm_engine.subprocess, "run", note("model", {}))
    monkeypatch.setattr(vllm_engine, "measure", note("speed", {}))
    monkeypatch.setattr(vllm_engine, "save", note("result", {}))
    vllm_engine.main()
    assert seen == [(what, "") for what in ("tests", "model", "speed", "result")]
