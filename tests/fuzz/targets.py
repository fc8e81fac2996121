"""What strangers' bytes reach, one function per reader: only typed errors may come out.

Each target takes raw bytes, so that both hypothesis and a coverage-guided fuzzer can drive it. To add a reader, write a
function with ``@target(...)`` and a few seeds of valid input.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rlhf.errors import RlhfError

Consume = Callable[[bytes], None]
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir=os.environ.get("FUZZ_FOLDER", MEMORY)))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)


@dataclass(frozen=True)
class Target:
    """A reader under attack.

    Attributes:
        packages: what a coverage-guided fuzzer instruments.
        seeds: valid inputs to start from.
    """

    name: str
    consume: Consume
    packages: tuple[str, ...]
    seeds: tuple[bytes, ...]


TARGETS: dict[str, Target] = {}


def target(packages: tuple[str, ...], seeds: tuple[bytes, ...]) -> Callable[[Consume], Consume]:
    """Registers a reader; typed errors are the expected answer to bad input."""

    def register(read: Consume) -> Consume:
        def consume(data: bytes) -> None:
            try:
                read(data)
            except RlhfError as error:
                str(error).encode("utf-8", "surrogatepass")  # a message that cannot be shown is no message

        TARGETS[read.__name__] = Target(read.__name__, consume, packages, seeds)
        return read

    return register


def _file(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.write_bytes(data)
    return path


def _rows(*records: object) -> bytes:
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records).encode()


DATA = ("rlhf.data",)
ROWS = (
    _rows({"prompt": "Hi", "chosen": "yes", "rejected": "no", "margin": 0.5}, {"prompt": "é", "completion": "x"}),
    _rows({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "id": "1"}),
    _rows({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "s"}),
    _rows({"instruction": "a", "input": "", "output": "b"}, {"instruction": "c", "instances": [{"output": "d"}]}),
    _rows({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}),
    _rows({"chosen": [{"role": "assistant", "content": "b"}], "rejected": [], "prompt": [], "group": None}),
)


def _load(path: Path) -> None:
    from rlhf.data.loading import load_demonstrations, load_preferences, load_prompts

    for load in (load_prompts, load_demonstrations, load_preferences):
        for arguments in ({}, {"on_bad_row": "drop", "dropped_path": FOLDER / "dropped.jsonl"}):
            try:
                rows = load(path, max_line_bytes=1 << 16, **arguments)  # type: ignore[operator]
            except RlhfError:
                continue
            again = FOLDER / "again.jsonl"  # what is read can be written and is then read as the same
            again.write_text("\n".join(json.dumps(row.as_dict()) for row in rows), encoding="utf-8")
            assert load(again, max_line_bytes=1 << 24) == rows  # type: ignore[operator]


@target(DATA, ROWS)
def jsonl_rows(data: bytes) -> None:
    _load(_file("r.jsonl", data))


@target(DATA, (b"[" + ROWS[0].replace(b"\n", b",\n") + b"]", *ROWS[1:3]))
def json_rows(data: bytes) -> None:
    _load(_file("r.json", data))


@target(DATA, (b'prompt,completion\n"x, y",z\nx,"y\nz"\n', b'messages\n"[{""role"": ""user"", ""content"": ""a""}]"\n'))
def csv_rows(data: bytes) -> None:
    _load(_file("r.csv", data))


def _parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    table = pyarrow.Table.from_pylist([{"prompt": "é x", "completion": "y", "id": n} for n in range(3)])
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


@target(DATA, (_parquet(),))
def parquet_rows(data: bytes) -> None:
    _load(_file("r.parquet", data))


@target(("rlhf.config", "yaml"), tuple(p.read_bytes() for p in sorted(Path("configs").glob("*/tiny_cpu.yaml"))))
def config_file(data: bytes) -> None:
    from rlhf.config import STAGES, dump_yaml, load_config

    path = _file("c.yaml", data)
    for stage in STAGES:
        try:
            config = load_config(stage, path)
        except RlhfError:
            continue
        assert load_config(stage, _file("d.yaml", dump_yaml(config).encode())) == config


@target(
    ("rlhf.config", "yaml"), (b"kl.coef=0.1", b"scores=[{kind: http, url: 'https://h/', token: 'env:X'}]", b"a.b=[")
)
def config_override(data: bytes) -> None:
    from rlhf.config import load_config

    load_config("ppo", Path("configs/ppo/tiny_cpu.yaml"), data.decode("utf-8", "surrogateescape").split("\x01"))


@target(("preference_ui.records", "preference_ui.formats", "rlhf.data"), (*ROWS, _rows(
    {"id": "a", "prompt": [{"role": "user", "content": "q"}], "responses": [{"text": "x"}, {"text": "y", "run": "r"}]},
    {"prompt": "q", "responses": ["a", "b"], "ranking": [[0], [1]], "attributes": {"topic": "t"}})))  # fmt: skip
def preference_import(data: bytes) -> None:
    from preference_ui.records import read_candidates

    for name in ("p.jsonl", "p.json", "p.csv"):
        path = _file(name, data)
        for form in (None, "native", "trl", "hh", "oasst"):
            try:
                read_candidates(path, form)
            except RlhfError as error:
                str(error).encode("utf-8", "surrogatepass")


RECORD = _rows({"stage": "sft", "base": "/nowhere", "revision": None, "adapter": "adapter", "quantization": "none",
                "chat_style": "auto", "chat_fingerprint": "f", "base_sha256": "a"})  # fmt: skip


@target(("rlhf.models.source", "rlhf.models.trust"), (RECORD,))
def run_record(data: bytes) -> None:
    from rlhf.models.source import resolve_model

    folder = FOLDER / "run"
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_bytes(data)
    resolve_model(str(folder))


@target(("rlhf.models.trust", "rlhf.models.adapters"), (b'{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}',))
def adapter_config(data: bytes) -> None:
    from rlhf.models.adapters import read_peft_config

    read_peft_config(_file("adapter_config.json", data).parent)


@target(
    ("rlhf.models.trust",),
    (b'\x40\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}         \0\0\0\0',),
)
def adapter_tensors(data: bytes) -> None:
    from rlhf.models.adapters import read_adapter_file

    read_adapter_file(_file("adapter_model.safetensors", data).parent)


@target(("rlhf.models.scorer",), (b'{"mean": 0.0, "std": 1.0, "num_samples": 3, "dtype": "float32", "accuracy": 0.7}',))
def reward_settings(data: bytes) -> None:
    from rlhf.models.scorer import read_reward_settings

    found = read_reward_settings(_file("reward.json", data).parent)
    assert found.std > 0


MANIFEST = _rows({"step": 3, "stage": "ppo", "identity": {"base": "a"}, "token": 1, "metric": None, "format": 1,
                  "files": {"adapter/x": [3, "ab"]}, "state": {}, "versions": {}})  # fmt: skip


@target(("rlhf.engine.checkpoint",), (MANIFEST,))
def checkpoint_manifest(data: bytes) -> None:
    """As it is, and with a seal that fits, as somebody would write it who knows the format."""
    from rlhf.engine.checkpoint.manifest import MANIFEST_FILE, _seal, verify

    folder = FOLDER / "commit"
    folder.mkdir(exist_ok=True)
    (folder / MANIFEST_FILE).write_bytes(data)
    with suppress(RlhfError):
        verify(folder)
    try:
        body = json.loads(data)
        sealed = json.dumps({**body, "sha256": _seal({k: v for k, v in body.items() if k != "sha256"})})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return
    (folder / MANIFEST_FILE).write_text(sealed, encoding="utf-8")
    verify(folder)


@target(("rlhf.telemetry",), (b'{"time": 1.0, "stage": "ppo", "step": 0, "kl": 0.1}\n{"stage": "ppo", "step": 1}\n',))
def metrics_file(data: bytes) -> None:
    from rlhf.telemetry.metrics import read_metrics

    read_metrics(_file("metrics.jsonl", data))


@target(("rlhf.stages.scoring_http", "rlhf.stages.scoring_rows"), (b'{"scores": [1.0, 2, -3e5]}', b'{"scores": [NaN]}'))
def reward_answer(data: bytes) -> None:
    from rlhf.config import HttpSource
    from rlhf.stages.scoring_http import read_answer
    from rlhf.stages.scoring_rows import FaultPolicy, ScoreFault

    policy = FaultPolicy("server", 0, "fail")
    responses = ["a", "b", "c"]
    try:
        for entry in policy.check(read_answer(data), responses):
            assert isinstance(entry, ScoreFault) or abs(entry) < 1e39
    except ScoreFault as fault:
        policy.error(fault)
    assert HttpSource.model_fields
