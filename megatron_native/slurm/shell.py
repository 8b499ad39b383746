"""Pieces of job scripts: the lines for `sbatch`, what the site needs, how Python is called. Pure text in, pure text out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from megatron_native.slurm.cluster import Cluster, ContainerSection

_PLAIN = re.compile(r"[A-Za-z0-9_./:=,@%+^~-]+")


def word(value: object) -> str:
    """A value as one word of bash that stands for itself."""
    return shlex.quote(str(value))


def open_word(value: str) -> str:
    """A value as one word of bash in which `$VARIABLES` are filled in when the job runs."""
    if _PLAIN.fullmatch(value):
        return value
    return '"' + re.sub(r'(["`\\])', r"\\\1", value) + '"'


def words(values: Iterable[object]) -> str:
    """An array of bash: its words between brackets."""
    return f"( {' '.join(word(value) for value in values)} )" if values else "()"


def job_name(kind: str, run: str) -> str:
    """Name of a job; `--dependency=singleton` goes by it, so it names the run."""
    return f"{kind}-{re.sub(r'[^A-Za-z0-9_.-]', '_', run)}"


def sbatch_header(
    cluster: Cluster, name: str, output: Path, *, nodes: int = 1, gpus: bool, lines: Sequence[str] = ()
) -> list[str]:
    """The options that `sbatch` reads in the script.

    Args:
        cluster: the site.
        name: of the job.
        output: where what the script says goes, with Slurm's `%` signs.
        nodes: how many.
        gpus: whether the job takes GPUs; without, the site's `cpu_jobs` go over its other settings.
        lines: more options.
    """
    cpu = cluster.cpu_jobs
    partition = cluster.partition if gpus else cpu.partition or cluster.partition
    cores = cluster.cpus_per_task if gpus else cpu.cpus_per_task or cluster.cpus_per_task
    memory = cluster.memory if gpus else cpu.memory or cluster.memory
    time = cluster.time if gpus else cpu.time or cluster.time
    options: list[tuple[str, object]] = [
        ("job-name", name), ("partition", partition), ("account", cluster.account), ("qos", cluster.qos),
        ("reservation", cluster.reservation if gpus else None), ("constraint", cluster.constraint if gpus else None),
        ("nodes", nodes), ("ntasks-per-node", 1), ("cpus-per-task", cores), ("mem", memory), ("time", time),
        ("chdir", cluster.working_folder), ("output", output),
    ]  # fmt: skip
    if gpus and cluster.gpus_per_node:
        options.append((cluster.gpu_option, f"{'gpu:' if cluster.gpu_option == 'gres' else ''}{cluster.gpus_per_node}"))
    header = [f"--{option}={word(value)}" for option, value in options if value is not None]
    if (cluster.exclusive and gpus) or (not gpus and cores is None):
        header.append("--exclusive")
    return [f"#SBATCH {line}" for line in [*header, "--open-mode=append", *lines, *cluster.sbatch_lines]]


def site(cluster: Cluster, gpus: bool) -> list[str]:
    """Environment, and how Python is called: the arrays `in_srun` (options of srun) and `python`."""
    lines = ["# The site."]
    if cluster.container is None:
        lines += _bare_metal(cluster)
    lines += [f"export {name}={open_word(value)}" for name, value in cluster.environment.items()]
    if cluster.container is not None:
        lines += _container(cluster.container, cluster.python, gpus)
    # Since Slurm 22.05 srun does not take it over from sbatch.
    lines += ['[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"']
    return lines


def _bare_metal(cluster: Cluster) -> list[str]:
    bare, lines = cluster.bare_metal, []
    if bare.modules:
        lines.append(f"module load {' '.join(word(module) for module in bare.modules)}")
    lines += bare.setup
    if bare.venv is not None:
        lines += [
            "# shellcheck disable=SC1091  # it is not here when the script is checked",
            f"source {word(bare.venv)}/bin/activate",
        ]
    return [*lines, "in_srun=()", f"python=( {open_word(cluster.python)} )"]


def _container(container: ContainerSection, python: str, gpus: bool) -> list[str]:
    mounts = ["$PWD:$PWD", *(mount if ":" in mount else f"{mount}:{mount}" for mount in container.mounts)]
    lines = [
        "# What the environment of sbatch says goes over this.",
        f': "${{CONTAINER_IMAGE:={container.image}}}"',
        f': "${{CONTAINER_MOUNTS:={",".join(mounts)}}}"',
    ]
    options = "".join(f" {open_word(option)}" for option in container.options)
    if container.kind == "pyxis":
        return [
            *lines,
            'in_srun=( --container-image="$CONTAINER_IMAGE" --container-mounts="$CONTAINER_MOUNTS" '
            f'--container-workdir="$PWD"{options} )',
            f"python=( {open_word(python)} )",
        ]
    devices = " --nv" if gpus else ""
    return [
        *lines,
        "in_srun=()",
        f'python=( apptainer exec{devices} --bind "$CONTAINER_MOUNTS" --pwd "$PWD"{options} "$CONTAINER_IMAGE"',
        f"  {open_word(python)} )",
    ]


SAY = """say() { printf '%s %s\\n' "$(date '+%F %T')" "$*" >&2; }"""

KEEP_SCRIPT = ('mkdir -p "$job_dir"', 'cp "$0" "$job_dir/job.sbatch"')
