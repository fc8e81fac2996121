"""A GPU that is not there: tensors that say they are on it, and hold their numbers in main memory.

Inside ``PretendedGpu`` code takes its GPU branches on a machine without one: a tensor's ``device`` is ``cuda:0``, what
is made there is such a tensor, and one operation on tensors of both devices is an error as it would be there. Counted
is what a GPU would be waited for, and what is sent to it on the way. Flash attention and the fused norm are computed by
their definitions. What it cannot show: speed, memory, rounding of a GPU's own products, Triton's kernels.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

import rlhf

GPU = torch.device("cuda", 0)
FOLDERS = tuple(str(Path(str(package.__file__)).parent) for package in (rlhf, transformers))
WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select",
    "aten::_unique2", "aten::repeat_interleave",
}  # fmt: skip
"""Operations whose result's shape or value the host has to know."""
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
COPYING = {"aten::_to_copy", "aten::copy_", "aten::to", "aten::lift_fresh"}
_DEVICE, _IS_CUDA, _IS_CPU = (getattr(torch.Tensor, name).__get__ for name in ("device", "is_cuda", "is_cpu"))
_MEANT_FOR_MAIN_MEMORY = (torch.Tensor.data_ptr, torch.Tensor.numpy)


class There(torch.Tensor):
    """A tensor on the pretended GPU; ``held`` has its numbers."""

    held: Tensor
    gpu: ClassVar[PretendedGpu]

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> There:
        found: Any = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]  # torch's stubs lack it
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device="cpu", requires_grad=requires_grad,
        )  # fmt: skip
        found.held = held
        return found

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"There({self.held})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return cls.gpu.run(function, args, kwargs or {})


class PretendedGpu:
    """A context in which there is a GPU.

    Attributes:
        waits: how often the host would have waited for the device, by operation and place in the library.
        sent: copies to the device from pinned memory, for which nobody waits.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()

    def __enter__(self) -> PretendedGpu:
        There.gpu = self
        self._stack = ExitStack()
        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # such a tensor's data cannot be replaced
        self._stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        self._stack.enter_context(_Functions(self))
        self._stack.enter_context(_Operations(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def forget(self) -> None:
        """Begins to count anew."""
        self.waits.clear()
        self.sent.clear()

    def put(self, module: nn.Module) -> Any:
        """A module's parameters and buffers on the device, tied ones once."""
        known: dict[int, nn.Parameter] = {}
        for part in module.modules():
            for name, parameter in list(part._parameters.items()):
                if parameter is None or isinstance(parameter, There):
                    continue
                if id(parameter) not in known:
                    there = There(parameter.data)
                    known[id(parameter)] = nn.Parameter(there, requires_grad=parameter.requires_grad)
                part._parameters[name] = known[id(parameter)]
            for name, buffer in list(part._buffers.items()):
                if buffer is not None and not isinstance(buffer, There):
                    part._buffers[name] = There(buffer)
        return module

    @staticmethod
    def backward(loss: Tensor) -> None:
        """``loss.backward()``, which would ask a real device for its stream."""
        first = torch.ones_like(loss).detach()
        torch.autograd.graph._engine_run_backward(
            (loss,), (first,), False, False, (), allow_unreachable=True, accumulate_grad=True
        )

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        """One operation, on the numbers.

        Raises:
            RuntimeError: tensors of both devices in an operation that takes those of one.
        """
        name = function._schema.name
        tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
        there, here = _parted(tensors)
        asked = kwargs.get("device")
        gives = bool(there) if there or asked is None else torch.device(asked).type == "cuda"
        if name == "aten::copy_":
            gives = isinstance(args[0], There)
            if gives != isinstance(args[1], There):
                self.wait(name)
        elif name in COPYING:
            if gives and not there:
                self.wait(name)
        elif there and any(one.dim() for one in here):
            if name not in INDEXING:
                shapes = [(tuple(one.shape), "cuda" if isinstance(one, There) else "cpu") for one in tensors]
                raise RuntimeError(f"{name} at {_place()}: tensors of two devices: {shapes}")
            self.wait(name)
        if there and (name in WAITING or (name in INDEXING and _by_mask(args[1]))):
            self.wait(name)
        words = {key: value for key, value in kwargs.items() if key != "pin_memory"}
        if asked is not None:
            words["device"] = torch.device("cpu")
        found = _OWN.get(name, function)(*tree_map(held, args), **tree_map(held, words))
        return self._given(function, found, there) if gives else found

    def wait(self, what: str) -> None:
        """Counts one wait where the library asks for it."""
        self.waits[f"{what} {_place()}"] += 1

    @staticmethod
    def _given(function: Any, found: Any, there: list[There]) -> Any:
        """The result as the device gives it; an operation in place gives the tensor that it was called on."""
        schema = function._schema
        if schema.name.endswith("_") or any(argument.is_out for argument in schema.arguments):
            same = [one for one in there if isinstance(found, Tensor) and one.held is found]
            if same or found is None:
                return same[0] if same else None
        return tree_map(
            lambda one: There(one) if isinstance(one, Tensor) and not isinstance(one, There) else one, found
        )


