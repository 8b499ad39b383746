"""`megatron-native rewrite-report`: what a rewriting did to the texts, as one HTML file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_native.commands.server_arguments import KEY_VARIABLE, key_variable_of

if TYPE_CHECKING:
    from contextlib import ExitStack

    from megatron_native.alignment.report.gather import Models

SUMMARY = """Make the report on rewritten text: one HTML file with figures, and originals beside their rewrites to browse.

What became of passages, what the gates refused and why, toxicity and perplexity before and after, a judge's grades,
lengths, vocabulary, and up to 20,000 pairs with the words marked that went and came, to be filtered and searched."""

EXAMPLES = """\
  megatron-native rewrite-report --input work/rewritten --output report.html
  megatron-native rewrite-report --input work/rewritten --output report.html --json figures.json \\
      --perplexity-model models/llama --toxicity-model models/toxicity
  megatron-native rewrite-report --input alignment_data_split/ --output report.html           origin/rewritten files
  megatron-native rewrite-report --input work/rewritten --output report.html \\
      --judge-endpoint http://node1:8000/v1 --judge-model judge --judge-pairs 200 --judge-max-tokens 2000000

Keys of endpoints come from the environment (OPENAI_API_KEY, or the variable that is named). Figures are of accepted pairs;
every interval is of 95 %."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="PATH",
        help="folders that rewrite or gate wrote, or files, folders and globs of pairs",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the HTML file; an older one is replaced"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--sample", type=int, default=8000, metavar="N", help="accepted pairs that are measured (8000)")
    parser.add_argument("--max-pairs", type=int, default=20_000, metavar="N", help="pairs on the page (20000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples and intervals (0)")
    parser.add_argument("--origin-key", default="origin", metavar="KEY", help="in files of pairs (origin)")
    parser.add_argument("--rewritten-key", default="rewritten", metavar="KEY", help="in files of pairs (rewritten)")
    gates = parser.add_argument_group("pairs that come without a verdict")
    gates.add_argument("--gates", type=Path, metavar="FILE", help="YAML over the gates' thresholds")
    gates.add_argument("--no-gates", action="store_true", help="don't ask the gates about them")
    models = parser.add_argument_group("what texts are measured with")
    models.add_argument("--no-lexicon", action="store_true", help="leave out the toxicity lexicon")
    models.add_argument(
        "--toxicity-model", nargs="+", type=Path, default=[], metavar="DIR",
        help="Hugging Face folders of text-classification models",
    )  # fmt: skip
    models.add_argument(
        "--toxicity-endpoint",
        metavar="URL",
        help="an OpenAI-compatible server with /moderations, such as http://host:8000/v1",
    )
    models.add_argument("--toxicity-endpoint-model", default="", metavar="NAME", help="its model (the server's own)")
    models.add_argument(
        "--toxicity-endpoint-key-variable", metavar="NAME",
        help=f"environment variable with its key ({KEY_VARIABLE}, where no other server has that key)",
    )  # fmt: skip
    models.add_argument(
        "--perplexity-model",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="Hugging Face folders of causal models",
    )
    judge = parser.add_argument_group("the judge of five grades")
    judge.add_argument("--judge-endpoint", nargs="+", default=[], metavar="URL", help="OpenAI-compatible servers")
    judge.add_argument("--judge-model", default="", metavar="NAME", help="the judge's name there")
    judge.add_argument(
        "--judge-key-variable", metavar="NAME", help=f"environment variable with its key ({KEY_VARIABLE})"
    )
    judge.add_argument(
        "--judge-pairs", type=int, default=100, metavar="N", help="accepted pairs it is asked about (100)"
    )
    judge.add_argument(
        "--judge-journal", type=Path, metavar="FILE", help="where paid answers are kept (OUTPUT with .judge.jsonl)"
    )
    judge.add_argument("--judge-max-tokens", type=int, metavar="N", help="stop before more tokens are used (no limit)")


