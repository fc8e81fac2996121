"""A training rank that counts the bytes of its own tensors at the moment an optimizer step begins and after it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from rlhf.models.roles import CRITIC, POLICY, REFERENCE, REWARD
from rlhf.workers.policy import PolicyWorker

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
            self.found = {**self._resident(), "gradients": gradients}
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
