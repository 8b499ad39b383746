"""A Slurm script against the run that it is to start: processes, signal, syntax."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from megatron_native.errors import UserError
from megatron_native.training.plan.checkpoint_size import Saving, stop_seconds
from megatron_native.training.plan.findings import Finding
from megatron_native.training.signals import STOP_SIGNALS

_SHORT = {"N": "nodes", "n": "ntasks", "t": "time", "G": "gpus", "J": "job-name", "o": "output", "c": "cpus-per-task"}
_DEFAULT_SIGNAL_SECONDS = 60
"""What sbatch takes where `--signal` says no time."""


@dataclass
class SlurmScript:
    """What a script asks of Slurm."""

    path: Path
    options: dict[str, str] = field(default_factory=dict)
    """Long name → value, `""` where there is none."""
    late: list[int] = field(default_factory=list)
    """Lines of `#SBATCH` after the first command, which Slurm does not read."""
    body: str = ""

    def number(self, name: str) -> int | None:
        """An option that is a number, or None."""
        value = self.options.get(name, "")
        return int(value) if value.isdigit() else None

    @property
    def gpus_a_node(self) -> int | None:
        """GPUs of each node, however it is written."""
        for name in ("gpus-per-node", "gres"):
            for part in self.options.get(name, "").split(","):
                found = re.fullmatch(r"(?:gpu:)?(?:[A-Za-z][\w.-]*:)?(\d+)", part)
                if found and (name == "gpus-per-node" or part.startswith("gpu")):
                    return int(found[1])
        return None

    @property
    def signal(self) -> tuple[str, int, bool] | None:
        """Signal's name, seconds before the end, and whether the batch shell alone gets it (`B:`)."""
        found = re.fullmatch(r"(?:([BR]+):)?(?:SIG)?([A-Z0-9]+)(?:@(\d+))?", self.options.get("signal", "").upper())
        if not found:
            return None
        name = found[2]
        if name.isdigit():
            name = signal.Signals(int(name)).name.removeprefix("SIG")
        return name, int(found[3] or _DEFAULT_SIGNAL_SECONDS), "B" in (found[1] or "")


