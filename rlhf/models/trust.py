"""What may be loaded from a model directory: no pickles, and no code that nobody has read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from rlhf.config import ModelConfig
from rlhf.errors import CheckpointError, ConfigError

PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_TEXT = (".jinja", ".txt", ".py")
_CODE_CONFIGS = ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json")
_OBJECTS = (*_CODE_CONFIGS, "adapter_config.json", "tokenizer.json")
_INDEX = ".safetensors.index.json"
_REVISION_CHARACTERS = 40


def check_files(directory: Path, *, own: bool = False) -> None:
    """Refuses files that are not what their names say, before a library opens them.

    Args:
        own: a directory that a run of this system wrote; it holds no pickled file, so one that is there is refused
            even though nothing would load it. Published models often have one beside their safetensors.

    Raises:
        CheckpointError: naming the file.
    """
    for file in sorted(directory.iterdir()):
        if file.is_dir():
            continue
        if file.suffix == ".safetensors":
            _check_safetensors(file)
        elif file.suffix == ".json":
            _check_json(file)
        elif file.suffix in _TEXT:
            _check_text(file)
        elif own and file.suffix.lower() in PICKLED:
            raise CheckpointError(
                f"{file} is a pickled file, which can run code when it is loaded; no run writes one: find out where it "
                "comes from, and remove it"
            )


def check_remote_code(directories: Iterable[Path], config: ModelConfig) -> None:
    """Refuses a model directory that brings code of its own, unless that code was read and pinned.

    Names of the hub, which are no directories, are left to the hub client: there the pin is the commit. For a
    directory it is the hash of its Python files, given as ``model.revision``.

    Raises:
        ConfigError: naming the file that asks for code.
    """
    pinned: set[str] = set()
    for directory in dict.fromkeys(directories):
        asking = _asks_for_code(directory) if directory.is_dir() else None
        if asking is None:
            continue
        files, found = _python_files(directory), code_fingerprint(directory)
        if not config.trust_remote_code:
            raise ConfigError(
                f"{asking} wants to run Python files of {directory} (auto_map): read them, then set "
                f"model.trust_remote_code=true and model.revision={found}"
            )
        # A tokenizer that a run saved repeats some of its base's files, or refers to the hub's, which are pinned there.
        if not set(files.values()) <= pinned and config.revision != found:
            raise ConfigError(
                f"the Python files of {directory} have the hash {found}, not model.revision={config.revision}: they "
                "are not the ones that were read"
            )
        pinned.update(files.values())


def code_fingerprint(directory: Path) -> str:
    """40 hex digits that change with any Python file of a model directory."""
    facts = json.dumps(sorted(_python_files(directory).items()))
    return hashlib.sha256(facts.encode()).hexdigest()[:_REVISION_CHARACTERS]


def _python_files(directory: Path) -> dict[str, str]:
    return {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*.py"))
    }


def _asks_for_code(directory: Path) -> Path | None:
    for name in _CODE_CONFIGS:
        if (directory / name).is_file() and "auto_map" in read_object(directory / name):
            return directory / name
    return None


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        CheckpointError: it does not, naming the file.
    """
    _check_json(file)
    found = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise CheckpointError(f"{file} holds a JSON {type(found).__name__}, an object is wanted")
    return found


def _check_json(file: Path) -> None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is not JSON{_pickle_note(file)} ({error}); fetch or save it again") from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from None
    if file.name.endswith(_INDEX):
        _check_index(file, found)
    elif file.name in _OBJECTS and not isinstance(found, dict):
        raise CheckpointError(f"{file} holds a JSON {type(found).__name__}, an object is wanted")


def _check_index(file: Path, found: Any) -> None:
    shards = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(shards, dict):
        raise CheckpointError(f"{file} has no weight_map")
    for shard in set(map(str, shards.values())):
        if not shard.endswith(".safetensors") or Path(shard).name != shard:
            raise CheckpointError(f"{file} names {shard!r}: only .safetensors files beside it are loaded")


def _check_safetensors(file: Path) -> None:
    try:
        with safe_open(file, framework="numpy"):
            return
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is not a safetensors file{_pickle_note(file)} ({error})") from None


def _check_text(file: Path) -> None:
    try:
        file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise CheckpointError(f"{file} is not UTF-8 text{_pickle_note(file)}") from None


def _pickle_note(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            head = stream.read(2)
    except OSError:
        return ""
    pickled = head == b"PK" or (head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"))
    return " but a pickle, which can run code: it was not opened" if pickled else ""