def run(arguments: argparse.Namespace) -> int:
    """Gather, write, and say in one line what came out."""
    import json
    import sys
    from contextlib import ExitStack

    from megatron_native.alignment.gates.pairs import PairSettings
    from megatron_native.alignment.report.gather import RewriteReportSettings, gather
    from megatron_native.alignment.report.page import page
    from megatron_native.commands.output_file import write_file
    from megatron_native.config.yaml_mapping import read_mapping
    from megatron_native.errors import EXIT_DONE, UserError

    output: Path = arguments.output
    if arguments.json is not None and arguments.json.absolute() == output.absolute():
        raise UserError(
            f"--json {arguments.json} is the --output too; name two files, such as report.html and figures.json."
        )
    for path in (output, arguments.json):
        if path is not None and path.is_dir():
            raise UserError(f"{path} is a folder; give the name of a file, such as {path / 'report.html'}.")
    if bool(arguments.judge_endpoint) != bool(arguments.judge_model):
        raise UserError(
            "--judge-endpoint URL and --judge-model NAME belong together: where the judge is, and its name there."
        )
    settings = RewriteReportSettings(
        arguments.sample, arguments.max_pairs, arguments.seed,
        PairSettings(origin_key=arguments.origin_key, rewritten_key=arguments.rewritten_key),
        not arguments.no_gates, read_mapping(arguments.gates, "numbers: {most_new: 0}", "--gates"), arguments.judge_pairs,
    )  # fmt: skip
    with ExitStack() as stack:
        report = gather(arguments.input, settings, _models(arguments, stack))
    write_file(output, page(report))
    if arguments.json is not None:
        write_file(arguments.json, json.dumps(report.as_json(), ensure_ascii=False, indent=2) + "\n")
    for reason, count in report.passed_over.items():
        print(f"WARNING: {count:,} records are no pairs and were passed over: {reason}", file=sys.stderr)
    print(f"{output}: {report.total:,} pairs, {report.accepted:,} accepted; {len(report.pairs):,} on the page")
    return EXIT_DONE


def _models(arguments: argparse.Namespace, stack: ExitStack) -> Models:
    from megatron_native.alignment.backends.choice import endpoints_of
    from megatron_native.alignment.backends.server_settings import ServerSettings
    from megatron_native.alignment.report.gather import Models

    judge_key = arguments.judge_key_variable or KEY_VARIABLE
    toxicity: list = []
    if not arguments.no_lexicon:
        from megatron_native.alignment.analyses.toxicity_lexicon import LexiconClassifier

        toxicity.append(LexiconClassifier())
    if arguments.toxicity_model or arguments.toxicity_endpoint:
        from megatron_native.alignment.analyses.toxicity_models import ModelClassifier, ModerationEndpoint

        toxicity += [ModelClassifier(folder) for folder in arguments.toxicity_model]
        if arguments.toxicity_endpoint:
            url = arguments.toxicity_endpoint
            variable = key_variable_of(
                arguments.toxicity_endpoint_key_variable, url, endpoints_of(arguments.judge_endpoint), judge_key
            )
            settings = ServerSettings(api_key_variable=variable)
            toxicity.append(ModerationEndpoint(url, arguments.toxicity_endpoint_model, settings=settings))
    perplexity: list = []
    if arguments.perplexity_model:
        from megatron_native.alignment.perplexity import Perplexity

        perplexity = [Perplexity(folder) for folder in arguments.perplexity_model]
    judge = None
    if arguments.judge_endpoint:
        from megatron_native.alignment.backends.answer_journal import AnswerJournal
        from megatron_native.alignment.backends.budget import Budget
        from megatron_native.alignment.backends.openai_server import OpenAIBackend

        path = arguments.judge_journal or arguments.output.with_suffix(".judge.jsonl")
        journal = stack.enter_context(AnswerJournal(path))
        judge = OpenAIBackend(
            endpoints_of(arguments.judge_endpoint), arguments.judge_model,
            settings=ServerSettings(api_key_variable=judge_key),
            budget=Budget(max_tokens=arguments.judge_max_tokens), journal=journal,
        )  # fmt: skip
        stack.callback(judge.close)
    return Models(toxicity, perplexity, judge)
