"""`megatron-native annotate`: documents → seed pairs, passages of a sample and what an expert makes of them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_native.commands.server_arguments import add_budget, add_judge, add_server, budget_of, with_judge
from megatron_native.commands.stage_arguments import add_reading, reading_of

if TYPE_CHECKING:
    from megatron_native.alignment.seeds.asking import Expert
    from megatron_native.alignment.seeds.settings import AnnotateSettings, SelectionSettings

SUMMARY = """Choose passages of a corpus and have an expert, a large language model behind an OpenAI-compatible server, rewrite
them by a code of conduct. What the gates let through are the seed pairs that a worker is trained on."""
EXAMPLES = """\
  megatron-native annotate --input work/deduped --sample 10000 --endpoint http://host:8000/v1 --model expert \\
      --dry-run --price-input 2.5 --price-output 10                     requests, tokens and money; nothing is asked
  megatron-native annotate --input work/deduped --output work/seeds --sample 10000 --endpoint http://host:8000/v1 \\
      --model expert --max-cost 50 --price-input 2.5 --price-output 10 --option concurrency=16
  megatron-native annotate ... --select stratified                      by source and length
  megatron-native annotate ... --select high-perplexity --perplexity-model models/llama
  megatron-native annotate ... --export rewrite_seed_data.json          also as one JSON array of origin and rewritten
  megatron-native annotate --output work/seeds --export rewrite_seed_data.json

A killed run goes on where it was when the same command is run again, and pays for no answer twice. The key is read from
OPENAI_API_KEY. docs/annotate.md says more."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--input", nargs="+", default=[], metavar="PATH", help="files, folders or globs of documents")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="new folder for the seed pairs")
    choice = parser.add_argument_group("which passages")
    choice.add_argument("--sample", type=int, default=10_000, metavar="N", help="passages to annotate (10000)")
    choice.add_argument(
        "--select", default="random", choices=("random", "stratified", "high-perplexity", "low-perplexity"),
        help="uniformly; so within each source and length; or the extremes under a model (random)",
    )  # fmt: skip
    choice.add_argument("--seed", type=int, default=0, metavar="N", help="another seed is another sample (0)")
    choice.add_argument(
        "--least-tokens", type=int, default=16, metavar="N", help="shorter passages are passed over (16)"
    )
    choice.add_argument(
        "--allocation", default="proportional", choices=("proportional", "equal"),
        help="of stratified: places by a stratum's share of passages, or the same for each (proportional)",
    )  # fmt: skip
    choice.add_argument(
        "--length-bands", nargs="+", type=int, default=[64, 128, 192], metavar="N",
        help="of stratified: tokens at which bands of length end (64 128 192)",
    )  # fmt: skip
    choice.add_argument(
        "--perplexity-model", type=Path, metavar="FOLDER", help="Hugging Face folder of a causal model that scores"
    )
    choice.add_argument(
        "--candidates", type=int, default=0, metavar="N", help="random passages that it scores (10 times --sample)"
    )
    choice.add_argument(
        "--perplexity-context", type=int, default=2048, metavar="N", help="tokens that it sees at once (2048)"
    )
    expert = parser.add_argument_group("the expert")
    add_server(
        expert, "expert",
        "how servers are asked, such as concurrency=16 requests_a_minute=500 attempts=8 (docs/backends.md)",
        seed="--sampling-seed",
    )  # fmt: skip
    expert.add_argument(
        "--structured", default="auto", choices=("auto", "on", "off"),
        help="answers as JSON by a schema; auto finds out whether the server can (auto)",
    )  # fmt: skip
    expert.add_argument(
        "--tries", type=int, default=2, metavar="N", help="of a question whose answer is cut off or can't be read (2)"
    )
    expert.add_argument(
        "--journal", type=Path, metavar="FILE",
        help="keep paid answers here, for later runs too (default: in OUTPUT until it is done)",
    )  # fmt: skip
    add_budget(parser, "what it may cost")
    prompt = parser.add_argument_group("what it is asked")
    prompt.add_argument("--conduct", default="general", metavar="NAME|FILE", help="code of conduct (general)")
    prompt.add_argument("--language", default="ar", choices=("ar", "en"), help="of the prompt's own words (ar)")
    prompt.add_argument("--examples", type=int, default=0, metavar="N", help="examples of the code in the prompt (0)")
    prompt.add_argument("--passage-tokens", type=int, default=256, metavar="N", help="LLaMA-3 tokens a passage (256)")
    prompt.add_argument("--context-tokens", type=int, default=64, metavar="N", help="of the text around it (64)")
    prompt.add_argument(
        "--answer-ratio", type=float, default=2.0, metavar="X", help="tokens of an answer per token of passage (2)"
    )
    checks = parser.add_argument_group("what runs around it")
    checks.add_argument("--rules", type=Path, metavar="FILE", help="YAML over the rules' settings")
    checks.add_argument("--no-rules", action="store_true", help="no rules before the expert")
    checks.add_argument("--gates", type=Path, metavar="FILE", help="YAML over the gates' thresholds")
    checks.add_argument("--no-gates", action="store_true", help="check nothing (for measuring, not for seeds)")
    add_judge(checks)
    result = parser.add_argument_group("before and after")
    result.add_argument("--dry-run", action="store_true", help="requests, tokens and money; asks and writes nothing")
    result.add_argument("--export", type=Path, metavar="FILE.json", help="the pairs of OUTPUT as one JSON array")
    add_reading(parser)
    where = parser.add_argument_group("where it runs (never changes the output)")
    where.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
        help="processes for all that needs no server (default: the cores there are)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Annotate, estimate or export, and print the account."""
    from megatron_native.errors import UserError

    if arguments.export is not None and not arguments.input:
        return _export(arguments)
    if not arguments.input:
        raise UserError("--input names the files, folders or globs to choose passages from.")
    settings = _settings(arguments)
    if arguments.dry_run:
        from megatron_native.alignment.seeds.dry_run import dry_run, print_dry_run

        result = dry_run(arguments.input, settings, budget_of(arguments))
        return print_dry_run(result, settings.selection.sample, arguments.json)
    if arguments.output is None:
        raise UserError("--output FOLDER says where the seed pairs go (or --dry-run, to see what they will cost).")
    return _annotate(arguments, settings, _expert(arguments))


