"""What a site is like, as typed YAML: the one file in which a cluster's names and habits stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from megatron_native.config.section import Section
from megatron_native.config.yaml_mapping import read_mapping
from megatron_native.errors import UserError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_TIME = re.compile(r"(\d+-\d+(:\d+){0,2})|(\d+(:\d+){0,2})")


class ContainerSection(Section):
    """Jobs in a container."""

    kind: Literal["pyxis", "apptainer"]
    """`pyxis`: Slurm's plugin for enroot (`srun --container-image`); `apptainer`: `apptainer exec --nv`."""
    image: str
    """The image: a `.sqsh` or a registry's address for pyxis, a `.sif` for apptainer. `CONTAINER_IMAGE` in the environment of
    `sbatch` goes over it."""
    mounts: list[str] = Field(default=[])
    """Folders of the site that jobs see, `FOLDER` or `FOLDER:PLACE`. `CONTAINER_MOUNTS`, with commas, goes over them."""
    options: list[str] = Field(default=[])
    """More options of `srun` (pyxis) or `apptainer exec`."""


class BareMetalSection(Section):
    """Jobs without a container."""

    modules: list[str] = Field(default=[])
    """Environment modules to load."""
    venv: Path | None = None
    """Virtual environment to activate, on a disk that all nodes see."""
    setup: list[str] = Field(default=[])
    """More lines of bash, before anything runs."""


class PortSection(Section):
    """The port at which the first node of a job listens: `first + job id % count`, so that jobs do not meet."""

    first: int = Field(default=20000, ge=1024, le=65535)
    """The lowest port."""
    count: int = Field(default=10000, ge=1)
    """How many there are."""

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.first + self.count - 1 > 65535:
            raise ValueError(f"port.first {self.first} + port.count {self.count} goes beyond port 65535")
        return self


class HealthSection(Section):
    """What every node is asked before the run."""

    enabled: bool = True
    """Ask at all."""
    free_gb: dict[str, float] = Field(default={"/tmp": 1.0})
    """Folder → free gigabytes (10⁹ bytes) it must have."""
    compute: bool = True
    """Where torch is: a matrix product whose result is known on every GPU (or on the CPU), and a sum over all GPUs."""
    seconds: int = Field(default=300, gt=0)
    """Longer than so, and a node that has not answered is a bad one."""
    drain: bool = True
    """Drain a bad node. That takes an operator's rights; without them the job is only kept from the node."""
    attempts: int = Field(default=3, ge=1)
    """Failed checks in a row after which the job ends instead of being queued again."""


class CpuJobsSection(Section):
    """Jobs that need no GPU: the corpus, import and export. What is left out is as for training."""

    partition: str | None = None
    """Partition."""
    cpus_per_task: int | None = Field(default=None, gt=0)
    """Cores a task; every core of a node where neither this nor `cpus_per_task` is set."""
    memory: str | None = None
    """Memory a node, as `sbatch --mem`; an import's and an export's depends on the model."""
    time: str | None = None
    """Time limit."""


