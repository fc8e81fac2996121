"""``rlhf export``: a run's policy or reward model as a directory that other programs load."""

from __future__ import annotations

import argparse
from pathlib import Path

from rlhf.models.bars import no_bars
from rlhf.models.export import ExportReport, export_run, open_run
from rlhf.telemetry.console import get_console, print_header, print_table

EPILOG = """\
examples:
  rlhf export runs/quickstart/ppo --merge                       one model, to runs/quickstart/ppo/export
  rlhf export runs/quickstart/ppo --output ~/adapters/helpline  the adapter, with a reference to its base
  rlhf export runs/quickstart/reward --merge                    a sequence classifier with one label

The merge happens in a copy of the base (dequantized, where the run trained on a quantized one). The export is loaded
again and its logits are compared with the live model's on a fixed batch; above the bound nothing is left behind and the
exit code is 4. A critic is not exported: its values mean nothing outside its training.
"""


def build_parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(
        prog="rlhf export",
        description="Writes a run's model with tokenizer, chat template and generation config, as safetensors.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="directory of a finished sft, reward, dpo or ppo run")
    parser.add_argument("--merge", action="store_true", help="one set of weights instead of an adapter beside its base")
    parser.add_argument("--output", metavar="DIR", help="default: RUN/export")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of merged weights; default: the base's")
    parser.add_argument(
        "--max-difference",
        type=float,
        metavar="X",
        help="largest logit difference; default 0.001 in float32, 0.25 in bfloat16, more over a quantized base",
    )
    return parser


def main(rest: list[str]) -> int:
    """Runs the command.

    Raises:
        ConfigError: no run, or a part of one that cannot be exported.
        CheckpointError: the output exists, or the export differs from the live model.
    """
    args = build_parser().parse_args(rest)
    output = Path(args.output) if args.output else Path(args.run) / "export"
    source = open_run(args.run)
    print_header(f"Export → {output}", f"run {args.run}")
    with no_bars():
        report = export_run(source, output, merge=args.merge, dtype=args.dtype, max_difference=args.max_difference)
    print_table("Exported", _rows(report))
    get_console().print(
        f"maximal logit difference, reloaded export against live model: {report.max_difference:.3g}", markup=False
    )
    return 0


def _rows(report: ExportReport) -> dict[str, str]:
    size = sum(path.stat().st_size for path in Path(report.directory).glob("*.safetensors"))
    return {
        "directory": report.directory,
        "kind": report.kind,
        "base": report.base,
        "dtype": report.dtype if report.kind != "adapter" else "as trained",
        "weights": f"{size / 1e6:.1f} MB",
        "max logit difference": f"{report.max_difference:.3g} (bound {report.bound:g}, largest logit "
        f"{report.max_logit:.3g})",
    }
