"""The job script of a training run: check the nodes, train, and then say what becomes of the run.

One launcher a node, started by one `srun`; every decision that needs more than a look at a file is made by the modules
`before_job` and `after_job`, in the same Python (and container) as the training itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_native.slurm.cluster import Cluster
from megatron_native.slurm.margin import Margin
from megatron_native.slurm.shell import KEEP_SCRIPT, SAY, job_name, sbatch_header, site, word, words

FLIGHT_RECORDER_ENTRIES = 20000
"""Collectives that every rank remembers (the value in torch's documentation of its flight recorder is 2000)."""


@dataclass(frozen=True)
class TrainingJob:
    """What a training script is made from."""

    cluster: Cluster
    config: Path
    overrides: Sequence[str]
    run_dir: Path
    logs: Path
    """Folder of the logs of all jobs of the run."""
    nodes: int
    margin: Margin
    max_failures: int
    """Jobs in a row with a dead rank that are allowed."""


def training_script(job: TrainingJob) -> str:
    """The whole script."""
    cluster = job.cluster
    name = job_name("pretrain", job.run_dir.name)
    options = [
        *(["--requeue"] if cluster.requeue else ["--no-requeue"]),
        f"--signal=B:USR1@{job.margin.seconds}",
        "--dependency=singleton",
    ]
    parts = [
        "#!/usr/bin/env bash",
        f"# Training of {job.run_dir} on {job.nodes} nodes, made by `megatron-native launch`: change its files, make it again.",
        f"# It is told to save {job.margin.seconds} s before its end ({job.margin.reason}).",
        *sbatch_header(cluster, name, job.logs / "%j.log", nodes=job.nodes, gpus=True, lines=options),
        "set -euo pipefail",
        "",
        *site(cluster, gpus=True),
        "",
        *_run(job),
        "",
        *([*_health(cluster), ""] if cluster.health.enabled else []),
        *_train(job),
        "",
        *_after(job),
    ]
    return "\n".join(parts) + "\n"


def _run(job: TrainingJob) -> list[str]:
    return [
        "# The run.",
        f"run_dir={word(job.run_dir)}",
        f"pretrain=( --config {word(job.config)} )",
        *([f"pretrain+={words(job.overrides)}"] if job.overrides else []),
        f'job_dir={word(job.logs)}/"$SLURM_JOB_ID/attempt-${{SLURM_RESTART_COUNT:-0}}"',
        SAY,
        "",
        "# Slurm signals this script before the time is up; srun passes it on to the ranks, which save and stop.",
        "step='' stop_requested=()",
        "# shellcheck disable=SC2317  # traps call it",
        "stop() {",
        "  stop_requested=( --stop-requested )",
        '  say "got SIG$1"',
        '  [[ -z $step ]] || kill -"$1" "$step" 2>/dev/null || true',
        "}",
        "trap 'stop USR1' USR1",
        "trap 'stop TERM' TERM",
        "",
        "# A chain of jobs ends here once the run is through, or has stopped for a reason that another job would meet again.",
        'if [[ -e $run_dir/slurm/done ]]; then say "the run is through"; exit 0; fi',
        'if [[ -e $run_dir/slurm/stopped ]]; then say "the run has stopped: $(< "$run_dir/slurm/stopped")"; exit 1; fi',
        "",
        *KEEP_SCRIPT,
        'mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        "address=$(scontrol --oneliner show node \"${hosts[0]}\" | sed -n 's/.* NodeAddr=\\([^ ]*\\).*/\\1/p')",
        f"port=$(( {job.cluster.port.first} + SLURM_JOB_ID % {job.cluster.port.count} ))",
        'on_all_nodes=( srun --nodes="${#hosts[@]}" --ntasks="${#hosts[@]}" --ntasks-per-node=1 "${in_srun[@]}" )',
        'on_first_node=( srun --nodes=1 --ntasks=1 --nodelist="${hosts[0]}" "${in_srun[@]}" )',
        "",
        "# NCCL's flight recorder: where a collective hangs, every rank leaves what it had begun.",
        'mkdir -p "$job_dir/flight_recorder"',
        "# (Each variable by its new name, and by that of older versions of torch.)",
        f"export TORCH_FR_BUFFER_SIZE={FLIGHT_RECORDER_ENTRIES} TORCH_NCCL_TRACE_BUFFER_SIZE={FLIGHT_RECORDER_ENTRIES}",
        'export TORCH_FR_DUMP_TEMP_FILE="$job_dir/flight_recorder/rank_"',
        'export TORCH_NCCL_DEBUG_INFO_TEMP_FILE="$TORCH_FR_DUMP_TEMP_FILE" TORCH_NCCL_DUMP_ON_TIMEOUT=1',
        "",
        "# Back into the queue, with the id that other jobs may wait for, unless somebody has cancelled the job.",
        *(["keep_from=''  # nodes that the job does not want again"] if job.cluster.requeue else []),
        "queue_again() {",
        "  local state",
        "  state=$(scontrol --oneliner show job \"$SLURM_JOB_ID\" | sed -n 's/.* JobState=\\([A-Z_]*\\).*/\\1/p')",
        '  if [[ $state != RUNNING ]]; then say "the job is $state: not queued again"; exit 75; fi',
        *(
            [
                "  trap '' TERM  # Slurm ends this script when the job is queued again, and there may be something left to do",
                '  if ! scontrol requeue "$SLURM_JOB_ID"; then',
                '    say "scontrol requeue failed; the run is saved: submit this script again"',
                "    exit 75",
                "  fi",
                '  if [[ -n $keep_from ]]; then scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$keep_from" || true; fi',
            ]
            if job.cluster.requeue
            else ['  say "the next job of the chain goes on"']
        ),
        "  exit 75",
        "}",
    ]


def _health(cluster: Cluster) -> list[str]:
    health = cluster.health
    options = [
        f"--gpus {cluster.gpus_per_node}",
        *(f"--free-gb {word(f'{folder}={gb:g}')}" for folder, gb in health.free_gb.items()),
    ]
    if health.compute:
        options.append("--compute")
    drain = [
        '  reason=$(head -c 200 "$job_dir/health/$node.bad" 2>/dev/null || echo "no answer to the health check")',
        '  say "bad node $node: $reason"',
    ]
    if health.drain:
        drain += [
            '  scontrol update NodeName="$node" State=DRAIN Reason="megatron-native: $reason" ||',
            '    say "$node could not be drained, which takes an operator: tell one"',
        ]
    return [
        "# Is every node sound? A bad one is named and drained, and the job queued again without it.",
        "bad=()",
        f'timeout --kill-after=30 {health.seconds} "${{on_all_nodes[@]}}" --kill-on-bad-exit=0 \\',
        f'  "${{python[@]}}" -m megatron_native.slurm.health_check --folder "$job_dir/health" {" ".join(options)} ||',
        '  say "the health check failed"',
        'for node in "${hosts[@]}"; do',
        '  [[ -e $job_dir/health/$node.ok ]] || bad+=( "$node" )',
        "done",
        "failed_checks=$run_dir/slurm/failed_checks",
        'mkdir -p "$run_dir/slurm"',
        "if (( ${#bad[@]} == 0 )); then",
        '  rm -f "$failed_checks"',
        "elif (( ${#bad[@]} == ${#hosts[@]} && ${#hosts[@]} > 1 )); then",
        '  say "every node failed, so the cluster\'s file may be wrong rather than the nodes; none is drained"',
        '  for node in "${bad[@]}"; do say "$node: $(cat "$job_dir/health/$node.bad" 2>/dev/null || echo "no answer")"; done',
        "  exit 1",
        "else",
        '  echo "$SLURM_JOB_ID ${bad[*]}" >> "$failed_checks"',
        '  for node in "${bad[@]}"; do',
        *(f"  {line}" for line in drain),
        "  done",
        f'  if (( $(wc -l < "$failed_checks") >= {health.attempts} )); then',
        f'    say "{health.attempts} checks in a row failed ($failed_checks)"; exit 1',
        "  fi",
        *(['  keep_from=$(IFS=,; echo "${bad[*]}")'] if cluster.requeue else []),
        "  queue_again",
        "fi",
    ]


def _train(job: TrainingJob) -> list[str]:
    fruitless = job.cluster.fruitless_jobs
    return [
        "# Is there any sense in training? And what does it run with?",
        '"${on_first_node[@]}" "${python[@]}" -m megatron_native.slurm.before_job \\',
        f'  --run-dir "$run_dir" --job-dir "$job_dir" --fruitless-jobs {fruitless}',
        "",
        '"${on_all_nodes[@]}" --kill-on-bad-exit=1 "${python[@]}" -m megatron_native pretrain "${pretrain[@]}" \\',
        f'  --nnodes "${{#hosts[@]}}" --nproc {job.cluster.processes_per_node} --rdzv-endpoint "$address:$port" \\',
        '  --logs "$job_dir" &',
        "step=$!",
        "while :; do",
        "  code=0",
        '  wait "$step" || code=$?',
        "  # Above 128 while it lives: a signal ended the wait, not the ranks.",
        '  if (( code <= 128 )) || ! kill -0 "$step" 2>/dev/null; then break; fi',
        "done",
        "step=''",
    ]


def _after(job: TrainingJob) -> list[str]:
    return [
        "# What becomes of the run: done, once more, or an end with a reason.",
        'answer=$("${on_first_node[@]}" "${python[@]}" -m megatron_native.slurm.after_job --run-dir "$run_dir" \\',
        f'  --job-dir "$job_dir" --nodes "${{#hosts[@]}}" --fruitless-jobs {job.cluster.fruitless_jobs} '
        f'--failures {job.max_failures} "${{stop_requested[@]}}") ||',
        '  answer="stop 1"',
        "read -r action code <<< \"${answer##*$'\\n'}\"",
        'say "ranks ended: $action"',
        "if [[ $action == requeue ]]; then queue_again; fi",
        'exit "$code"',
    ]