def held(value: Any) -> Any:
    """A tensor's numbers in main memory; anything else is itself."""
    return value.held if isinstance(value, There) else value


class _Operations(TorchDispatchMode):
    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._gpu.run(function, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What Python asks of tensors before torch computes anything."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        words, first = dict(kwargs or {}), args[0] if args else None
        if isinstance(first, There):
            if function in (_DEVICE, _IS_CUDA, _IS_CPU):
                return GPU if function == _DEVICE else function == _IS_CUDA
            if function is torch.Tensor.tolist:
                self._gpu.wait("tolist")
                return first.held.tolist()
            if function is torch.Tensor.cpu:
                return self._moved(first, "cpu", words)
            if function in _MEANT_FOR_MAIN_MEMORY:
                raise RuntimeError(f"{function.__name__} of a tensor on the GPU at {_place()}")
        if function is torch.Tensor.pin_memory:
            pinned = first.clone()
            pinned.is_pinned_here = True
            return pinned
        if function is torch.Tensor.to:
            return self._to(first, args[1:], words)
        if "device" in words and _is_cuda(words["device"]):
            words["device"] = GPU
            if function in (torch.tensor, torch.as_tensor):
                del words["device"]
                return self._moved(function(*args, **words), "cuda", {})
        return function(*args, **words)

    def _to(self, tensor: Any, args: Any, words: dict[str, Any]) -> Any:
        """A copy to a device is made first, then one to a type."""
        named = [*args, *words.values()]
        devices = [one for one in named if isinstance(one, str | torch.device)]
        devices += ["cuda" if isinstance(one, There) else "cpu" for one in named if isinstance(one, Tensor)]
        types = [one for one in named if isinstance(one, torch.dtype)]
        types += [one.dtype for one in named if isinstance(one, Tensor)]
        if not devices:
            return torch.Tensor.to(tensor, *args, **words)
        found = self._moved(tensor, torch.device(devices[0]).type, words)
        found = found.to(types[0]) if types else found
        return found.clone() if words.get("copy") and found is tensor else found

    def _moved(self, tensor: Any, device: str, words: dict[str, Any]) -> Any:
        if (device == "cuda") == isinstance(tensor, There):
            return tensor
        if device == "cuda" and words.get("non_blocking") and hasattr(tensor, "is_pinned_here"):
            self._gpu.sent[_place()] += 1
        else:
            self._gpu.wait("copy")
        return _Up.apply(tensor) if device == "cuda" else _Down.apply(tensor)


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return There(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        return held(gradient)


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Any) -> Tensor:
        return tensor.held.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return There(gradient)


def _parted(tensors: list[Tensor]) -> tuple[list[There], list[Tensor]]:
    return [t for t in tensors if isinstance(t, There)], [t for t in tensors if not isinstance(t, There)]


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _by_mask(indices: Any) -> bool:
    return any(isinstance(one, Tensor) and one.dtype == torch.bool for one in indices if one is not None)


def _place() -> str:
    """The innermost line of the library, or of what it calls models by."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        for folder in FOLDERS:
            if frame.f_code.co_filename.startswith(folder):
                return f"{Path(folder).name}{frame.f_code.co_filename.removeprefix(folder)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def _norm(x: Tensor, shape: Any, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    inverse = (x.float().square().mean(-1, keepdim=True) + eps).rsqrt()
    return (x.float() * inverse * weight.float()).to(x.dtype), inverse


def _norm_backward(
    gradient: Tensor, x: Tensor, shape: Any, inverse: Tensor, weight: Tensor, wanted: Any
) -> tuple[Tensor, None]:
    scaled, wide = gradient.float() * weight.float(), x.float()
    back = inverse * (scaled - wide * inverse * inverse * (scaled * wide).mean(-1, keepdim=True))
    return back.to(x.dtype), None


def _pieces(starts: Tensor, longest: int) -> list[slice]:
    """The sequences of a packed row, as a GPU's attention is told of them."""
    if starts.dtype != torch.int32 or int(starts.diff().max()) != longest:
        raise RuntimeError(f"flash attention was told {starts.dtype} starts {starts.tolist()}, longest {longest}")
    return [slice(a, b) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]


def _weights(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """(heads, queries, keys) products of (tokens, heads, size) in one sequence; minus infinity above the diagonal."""
    found = torch.einsum("qhd,khd->hqk", query.float(), _for_heads(key, query).float()) * scale
    return found.masked_fill(torch.ones(found.shape[1:]).triu(1).bool(), -torch.inf)


def _for_heads(states: Tensor, query: Tensor) -> Tensor:
    return states.repeat_interleave(query.shape[1] // states.shape[1], 1)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, _: Tensor, longest: int, *rest: Any, scale: float
) -> tuple[Tensor, ...]:
    """Shapes: (tokens, heads, size); normalizers (heads, tokens)."""
    if query.dtype != torch.bfloat16:
        raise RuntimeError(f"flash attention takes 16 bits, not {query.dtype}")
    found, normalizers = torch.empty_like(query), torch.empty(query.shape[1], query.shape[0])
    for part in _pieces(starts, longest):
        weights = _weights(query[part], key[part], scale)
        states = _for_heads(value[part], query).float()
        found[part] = torch.einsum("hqk,khd->qhd", weights.softmax(-1), states).to(query.dtype)
        normalizers[:, part] = weights.logsumexp(-1)
    return found, normalizers, torch.zeros(2), torch.zeros(2), torch.zeros(0)


def _attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, attended: Tensor, normalizers: Tensor,
    starts: Tensor, _: Tensor, longest: int, *rest: Any, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    found = tuple(torch.empty_like(states) for states in (query, key, value))
    for part in _pieces(starts, longest):
        back, states = gradient[part].float(), _for_heads(value[part], query).float()
        weights = _weights(query[part], key[part], scale).softmax(-1)
        inner = torch.einsum("qhd,khd->hqk", back, states)
        inner = weights * (inner - (inner * weights).sum(-1, keepdim=True)) * scale
        to_query = torch.einsum("hqk,khd->qhd", inner, _for_heads(key[part], query).float())
        to_key = torch.einsum("hqk,qhd->khd", inner, query[part].float())
        to_value = torch.einsum("hqk,qhd->khd", weights, back)
        groups = (-1, query.shape[1] // key.shape[1])  # heads that share a key
        for target, one in zip(
            found, (to_query, to_key.unflatten(1, groups).sum(2), to_value.unflatten(1, groups).sum(2)), strict=True
        ):
            target[part] = one.to(target.dtype)
    return found


_OWN: dict[str, Callable[..., Any]] = {
    "aten::_fused_rms_norm": _norm,
    "aten::_fused_rms_norm_backward": _norm_backward,
    "aten::_flash_attention_forward": _attention,
    "aten::_flash_attention_backward": _attention_backward,
}
