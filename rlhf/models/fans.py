"""Products of the same tokens with several frozen matrices, each with its adapters, forward and backward.

Query, key and value read the same input, gate and up another: their adapters' first matrices, one above the other,
are one thin product, and their gradients to the input are summed by the products themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rlhf.models.fronts import Front
from rlhf.models.kernels import adapting, fan
from rlhf.models.products import linear, linear_onto, outer, through_onto

DTYPES = {"cpu": (torch.float32, torch.bfloat16), "cuda": (torch.bfloat16,)}
"""What is computed here, by device."""


class Member(NamedTuple):
    """One matrix that an adapter updates: which, by how much, and its ranks' columns in the thin product."""

    matrix: int
    scaling: float
    columns: slice


@dataclass(frozen=True)
class Part:
    """One adapter's tokens, the matrices it updates, and where its first A stands among a pass's trained matrices.

    Trained matrices stand in the order A, B of each member, part after part.
    """

    where: slice
    members: tuple[Member, ...]
    first: int

    def downs(self, matrices: Sequence[Tensor]) -> Tensor:
        """The A matrices one above the other, (ranks, in)."""
        found = matrices[self.first : self.first + 2 * len(self.members) : 2]
        return found[0] if len(found) == 1 else torch.cat(tuple(found))

    def adapter(self, matrices: Sequence[Tensor], beside: Sequence[Tensor]) -> list[adapting.Member]:
        """The members with what stands beside them: this part's tokens of each frozen matrix's results or gradients."""
        own = matrices[self.first : self.first + 2 * len(self.members)]
        return [
            adapting.Member(down, up, scaling, beside[index][self.where])
            for (index, scaling, _), down, up in zip(self.members, own[::2], own[1::2], strict=True)
        ]


