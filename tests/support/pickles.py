"""A pickle that leaves a mark when somebody opens it, planted in every file of a directory in turn."""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from rlhf.config import ModelConfig, load_config
from rlhf.errors import RlhfError
from rlhf.models import adapters
from rlhf.models.loading import load_causal_lm, load_classifier
from rlhf.models.scorer import load_reward_model
from rlhf.models.source import resolve_model
from rlhf.models.tokenizer import load_tokenizer
from rlhf.telemetry.metrics import read_metrics

EXTRAS = ("pytorch_model.bin", "adapter_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth", "x.pkl")


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self._mark), "w"))


def bombs(mark: Path) -> dict[str, bytes]:
    """The same bomb as a bare pickle and in the zip that ``torch.save`` writes."""
    zipped = io.BytesIO()
    torch.save(_Bomb(mark), zipped)
    return {"pickle": pickle.dumps(_Bomb(mark)), "torch": zipped.getvalue()}


def goes_off(data: bytes, mark: Path) -> bool:
    """Whether a careless loader would have left the mark: the negative control."""
    torch.load(io.BytesIO(data), weights_only=False) if data[:2] == b"PK" else pickle.loads(data)
    found = mark.exists()
    mark.unlink(missing_ok=True)
    return found


def open_run(run: Path) -> None:
    """Everything the system reads of a run directory: what later stages, reports and exports do with it."""
    source = resolve_model(str(run))
    config = ModelConfig(name=str(run), chat_style=source.record.chat_style if source.record else "auto")  # type: ignore[arg-type]
    tokenizer = load_tokenizer(source, config)
    if source.record is not None and source.record.stage == "reward":
        load_reward_model(run)
    else:
        base = load_causal_lm(source, config, tokenizer)
        if source.adapter is not None:
            model = adapters.attach(base, adapters.read_peft_config(source.adapter), "policy")
            adapters.write_adapter(model, "policy", adapters.read_adapter_file(source.adapter)[0])
    if (run / "critic").is_dir():
        adapters.read_peft_config(run / "critic")
        adapters.read_adapter_file(run / "critic")
    if (run / "config.yaml").is_file() and source.record is not None:
        load_config(source.record.stage, run / "config.yaml")
    if (run / "metrics.jsonl").is_file():
        read_metrics(run)


def open_model(directory: Path) -> None:
    """Loads a model directory with both heads."""
    source, config = resolve_model(str(directory)), ModelConfig(name=str(directory))
    tokenizer = load_tokenizer(source, config)
    load_causal_lm(source, config, tokenizer)
    load_classifier(source, config, tokenizer)


def plant_everywhere(
    directory: Path,
    scratch: Path,
    use: Callable[[Path], None],
    extra_folders: tuple[str, ...] = (),
    kinds: tuple[str, ...] = ("pickle", "torch"),
) -> dict[str, str]:
    """Replaces each file by a bomb in turn, then adds pickled files, and uses the directory each time.

    Returns:
        What came of it by file and kind: ``"used"``, or the message of the error. A bomb that went off fails here.
    """
    mark, outcomes = scratch / "mark", {}
    places = sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())
    places += [f"{folder}/{name}".removeprefix("./") for folder in extra_folders for name in EXTRAS]
    for kind in kinds:
        data = bombs(mark)[kind]
        assert goes_off(data, mark), "this bomb is a dud"
        for number, place in enumerate(places):
            copy = scratch / f"{kind}-{number}"
            shutil.copytree(directory, copy)
            (copy / place).write_bytes(data)
            try:
                use(copy)
                outcomes[f"{place} ({kind})"] = "used"
            except RlhfError as error:
                outcomes[f"{place} ({kind})"] = str(error)
            assert not mark.exists(), f"{place} ({kind}) went off"
            shutil.rmtree(copy)
    return outcomes


# Read as text, if at all; a broken line at the end of a JSONL file is dropped, as a kill may have torn it.
TEXT_OF_RUNS = ("logs/", ".lock", "report.html", "summary.json", "config.json", "metrics.jsonl", "rollouts.jsonl")


def careless(outcomes: dict[str, str], never_read: tuple[str, ...]) -> list[str]:
    """Files that were neither refused by name nor are among those that nothing reads."""
    found = []
    for key, outcome in outcomes.items():
        name = key.partition(" (")[0]
        refused = outcome != "used" and Path(name).name in outcome
        left_alone = outcome == "used" and any(part in name for part in never_read)
        if not refused and not left_alone:
            found.append(f"{key}: {outcome}")
    return found
