"""Job scripts beside training: import and export of checkpoints, the corpus and its rewriting as job arrays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_native.slurm.cluster import Cluster
from megatron_native.slurm.shell import KEEP_SCRIPT, SAY, job_name, sbatch_header, site, word

_ARRAY_SIGNAL_SECONDS = 300
_WAIT_SECONDS = 60


def import_script(cluster: Cluster, run_dir: Path, logs: Path, hf: Path, checkpoint: Path) -> str:
    """From a Hugging Face folder to the checkpoint that a run starts from."""
    return _script(
        f"# Import of {hf} as {checkpoint}, made by `megatron-native launch`.",
        [*sbatch_header(cluster, job_name("import", run_dir.name), logs / "%j.log", gpus=False), "set -euo pipefail"],
        cluster,
        [
            f'job_dir={word(logs)}/"$SLURM_JOB_ID"',
            f"checkpoint={word(checkpoint)}",
            SAY,
            *KEEP_SCRIPT,
            'if [[ -e $checkpoint/metadata.json ]]; then say "$checkpoint is there already"; exit 0; fi',
            f'srun --ntasks=1 "${{in_srun[@]}}" "${{python[@]}}" -m megatron_native import-hf --hf {word(hf)} \\',
            '  --output "$checkpoint"',
        ],
    )


def export_script(cluster: Cluster, run_dir: Path, logs: Path, output: Path) -> str:
    """From the newest checkpoint of a run to a Hugging Face folder."""
    return _script(
        f"# Export of the newest checkpoint of {run_dir} to {output}, made by `megatron-native launch`.",
        [*sbatch_header(cluster, job_name("export", run_dir.name), logs / "%j.log", gpus=False), "set -euo pipefail"],
        cluster,
        [
            f'job_dir={word(logs)}/"$SLURM_JOB_ID"',
            f"run_dir={word(run_dir)}",
            SAY,
            *KEEP_SCRIPT,
            "shopt -s nullglob",
            'checkpoints=( "$run_dir"/checkpoints/step_???????? )',
            'if (( ${#checkpoints[@]} == 0 )); then say "$run_dir has no checkpoint"; exit 1; fi',
            'srun --ntasks=1 "${in_srun[@]}" "${python[@]}" -m megatron_native export-hf --checkpoint "${checkpoints[-1]}" \\',
            f"  --output {word(output)}",
        ],
    )


def corpus_script(cluster: Cluster, recipe: Path, output: Path | None, logs: Path, tasks: int) -> str:
    """A recipe as a job array: every task does its share of every stage, and waits where a stage needs the others'."""
    words_of_output = f" --output {word(output)}" if output is not None else ""
    return _script(
        f"# The corpus of {recipe} by {tasks} tasks, made by `megatron-native launch`. Submitted again, it goes on.",
        [*_array_header(cluster, job_name("corpus", recipe.stem), logs, tasks, gpus=False), "set -euo pipefail"],
        cluster,
        [
            *_array_beginning(logs),
            f'"${{python[@]}}" -m megatron_native corpus --recipe {word(recipe)}{words_of_output} \\',
            '    --workers "${SLURM_CPUS_ON_NODE:-1}" --task-index "$SLURM_ARRAY_TASK_ID" \\',
            '    --task-count "$SLURM_ARRAY_TASK_COUNT"',
        ],
        array_waits=True,
    )


def rewrite_script(cluster: Cluster, inputs: Sequence[Path], output: Path, worker: Path, logs: Path, tasks: int) -> str:
    """A fleet of vLLM engines, one a GPU, that lease chunks of one output folder until none is left."""
    return _script(
        f"# Rewriting to {output} by {tasks} tasks with an engine a GPU, made by `megatron-native launch`.",
        [*_array_header(cluster, job_name("rewrite", output.name), logs, tasks, gpus=True), "set -euo pipefail"],
        cluster,
        [
            "export VLLM_NO_USAGE_STATS=1",
            "# torch.compile's cache on the node's own disk: tasks that share one on a network disk wait for each other.",
            'export VLLM_CACHE_ROOT="${SLURM_TMPDIR:-/tmp}/vllm-cache-$SLURM_JOB_ID"',
            *_array_beginning(logs),
            f'"${{python[@]}}" -m megatron_native rewrite --input {" ".join(word(path) for path in inputs)} \\',
            f"    --output {word(output)} --worker {word(worker)} --engine vllm --engines {max(1, cluster.gpus_per_node)} \\",
            '    --task-index "$SLURM_ARRAY_TASK_ID" --task-count "$SLURM_ARRAY_TASK_COUNT"',
        ],
        gpus=True,
        array_waits=False,
    )


def _array_header(cluster: Cluster, name: str, logs: Path, tasks: int, gpus: bool) -> list[str]:
    lines = [
        f"--array=0-{tasks - 1}",
        "--requeue" if cluster.requeue else "--no-requeue",
        f"--signal=B:USR1@{_ARRAY_SIGNAL_SECONDS}",
    ]
    return sbatch_header(cluster, name, logs / "%A_%a.log", gpus=gpus, lines=lines)


def _array_beginning(logs: Path) -> list[str]:
    return [
        f'job_dir={word(logs)}/"$SLURM_ARRAY_JOB_ID/$SLURM_ARRAY_TASK_ID"',
        SAY,
        *KEEP_SCRIPT,
        "command='' stopped=''",
        "trap 'stopped=1; [[ -z $command ]] || kill -TERM \"$command\" 2>/dev/null || true' USR1 TERM",
    ]


def _script(
    title: str,
    header: Sequence[str],
    cluster: Cluster,
    body: Sequence[str],
    gpus: bool = False,
    array_waits: bool | None = None,
) -> str:
    lines = ["#!/usr/bin/env bash", title, *header, "", *site(cluster, gpus), "", "# The job."]
    if array_waits is None:
        return "\n".join([*lines, *body]) + "\n"
    begin = next(index for index, line in enumerate(body) if line.startswith('"${python[@]}"'))
    return "\n".join([*lines, *body[:begin], *_array_loop(body[begin:], array_waits, cluster.requeue)]) + "\n"


def _array_loop(command: Sequence[str], waits: bool, requeue: bool) -> list[str]:
    """Run the command until it has ended; 75 is a stop that was asked for, or that other tasks have still to do their share."""
    run = [
        'srun --ntasks=1 "${in_srun[@]}" ' + command[0],
        *command[1:-1],
        command[-1] + " &",
        "command=$!",
        "while :; do",
        "  code=0",
        '  wait "$command" || code=$?',
        "  # Above 128 while it lives: a signal ended the wait, not the command.",
        '  if (( code <= 128 )) || ! kill -0 "$command" 2>/dev/null; then break; fi',
        "done",
        "command=''",
    ]
    if waits:
        run = [
            "code=75",
            "while (( code == 75 )) && [[ -z $stopped ]]; do",
            *(f"  {line}" for line in run),
            "  # 75: other tasks have still to do their share of this stage.",
            f'  if (( code == 75 )) && [[ -z $stopped ]]; then sleep "${{CORPUS_WAIT_SECONDS:-{_WAIT_SECONDS}}}"; fi',
            "done",
        ]
    again = '  scontrol requeue "$SLURM_JOB_ID" || true' if requeue else "  say 'submit this script again to go on'"
    end = ["if (( code == 75 )) && [[ -n $stopped ]]; then", '  say "told to stop"', again]
    if not waits:
        end += [
            "elif (( code == 75 )); then",
            "  code=0  # nothing is left for this task; the last one joins the parts",
        ]
    return [*run, *end, "fi", 'exit "$code"']
