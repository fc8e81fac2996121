"""Bytes that a role needs on one GPU: weights, adapters, gradients, optimizer, and what DeepSpeed keeps beside them.

The formulas were read from the code that allocates the tensors and are checked against real tensors by tests. Sizes
are bytes, shapes elements. N is the number of training ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from cluster.shapes import Linear, ModelShape
from rlhf.config import EngineConfig, LoraConfig, ModelConfig

PERSISTENT_ELEMENTS = 100_000
"""ZeRO-3 keeps tensors of at most this many elements whole on every rank (stage3_param_persistence_threshold)."""
LIVE_ELEMENTS = 1_000_000_000
"""ZeRO-3 keeps gathered parameters that are used again within this many elements (stage3_max_live_parameters)."""
MASTER_BYTES, ADAM_BYTES, ADAM_8BIT_BYTES = 4, 8, 2
"""Per trained element: the fp32 copy, Adam's two fp32 moments (arXiv:1910.02054 sec. 3.1), two int8 moments."""
NF4_BLOCK, NESTED_BLOCK = 64, 256
"""Elements per 4-bit scale, and scales per scale of scales (arXiv:2305.14314 sec. 3)."""
NF4_TABLES = (16 * 4, 16 * 4 + 256 * 4 + 4)
"""Code tables of one quantized matrix, plain and with double quantization."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one role on one GPU, by purpose. ``host`` counts main memory and belongs to no sum."""

    weights: float = 0.0
    adapters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    kv_cache: float = 0.0
    workspace: float = 0.0
    host: float = 0.0

    @property
    def total(self) -> float:
        """Bytes on the GPU at the peak."""
        return sum(getattr(self, f.name) for f in fields(self) if f.name != "host")

    def __add__(self, other: Memory) -> Memory:
        return Memory(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


@dataclass(frozen=True)
class Tensors:
    """Tensors of one size: elements as DeepSpeed counts them, bytes per element, how often, and bytes never cut.

    Attributes:
        fixed: bytes beside each tensor that stay whole on every rank (quantization scales and tables).
    """

    elements: int
    width: float
    count: int
    fixed: float = 0.0

    @property
    def bytes(self) -> float:
        """All of them, whole."""
        return self.count * (self.elements * self.width + self.fixed)


def dtype_bytes(model: ModelConfig, *, on_gpu: bool) -> int:
    """Bytes per element of compute and of unquantized weights."""
    if model.dtype == "auto":
        return 2 if on_gpu else 4
    return 4 if model.dtype == "float32" else 2


def base_tensors(shape: ModelShape, model: ModelConfig, width: int, *, head: int = 0) -> list[Tensors]:
    """The base model's tensors.

    Args:
        width: bytes per unquantized element.
        head: outputs of a head in the place of the output matrix (1 for a reward model), 0 for a language model.
    """
    found = [_matrix(m, model, width, shape.layers) for m in shape.linears]
    found += [Tensors(size, width, shape.layers) for size in shape.layer_vectors]
    outer = shape.outer[:2] if head else shape.outer
    found += [Tensors(size, width, 1) for size in outer]
    if head:
        found.append(Tensors(head * shape.hidden, 4, 1))  # the scalar head is kept in fp32
    return found


def _matrix(matrix: Linear, model: ModelConfig, width: int, count: int) -> Tensors:
    """One matrix of every layer as it is stored."""
    if model.quantization == "int8":  # one fp32 scale per row (arXiv:2208.07339 sec. 3.1)
        return Tensors(matrix.weight, 1, count, 4.0 * matrix.outputs)
    if model.quantization == "none":
        return Tensors(matrix.weight, width, count)
    scales = math.ceil(matrix.weight / NF4_BLOCK)
    if model.double_quantization:
        fixed = scales + 4.0 * math.ceil(scales / NESTED_BLOCK) + NF4_TABLES[1]
    else:
        fixed = 4.0 * scales + NF4_TABLES[0]
    # two 4-bit values per byte, in a tensor of the compute type
    return Tensors(math.ceil(matrix.weight / (2 * width)), width, count, fixed)


def adapter_tensors(shape: ModelShape, lora: LoraConfig, width: int) -> list[Tensors]:
    """LoRA's A and B of every adapted matrix (arXiv:2106.09685), and DoRA's magnitudes (arXiv:2402.09353)."""
    found = []
    for matrix in adapted(shape, lora):
        found += [Tensors(lora.tensor_rank * size, width, shape.layers) for size in (matrix.inputs, matrix.outputs)]
        if lora.use_dora or lora.method == "dora":
            found.append(Tensors(matrix.outputs, width, shape.layers))
    return found


def adapted(shape: ModelShape, lora: LoraConfig) -> list[Linear]:
    """The matrices of a layer that get an adapter."""
    if lora.target_modules == "all-linear":
        return list(shape.linears)
    wanted = (lora.target_modules,) if isinstance(lora.target_modules, str) else lora.target_modules
    return [m for m in shape.linears if m.name in wanted]


def elements(tensors: Sequence[Tensors]) -> int:
    """Elements of all tensors."""
    return sum(t.count * t.elements for t in tensors)


def resident(tensors: Sequence[Tensors], engine: EngineConfig, ranks: int) -> float:
    """Bytes of parameters on one rank.

    ZeRO-3 cuts every tensor into N equal pieces (arXiv:1910.02054 sec. 5.3) and keeps small ones whole beside their
    piece; with one rank the whole is the piece.
    """
    if engine.zero_stage < 3 or ranks == 1:
        return sum(t.bytes for t in tensors)
    total = 0.0
    for t in tensors:
        pieces = math.ceil(t.elements / ranks)
        whole = t.elements if t.elements <= PERSISTENT_ELEMENTS else 0
        total += t.count * ((pieces + whole) * t.width + t.fixed)
    return total


def training_state(
    trained: Sequence[Tensors], engine: EngineConfig, ranks: int, *, width: int, eight_bit: bool = False
) -> Memory:
    """Gradients, fp32 copies, moments and buckets of one rank.

    ZeRO-0 trains the parameters in place: no fp32 copy. ZeRO-1, 2 and 3 keep an fp32 copy and the moments of 1/N of
    the elements (arXiv:1910.02054 sec. 5.1-5.3); at the optimizer step a rank holds its 1/N of the gradients, but
    while backward runs whole gradients fill the reduction bucket, and fp32 gradients of the 1/N are made for the step.
    """
    count = elements(trained)
    moments = ADAM_8BIT_BYTES if eight_bit else ADAM_BYTES
    if engine.zero_stage == 0:
        return Memory(gradients=count * width, optimizer=count * moments)
    share = math.ceil(count / ranks)
    optimizer, gradients = share * (MASTER_BYTES + moments), float(share * width)
    # ZeRO-3 holds one whole bucket for the whole run; ZeRO-1 and 2 reduce gradients in buckets up to its size.
    bucket = engine.reduce_bucket_elements if engine.zero_stage == 3 else min(count, engine.reduce_bucket_elements)
    workspace = float(bucket * width + (share * 4 if width < 4 else 0))
    if engine.offload_optimizer:  # fp32 copies, moments and fp32 gradients live in main memory
        return Memory(gradients=gradients, workspace=bucket * width, host=optimizer + share * 4)
    return Memory(gradients=gradients, optimizer=optimizer, workspace=workspace)


def gathered_workspace(base: Sequence[Tensors], engine: EngineConfig, ranks: int) -> float:
    """Parameters that ZeRO-3 holds whole for a while: up to a billion elements that are soon used again."""
    if engine.zero_stage < 3 or ranks == 1:
        return 0.0
    cut = [t for t in base if t.elements > PERSISTENT_ELEMENTS]
    if not cut:
        return 0.0
    width = max(t.width for t in cut)
    return min(sum(t.count * t.elements * t.width for t in cut), LIVE_ELEMENTS * width)


def parts(memory: Memory) -> Iterator[tuple[str, float]]:
    """(name, bytes) in the order of the table."""
    for item in fields(memory):
        yield item.name, getattr(memory, item.name)
