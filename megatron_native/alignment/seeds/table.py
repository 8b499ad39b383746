"""The account of an annotation on a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from megatron_native.alignment.rewriting.chunks import REFUSED
from megatron_native.alignment.rewriting.table import print_rows
from megatron_native.corpus.stage import StageResult

_FEW = 0.5
_SHOWN_STRATA = 12


def warnings_of(manifest: Mapping[str, Any]) -> list[str]:
    """What is no error and yet seldom meant: a small sample, many answers refused or missing."""
    counts, selection, refused = manifest["counts"], manifest["selection"], manifest["annotation"]["refused_by"]
    warnings = []
    if selection["chosen"] < selection["asked_for"]:
        warnings.append(
            f"the input has {selection['chosen']:,} distinct passages that may be annotated; {selection['asked_for']:,} "
            "were asked for."
        )
    if counts["kept"] < _FEW * counts["read"]:
        worst = ", ".join(list(refused)[:3])
        warnings.append(
            f"only {counts['kept']:,} of {counts['read']:,} answers became seeds ({worst}); _decisions/ shows what the "
            "expert wrote."
        )
    if missing := sum(counts["quarantined"].values()):
        warnings.append(f"{missing:,} passages have no answer; _decisions/ says why.")
    return warnings


def print_annotation(result: StageResult, as_json: bool) -> int:
    """Print the account on stdout, warnings on stderr; 0."""
    manifest = result.manifest
    for warning in warnings_of(manifest):
        print(f"WARNING: {warning}", file=sys.stderr)
    if as_json:
        print(json.dumps(manifest, ensure_ascii=False, indent=2))
        return 0
    done = "is done already with the same inputs and settings; skipped" if result.skipped else "is done"
    print(f"annotate: {os.path.relpath(result.output)} {done}")
    print_rows(rows_of(manifest))
    return 0


def rows_of(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The figures as rows of a table."""
    counts, selection, annotation = manifest["counts"], manifest["selection"], manifest["annotation"]
    documents, passages = selection["documents"], selection["passages"]
    rows = [("documents read", f"{documents['read']:,}")]
    rows += [(f"  quarantined: {reason}", f"{count:,}") for reason, count in documents["quarantined"].items()]
    rows.append(("passages that may be annotated", f"{passages['eligible']:,}"))
    rows += [(f"  passed over: {reason}", f"{count:,}") for reason, count in sorted(passages["passed_over"].items())]
    rows.append(("chosen", f"{selection['chosen']:,} ({manifest['parameters']['selection']['rule']})"))
    strata = sorted(selection.get("strata", {}).items(), key=lambda item: -item[1]["chosen"])
    for stratum, figures in strata[:_SHOWN_STRATA]:
        rows.append((f"  {stratum}", f"{figures['chosen']:,} of {figures['eligible']:,}"))
    if len(strata) > _SHOWN_STRATA:
        rows.append((f"  {len(strata) - _SHOWN_STRATA} more strata", "see the manifest"))
    if selection.get("perplexity"):
        rows.append(("  perplexity", "{:,.1f} to {:,.1f}".format(*selection["perplexity"])))
    rows.append(("seeds", f"{counts['kept']:,} ({100 * counts['kept'] / counts['read']:.1f} %)"))
    for state, count in annotation["passages"].items():
        if count:
            rows.append((f"  {state}", f"{count:,}"))
        if state == REFUSED:
            rows += [(f"    by {gate}", f"{number:,}") for gate, number in annotation["refused_by"].items()]
    usage = annotation["usage"]
    rows.append(("structured output", "yes" if annotation["structured"] else "no"))
    rows.append(("prompt tokens, of them cached", f"{usage['prompt']:,}, {usage['cached']:,}"))
    rows.append(("answer tokens", f"{usage['output']:,}"))
    if assumed := usage["assumed_prompt"] + usage["assumed_output"]:
        rows.append(("tokens that nobody counted, at most", f"{assumed:,}"))
    if annotation["cost"]:
        rows.append(("cost, at most" if assumed else "cost", f"{annotation['cost']:,.4g}"))
    return rows
