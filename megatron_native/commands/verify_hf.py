"""`megatron-native verify-hf`: is this Hugging Face folder what that checkpoint holds?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_native.checkpoint.verify_hf import Verification

SUMMARY = """Compare a checkpoint with a Hugging Face folder: names, shapes, dtypes, every bit, and logits.

Logits of the folder are compared with those recorded at import. Where memory does not suffice for the whole model in FP32,
it is run one layer at a time. Ends with code 0 when all agrees, 1 when it doesn't."""

EXAMPLES = """\
  megatron-native verify-hf --checkpoint checkpoints/llama3-8b --hf models/Meta-Llama-3-8B
  megatron-native verify-hf --checkpoint runs/phase1/checkpoints/step_00010000 --hf export/phase1 --json
  megatron-native verify-hf --checkpoint runs/phase1/checkpoints/step_00010000 --hf export/phase1 --megatron
  megatron-native verify-hf --checkpoint checkpoints/llama3-70b --hf models/Meta-Llama-3-70B --megatron --layer-by-layer \\
      --report verification.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="CKPT", help="checkpoint folder")
    parser.add_argument("--hf", type=Path, required=True, metavar="DIR", help="Hugging Face folder to compare it with")
    parser.add_argument("--no-logits", dest="logits", action="store_false", help="compare weights only")
    parser.add_argument(
        "--megatron", action="store_true",
        help="also run the checkpoint through megatron-core in FP32 and compare its logits with the folder's",
    )  # fmt: skip
    parser.add_argument(
        "--layer-by-layer", action="store_true",
        help="compute logits one layer in memory at a time even where the whole model would fit; with --megatron, hidden "
        "states are compared after every layer",
    )  # fmt: skip
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the findings to FILE as JSON")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Compare, print the findings, and return 0 when all agrees."""
    import json

    from megatron_native.checkpoint.verify_hf import verify_hf
    from megatron_native.commands.output_file import write_file

    result = verify_hf(
        arguments.checkpoint,
        arguments.hf,
        logits=arguments.logits,
        megatron=arguments.megatron,
        layer_by_layer=arguments.layer_by_layer or None,
    )
    findings = json.dumps(result.as_dict(), ensure_ascii=False, indent=2)
    if arguments.report:
        write_file(arguments.report, findings + "\n")
    print(findings if arguments.json else _table(result))
    return 0 if result.passed else 1


def _table(result: Verification) -> str:
    rows = [
        ("tensors compared", f"{result.tensors} ({result.bytes / 1e9:.2f} GB)"),
        ("missing", _some(result.missing)),
        ("unexpected", _some(result.unexpected)),
        ("other shape", _some(result.shapes)),
        ("converted", ", ".join(f"{count} × {change}" for change, count in result.converted.items()) or "none"),
        ("other bits", _some(result.different)),
        ("other settings", _some(result.settings)),
        *([("new tokens", result.new_rows)] if result.new_rows else []),
        ("unchanged since import", "yes" if result.unchanged_since_import else "no"),
    ]
    if result.logits is not None:
        rows += [
            ("logits, largest |Δ|", f"{result.logits.max_abs_difference:.3g}"),
            ("logits, mean KL", f"{result.logits.mean_kl:.3g} nats"),
            ("logits, same best token", f"{result.logits.top1_agreement:.2%} of {result.logits.positions} positions"),
        ]
    if result.logits_note:
        rows.append(("logits", result.logits_note))
    name = "megatron-core against transformers"
    if result.megatron_logits is not None:
        found = result.megatron_logits
        rows.append(
            (
                name,
                f"largest |Δ| {found.max_abs_difference:.3g}, mean KL {found.mean_kl:.3g} nats, same best token at "
                f"{found.top1_agreement:.2%} of {found.positions} positions",
            )
        )
    if result.megatron_layers:
        worst = max(result.megatron_layers, key=lambda difference: difference.relative_difference)
        parted = result.parted_after
        rows.append(
            (
                "hidden states after each layer",
                f"largest relative difference {worst.relative_difference:.3g}, after layer {worst.layer}"
                + ("" if parted is None else f"; they part after {f'layer {parted}' if parted else 'the embedding'}"),
            )
        )
    if result.megatron_note:
        rows.append((name, result.megatron_note))
    rows.append(("verdict", "equal" if result.passed else "DIFFERENT"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _some(names: list[str], shown: int = 3) -> str:
    if not names:
        return "none"
    return f"{len(names)}: " + ", ".join(names[:shown]) + (", …" if len(names) > shown else "")
