"""Which adapter methods there are, what each can do here, and why some cannot be used.

The table is what tests/unit/models/test_peft_methods.py and tests/processes/test_peft_zero3.py find: a row whose
promise fails there is a failing test.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AdapterMethod:
    """One row of the support matrix. Every method trains with SFT and DPO, as a reward model with its head, and in PPO.

    Attributes:
        paper: arXiv number.
        size: the key of ``lora`` that sets the adapter's size, and what it means here.
        mergeable: exactly, into a copy of the base.
        four_bit: on a base in nf4.
        zero3: on a base cut into pieces by ZeRO-3.
        holds_half: its tensors are twice those that are trained; the others stay as they start.
        limit: why a column says no.
        refused: why the method cannot be chosen at all; empty for usable ones.
    """

    name: str
    title: str
    paper: str
    size: str = "r: rank"
    mergeable: bool = True
    four_bit: bool = True
    zero3: bool = True
    holds_half: bool = False
    limit: str = ""
    refused: str = ""


_NO_4_BIT = "its layers compute with the weight itself, and 4-bit weights are packed bytes"
_WHOLE = "it reads the base's weights outside their layers, where ZeRO-3 keeps only pieces"
_STARTS_ELSEWHERE = "a fresh adapter already changes the model's output, so the base would not be the starting policy"
_ALLOCATES = "its rank allocation needs one trainable adapter and a schedule of its own, and PPO trains two adapters"
_MASKED = "its random mask is no trained tensor: an adapter sent to a rollout worker would act on other weights"
_VIRTUAL = (
    "its virtual tokens stand before the prompt instead of inside the layers: roles that share a base cannot be "
    "switched by it, and rollout engines would sample without it"
)

_ROWS = (
    AdapterMethod("lora", "LoRA", "2106.09685"),
    AdapterMethod("dora", "DoRA: direction and length of each column apart", "2402.09353", zero3=False, limit=_WHOLE),
    AdapterMethod("rslora", "rank-stabilized LoRA: alpha / sqrt(r)", "2312.03732"),
    AdapterMethod("pissa", "PiSSA: starts at the weights' largest singular values", "2404.02948",
                  "r: rank (saved as LoRA, 2 r)", zero3=False, holds_half=True, limit=_WHOLE),
    AdapterMethod("olora", "OLoRA: starts at the weights' QR factors", "2406.01775",
                  "r: rank (saved as LoRA, 2 r)", zero3=False, holds_half=True, limit=_WHOLE),
    AdapterMethod("ia3", "IA3: rescales keys, values and feed-forward activations", "2205.05638", "none"),
    AdapterMethod("oft", "orthogonal rotation of inputs, in blocks", "2306.07280", "r: block size"),
    AdapterMethod("boft", "orthogonal rotation by butterfly factors", "2311.06243", "r: block size"),
    AdapterMethod("hra", "Householder reflections", "2405.17484", "r: reflections (even)",
                  four_bit=False, limit=_NO_4_BIT),
    AdapterMethod("vera", "VeRA: trained vectors around fixed random matrices", "2310.11454", "r: random rank"),
    AdapterMethod("randlora", "RandLoRA: full rank from fixed random matrices", "2502.00987", "r: rank of each part"),
    AdapterMethod("loha", "LoHa: Hadamard product of two low ranks", "2108.06098",
                  four_bit=False, zero3=False, limit=f"{_NO_4_BIT}; {_WHOLE}"),
    AdapterMethod("lokr", "LoKr: Kronecker product", "2212.10650", four_bit=False, limit=_NO_4_BIT),
    AdapterMethod("hira", "HiRA: low rank times the weight", "openreview TwJrTz9cRS"),
    AdapterMethod("miss", "MiSS: shared shards", "2409.15371"),
    AdapterMethod("road", "RoAd: rotations of pairs", "2409.00119", "r: group size (even)"),
    AdapterMethod("delora", "DeLoRA: bounded length, low-rank direction", "2503.18225",
                  four_bit=False, zero3=False, limit=f"{_NO_4_BIT}; {_WHOLE}"),
    AdapterMethod("waveft", "WaveFT: sparse wavelet coefficients", "2505.12532", "r: coefficients / 32"),
    AdapterMethod("ln_tuning", "only copies of the normalization layers", "2312.11420", "none",
                  zero3=False, limit=_WHOLE),
    AdapterMethod("bitfit", "BitFit: only bias vectors, added where the base has none", "2106.10199", "none",
                  mergeable=False, limit="a bias has no place in a layer without one"),
    AdapterMethod("fourierft", "FourierFT", "2405.03003", refused=_STARTS_ELSEWHERE),
    AdapterMethod("vblora", "VB-LoRA", "2405.15179", refused=_STARTS_ELSEWHERE),
    AdapterMethod("c3a", "C3A", "2407.19342", refused=_STARTS_ELSEWHERE),
    AdapterMethod("adalora", "AdaLoRA", "2303.10512", refused=_ALLOCATES),
    AdapterMethod("shira", "SHiRA", "2406.13175", refused=_MASKED),
    AdapterMethod("prefix", "prefix tuning, P-tuning v2", "2101.00190, 2110.07602", refused=_VIRTUAL),
    AdapterMethod("prompt", "prompt tuning", "2104.08691", refused=_VIRTUAL),
    AdapterMethod("p_tuning", "P-tuning", "2103.10385", refused=_VIRTUAL),
)  # fmt: skip

METHODS: dict[str, AdapterMethod] = {row.name: row for row in _ROWS}
PLAIN_LORA = ("lora", "rslora", "pissa", "olora")
"""Methods whose layers are LoRA's own."""


def why_not(name: str, *, quantization: str = "none", zero_stage: int = 0) -> str:
    """The reason why a method cannot be used, or an empty string."""
    method = METHODS.get(name)
    if method is None:
        usable = ", ".join(row.name for row in _ROWS if not row.refused)
        return f"lora.method={name!r} is not known; choose one of {usable} (rlhf peft list)"
    if method.refused:
        return f"lora.method={name} cannot be used: {method.refused}; see rlhf peft list"
    if quantization == "nf4" and not method.four_bit:
        return f"lora.method={name} does not work on a 4-bit base: {method.limit}; set model.quantization=none or int8"
    if zero_stage == 3 and not method.zero3:
        return f"lora.method={name} does not work under ZeRO-3: {method.limit}; set engine.zero_stage=2"
    return ""