class Cluster(Section):
    """A site."""

    partition: str | None = None
    """Partition (`sbatch --partition`)."""
    account: str | None = None
    """Account."""
    qos: str | None = None
    """Quality of service."""
    reservation: str | None = None
    """Reservation."""
    constraint: str | None = None
    """Features that nodes must have, such as `h100`."""
    gpus_per_node: int = Field(default=8, ge=0)
    """GPUs a node has and a job takes, one process each; 0: one process a node, on the CPU."""
    gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """How the site wants GPUs asked for: `--gpus-per-node=8` or `--gres=gpu:8`."""
    cpus_per_task: int | None = Field(default=None, gt=0)
    """Cores for the one task a node: all that the node gives to its GPUs."""
    memory: str | None = None
    """Memory a node, as `sbatch --mem`; `0` is all of it."""
    exclusive: bool = True
    """Whole nodes."""
    time: str = "24:00:00"
    """Time limit of one job: minutes, `hours:minutes:seconds` or `days-hours`."""
    requeue: bool = True
    """A job that has saved goes back into the queue by itself, with its own id. Where a site forbids `scontrol requeue`: false,
    and a chain of jobs."""
    chain_jobs: int = Field(default=1, ge=1)
    """Jobs of a run that are submitted at once; one begins when the one before has ended (`--dependency=singleton`), and those
    after the end of the run, or after an error, do nothing."""
    fruitless_jobs: int = Field(default=1, ge=1)
    """Jobs in a row that added no checkpoint, after which the run is not queued again."""
    signal_margin: int | None = Field(default=None, gt=0)
    """Seconds before the time limit at which the run is told to save; by default from the save times in its `metrics.jsonl`, or
    from the checkpoint's size and `checkpoint_gb_per_second`, or 600."""
    checkpoint_gb_per_second: float | None = Field(default=None, gt=0)
    """Gigabytes a second at which all processes together write to the disk of the checkpoints, if you have measured it."""
    working_folder: Path | None = None
    """Where jobs run, and what relative paths are relative to; by default where `launch` is called."""
    logs: Path | None = None
    """Logs go to `logs/<run>/<job id>/` in it; by default to `logs/slurm/<job id>/` in the run folder."""
    python: str = "python"
    """Python that has this package, in the container or the virtual environment."""
    container: ContainerSection | None = None
    """Run in a container; without it `bare_metal` is used."""
    bare_metal: BareMetalSection = BareMetalSection()
    """How Python comes about without a container."""
    environment: dict[str, str] = Field(default={})
    """Environment variables of every job; values may use others, as in `$HOME/cache`. Nothing secret belongs here."""
    sbatch_lines: list[str] = Field(default=[])
    """More options of `sbatch` for every job, such as `--mail-type=FAIL`."""
    port: PortSection = PortSection()
    """Where nodes meet."""
    health: HealthSection = HealthSection()
    """The check of the nodes."""
    cpu_jobs: CpuJobsSection = CpuJobsSection()
    """Jobs without GPUs."""

    @field_validator("environment")
    @classmethod
    def _names(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"environment names {name!r}, which is no name of a variable")
        return environment

    @field_validator("sbatch_lines")
    @classmethod
    def _options(cls, lines: list[str]) -> list[str]:
        for line in lines:
            if not line.startswith("-") or "\n" in line:
                raise ValueError(f"sbatch_lines has {line!r}: write an option of sbatch, such as --mail-type=FAIL")
        return lines

    @model_validator(mode="after")
    def _sound(self) -> Self:
        for name, time in (("time", self.time), ("cpu_jobs.time", self.cpu_jobs.time)):
            if time is not None and not _TIME.fullmatch(time):
                raise ValueError(
                    f"{name} {time!r} is no time limit: write minutes, hours:minutes:seconds or days-hours"
                )
        limit = seconds_of(self.time)
        if self.signal_margin is not None and self.signal_margin >= limit:
            raise ValueError(
                f"signal_margin {self.signal_margin} s is no less than the time limit {self.time} ({limit} s)"
            )
        bare = self.bare_metal
        if self.container is not None and (bare.modules or bare.venv or bare.setup):
            raise ValueError("give container or bare_metal, and not both: a job runs in one of them")
        return self

    @property
    def processes_per_node(self) -> int:
        """Ranks of a run a node."""
        return max(1, self.gpus_per_node)


def seconds_of(time: str) -> int:
    """Seconds of a time limit as Slurm writes it: `M`, `M:S`, `H:M:S`, `D-H`, `D-H:M` or `D-H:M:S`."""
    days, _, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if days:
        parts += [0] * (3 - len(parts))
    elif len(parts) < 3:
        parts = [0, *parts, *([0] if len(parts) == 1 else [])]
    hours, minutes, seconds = parts
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def load_cluster(path: Path) -> Cluster:
    """Read and check a site's file.

    Raises:
        UserError: it can't be read, or a key or value is wrong; every finding is in the message.
    """
    raw = read_mapping(path, "partition: gpu", "--slurm")
    try:
        return Cluster.model_validate(raw)
    except ValidationError as error:
        findings = []
        for item in error.errors():
            where = ".".join(str(part) for part in item["loc"])
            said = item["msg"].removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                said = "there is no such key; examples/cluster.yaml has them all"
            findings.append(said if not where else f"{where}: {said[0].lower()}{said[1:]}")
        raise UserError(f"--slurm {path}: {'; '.join(findings)}.") from None