def read_slurm_script(path: Path) -> SlurmScript:
    """Read a script.

    Raises:
        UserError: the file can't be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--sbatch {path} can't be read ({error}): give the Slurm script of the run.") from error
    script, commands = SlurmScript(path), False
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#SBATCH"):
            if commands:
                script.late.append(number)
            else:
                _read_options(line, script.options)
        elif line.strip() and not line.lstrip().startswith("#"):
            commands = True
    script.body = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return script


def _read_options(line: str, options: dict[str, str]) -> None:
    words = shlex.split(line.removeprefix("#SBATCH"), comments=True)
    while words:
        word = words.pop(0)
        name, given, value = word.partition("=")
        if name.startswith("--"):
            name = name[2:]
        elif name.startswith("-"):
            name, value, given = _SHORT.get(word[1:2], word[1:2]), word[2:], word[2:]
        else:
            continue
        if not given and words and not words[0].startswith("-"):
            value = words.pop(0)
        options[name] = value


def slurm_findings(path: Path, world_size: int, saving: Saving | None, step_seconds: float | None) -> list[Finding]:
    """What is wrong with the script for a run of `world_size` processes.

    Args:
        path: the script.
        world_size: processes that the run needs.
        saving: estimate of a save, None where there is none.
        step_seconds: estimate of a step, which ends before a save begins.
    """
    script = read_slurm_script(path)
    findings = _syntax(path)
    for number in script.late:
        findings.append(Finding(
            f"{path}:{number} is an #SBATCH line after the first command", "Slurm reads them only before it",
            "move it to the top",
        ))  # fmt: skip
    findings += _processes(script, world_size)
    findings += _stopping(script, saving, step_seconds)
    return findings


def _syntax(path: Path) -> list[Finding]:
    try:
        done = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [
            Finding(
                f"{path} was not checked for syntax", f"bash can't be run here ({error})", "run bash -n on it", "note"
            )
        ]
    if done.returncode == 0:
        return []
    return [Finding(f"{path} is no valid bash", " ".join(done.stderr.split())[:300], "mend the line")]


def _processes(script: SlurmScript, world_size: int) -> list[Finding]:
    found = []
    nodes, gpus = script.number("nodes"), script.gpus_a_node
    if nodes is None or gpus is None:
        missing = " and ".join(
            name for name, value in (("--nodes", nodes), ("--gpus-per-node (or --gres=gpu:N)", gpus)) if value is None
        )
        found.append(Finding(
            f"{script.path} does not say {missing}", f"whether it starts {world_size} processes can't be told",
            "write it as a plain number", "note",
        ))  # fmt: skip
    elif nodes * gpus != world_size:
        nodes_needed = -(-world_size // gpus)
        found.append(Finding(
            f"{script.path} asks for {nodes} nodes × {gpus} GPUs = {nodes * gpus} processes, and the plan is for {world_size}",
            "the layout would be refused at start, or another batch be learned from",
            f"set --nodes={nodes_needed}, or plan with --world-size {nodes * gpus}",
        ))  # fmt: skip
    tasks = script.number("ntasks-per-node")
    launched = re.search(r"--nproc(?:[-_]per[-_]node)?[= ]+\"?(\d+)", script.body)
    if launched and gpus is not None and int(launched[1]) != gpus:
        found.append(Finding(
            f"{script.path} starts {launched[1]} processes a node and asks for {gpus} GPUs a node",
            "every process takes one GPU", f"set it to {gpus}",
        ))  # fmt: skip
    if ("torchrun" in script.body or "torch.distributed.run" in script.body) and tasks not in (None, 1):
        found.append(Finding(
            f"{script.path} has --ntasks-per-node={tasks} and starts torchrun", "torchrun is to run once a node and starts "
            "the processes itself", "set --ntasks-per-node=1",
        ))  # fmt: skip
    return found


def _stopping(script: SlurmScript, saving: Saving | None, step_seconds: float | None) -> list[Finding]:
    found = []
    asked = script.signal
    names = {number.name.removeprefix("SIG") for number in STOP_SIGNALS}
    needed = None if saving is None else stop_seconds(saving.seconds, step_seconds or 0.0)
    advice = f"--signal=USR1@{120 if needed is None else int(-(-needed // 60) * 60)}"
    if asked is None:
        found.append(Finding(
            f"{script.path} has no --signal", "at the time limit the job is killed, and the steps since the last save are lost",
            f"add #SBATCH {advice}",
        ))  # fmt: skip
    else:
        name, seconds, shell_only = asked
        if name not in names:
            found.append(Finding(
                f"{script.path} sends SIG{name}", f"a run saves and stops on {' and '.join(sorted(names))}",
                f"set {advice}",
            ))  # fmt: skip
        if saving is not None and needed is not None and seconds < needed:
            found.append(Finding(
                f"{script.path} sends its signal {seconds} s before the end",
                f"the step at hand takes an estimated {step_seconds or 0:.1f} s and a save {saving.seconds:.0f} s, at "
                f"{saving.gb_a_second:g} GB/s ({saving.rate_is}); with the time of a second save and 60 s for Slurm that is "
                f"{needed:.0f} s", f"set {advice}",
            ))  # fmt: skip
        if shell_only and "trap" not in script.body and not re.search(r"^\s*exec\s", script.body, re.MULTILINE):
            found.append(Finding(
                f"{script.path} sends its signal to the batch shell alone (B:)", "nothing in it passes the signal on to srun",
                "trap it and signal the job's steps, or leave out B:",
            ))  # fmt: skip
    if "time" not in script.options:
        found.append(Finding(
            f"{script.path} has no --time", "the partition's default decides when the job ends", "add #SBATCH --time=…", "note",
        ))  # fmt: skip
    if "requeue" not in script.options and "no-requeue" not in script.options:
        found.append(Finding(
            f"{script.path} has no --requeue", "a job that lost a node is not started again by Slurm",
            "add #SBATCH --requeue", "note",
        ))  # fmt: skip
    return found