def _annotate(arguments: argparse.Namespace, settings: AnnotateSettings, expert: Expert) -> int:
    from megatron_native.alignment.rewriting.fleet import Stopped
    from megatron_native.alignment.seeds.stage import annotate
    from megatron_native.alignment.seeds.table import print_annotation
    from megatron_native.corpus.stage import Execution
    from megatron_native.errors import EXIT_REQUEUE

    try:
        result = annotate(arguments.input, arguments.output, settings, expert, Execution(arguments.workers))
    except Stopped:
        print(f"annotate: {arguments.output} is unfinished; run the same command again to go on.")
        return EXIT_REQUEUE
    code = print_annotation(result, arguments.json)
    if code == 0 and arguments.export is not None:
        return _export(arguments)
    return code


def _settings(arguments: argparse.Namespace) -> AnnotateSettings:
    from megatron_native.alignment.backends.backend import Sampling
    from megatron_native.alignment.backends.choice import options_of
    from megatron_native.alignment.rewriting.settings import RewriteSettings
    from megatron_native.alignment.seeds.settings import AnnotateSettings

    rules = None if arguments.no_rules else _overrides(arguments.rules, "residue: false", "--rules")
    gates = None if arguments.no_gates else _overrides(arguments.gates, "numbers: {most_new: 0}", "--gates")
    asking = RewriteSettings(
        engine="openai", conduct=arguments.conduct, language=arguments.language, examples=arguments.examples,
        passage_tokens=arguments.passage_tokens, context_tokens=arguments.context_tokens,
        answer_ratio=arguments.answer_ratio, first_look=None, part_bytes=arguments.part_bytes,
        sampling=Sampling(arguments.temperature, arguments.top_p, arguments.sampling_seed),
        reading=reading_of(arguments), rules=rules, gates=with_judge(gates, arguments),
    )  # fmt: skip
    extra = options_of(arguments.option).get("extra") or {}
    return AnnotateSettings(
        _selection(arguments), asking, arguments.model, extra, arguments.structured, arguments.tries
    )


def _overrides(file: Path | None, example: str, option: str) -> dict[str, Any]:
    from megatron_native.config.yaml_mapping import read_mapping

    return {} if file is None else read_mapping(file, example, option)


def _selection(arguments: argparse.Namespace) -> SelectionSettings:
    from megatron_native.alignment.seeds.settings import SelectionSettings

    return SelectionSettings(
        arguments.select, arguments.sample, arguments.seed, arguments.allocation, tuple(arguments.length_bands),
        arguments.least_tokens, arguments.perplexity_model, arguments.candidates, arguments.perplexity_context,
    )  # fmt: skip


def _expert(arguments: argparse.Namespace) -> Expert:
    from megatron_native.alignment.backends.choice import endpoints_of, options_of
    from megatron_native.alignment.backends.server_settings import checked_endpoints
    from megatron_native.alignment.seeds.asking import Expert

    endpoints = checked_endpoints(endpoints_of(arguments.endpoint))
    return Expert(endpoints, options_of(arguments.option), budget_of(arguments), arguments.journal)


def _export(arguments: argparse.Namespace) -> int:
    import sys

    from megatron_native.alignment.seeds.export import export_seeds
    from megatron_native.errors import UserError

    if arguments.output is None:
        raise UserError("--export FILE.json needs --output FOLDER, the finished annotation whose pairs are exported.")
    count = export_seeds(arguments.output, arguments.export)
    print(f"{arguments.export}: {count:,} pairs", file=sys.stderr if arguments.json else sys.stdout)
    return 0