@dataclass(frozen=True)
class Fan:
    """Frozen matrices (out, in), each with a bias or None, and the adapters of a pass on them."""

    frozen: tuple[tuple[Tensor, Tensor | None], ...]
    parts: tuple[Part, ...]
    panels: fan.Panels | None = None

    def forward(
        self, front: Front, matrices: Sequence[Tensor], onto: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Results (tokens, out), of a single matrix added to ``onto``; each part's thin product (its tokens, ranks)."""
        if fan.takes(front[0], self.frozen):
            return fan.forward(front, self.frozen, self.parts, matrices, onto, self.panels)
        x, _ = front.read()
        if onto is None:
            results = [linear(x, dense(weight), bias) for weight, bias in self.frozen]
        else:
            weight, bias = self.frozen[0]
            results = [linear_onto(x, dense(weight), bias, onto)]
        if self._in_one_call(x):
            return results, [adapting.forward(x[part.where], part.adapter(matrices, results)) for part in self.parts]
        inner = []
        for part in self.parts:
            low = linear(x[part.where], part.downs(matrices))
            for number, (index, scaling, columns) in enumerate(part.members):
                up = matrices[part.first + 2 * number + 1]
                results[index][part.where].addmm_(low[:, columns], up.t(), alpha=scaling)
            inner.append(low)
        return results, inner

    def backward(
        self,
        front: Front,
        gradients: Sequence[Tensor],
        matrices: Sequence[Tensor],
        inner: Sequence[Tensor],
        wants: Sequence[bool],
        *,
        beside: Tensor | None = None,
        wants_x: bool = True,
    ) -> tuple[tuple[Tensor, ...], list[Tensor | None]]:
        """Gradients of what stands in front, none if it wants none, and of the trained matrices that want one.

        Args:
            gradients: of the results.
            beside: the gradient of the way beside a norm, which that of its x is added to.
        """
        if fan.takes(front[0], self.frozen):
            ways = beside, wants_x, self.panels
            return fan.backward(front, self.frozen, self.parts, gradients, matrices, inner, wants, *ways)
        x, to_front = front.read()
        back: Tensor | None = None
        if wants_x:
            back = linear(gradients[0], dense(self.frozen[0][0]).t())
            for gradient, (weight, _) in zip(gradients[1:], self.frozen[1:], strict=True):
                back = linear_onto(gradient, dense(weight).t(), None, back)
        found: list[Tensor | None] = [None] * len(matrices)
        in_one_call = self._in_one_call(x)
        gradients = [gradient.contiguous() for gradient in gradients] if in_one_call else gradients
        for part, low in zip(self.parts, inner, strict=True):
            own = slice(part.first, part.first + 2 * len(part.members))
            if in_one_call:
                onto = None if back is None else back[part.where]
                members = part.adapter(matrices, gradients)
                found[own] = adapting.backward(x[part.where], low, members, wants[own], onto)
            elif wants_x or any(wants[own]):
                below = torch.empty_like(low)  # the thin product's gradient
                found[own] = self._differentiate(part, gradients, x[part.where], matrices, low, below, wants)
                if back is not None:
                    back[part.where].addmm_(below, part.downs(matrices))
        return (() if back is None else to_front(back, beside)), found

    def _in_one_call(self, x: Tensor) -> bool:
        """Whether an adapter's products are one call of a kernel each way."""
        return adapting.takes(x, [x.shape[1], *(len(weight) for weight, _ in self.frozen)])

    @staticmethod
    def _differentiate(
        part: Part,
        gradients: Sequence[Tensor],
        x: Tensor,
        matrices: Sequence[Tensor],
        low: Tensor,
        below: Tensor,
        wants: Sequence[bool],
    ) -> list[Tensor | None]:
        """Gradients of one part's matrices; fills ``below``."""
        found: list[Tensor | None] = []
        for number, (index, scaling, columns) in enumerate(part.members):
            at, out = part.first + 2 * number, gradients[index][part.where]
            through_onto(out, matrices[at + 1], scaling, below[:, columns])
            found += [None, outer(out, low[:, columns], scaling) if wants[at + 1] else None]
        if any(wants[part.first + 2 * number] for number in range(len(part.members))):
            downs = below.t() @ x  # (ranks, in)
            found[::2] = [downs[columns] for _, _, columns in part.members]
        return found


@dataclass(frozen=True)
class Bundle:
    """Linear layers with the same input, looked at once: frozen matrices; each adapter's members, and A, B of each.

    ``panels``: the frozen matrices in the order of tiles, where they are kept.
    """

    frozen: tuple[tuple[Tensor, Tensor | None], ...]
    adapters: Mapping[str, tuple[tuple[Member, ...], tuple[Tensor, ...]]]
    panels: fan.Panels | None = None

    def fan(self, slices: Sequence[tuple[str, slice]]) -> tuple[Fan, list[Tensor]]:
        """What they do to the tokens of a pass, and the trained matrices that take part."""
        parts: list[Part] = []
        matrices: list[Tensor] = []
        for name, where in slices:
            members, own = self.adapters.get(name, ((), ()))
            if members:
                parts.append(Part(where, members, len(matrices)))
                matrices += own
        return Fan(self.frozen, tuple(parts), self.panels), matrices


def bundle(modules: Sequence[Any]) -> Bundle | None:
    """Looks at linear layers with or without adapters; None where one is more than its matrices, or trains its own.

    All are of one type, but for 4-bit matrices. Adapters that are added later are not seen.
    """
    bases: list[Any] = [module.get_base_layer() if isinstance(module, BaseTunerLayer) else module for module in modules]
    if not all(map(_is_frozen_matrix, bases)):
        return None
    adapted: dict[str, list[tuple[int, Any]]] = {}
    for index, module in enumerate(modules):
        for name in getattr(module, "lora_A", ()):
            adapted.setdefault(name, []).append((index, module))
    found = {}
    for name, layers in adapted.items():
        members, matrices, column = [], [], 0
        for index, layer in layers:
            pair: tuple[Any, Any] = (layer.lora_A[name], layer.lora_B[name])
            if not all(map(_is_whole, pair)):
                return None
            rank = pair[0].weight.shape[0]
            members.append(Member(index, layer.scaling[name], slice(column, column + rank)))
            matrices += [matrix.weight for matrix in pair]
            column += rank
        found[name] = (tuple(members), tuple(matrices))
    kinds = {matrix.dtype for _, matrices in found.values() for matrix in matrices}
    kinds |= {base.weight.dtype for base in bases if not _is_quantized(base)}
    return Bundle(tuple((base.weight, base.bias) for base in bases), found) if len(kinds) <= 1 else None


def _is_frozen_matrix(base: Any) -> bool:
    return (_is_whole(base) or _is_quantized(base)) and not any(p.requires_grad for p in base.parameters())


def _is_whole(layer: Any) -> bool:
    """A matrix of such numbers, and not cut into pieces by ZeRO-3."""
    return type(layer) is nn.Linear and is_plain(layer.weight)


def _is_quantized(layer: Any) -> bool:
    """A 4-bit matrix on a GPU that computes in such numbers."""
    if type(layer).__name__ != "Linear4bit" or not layer.weight.is_cuda or hasattr(layer.weight, "ds_id"):
        return False
    state = getattr(layer.weight, "quant_state", None)
    return state is not None and state.dtype in DTYPES["cuda"]


def dense(weight: Tensor) -> Tensor:
    """The matrix itself, (out, in); a 4-bit one is made anew at every use (arXiv:2305.14314 sec. 3)."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state)


def is_plain(tensor: Tensor) -> bool:
    """What is computed here, whole: fp32 and bfloat16 numbers on a CPU, bfloat16 ones on a GPU."""
    return tensor.dtype in DTYPES.get(tensor.device.type, ()) and not hasattr(tensor, "ds_id")
