"""The jobs that one `launch` stands for: which there are, in which order, checked before any of them waits in a queue."""

from __future__ import annotations

import math
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_native.config.layout import check_layout, model_parallel_size
from megatron_native.config.load import check_files
from megatron_native.config.model import ModelConfig
from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError
from megatron_native.slurm.cluster import Cluster
from megatron_native.slurm.margin import signal_margin
from megatron_native.slurm.other_scripts import export_script, import_script
from megatron_native.slurm.progress import begin_anew
from megatron_native.slurm.training_script import TrainingJob, training_script


@dataclass(frozen=True)
class Job:
    """One script, and when it may begin."""

    name: str
    script: str
    logs: Path
    """Folder that has to be there when the job begins."""
    after: str | None = None
    """The job that must have succeeded."""
    copies: int = 1
    """How often it is submitted; each waits for the one before (`--dependency=singleton` in the script)."""

    def command(self, file: Path, after: Sequence[str] = ()) -> list[str]:
        """The command that submits it; `after` are ids of jobs that must have succeeded."""
        command = ["sbatch", "--parsable"]
        if after:
            singleton = ",singleton" if "--dependency=singleton" in self.script else ""
            command += [f"--dependency=afterok:{':'.join(after)}{singleton}", "--kill-on-invalid-dep=yes"]
        return [*command, str(file)]


@dataclass(frozen=True)
class RunJobs:
    """What the jobs of a run are made from.

    Attributes:
        run: the run's configuration.
        config: its file.
        overrides: settings that override the file's.
        cluster: the site.
        nodes: how many nodes train.
        model: the shape of its model; None where nothing here says it.
        hf: Hugging Face folder to import, where that is asked for.
        export: Hugging Face folder to make.
    """

    run: RunConfig
    config: Path
    overrides: Sequence[str]
    cluster: Cluster
    nodes: int
    model: ModelConfig | None = None
    hf: Path | None = None
    export: Path | None = None

    @property
    def logs(self) -> Path:
        """Folder of the logs of all jobs."""
        logs, run_dir = self.cluster.logs, self.run.run_dir
        return run_dir / "logs" / "slurm" if logs is None else logs / run_dir.name

    def check(self, files: bool) -> list[str]:
        """Refuse what could not run; remarks on what could not be checked.

        Args:
            files: whether the files that the run names must be there.

        Raises:
            UserError: the layout does not fit the processes or the model, or files are missing.
        """
        if self.nodes < 1:
            raise UserError(f"--nodes {self.nodes}: a run needs at least one node.")
        if self.run.platform == "cpu" and self.cluster.gpus_per_node:
            raise UserError(
                "platform is 'cpu' and the cluster's file says gpus_per_node: set it to 0, or platform=cuda."
            )
        if self.run.platform == "cuda" and not self.cluster.gpus_per_node:
            raise UserError(
                "platform is 'cuda' and the cluster's file says gpus_per_node: 0: give it the GPUs of a node."
            )
        world_size, remarks = self.nodes * self.cluster.processes_per_node, []
        parallel = self.run.parallel
        share, processes = model_parallel_size(self.run), self.cluster.processes_per_node
        if world_size % share:
            raise UserError(
                f"--nodes {self.nodes} × {processes} processes a node are {world_size}, which cannot be "
                f"split by tensor × pipeline × context parallelism {parallel.tensor_model_parallel_size} × "
                f"{parallel.pipeline_model_parallel_size} × {parallel.context_parallel_size}: take a multiple of "
                f"{share // math.gcd(share, processes)} nodes."
            )
        if self.model is not None:
            check_layout(self.run, self.model, world_size)
        else:
            remarks.append(
                "the model's shape is not known here, so the layout is checked in part: give --hf FOLDER with a config.json"
            )
        batch, copies = self.run.training.global_batch_size, world_size // share * self.run.training.micro_batch_size
        if batch % copies:
            raise UserError(
                f"training.global_batch_size {batch} is no multiple of micro_batch_size {self.run.training.micro_batch_size} × "
                f"data-parallel size {world_size // share}, with --nodes {self.nodes}: use a multiple of {copies}."
            )
        if files:
            check_files(self.run, str(self.config))
        return remarks

    def training(self, after: str | None = None) -> Job:
        """The job that trains."""
        job = TrainingJob(
            self.cluster, self.config, self.overrides, self.run.run_dir, self.logs, self.nodes,
            signal_margin(self.cluster, self.run, self.model), self.run.faults.max_restarts,
        )  # fmt: skip
        return Job("pretrain", training_script(job), self.logs, after, self.cluster.chain_jobs)

    def importing(self) -> Job:
        """The job that makes the checkpoint a run starts from.

        Raises:
            UserError: nothing says what is imported, or the run starts from something else.
        """
        if self.hf is None:
            raise UserError("--what import needs --hf FOLDER, the Hugging Face folder to import.")
        checkpoint = self.run.model.checkpoint
        if checkpoint is None:
            raise UserError("--what import makes what model.checkpoint names, and this run starts from something else.")
        return Job("import", import_script(self.cluster, self.run.run_dir, self.logs, self.hf, checkpoint), self.logs)

    def exporting(self, after: str | None = None) -> Job:
        """The job that makes a Hugging Face folder of the newest checkpoint."""
        output = self.export or self.run.run_dir / "hf"
        return Job("export", export_script(self.cluster, self.run.run_dir, self.logs, output), self.logs, after)

    def jobs(self, what: str) -> list[Job]:
        """The jobs of `import`, `pretrain`, `export`, or of `all` three in that order."""
        if what == "all":
            return [self.importing(), self.training("import"), self.exporting("pretrain")]
        return [{"import": self.importing, "pretrain": self.training, "export": self.exporting}[what]()]


