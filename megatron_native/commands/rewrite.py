"""`megatron-native rewrite`: documents → documents rewritten by a worker, every rewrite checked and on record."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_native.commands.server_arguments import add_budget, add_judge, add_server, budget_of, with_judge
from megatron_native.commands.stage_arguments import add_reading, reading_of

if TYPE_CHECKING:
    from megatron_native.alignment.backends.choice import BackendChoice
    from megatron_native.alignment.rewriting.cost import Prices
    from megatron_native.alignment.rewriting.settings import RewriteSettings

SUMMARY = "Rewrite documents by a code of conduct: rules, a first look, a worker on any engine, gates, a record of all."
EXAMPLES = """\
  megatron-native rewrite --input work/deduped --output work/rewritten                          rules alone, no model
  megatron-native rewrite --input work/deduped --output work/rewritten --worker models/worker --engine vllm
  megatron-native rewrite --input work/deduped --worker models/worker --engine vllm --estimate   cost, before it is spent
  megatron-native rewrite --input work/deduped --output work/rewritten --engine openai --model worker \\
      --endpoint http://node1:8000/v1 http://node2:8000/v1                                      a vllm serve fleet
  megatron-native rewrite ... --engines 8 --gpus-per-engine 1                                   eight engines on a node
  megatron-native rewrite ... --engine ray --address auto --engines 64                          on a Ray cluster
  megatron-native rewrite ... --task-index $SLURM_ARRAY_TASK_ID --task-count $SLURM_ARRAY_TASK_COUNT
  megatron-native rewrite --output work/rewritten --export work/released                        origin/rewritten, ten files

A killed run goes on where it was when the same command is run again. A passage whose rewrite a gate refuses keeps its
text, so no document is lost; every decision is in OUTPUT/_decisions."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("--input", nargs="+", default=[], metavar="PATH", help="files, folders or globs of documents")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="new folder for the rewritten documents")
    worker = parser.add_argument_group("the worker")
    worker.add_argument(
        "--engine", default="rules", metavar="NAME",
        help="rules (no model), transformers, openai, vllm, or ray: engines of --backend on a Ray cluster (rules)",
    )  # fmt: skip
    worker.add_argument("--backend", default="vllm", metavar="NAME", help="what --engine ray runs (vllm)")
    worker.add_argument(
        "--worker", type=Path, metavar="FOLDER", help="Hugging Face folder of the worker (for openai: optional)"
    )
    add_server(
        worker, "worker",
        "settings of the engine, such as max_num_seqs=512 speculation=4 (docs/backends.md, docs/vllm.md)",
    )  # fmt: skip
    add_budget(parser, "what servers may cost (openai)")
    prompt = parser.add_argument_group("what it is asked")
    prompt.add_argument("--conduct", metavar="NAME|FILE", help="code of conduct (as the worker was trained; general)")
    prompt.add_argument(
        "--form",
        choices=("full", "edits"),
        help="the passage again, or spans to replace (as the worker was trained; full)",
    )
    prompt.add_argument(
        "--language", choices=("ar", "en"), help="of the prompt's own words (as the worker was trained; ar)"
    )
    prompt.add_argument(
        "--detail", choices=("whole", "brief"),
        help="the whole code in the prompt, or a few words for a trained worker (as the worker was trained; whole)",
    )  # fmt: skip
    prompt.add_argument("--examples", type=int, default=0, metavar="N", help="examples of the code in the prompt (0)")
    prompt.add_argument("--passage-tokens", type=int, default=256, metavar="N", help="LLaMA-3 tokens a passage (256)")
    prompt.add_argument(
        "--context-tokens", type=int, metavar="N", help="of the text around it (as the worker was trained; 64)"
    )
    prompt.add_argument(
        "--answer-ratio", type=float, default=1.5, metavar="X", help="tokens of an answer per token of passage (1.5)"
    )
    checks = parser.add_argument_group("what runs around the worker")
    checks.add_argument("--rules", type=Path, metavar="FILE", help="YAML over the rules' settings")
    checks.add_argument("--no-rules", action="store_true", help="no rules before the worker (nor before one trained so)")
    checks.add_argument("--first-look", type=Path, metavar="FILE", help="YAML over the first look's settings")
    checks.add_argument("--no-first-look", action="store_true", help="every passage goes to the worker")
    checks.add_argument("--gates", type=Path, metavar="FILE", help="YAML over the gates' thresholds")
    checks.add_argument("--no-gates", action="store_true", help="check nothing (for measuring, not for a corpus)")
    add_judge(checks)
    checks.add_argument("--tries", type=int, default=3, metavar="N", help="before a passage is quarantined (3)")
    checks.add_argument("--chunk-passages", type=int, default=64, metavar="N", help="passages leased at once (64)")
    parser.add_argument(
        "--output-format", default="jsonl.zst", metavar="FORMAT", help="jsonl.zst or parquet (jsonl.zst)"
    )
    estimate = parser.add_argument_group("before and after")
    estimate.add_argument(
        "--estimate", action="store_true", help="cost of the whole input from a sample; writes nothing"
    )
    estimate.add_argument("--sample", type=int, default=64, metavar="N", help="passages that the estimate asks (64)")
    estimate.add_argument("--price-hour", type=float, default=0.0, metavar="X", help="of an accelerator-hour")
    estimate.add_argument(
        "--export", type=Path, metavar="FOLDER", help="accepted pairs of OUTPUT as the released layout"
    )
    add_reading(parser)
    _add_where(parser)


