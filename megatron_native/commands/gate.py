"""`megatron-native gate`: pairs of a passage and its rewrite → those that pass, those that don't, and why."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_native.commands.server_arguments import add_judge, judge_of, with_judge_key
from megatron_native.commands.stage_arguments import add_execution

if TYPE_CHECKING:
    from megatron_native.alignment.gates.pairs import PairSettings

SUMMARY = """Check rewritten passages against their origins: language, numbers, names, quotations, scripture, content that is
invented or missing, leaked scaffold, refusals, loops. Good pairs are kept, refused ones written beside them with reasons."""
EXAMPLES = """\
  megatron-native gate --input alignment_data_split/ --output checked/
  megatron-native gate --input rewrite_seed_data.json --output checked/ --keep-scores
  megatron-native gate --input 'pairs/*.jsonl.zst' --output checked/ --gates strict.yaml --set similarity=false
  megatron-native gate --input pairs.jsonl --output checked/ --origin-key source --rewritten-key target --workers 8
  megatron-native gate --input pairs.jsonl --explain 17           what every gate says of the 17th pair
  megatron-native gate --input pairs.jsonl --output checked/ --judge-endpoint http://host:8000/v1 --judge-model judge
  megatron-native gate --pair 'بلغ العدد 12 طالبًا.' 'بلغ العدد 21 طالبًا.'
  megatron-native gate --list                                     the gates and their settings

The fields are `origin` and `rewritten` as in the released files; all other fields are kept. A killed run goes on where it
was. docs/gates.md says what each gate looks for and how its threshold was chosen."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--input", nargs="+", metavar="PATH", help="files of pairs, folders or globs")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="new folder for the pairs that pass")
    parser.add_argument("--origin-key", default="origin", metavar="KEY", help="field of the passage (origin)")
    parser.add_argument("--rewritten-key", default="rewritten", metavar="KEY", help="field of its rewrite (rewritten)")
    parser.add_argument(
        "--gates", type=Path, metavar="FILE", help="YAML with settings that differ from the shipped ones"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="GATE.KEY=VALUE", dest="overrides",
        help="one setting, such as numbers.most_lost=1, or names=false to switch a gate off; may be repeated",
    )  # fmt: skip
    add_judge(parser)
    parser.add_argument("--keep-scores", action="store_true", help="give kept pairs a field 'gates' with their scores")
    parser.add_argument("--explain", type=int, metavar="N", help="show all judgements of the N-th pair; write nothing")
    parser.add_argument(
        "--pair", nargs=2, metavar=("ORIGIN", "REWRITTEN"), help="show all judgements of this pair; write nothing"
    )
    parser.add_argument("--list", action="store_true", help="show the gates and their settings")
    parser.add_argument(
        "--max-line-bytes", type=int, default=64 << 20, metavar="N", help="longer lines are quarantined (64 MiB)"
    )
    parser.add_argument(
        "--part-bytes", type=int, default=32 << 20, metavar="N", help="text that one task takes (32 MiB)"
    )
    add_execution(parser)


def run(arguments: argparse.Namespace) -> int:
    """Judge, and print the account."""
    from megatron_native.alignment.gates.settings import load_settings, merged
    from megatron_native.errors import UserError

    gates = merged(load_settings(arguments.gates, arguments.overrides), judge_of(arguments), "--judge-endpoint")
    gates = merged(gates, with_judge_key(gates, arguments), "--judge-endpoint")
    if arguments.list:
        from megatron_native.alignment.gates.pair_table import print_settings

        print_settings(gates, arguments.json)
        return 0
    if arguments.pair is not None:
        return _show(arguments.pair[0], arguments.pair[1], gates, arguments.json)
    if not arguments.input:
        raise UserError("--input PATH says where the pairs are (or --pair ORIGIN REWRITTEN, to judge one).")
    from megatron_native.alignment.gates.pairs import gate_pairs, nth_pair

    settings = _settings(arguments, gates)
    if arguments.explain is not None:
        origin, rewritten = nth_pair(arguments.input, settings, arguments.explain)
        return _show(origin, rewritten, gates, arguments.json)
    if arguments.output is None:
        raise UserError("--output FOLDER says where the pairs that pass go (or --explain N, to look at one).")
    from megatron_native.alignment.gates.pair_table import print_gate_account
    from megatron_native.commands.stage_arguments import execution_of

    result = gate_pairs(arguments.input, arguments.output, settings, execution_of(arguments))
    return print_gate_account(result, arguments.json)


def _settings(arguments: argparse.Namespace, gates: dict[str, dict[str, Any]]) -> PairSettings:
    from megatron_native.alignment.gates.pairs import PairSettings

    return PairSettings(
        gates, arguments.origin_key, arguments.rewritten_key, arguments.keep_scores, arguments.part_bytes,
        arguments.max_line_bytes,
    )  # fmt: skip


def _show(origin: str, rewritten: str, gates: dict[str, dict[str, Any]], as_json: bool) -> int:
    from megatron_native.alignment.gates.judging import build_gates
    from megatron_native.alignment.gates.pair_table import print_verdict

    print_verdict(origin, rewritten, build_gates(gates).judge(origin, rewritten), as_json)
    return 0