def write_scripts(jobs: Sequence[Job], folder: Path) -> list[Path]:
    """Write the scripts as `FOLDER/NAME.sbatch`; where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{job.name}.sbatch" for job in jobs]
    for job, file in zip(jobs, files):
        file.write_text(job.script, encoding="utf-8")
        file.chmod(0o755)
    return files


def show(jobs: Sequence[Job], folder: Path) -> str:
    """What `submit` would do, as text: every script, and the commands with names in place of ids."""
    text = []
    for job in jobs:
        text.append(f"==> {folder / f'{job.name}.sbatch'} <==\n{job.script}")
    text.append("==> commands <==")
    text += [f"mkdir -p {shlex.quote(str(logs))}" for logs in dict.fromkeys(job.logs for job in jobs)]
    for job in jobs:
        after = [f"<{job.after}>"] if job.after else []
        line = " ".join(
            shlex.quote(word) if "<" not in word else word for word in job.command(folder / f"{job.name}.sbatch", after)
        )
        text += [line] * job.copies
    return "\n".join(text) + "\n"


def submit(
    jobs: Sequence[Job], folder: Path, say: Callable[[str], None], run_dir: Path | None = None
) -> dict[str, list[str]]:
    """Write the scripts and submit them in their order; the ids of the jobs, by name.

    Args:
        jobs: what is submitted.
        folder: for the scripts.
        say: gets a line a job.
        run_dir: the run, whose earlier stop is over now.

    Raises:
        UserError: there is no sbatch, or it refuses one. What was submitted before stays, and is named.
    """
    if shutil.which("sbatch") is None:
        raise UserError("there is no sbatch on this machine: launch where Slurm is, or look at it with --dry-run.")
    files, ids = write_scripts(jobs, folder), dict[str, list[str]]()
    if run_dir is not None:
        begin_anew(run_dir)
    for job, file in zip(jobs, files):
        job.logs.mkdir(parents=True, exist_ok=True)
        after = ids[job.after][-1:] if job.after else []
        for _ in range(job.copies):
            done = subprocess.run(job.command(file, after), capture_output=True, text=True, check=False)
            if done.returncode:
                before = ", ".join(number for numbers in ids.values() for number in numbers)
                raise UserError(
                    f"sbatch refused {file}: {' '.join((done.stderr or done.stdout).split())}"
                    + (f"; submitted before it: {before}" if before else "")
                )
            number = done.stdout.strip().split(";")[0]  # with federations: id;cluster
            ids.setdefault(job.name, []).append(number)
            say(f"{job.name}: job {number}" + (f", after {', '.join(after)}" if after else "") + f" ({file})")
    return ids
