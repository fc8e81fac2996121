"""What a model name means: a directory, a hub id, a shipped model, or an earlier run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlhf.config.finished import RUN_FILE
from rlhf.config.job_copy import in_job_copy
from rlhf.errors import CheckpointError, ConfigError
from rlhf.models.trust import check_files, read_object

BUILTIN_PREFIX = "builtin:"
ADAPTER_CONFIG = "adapter_config.json"
ASSETS = Path(__file__).parent.parent / "assets"
"""Where shipped models lie."""


@dataclass(frozen=True)
class RunRecord:
    """What a finished stage leaves for the next one, in ``run.json``.

    Attributes:
        stage: sft, reward or ppo.
        base: model directory or hub id under the adapter (or of the fully trained model itself).
        adapter: adapter folder relative to the run directory, or None after full fine-tuning.
        chat_fingerprint: identity of tokenizer, template and stop tokens.
        double_quantization: of nf4; records of earlier releases lack it, and stand for its default.
    """

    stage: str
    base: str
    revision: str | None
    adapter: str | None
    quantization: str
    chat_style: str
    chat_fingerprint: str
    base_sha256: str
    double_quantization: bool = True

    @property
    def held(self) -> dict[str, Any]:
        """How the base was held (``config.held``)."""
        return {"quantization": self.quantization, "double_quantization": self.double_quantization}

    def write(self, run_dir: Path) -> None:
        """Writes the record; a half-written one never appears under its name.

        A shipped model is recorded by its name: on another machine the package lies elsewhere.
        """
        shipped = Path(self.base).parent == ASSETS
        named = {**asdict(self), "base": BUILTIN_PREFIX + Path(self.base).name if shipped else self.base}
        temporary = run_dir / f".{RUN_FILE}.tmp"
        temporary.write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")
        temporary.replace(run_dir / RUN_FILE)


@dataclass(frozen=True)
class ModelSource:
    """A resolved model name: where the base is, and the adapter on top of it, if any."""

    base: str
    revision: str | None
    tokenizer: str
    adapter: Path | None = None
    record: RunRecord | None = None
    run_dir: Path | None = None


def resolve_model(name: str, revision: str | None = None, *, key: str = "model.name") -> ModelSource:
    """Finds out what a model name refers to.

    Args:
        key: what names it, for messages.

    Raises:
        ConfigError: for an unknown builtin, an unfinished run or a directory that holds no model.
    """
    if name.startswith(BUILTIN_PREFIX):
        path = ASSETS / name.removeprefix(BUILTIN_PREFIX)
        if not path.is_dir():
            raise ConfigError(f"{key}={name!r}: no such shipped model; try builtin:helpline_base")
        return ModelSource(base=str(path), revision=None, tokenizer=str(path))
    path = Path(name)
    if (path / RUN_FILE).is_file():
        return _from_run(path)
    if path.is_dir():
        _check_directory(path)
        return ModelSource(base=_whole(name), revision=None, tokenizer=str(path))
    if path.exists():
        raise ConfigError(f"{key}={name!r} is a file, a model directory or a finished run is wanted: check the path")
    if is_path(name):
        raise ConfigError(
            f"{key}={name!r} does not exist, a model directory or a finished run is wanted: train it first, or check "
            "the path"
        )
    return ModelSource(base=name, revision=revision, tokenizer=name)


def _whole(base: str) -> str:
    """A base's name in what is recorded of a run: the next stage may be started in another directory.

    What a job's package brought along stays relative: the next job has a copy elsewhere.
    """
    path = Path(base).absolute()
    return str(path) if path.is_dir() and not in_job_copy(path) else base


def is_path(name: str) -> bool:
    """Whether a name that leads nowhere here can only be a path, as it is none that the hub could have."""
    return name.startswith((".", "/", "~", "runs/")) or name.count("/") > 1 or name.endswith("/")


def read_run_record(run_dir: Path) -> RunRecord:
    """Reads ``run.json`` of a finished run."""
    try:
        return _record(json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise CheckpointError(f"{run_dir} holds no {RUN_FILE}: the run has not finished") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{run_dir / RUN_FILE} is not a run record: {error}") from None


def _record(found: object) -> RunRecord:
    record = RunRecord(**found)  # type: ignore[arg-type]  # anything else is a TypeError, as it should be
    for field in fields(record):
        value = getattr(record, field.name)
        wanted, name = (bool, "true or false") if field.name == "double_quantization" else (str, "text")
        if not isinstance(value, wanted) and not (value is None and field.name in ("revision", "adapter")):
            raise TypeError(f"{field.name} is {type(value).__name__}, {name} is wanted")
    if record.adapter is not None and (Path(record.adapter).is_absolute() or ".." in Path(record.adapter).parts):
        raise ValueError(f"adapter={record.adapter!r} leads out of the run directory")
    if record.base.startswith(BUILTIN_PREFIX):
        return replace(record, base=str(ASSETS / Path(record.base.removeprefix(BUILTIN_PREFIX)).name))
    return replace(record, base=_whole(record.base))


def base_fingerprint(base: str) -> str:
    """sha256 identifying a local base model's weights and config; the name itself for a hub id."""
    path = Path(base)
    if not path.is_dir():
        return hashlib.sha256(base.encode()).hexdigest()
    return _fingerprint([*path.glob("*.safetensors"), path / "config.json"])


