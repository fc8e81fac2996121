from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.errors import ConfigError, DataError
from rlhf.telemetry.metrics import MetricsWriter, read_metrics


def test_a_record_is_one_flat_line_readable_before_close(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        values = {
            "loss": 0.5,
            "ok": True,
            "note": "a\nb",
            "none": None,
            "sync": {"bytes": 7, "deep": {"x": 1}},
        }
        writer.write("ppo", 3, values)
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 1
        record = json.loads(lines[0])
    assert record.pop("time") > 1.7e9
    assert record == {
        "stage": "ppo",
        "step": 3,
        "loss": 0.5,
        "ok": True,
        "note": "a\nb",
        "none": None,
        "sync.bytes": 7,
        "sync.deep.x": 1,
    }


def test_nonfinite_floats_become_null_and_are_named(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        values = {
            "a": float("nan"),
            "b": {"c": float("-inf")},
            "d": [1.0, float("inf")],
            "e": np.float32("nan"),
        }
        writer.write("sft", 1, values)
        writer.write("sft", 2, {"a": 1.0})
    first, second = read_metrics(tmp_path)
    assert first["a"] is None and first["b.c"] is None and first["d"] == [1.0, None] and first["e"] is None
    assert first["nonfinite"] == ["a", "b.c", "d", "e"]
    assert "nonfinite" not in second
    strict = json.loads(writer.path.read_text().splitlines()[0], parse_constant=lambda name: pytest.fail(name))
    assert strict["step"] == 1


def test_array_scalars_are_numbers_and_other_objects_are_refused_by_name(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        values = {"a": np.float64(0.5), "b": np.int64(3), "c": np.array(2.0), "d": np.bool_(True)}
        writer.write("sft", np.int64(4), values)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"outer\.bad"):
            writer.write("sft", 5, {"outer": {"bad": np.zeros(3)}})
        with pytest.raises(ValueError, match="step"):
            writer.write("sft", 5, {"step": 1})
    (record,) = read_metrics(tmp_path)
    assert (record["a"], record["b"], record["c"], record["d"], record["step"]) == (0.5, 3, 2.0, True, 4)


def test_a_torn_last_line_is_ignored_and_dropped_on_resume(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write("ppo", 1, {"kl": 0.0})
        writer.write("ppo", 2, {"kl": 0.1, "note": "é"})
    whole = writer.path.read_bytes()
    start = whole.index(b"\n") + 1
    for cut in range(start + 1, len(whole) - 1):  # also within the two bytes of é
        writer.path.write_bytes(whole[:cut])
        assert [r["step"] for r in read_metrics(tmp_path)] == [1]
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write("ppo", 2, {"kl": 0.2})
    assert [(r["step"], r["kl"]) for r in read_metrics(tmp_path)] == [(1, 0.0), (2, 0.2)]


def test_a_last_line_that_lost_only_its_line_break_is_kept(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write("ppo", 1, {})
    writer.path.write_bytes(writer.path.read_bytes().rstrip(b"\n"))
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        writer.write("ppo", 2, {})
    assert [r["step"] for r in read_metrics(tmp_path)] == [1, 2]


def test_rewind_drops_what_a_resumed_stage_writes_again(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        for step in range(5):
            writer.write("sft", step, {})
            writer.write("ppo", step, {"try": 1, "text": "a\u2028b"})
        assert writer.rewind("ppo", 2) == 2
        assert writer.rewind("ppo", 2) == 0
        writer.write("ppo", 3, {"try": 2})
    assert [(r["step"], r["try"]) for r in read_metrics(tmp_path, "ppo")] == [(0, 1), (1, 1), (2, 1), (3, 2)]
    assert len(read_metrics(tmp_path, "sft")) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "a", "step": 1}\n{"st\n{"stage": "a", "step": 2}\n')
    with pytest.raises(DataError, match="line 2"):
        read_metrics(path)
    with pytest.raises(DataError, match="does not exist"):
        read_metrics(tmp_path / "absent.jsonl")


def test_stage_selects(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as writer:
        for step in range(3):
            writer.write("sft", step, {})
            writer.write("ppo", step, {})
    assert [r["step"] for r in read_metrics(tmp_path, stage="ppo")] == [0, 1, 2]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 6


def test_a_killed_process_loses_no_line(tmp_path: Path) -> None:
    code = (
        "import sys; from rlhf.telemetry.metrics import MetricsWriter\n"
        "w = MetricsWriter(sys.argv[1], tensorboard=False)\n"
        "for i in range(50): w.write('ppo', i, {'x': i})\n"
        "print('written', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"written\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert [r["x"] for r in read_metrics(tmp_path)] == list(range(50))


def test_threads_do_not_mix_lines(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, tensorboard=False) as writer:

        def work(name: str) -> None:
            for step in range(100):
                writer.write(name, step, {"text": name * 500})

        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for name in "abc":
        assert [r["step"] for r in read_metrics(tmp_path, stage=name)] == list(range(100))


def test_tensorboard_event_file_is_readable(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsWriter(tmp_path) as writer:
        for step in range(5):
            writer.write("ppo", step, {"kl": step / 2, "note": "text", "bad": float("nan"), "sync": {"bytes": 10}})
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(events.Tags()["scalars"]) == ["ppo/kl", "ppo/sync.bytes"]
    points = [(e.step, e.value) for e in events.Scalars("ppo/kl")]
    assert points == [(step, step / 2) for step in range(5)]


def test_writing_after_close_is_refused_and_close_twice_is_fine(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.write("a", 1, {})


def test_missing_wandb_says_how_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'rlhf\[wandb\]'"):
        MetricsWriter(tmp_path, wandb_project="p")


def test_wandb_gets_numbers_with_a_step_axis_per_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "calls.txt"
    (tmp_path / "wandb.py").write_text(
        "class Run:\n"
        "    def __init__(self, **kw): self.calls = [('init', kw['project'])]\n"
        "    def define_metric(self, *a, **kw): self.calls.append(('axis', a, kw))\n"
        "    def log(self, values): self.calls.append(('log', values))\n"
        f"    def finish(self): open({str(log)!r}, 'w').write(repr(self.calls))\n"
        "def init(**kw): return Run(**kw)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with MetricsWriter(tmp_path / "run", tensorboard=False, wandb_project="p") as writer:
        writer.write("ppo", 7, {"kl": 0.5, "text": "x"})
    monkeypatch.delitem(sys.modules, "wandb")
    assert "('log', {'ppo/kl': 0.5, 'ppo/step': 7})" in log.read_text()


def test_importing_loads_neither_torch_nor_ray(tmp_path: Path) -> None:
    code = (
        "import sys, rlhf.telemetry.metrics as m\n"
        "w = m.MetricsWriter(sys.argv[1]); w.write('a', 1, {'x': 1.0}); w.close()\n"
        "print([n for n in ('torch', 'ray', 'tensorflow', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(), st.text(max_size=8))


@settings(max_examples=40, deadline=None)
@given(
    values=st.dictionaries(
        st.text(max_size=6).filter(lambda key: key not in {"time", "stage", "step", "nonfinite"}), _SCALARS
    )
)
def test_whatever_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, values: dict) -> None:
    run = tmp_path_factory.mktemp("run")
    with MetricsWriter(run, tensorboard=False) as writer:
        writer.write("s", 1, values)
    (record,) = read_metrics(run)
    for key, value in values.items():
        if isinstance(value, float) and (value != value or abs(value) == float("inf")):
            assert record[key] is None and key in record["nonfinite"]
        else:
            assert record[key] == value
