"""Training ranks that look at their own tensors: their bytes during an optimizer step, and whether frozen ones stay."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.models.roles import CRITIC, POLICY, REFERENCE, REWARD, RolesModel
from rlhf.workers.critic import CriticWorker
from rlhf.workers.policy import PolicyWorker
from tests.support.pages import file_pages

ROLES = (POLICY, REFERENCE, CRITIC, REWARD)


def storage_bytes(tensors: Iterable[Tensor], seen: set[int]) -> int:
    """Bytes of the storages behind tensors; one already in ``seen`` counts once."""
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


class MeasuredPolicy(PolicyWorker):
    """Adds what its tensors take, by purpose, to the figures of ``learn``."""

    def learn(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        plain = self.engine.step

        def step(*inputs: Any, **settings: Any) -> dict[str, float]:
            gradients = storage_bytes(self._gradients(), set())
            norms = plain(*inputs, **settings)
            pages = file_pages(Path(self.base_name) / "model.safetensors")
            self.found = {**self._resident(), "gradients": gradients, "own_pages": pages["own"]}
            return norms

        self.engine.step = step  # type: ignore[method-assign]
        figures = super().learn(*args, **kwargs)
        return {**figures, "bytes": self.found}  # type: ignore[dict-item]

    def _gradients(self) -> list[Tensor]:
        optimizer: Any = self.engine._engine.optimizer
        found: list[Any] = [p.grad for p in self.roles.parameters()]
        found += [getattr(p, "grad_accum", None) for p in self.roles.parameters()]
        found += [g for part in getattr(optimizer, "averaged_gradients", {}).values() for g in part or ()]
        found.append(getattr(optimizer, "grad_partitions_flat_buffer", None))
        return [g for g in found if g is not None]

    def _resident(self) -> dict[str, int]:
        optimizer: Any = self.engine._engine.optimizer
        seen: set[int] = set()
        weights: dict[str, list[Tensor]] = {"base": [], "adapters": []}
        for name, parameter in self.roles.named_parameters():
            own = "head" in name.split(".")[0] or any(f".{role}" in name for role in ROLES)
            tensors = [parameter.data, *([parameter.ds_tensor] if hasattr(parameter, "ds_tensor") else [])]
            weights["adapters" if own else "base"] += tensors
        found = {key: storage_bytes(tensors, seen) for key, tensors in weights.items()}
        found["buffers"] = storage_bytes(self.roles.buffers(), seen)
        master = [
            *getattr(optimizer, "single_partition_of_fp32_groups", []),
            *getattr(optimizer, "fp32_partitioned_groups_flat", []),
            *getattr(optimizer, "fp32_groups_flat", []),
            *getattr(optimizer, "fp32_groups_flat_partition", []),
        ]
        found["master"] = storage_bytes(master, seen)
        inner = getattr(optimizer, "optimizer", optimizer)
        states = [v for state in inner.state.values() for v in state.values() if torch.is_tensor(v) and v.numel() > 1]
        found["optimizer"] = storage_bytes(states, seen)
        found["bucket"] = storage_bytes(
            [b.buffer for b in getattr(optimizer, "ipg_buckets", {}).values() if torch.is_tensor(b.buffer)], seen
        )
        return found


class DigestedPolicy(PolicyWorker):
    """Tells in the figures of ``learn`` how many frozen tensors it holds, and how many of them have changed since."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.start = frozen_digests(self.roles)

    def learn(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        figures = super().learn(*args, **kwargs)
        return {**figures, **told(self.start, self.roles), "shares_reward": self.shared_score == 0}


class DigestedCritic(CriticWorker):
    """The same of a critic on a base of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.start = frozen_digests(self.roles)

    def learn(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        figures = super().learn(*args, **kwargs)
        return {**figures, **told(self.start, self.roles)}


def told(start: dict[str, str], roles: RolesModel) -> dict[str, int]:
    """How many frozen tensors there are, and how many have changed since ``start``."""
    now = frozen_digests(roles)
    changed = [name for name in start | now if start.get(name) != now.get(name)]
    return {"frozen": len(now), "frozen_changed": len(changed)}


def frozen_digests(roles: RolesModel) -> dict[str, str]:
    """sha256 by name; of this rank's piece under ZeRO-3, with the scales of quantized weights."""
    trained, found = {id(p) for _, p in roles.named_trained()}, {}
    for name, parameter in roles.named_parameters():
        if id(parameter) in trained:
            continue
        scales: Any = getattr(parameter, "quant_state", None)
        tensors = [getattr(parameter, "ds_tensor", parameter), *([scales.absmax] if scales is not None else [])]
        raw = [t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() for t in tensors]
        found[name] = hashlib.sha256(b"".join(raw)).hexdigest()
    return found
