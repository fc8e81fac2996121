"""What is added to vLLM's workers: taking an adapter from memory."""

from __future__ import annotations

import pickle
from typing import Any

from vllm.lora.lora_model import LoRAModel
from vllm.lora.peft_helper import PEFTHelper

from rlhf.errors import WeightSyncError
from rlhf.weights.snapshot import Snapshot, unpack


class AdapterExtension:
    """Mixed into vLLM's worker class; the methods are called on every rank by name."""

    def install_adapter_from_memory(
        self, sent: Snapshot | bytes, settings: dict[str, Any], number: int, old_number: int | None
    ) -> int:
        """Registers a snapshot as adapter ``number`` and forgets the old one; nothing changes when it is refused.

        Args:
            sent: pickled where the worker is another process, which the engine has started itself.

        Returns:
            How many adapted layers it has.

        Raises:
            WeightSyncError: damaged bytes, or tensors of layers that this model does not adapt.
        """
        snapshot: Snapshot = pickle.loads(sent) if isinstance(sent, bytes) else sent
        worker: Any = self
        manager = worker.model_runner.lora_manager
        adapters = manager._adapter_manager
        state = {_canonical(name): tensor for name, tensor in unpack(snapshot).items()}
        helper = PEFTHelper.from_dict(settings)
        helper.validate_legal(manager.lora_config)
        lora = LoRAModel.from_lora_tensors(
            number,
            state,
            peft_helper=helper,
            device="cpu",
            dtype=manager.lora_config.lora_dtype,
            model_vocab_size=manager.vocab_size,
        )
        known = _adapted_layers(adapters)
        foreign = sorted(set(lora.loras) - known)
        if foreign:
            raise WeightSyncError(
                f"adapter version {snapshot.version} has tensors for layers that vLLM does not adapt, e.g. "
                f"{', '.join(foreign[:3])}: choose lora.target_modules among its linear layers"
            )
        halves = [name for name, layer in lora.loras.items() if layer.lora_a is None or layer.lora_b is None]
        if halves or 2 * len(lora.loras) != len(state):
            raise WeightSyncError(f"adapter version {snapshot.version} arrived in part, e.g. {halves[:3]}")
        taken = len(lora.loras)  # registering packs them, e.g. three projections into one
        if old_number is not None:
            adapters.remove_adapter(old_number)
        adapters.add_adapter(lora)
        adapters.activate_adapter(number)
        return taken

    def adapter_numbers(self) -> list[int]:
        """Adapters that this rank holds."""
        worker: Any = self
        return sorted(worker.model_runner.lora_manager.list_adapters())


def _canonical(name: str) -> str:
    return name if name.startswith("base_model.model.") else f"base_model.model.{name}"


def _adapted_layers(adapters: Any) -> set[str]:
    """Names of the model's layers that may carry an adapter, packed layers by their parts' names."""
    packed = adapters.packed_modules_mapping
    names: set[str] = set()
    for name in adapters.modules:
        parent, _, child = name.rpartition(".")
        names.update(f"{parent}.{part}" if parent else part for part in packed.get(child, [child]))
    return names
