"""`megatron-native plan`: a run worked out with no GPU."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = """Work out a run with no GPU: the memory of every pipeline stage, whether it fits, how long it will take.

It builds the model of every pipeline stage without storage, checks configuration, data and Slurm script, and estimates the
speed from the GPU's figures. Nothing is started."""

EXAMPLES = """\
  megatron-native plan --config run.yaml --world-size 512
  megatron-native plan --config run.yaml --world-size 512 --hf models/Meta-Llama-3-70B --no-data
  megatron-native plan --config run.yaml --world-size 64 --gpu h200-141g training.micro_batch_size=2
  megatron-native plan --config run.yaml --world-size 128 --no-data --json plan.json --timeline timeline.html
  megatron-native plan --config run.yaml --world-size 512 --sbatch pretrain.sbatch
  megatron-native plan --config run.yaml --world-size 64 --no-data --search

Ends with code 0 when it fits and nothing is wrong, 2 otherwise."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the run's YAML file")
    parser.add_argument("--world-size", type=int, required=True, metavar="N", help="GPUs of the run")
    parser.add_argument(
        "--gpu", default="h100-80g", metavar="NAME", help="kind of GPU (h100-80g, h200-141g, a100-80g, b200-180g)"
    )
    parser.add_argument("--no-data", action="store_true", help="plan before the datasets and the checkpoint are there")
    parser.add_argument(
        "--hf",
        type=Path,
        metavar="DIR",
        help="folder with the model's config.json, while the checkpoint is not there",
    )
    parser.add_argument("--sbatch", type=Path, metavar="FILE", help="check this Slurm script against the run")
    parser.add_argument(
        "--storage-gb-s",
        type=float,
        default=None,
        metavar="RATE",
        help="GB/s that the file system takes of a checkpoint (as in the run's earlier saves; else 10)",
    )
    parser.add_argument(
        "--search", action="store_true", help="rank the layouts that fit, instead of planning the one given"
    )
    parser.add_argument("--top", type=int, default=8, metavar="N", help="with --search: layouts to show (8)")
    parser.add_argument("--json", metavar="FILE", help="write the plan as JSON; - prints it instead of the table")
    parser.add_argument("--timeline", type=Path, metavar="FILE", help="write the pipeline's timeline as an HTML page")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file's")


def run(arguments: argparse.Namespace) -> int:
    """Plan, print, and say by the exit code whether it would run."""
    import json
    import sys

    from megatron_native.commands.output_file import write_file
    from megatron_native.errors import UserError
    from megatron_native.training.plan.planning import PlanRequest, plan_and_check, search, timeline_html
    from megatron_native.training.plan.table import findings_text, plan_table, search_table

    if arguments.top < 1:
        raise UserError(f"--top {arguments.top}: give the number of layouts to show, 1 or more.")
    for name in ("timeline", "sbatch"):
        if arguments.search and getattr(arguments, name) is not None:
            raise UserError(
                f"--{name} is about one layout, and --search about many: search first, then plan the layout that you take with "
                f"--{name}."
            )
    request = PlanRequest(
        arguments.config, arguments.overrides, arguments.world_size, arguments.gpu, arguments.no_data, arguments.sbatch,
        arguments.storage_gb_s, arguments.hf,
    )  # fmt: skip
    if arguments.search:
        found = search(request, arguments.top)
        as_json, text, code = found.as_json(), search_table(found), 0
    else:
        planned = plan_and_check(request)
        shown = [findings_text(planned.findings), *planned.data]
        text = "\n\n".join(
            part for part in ("" if planned.plan is None else plan_table(planned.plan), "\n".join(shown)) if part
        )
        as_json, code = planned.as_json(), planned.exit_code
        if arguments.timeline is not None and planned.plan is not None:
            write_file(arguments.timeline, timeline_html(planned.plan))
            print(f"the timeline is in {arguments.timeline}", file=sys.stderr)
    written = json.dumps(as_json, ensure_ascii=False, indent=2) + "\n"
    if arguments.json == "-":
        print(written, end="")
        return code
    if arguments.json is not None:
        write_file(Path(arguments.json), written)
    print(text)
    return code