def adapter_fingerprint(source: ModelSource) -> str | None:
    """sha256 of the adapter's weights and settings, a reward head's scale among them; None for a bare base."""
    if source.adapter is None:
        return None
    return _fingerprint([*source.adapter.glob("*.safetensors"), *source.adapter.glob("*.json")])


def _fingerprint(files: Sequence[Path]) -> str:
    files = sorted(files)
    stats = [file.stat() for file in files]
    return _sha256(tuple(files), tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in stats))


@lru_cache(maxsize=16)
def _sha256(files: tuple[Path, ...], state: tuple[tuple[int, int, int], ...]) -> str:
    """Of names and bytes; read once per process and state of the files: a 7B base is 15 GB, and asked for often."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _from_run(path: Path) -> ModelSource:
    record = read_run_record(path)
    tokenizer = str(path / "tokenizer")
    check_files(path, own=True)
    if Path(tokenizer).is_dir():
        check_files(Path(tokenizer), own=True)
    if record.adapter is None:
        model = path / "model"
        _check_directory(model, own=True)
        return ModelSource(str(model), None, tokenizer, record=record, run_dir=path)
    if Path(record.base).is_dir():
        _check_directory(Path(record.base))
    found = base_fingerprint(record.base)
    if found != record.base_sha256:
        raise CheckpointError(
            f"run {path}: its adapter was trained on {record.base} with sha256 {record.base_sha256[:12]}, "
            f"but the base there now has {found[:12]}; an adapter fits only the base it was trained on"
        )
    check_adapter(path / record.adapter, record)
    return ModelSource(record.base, record.revision, tokenizer, path / record.adapter, record, path)


def check_adapter(adapter: Path, record: RunRecord) -> None:
    """Refuses an adapter directory that names another base than its run, or holds a pickled file.

    Raises:
        CheckpointError: naming the file.
    """
    if not adapter.is_dir():
        raise CheckpointError(f"{adapter} does not exist, but {RUN_FILE} beside it names it: restore the run directory")
    check_files(adapter, own=True)
    named = read_object(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    if named in (None, record.base):
        return
    shipped = Path(record.base).parent == ASSETS
    if shipped and isinstance(named, str) and Path(named).name == Path(record.base).name and not Path(named).exists():
        return  # the package lay elsewhere where the adapter was trained
    if not isinstance(named, str) or not Path(named).is_dir() or base_fingerprint(named) != record.base_sha256:
        raise CheckpointError(
            f"{adapter / ADAPTER_CONFIG} belongs to the base {named!r}, the run to {record.base!r}: an adapter fits "
            "only the base it was trained on"
        )


def _check_directory(path: Path, *, own: bool = False) -> None:
    if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
        raise ConfigError(f"{path} is a bare adapter: give the run directory that holds it, or the base model")
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path} holds no config.json: it is neither a model directory nor a finished run")
    if not any(path.glob("*.safetensors")):
        raise ConfigError(
            f"{path} holds no .safetensors weights; pickled weights (.bin, .pt) can run code and are never loaded: "
            "convert the model with save_pretrained first"
        )
    check_files(path, own=own)