def _add_where(parser: argparse.ArgumentParser) -> None:
    import os

    group = parser.add_argument_group("where it runs (never changes what is asked)")
    group.add_argument(
        "--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N",
        help="processes for all that needs no model (default: the cores there are)",
    )  # fmt: skip
    group.add_argument("--engines", type=int, default=1, metavar="N", help="engines that pull chunks (1)")
    group.add_argument(
        "--gpus-per-engine", type=int, metavar="N", help="GPUs of each (1 for vllm where there are GPUs)"
    )
    group.add_argument("--address", metavar="ADDRESS", help="of a running Ray cluster, or auto")
    group.add_argument("--task-index", type=int, default=0, metavar="I", help="in a job array: which task, from 0")
    group.add_argument("--task-count", type=int, default=1, metavar="N", help="in a job array: how many tasks")
    group.add_argument(
        "--lease-seconds", type=float, default=600.0, metavar="S",
        help="silence after which an engine on another host counts as gone (600)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Rewrite, estimate or export, and print the account."""
    from megatron_native.errors import UserError

    if arguments.export is not None and not arguments.input:
        return _export(arguments)
    if not arguments.input:
        raise UserError("--input names the files, folders or globs to rewrite.")
    if arguments.output is None and not arguments.estimate:
        raise UserError("--output FOLDER says where the rewritten documents go.")
    settings, choice = _settings(arguments)
    settings = replace(settings, gates=with_judge(settings.gates, arguments))
    if arguments.estimate:
        from megatron_native.alignment.rewriting.estimate import estimate, print_estimate

        result = estimate(arguments.input, settings, choice, arguments.sample, _prices(arguments))
        return print_estimate(result, arguments.json)
    return _rewrite(arguments, settings, choice)


def _rewrite(arguments: argparse.Namespace, settings: RewriteSettings, choice: BackendChoice | None) -> int:
    from megatron_native.alignment.rewriting.fleet import FleetSettings, Stopped
    from megatron_native.alignment.rewriting.stage import rewrite
    from megatron_native.alignment.rewriting.table import print_rewriting
    from megatron_native.corpus.stage import Execution
    from megatron_native.engine.tasks import Share
    from megatron_native.errors import EXIT_REQUEUE

    on_ray = arguments.engine == "ray"
    share = Share(arguments.task_index, arguments.task_count)
    execution = Execution(arguments.workers, "ray" if on_ray else "local", arguments.address, share)
    gpus = arguments.gpus_per_engine
    if gpus is None:
        gpus = _gpus() if settings.engine == "vllm" and (arguments.engines > 1 or on_ray) else 0
    fleet = FleetSettings(arguments.engines, gpus, share.whole, arguments.task_index, arguments.lease_seconds, on_ray)
    try:
        result = rewrite(arguments.input, arguments.output, settings, choice, execution, fleet)
    except Stopped:
        print(f"rewrite: {arguments.output} is unfinished; run the same command again to go on.")
        return EXIT_REQUEUE
    code = print_rewriting(result, arguments.json, _prices(arguments))
    if code == 0 and arguments.export is not None:
        return _export(arguments)
    return code


def _settings(arguments: argparse.Namespace) -> tuple[RewriteSettings, BackendChoice | None]:
    from megatron_native.alignment.backends.backend import Sampling
    from megatron_native.alignment.backends.choice import BackendChoice, endpoints_of, options_of
    from megatron_native.alignment.backends.worker import Worker
    from megatron_native.alignment.rewriting.settings import ENGINES, RewriteSettings
    from megatron_native.config.yaml_mapping import read_mapping

    engine = arguments.backend if arguments.engine == "ray" else arguments.engine
    sampling = Sampling(arguments.temperature, arguments.top_p, arguments.seed)
    choice = None
    if engine in ENGINES and engine != "rules":
        choice = BackendChoice(
            engine, arguments.worker, arguments.model, endpoints_of(arguments.endpoint), sampling,
            options_of(arguments.option), budget_of(arguments) if engine == "openai" else None,
        )  # fmt: skip
    _check_used(arguments, engine)
    over: dict[str, Any] = {}
    for name, example in (
        ("rules", "without: [tatweel]"),
        ("first_look", "threshold: 0.2"),
        ("gates", "numbers: {most_new: 0}"),
    ):
        read = read_mapping(getattr(arguments, name), example, f"--{name.replace('_', '-')}")
        over[name] = None if getattr(arguments, f"no_{name}") else read
    if arguments.rules is None and arguments.worker is not None and not Worker(arguments.worker).learned_tidied:
        over["rules"] = None
    settings = RewriteSettings(
        engine=engine, worker=choice.identity() if choice else {}, **prompt_of(arguments), examples=arguments.examples,
        passage_tokens=arguments.passage_tokens,
        answer_ratio=arguments.answer_ratio, sampling=sampling, tries=arguments.tries,
        chunk_passages=arguments.chunk_passages, output_format=arguments.output_format,
        part_bytes=arguments.part_bytes, reading=reading_of(arguments), **over,
    )  # fmt: skip
    return settings, choice


def prompt_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Code, form, language, detail and context of the prompt: as given, else as the worker was trained, else the defaults.

    Raises:
        UserError: a worker that is asked briefly learned another code of conduct.
    """
    from megatron_native.alignment.backends.worker import Worker
    from megatron_native.alignment.conduct import load_conduct
    from megatron_native.errors import UserError

    trained = Worker(arguments.worker).prompt if arguments.worker is not None else {}
    learned = trained.get("conduct", {})
    defaults: dict[str, Any] = {"conduct": "general", "form": "full", "language": "ar", "detail": "whole", "context_tokens": 64}
    of_worker = trained | ({"conduct": _code_of(arguments.worker, learned)} if learned else {})
    given = {name: value for name in defaults if (value := getattr(arguments, name)) is not None}
    chosen = defaults | of_worker | given
    if learned and chosen["detail"] == "brief" and load_conduct(chosen["conduct"]).hash != learned["hash"]:
        raise UserError(
            f"--conduct {chosen['conduct']}: the worker in {arguments.worker} learned the code '{learned['name']}' (hash "
            f"{learned['hash'][:12]}) from pairs, and a brief prompt shows it no other. Name that code, train a worker on "
            "pairs of this one, or ask with --detail whole."
        )
    return chosen


def _code_of(worker: Path, learned: Mapping[str, str]) -> str:
    """Where the code is that a worker learned: its own file, or the name of a shipped one."""
    return str(worker / learned["file"]) if "file" in learned else learned["name"]


def _check_used(arguments: argparse.Namespace, engine: str) -> None:
    """Raise a UserError where something was asked for that the engine would leave aside."""
    from megatron_native.errors import UserError

    asked = {
        "--worker": arguments.worker is not None and engine == "rules",
        "--option": bool(arguments.option) and engine == "rules",
        "--endpoint": bool(arguments.endpoint) and engine != "openai",
        "--model": bool(arguments.model) and engine != "openai",
        "--max-tokens": arguments.max_tokens is not None and engine != "openai",
        "--max-cost": arguments.max_cost is not None and engine != "openai",
    }
    if unused := [name for name, is_unused in asked.items() if is_unused]:
        raise UserError(
            f"{', '.join(unused)}: --engine {engine} makes no use of that; name the engine that shall (--engine vllm, "
            "openai or transformers), or leave it out."
        )


def _prices(arguments: argparse.Namespace) -> Prices:
    from megatron_native.alignment.rewriting.cost import Prices

    return Prices(arguments.price_hour, arguments.price_input, arguments.price_output)


def _gpus() -> int:
    return 1 if any(Path("/dev").glob("nvidia[0-9]*")) else 0


def _export(arguments: argparse.Namespace) -> int:
    import json

    from megatron_native.alignment.rewriting.export import FOLDER, export_pairs
    from megatron_native.errors import UserError

    if arguments.output is None:
        raise UserError("--export FOLDER needs --output FOLDER, the finished rewriting whose pairs are exported.")
    manifest = export_pairs(arguments.output, arguments.export)
    if arguments.json:
        print(json.dumps(manifest, ensure_ascii=False, indent=2))
    else:
        counts = manifest["counts"]
        print(f"{arguments.export / FOLDER}: {counts['kept']:,} pairs of {counts['read']:,} decisions, in ten files")
    return 0
