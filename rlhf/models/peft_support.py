"""``rlhf peft list``: the support matrix of adapter methods."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict

from rlhf.config.methods import METHODS, AdapterMethod
from rlhf.telemetry.console import get_console, print_table

COLUMNS = ("method", "what it is", "size", "trainable", "merges", "reward head", "PPO", "4-bit", "ZeRO-3")
EPILOG = """\
Set the method with lora.method, its size with lora.r, and the layers with lora.target_modules. "trainable" is the
share of a 7B model (32 layers of width 4096) at lora.r=16 on all linear layers. PiSSA and OLoRA train half of their
tensors, hold the other half, and are LoRA of twice the rank when they are saved and trained on. Each row that can be
used is tested: training steps, a saved and reloaded copy with equal logits, the merge, a reward head, four roles on
one base, nf4, ZeRO-3.
"""


def main(rest: list[str]) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="rlhf peft",
        description="Adapter methods and where they work.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    show = actions.add_parser("list", help="print the support matrix", epilog=EPILOG)
    show.add_argument("--json", action="store_true", help="for programs")
    show.add_argument("--no-count", action="store_true", help="leave out the share of trained parameters (faster)")
    args = parser.parse_args(rest)
    shares = {} if args.no_count else trainable_percent()
    if args.json:
        rows = [{**asdict(m), "trainable_percent": shares.get(name)} for name, m in METHODS.items()]
        get_console().print(json.dumps(rows, indent=2), markup=False, soft_wrap=True)
        return 0
    usable = [method for method in METHODS.values() if not method.refused]
    print_table("Adapter methods (lora.method)", [_row(m, shares) for m in usable], COLUMNS)
    for method in usable:
        if method.limit:
            get_console().print(f"{method.name}: {method.limit}", markup=False)
    refused = [(m.name, m.refused) for m in METHODS.values() if m.refused]
    print_table("Refused by name", refused, ("method", "why"))
    return 0


def trainable_percent(names: Iterable[str] = tuple(METHODS)) -> dict[str, float]:
    """Share of trained parameters per usable method, counted on a 7B shape that holds no memory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from rlhf.config import LoraConfig
    from rlhf.models import adapters

    shape = LlamaConfig(num_hidden_layers=1)  # the widths of a 7B model; one layer stands for all 32
    layers, shares = 32, {}
    for name in names:
        if METHODS[name].refused:
            continue
        with torch.device("meta"):
            base = LlamaForCausalLM(shape)
            outside = sum(p.numel() for key, p in base.named_parameters() if ".layers." not in key)
            whole = outside + layers * (sum(p.numel() for p in base.parameters()) - outside)
        model = adapters.attach(base, adapters.peft_config(LoraConfig(method=name)), "default")
        trained = adapters.count_parameters(model)[0] // (2 if METHODS[name].holds_half else 1)
        shares[name] = round(100 * layers * trained / whole, 4)
    return shares


def _row(method: AdapterMethod, shares: dict[str, float]) -> tuple[str, ...]:
    share = shares.get(method.name)
    return (
        method.name,
        f"{method.title} ({method.paper})",
        method.size,
        f"{share:.3g} %" if share is not None else "",
        _yes(method.mergeable),
        "yes",
        "yes",
        _yes(method.four_bit),
        _yes(method.zero3),
    )


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"
