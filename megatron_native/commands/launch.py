"""`megatron-native launch`: a run, or work on its corpus, as Slurm jobs."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "Submit a run as Slurm jobs, or show exactly what would be submitted."
EXAMPLES = """\
  megatron-native launch --config run.yaml --slurm cluster.yaml --nodes 8 --dry-run
  megatron-native launch --config run.yaml --slurm cluster.yaml --nodes 8
  megatron-native launch --config run.yaml --slurm cluster.yaml --nodes 8 --what all --hf models/llama3-70b
  megatron-native launch --slurm cluster.yaml --what corpus --recipe recipe.yaml --tasks 16
  megatron-native launch --slurm cluster.yaml --what rewrite --tasks 8 --input deduped --output rewritten --worker models/worker

Jobs: import → pretrain → export (all), each beginning when the one before has succeeded. cluster.yaml says what the site is
like; examples/cluster.yaml has every key. A run that was told to stop is saved and goes on by itself."""

WHAT = ("pretrain", "import", "export", "all", "corpus", "rewrite")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("--slurm", type=Path, required=True, metavar="YAML", help="what the site is like")
    parser.add_argument(
        "--what", choices=WHAT, default="pretrain", help="which jobs (pretrain); all: import, pretrain, export"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the scripts and commands, write and submit nothing"
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FOLDER",
        help="write the scripts there and submit nothing (else they go to RUN/slurm)",
    )
    run = parser.add_argument_group("of a run")
    run.add_argument("--config", type=Path, metavar="FILE", help="the run's YAML file")
    run.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes that train (1)")
    run.add_argument("--hf", type=Path, metavar="DIR", help="Hugging Face folder to import; it says the model's shape")
    run.add_argument("--export", type=Path, metavar="DIR", help="Hugging Face folder to make (RUN/hf)")
    arrays = parser.add_argument_group("of corpus and rewrite, as job arrays")
    arrays.add_argument("--tasks", type=int, default=1, metavar="N", help="tasks of the array (1)")
    arrays.add_argument("--recipe", type=Path, metavar="YAML", help="the corpus's recipe")
    arrays.add_argument("--input", type=Path, nargs="+", default=[], metavar="PATH", help="documents to rewrite")
    arrays.add_argument("--output", type=Path, metavar="FOLDER", help="rewritten documents; the corpus (the recipe's)")
    arrays.add_argument("--worker", type=Path, metavar="FOLDER", help="Hugging Face folder of the worker that rewrites")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="settings that override the run file's"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check everything, then print, write or submit."""
    import sys

    from megatron_native.slurm.cluster import load_cluster
    from megatron_native.slurm.jobs import show, submit, write_scripts

    cluster = load_cluster(arguments.slurm)
    submits = not arguments.dry_run and arguments.write is None
    if arguments.what in ("corpus", "rewrite"):
        from megatron_native.slurm.arrays import corpus_job, rewrite_job

        if arguments.what == "corpus":
            job = corpus_job(cluster, arguments.recipe, arguments.output, arguments.tasks)
        else:
            job = rewrite_job(cluster, arguments.input, arguments.output, arguments.worker, arguments.tasks)
        jobs, folder, run_dir = [job], arguments.write or job.logs, None
    else:
        from megatron_native.slurm.run_settings import read_run_jobs

        run_jobs = read_run_jobs(arguments, cluster)
        importing = arguments.what in ("import", "all")
        for remark in run_jobs.check(files=submits and not importing and arguments.what != "export"):
            print(f"note: {remark}.", file=sys.stderr)
        jobs, run_dir = run_jobs.jobs(arguments.what), run_jobs.run.run_dir
        folder = arguments.write or run_dir / "slurm"
    if arguments.dry_run:
        print(show(jobs, folder), end="")
        return 0
    if arguments.write is not None:
        for file in write_scripts(jobs, folder):
            print(file)
        return 0
    submit(jobs, folder, print, run_dir if arguments.what in ("pretrain", "all") else None)
    return 0
