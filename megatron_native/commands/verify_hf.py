"""`megatron-native verify-hf`: is this Hugging Face folder what that checkpoint holds?"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_native.checkpoint.reference_logits import LogitComparison
    from megatron_native.checkpoint.verify_hf import Verification

SUMMARY = """Compare a checkpoint with a Hugging Face folder: names, shapes, dtypes, every bit, and logits.

Logits of the folder are compared with those recorded at import. Ends with code 0 when all agrees, 1 when it doesn't."""

EXAMPLES = """\
  megatron-native verify-hf --checkpoint checkpoints/llama3-8b --hf models/Meta-Llama-3-8B
  megatron-native verify-hf --checkpoint runs/phase1/checkpoints/step_00010000 --hf export/phase1 --json
  megatron-native verify-hf --checkpoint runs/phase1/checkpoints/step_00010000 --hf export/phase1 --megatron"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="CKPT", help="checkpoint folder")
    parser.add_argument("--hf", type=Path, required=True, metavar="DIR", help="Hugging Face folder to compare it with")
    parser.add_argument("--no-logits", dest="logits", action="store_false", help="compare weights only")
    parser.add_argument(
        "--megatron", action="store_true",
        help="also run the checkpoint through megatron-core in FP32 and compare its logits with the folder's",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Compare, print the findings, and return 0 when all agrees."""
    import json
    from dataclasses import asdict

    from megatron_native.checkpoint.verify_hf import LOGIT_TOLERANCE, verify_hf

    result = verify_hf(arguments.checkpoint, arguments.hf, logits=arguments.logits)
    passed, megatron = result.passed, None
    if arguments.megatron:
        from megatron_native.training.forward import compare_with_transformers

        megatron = compare_with_transformers(arguments.checkpoint, arguments.hf)
        passed = passed and megatron.max_abs_difference <= LOGIT_TOLERANCE
    if arguments.json:
        findings = {**result.as_dict(), "megatron_logits": asdict(megatron) if megatron else None, "passed": passed}
        print(json.dumps(findings, ensure_ascii=False, indent=2))
    else:
        print(_table(result, megatron, passed))
    return 0 if passed else 1


def _table(result: Verification, megatron: LogitComparison | None, passed: bool) -> str:
    rows = [
        ("tensors compared", f"{result.tensors} ({result.bytes / 1e9:.2f} GB)"),
        ("missing", _some(result.missing)),
        ("unexpected", _some(result.unexpected)),
        ("other shape", _some(result.shapes)),
        ("converted", ", ".join(f"{count} × {change}" for change, count in result.converted.items()) or "none"),
        ("other bits", _some(result.different)),
        ("other settings", _some(result.settings)),
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
    if megatron is not None:
        rows.append((
            "megatron-core against transformers",
            f"largest |Δ| {megatron.max_abs_difference:.3g}, mean KL {megatron.mean_kl:.3g} nats, same best token at "
            f"{megatron.top1_agreement:.2%} of {megatron.positions} positions",
        ))
    rows.append(("verdict", "equal" if passed else "DIFFERENT"))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _some(names: list[str], shown: int = 3) -> str:
    if not names:
        return "none"
    return f"{len(names)}: " + ", ".join(names[:shown]) + (", …" if len(names) > shown else "")
