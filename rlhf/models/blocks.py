"""Both halves of a decoder layer with adapters as one autograd step each: attention, and the gated feed-forward.

Models write a layer as some eighty operations, each with its pass over memory, its place in the graph and tensors kept
for the way back. Here a half keeps its input and what its products gave; norms and gates are computed again on the way
back. The layers are Llama's, Qwen's and Mistral's: RMS norms (arXiv:1910.07467), rotary positions, grouped heads, a
SiLU gate. Whatever else a layer does, it answers differently and stays as it is. Attention takes a packed row, or on a
CPU one token per slot of a cache, and needs the compiled kernels there; all other passes go the model's own way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import SiLUActivation

from rlhf.models.fans import Bundle, Fan, bundle, is_plain
from rlhf.models.fronts import Gate, Norm, Plain
from rlhf.models.kernels import calls, decoding
from rlhf.models.mixed import Mix
from rlhf.models.packing import Kept, Packing

LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
GATED = {"gate_proj", "up_proj", "down_proj", "act_fn"}
Slices = list[tuple[str, slice]]


@dataclass(frozen=True)
class Half:
    """In a pass: a norm, products that read it, and the product whose result is added to the half's input.

    Attributes:
        num_entering: trained matrices of the first products; those of the last follow.
    """

    weight: Tensor
    eps: float
    enters: Fan
    leaves: Fan
    num_entering: int


@dataclass(frozen=True)
class Parts:
    """The same, of a layer."""

    weight: Tensor
    eps: float
    enters: Bundle
    leaves: Bundle

    def half(self, slices: Slices, leaving: Slices | None = None) -> tuple[Half, list[Tensor]]:
        """For the tokens of a pass, and those ``leaving`` if fewer; also all trained matrices that take part."""
        (enters, first), (leaves, last) = self.enters.fan(slices), self.leaves.fan(leaving or slices)
        return Half(self.weight, self.eps, enters, leaves, len(first)), [*first, *last]


@dataclass(frozen=True)
class Halves:
    """A decoder layer; ``attention`` is None where the model's own has to be asked.

    Attributes:
        keeps_gates: gate and up are kept for the way back, not made again there.
        is_last: no layer follows: tokens that nobody reads end at its attention, where others look at them.
    """

    attention: Parts | None
    feed_forward: Parts
    keeps_gates: bool = True
    is_last: bool = False


@dataclass(frozen=True)
class Turns:
    """Rotary positions of a packed row and its sequences: cos and sin (tokens, size), starts (sequences + 1,).

    Attributes:
        kept: (kept,) the tokens that go on from here; None: all.
    """

    cos: Tensor
    sin: Tensor
    starts: Tensor
    scale: float
    longest: int
    kept: Tensor | None = None


def install(model: nn.Module, mix: Mix) -> int:
    """Gives every layer that is no more than what is computed here the shorter way; returns how many there are.

    All adapters must be there already.
    """
    layers: list[Any] = [module for module in model.modules() if type(module).__name__.endswith("DecoderLayer")]
    config: Any = model.config
    last = layers[-1] if len(layers) == config.num_hidden_layers else None  # none is known to be where others are added
    found = 0
    for module in layers:
        halves = _halves(module)
        if halves is not None and _answers_alike(module, replace(halves, is_last=module is last), mix):
            found += 1
    return found


def _halves(layer: Any) -> Halves | None:
    """By the names of all parts, so that none is left out."""
    if _children(layer) != LAYER or _children(layer.mlp) != GATED:
        return None
    if not isinstance(layer.mlp.act_fn, nn.SiLU | SiLUActivation):
        return None
    mlp, attention = layer.mlp, layer.self_attn
    second = _parts(layer.post_attention_layernorm, [mlp.gate_proj, mlp.up_proj], mlp.down_proj)
    if second is None:
        return None
    windows = [getattr(place, "sliding_window", None) for place in (attention, attention.config)]
    fits = _children(attention) == ATTENTION and windows == [None, None]
    if not fits or not calls.attends(second.weight, attention.head_dim):
        return Halves(None, second)
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    return Halves(_parts(layer.input_layernorm, projections, attention.o_proj), second)


def _parts(norm: Any, entering: list[Any], leaving: Any) -> Parts | None:
    eps, enters, leaves = getattr(norm, "variance_epsilon", None), bundle(entering), bundle([leaving])
    if not isinstance(eps, float) or not is_plain(norm.weight) or norm.weight.requires_grad:
        return None
    return None if enters is None or leaves is None else Parts(norm.weight, eps, enters, leaves)


def _children(module: Any) -> set[str]:
    return {name for name, _ in module.named_children()}


def _answers_alike(layer: Any, halves: Halves, mix: Mix) -> bool:
    """Whether some tokens leave the layer as they leave the model's own, adapters left out; if so, it is installed."""
    width, size, tokens = len(halves.feed_forward.weight), layer.self_attn.head_dim, 5
    like = halves.feed_forward.weight
    x = torch.arange(float(tokens * width)).view(1, tokens, width).sin().to(like)  # nothing random: models start here
    turn = torch.outer(torch.arange(1.0, tokens + 1), torch.arange(1.0, size // 2 + 1)).repeat(1, 2)[None]
    packing = Packing(torch.arange(tokens, device=like.device), (tokens,))
    words: Any = {
        "attention_mask": None,
        "position_embeddings": (turn.cos().to(like), turn.sin().to(like)),
        "past_key_values": None,
    }
    before, mix.parts = mix.parts, (("", None),)
    layer.mix, layer.halves = mix, halves
    try:
        with torch.no_grad():
            wanted = type(layer).forward(layer, x, **words)
            found = _forward(layer, x, **words, packing=packing)
    finally:
        mix.parts = before
    if not isinstance(wanted, Tensor) or not _near(found, wanted):
        del layer.mix, layer.halves
        return False
    layer.forward = MethodType(_forward, layer)
    return True


def _near(found: Tensor, wanted: Tensor) -> bool:
    """Equal but for roundings, which in bfloat16 are as large as the smaller ones of a row's numbers."""
    if found.dtype == torch.float32:
        return torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    away = (found.float() - wanted.float()).norm() / wanted.float().norm()
    return float(away) < 4 * torch.finfo(found.dtype).eps


def _forward(
    layer: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    past_key_values: Any = None,
    **words: Any,
) -> Tensor:
    halves, words = layer.halves, {**words, "position_embeddings": position_embeddings}
    weight = halves.feed_forward.weight
    if not is_plain(hidden_states) or hidden_states.dtype != weight.dtype or hasattr(weight, "ds_id"):
        words |= {"attention_mask": attention_mask, "past_key_values": past_key_values}
        return type(layer).forward(layer, hidden_states, **words)
    x, learns = hidden_states.flatten(0, -2), torch.is_grad_enabled()  # (tokens, hidden)
    slices = layer.mix.slices(len(x))
    decodes = not x.is_cuda and halves.attention is not None and hasattr(past_key_values, "step_of")
    if decodes and not learns:
        found = _decode(layer, x, slices, position_embeddings, past_key_values)
        if found is not None:
            return found.view_as(hidden_states)
    packing: Packing | None = words.get("packing")
    kept = packing.kept if packing is not None and halves.is_last else None
    leaving = slices if kept is None else layer.mix.slices_of(kept.counts)
    attended = _attend(layer, x, (slices, leaving), position_embeddings, packing, kept)
    if attended is None:
        words |= {"attention_mask": attention_mask, "past_key_values": past_key_values}
        states, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **words)
        attended = (hidden_states + states).flatten(0, -2)
        attended = attended if kept is None else attended[kept.rows]
    half, matrices = halves.feed_forward.half(leaving)
    if learns:
        result = _FeedForward.apply(attended, half, halves.keeps_gates, *matrices)
    else:
        result, _ = _feed_forward(attended, half, matrices)
    if kept is None:
        return result.view_as(hidden_states)
    kept.done = True
    return result[None]


def _decode(layer: Any, x: Tensor, slices: Slices, angles: Any, cache: Any) -> Tensor | None:
    """A step of decoding, in one call; None in a prefill, or when tokens belong to several adapters."""
    step = cache.step_of(layer.self_attn.layer_idx)
    if step is None or len(slices) != 1:
        return None
    cos, sin = (angle.flatten(0, -2).contiguous() for angle in angles)
    if cos.shape != (len(x), layer.self_attn.head_dim) or {cos.dtype, step[0].dtype} != {x.dtype}:
        return None
    return decoding.decode(_described(layer, slices[0][0], cache), x.contiguous(), cos, sin, *step)


def decodes(layer: Any) -> bool:
    """Whether a step of decoding is one call here, as far as the layer is concerned."""
    halves = getattr(layer, "halves", None)
    return halves is not None and halves.attention is not None


def decode_through(layers: Sequence[Any], x: Tensor, cos: Tensor, sin: Tensor, cache: Any) -> Tensor | None:
    """A step of decoding through all layers, a call each; None where one of them cannot be described.

    Args:
        x: (slots, hidden), contiguous, as the result.
        cos: (slots, head size), as ``sin``, of the same type.
    """
    for number, layer in enumerate(layers):
        slices, step = layer.mix.slices(len(x)), cache.step_of(number)
        if (
            len(slices) != 1
            or step is None
            or {step[0].dtype, cos.dtype, layer.halves.attention.weight.dtype} != {x.dtype}
        ):
            return None
        x = decoding.decode(_described(layer, slices[0][0], cache), x, cos, sin, *step)
    return x


def _described(layer: Any, adapter: str, cache: Any) -> Any:
    """The layer as the kernel sees it, for all steps of a cache."""
    known = cache.notes.get(layer)
    if known is None:
        halves, attention = layer.halves, layer.self_attn
        cache.notes[layer] = known = decoding.describe(
            halves.attention, halves.feed_forward, adapter, attention.head_dim, attention.scaling,
            num_layers=attention.config.num_hidden_layers,
        )  # fmt: skip
    return known


def _attend(
    layer: Any, x: Tensor, slices: tuple[Slices, Slices], angles: Any, packing: Packing | None, kept: Kept | None
) -> Tensor | None:
    """The first half for a packed row, of which some tokens may be ``kept``; None: it has to go the model's own way.

    Args:
        slices: of all tokens, and of those that are left afterwards.
    """
    attention, parts = layer.self_attn, layer.halves.attention
    if parts is None or packing is None or (attention.training and attention.attention_dropout):
        return None
    cos, sin = (angle.flatten(0, -2).contiguous() for angle in angles)
    if cos.shape != (len(x), attention.head_dim):
        return None
    half, matrices = parts.half(*slices)
    starts = packing.starts if x.device.type == "cpu" else packing.starts_there
    turns = Turns(cos, sin, starts, attention.scaling, packing.width, None if kept is None else kept.rows)
    if torch.is_grad_enabled():
        return _Attention.apply(x, half, turns, *matrices)
    return _attention(x, half, turns, matrices)[0]


def _attention(x: Tensor, half: Half, turns: Turns, matrices: Any) -> tuple[Tensor, list[Tensor]]:
    """The half's result, and for the way back query, key, value, what attention gave, and the adapters' inner ones."""
    count = half.num_entering
    projected, inner = half.enters.forward(Norm(x, half.weight, half.eps), matrices[:count])
    query, key, value = projected
    where = turns.starts, turns.scale, turns.longest
    attended, normalizer = calls.attention(query, key, value, turns.cos, turns.sin, *where)
    goes, beside = (attended, x) if turns.kept is None else (attended[turns.kept], x[turns.kept])
    (result,), last = half.leaves.forward(Plain(goes), matrices[count:], onto=beside)
    return result, [query, key, value, attended, normalizer, *inner, *last]


def _feed_forward(x: Tensor, half: Half, matrices: Any) -> tuple[Tensor, list[Tensor]]:
    """The half's result, and for the way back gate, up, and the adapters' inner ones."""
    count = half.num_entering
    (gate, up), inner = half.enters.forward(Norm(x, half.weight, half.eps), matrices[:count])
    (result,), last = half.leaves.forward(Gate(gate, up), matrices[count:], onto=x)
    return result, [gate, up, *inner, *last]


def _spread(rows: Any, kept: Tensor, num_tokens: int) -> Tensor:
    """Gradients of kept tokens among those of all, which are zero."""
    return rows.new_zeros(num_tokens, rows.shape[1]).index_add_(0, kept, rows)


class _Attention(torch.autograd.Function):
    """``x + out(attention(rotary(projections(norm(x)))))``, adapters included; base and norm are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, half: Half, turns: Turns, *matrices: Tensor) -> Tensor:  # type: ignore[override]
        result, kept = _attention(x, half, turns, matrices)
        ctx.half, ctx.turns = half, turns
        ctx.save_for_backward(x, *matrices, *kept)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        half, turns, count = ctx.half, ctx.turns, ctx.half.num_entering
        wants_x, wants = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        x, *rest = ctx.saved_tensors
        matrices, kept = rest[: len(wants)], rest[len(wants) :]
        query, key, value, attended, normalizer, *inner = kept
        split = len(half.enters.parts)
        gone = attended if turns.kept is None else attended[turns.kept]
        (back,), last = half.leaves.backward(Plain(gone), [gradient], matrices[count:], inner[split:], wants[count:])
        if turns.kept is not None:
            back, gradient = (_spread(each, turns.kept, len(x)) for each in (back, gradient))
        to_projections = calls.attention_backward(
            back, (query, key, value), (turns.cos, turns.sin), (attended, normalizer), turns.starts, turns.scale,
            turns.longest,
        )  # fmt: skip
        return _enter(half, x, gradient, to_projections, (matrices, inner), (wants_x, wants), 2, last)


class _FeedForward(torch.autograd.Function):
    """``x + down(silu(gate(norm(x))) * up(norm(x)))``, adapters included; base and norm are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, half: Half, keeps_gates: bool, *matrices: Tensor) -> Tensor:  # type: ignore[override]
        result, kept = _feed_forward(x, half, matrices)
        ctx.half, ctx.keeps_gates = half, keeps_gates
        ctx.save_for_backward(x, *matrices, *(kept if keeps_gates else kept[2:]))
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        half, count = ctx.half, ctx.half.num_entering
        wants_x, wants = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        x, *rest = ctx.saved_tensors
        matrices, kept = rest[: len(wants)], rest[len(wants) :]
        if ctx.keeps_gates:
            gate, up, *inner = kept
        else:
            inner, ((gate, up), _) = kept, half.enters.forward(Norm(x, half.weight, half.eps), matrices[:count])
        split = len(half.enters.parts)
        to_projections, last = half.leaves.backward(
            Gate(gate, up), [gradient], matrices[count:], inner[split:], wants[count:]
        )
        return _enter(half, x, gradient, to_projections, (matrices, inner), (wants_x, wants), 2, last)


def _enter(
    half: Half,
    x: Tensor,
    gradient: Tensor,
    to_projections: tuple[Tensor, ...],
    held: tuple[list[Tensor], list[Tensor]],
    wanted: tuple[bool, tuple[bool, ...]],
    num_plain: int,
    last: list[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """The way back through the first products and the norm: gradients of all arguments, those of the last included."""
    (matrices, inner), (wants_x, wants), count = held, wanted, half.num_entering
    backs, first = half.enters.backward(
        Norm(x, half.weight, half.eps), to_projections, matrices[:count], inner[: len(half.enters.parts)],
        wants[:count], beside=gradient, wants_x=wants_x,
    )  # fmt: skip
    return backs[0] if backs else None, *[None] * num_plain, *first, *last
