"""A real Slurm on this machine: munge, a controller and two nodes in a temporary folder, on ports of its own.

Two nodes `node1` and `node2` run here as two daemons; sixty-four nodes `gpu001` … with eight GPUs each are described and need
not exist, so that `sbatch --test-only` can judge scripts that ask for them. Several of these run beside each other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
_SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])


def missing_programs() -> list[str]:
    """What of Slurm is not installed here."""
    return [name for name in PROGRAMS if shutil.which(name, path=_SEARCH) is None]


class Slurm:
    """The daemons, from `with` to its end."""

    def __init__(self) -> None:
        # Short: munge's socket must fit into 108 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="mn-slurm-", dir="/tmp"))
        self._daemons: list[subprocess.Popen[bytes]] = []
        self.nodes = ("node1", "node2")

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in reversed(self._daemons):
            if daemon.poll() is None:
                daemon.send_signal(signal.SIGTERM)
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(10)
        for spool in self.folder.glob("node*"):
            for pid in _step_pids(spool):
                _end(pid)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which Slurm's commands talk to this one."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return {**kept, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _SEARCH}

    def run(self, *command: str, environment: Mapping[str, str] | None = None) -> str:
        """Standard output of a command; it has to succeed."""
        done = subprocess.run(
            command,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def job(self, number: str | int) -> dict[str, str]:
        """What `scontrol show job` says, by field."""
        words = self.run("scontrol", "--oneliner", "show", "job", str(number)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait_for(
        self, number: str | int, condition: Callable[[dict[str, str]], bool], seconds: float = 300
    ) -> dict[str, str]:
        """The job, once the condition holds. A requeued job is let go after some seconds, not after Slurm's two minutes.

        Not at once: what Slurm revokes of the job's credentials counts for the whole second.
        """
        deadline, pending_since = time.monotonic() + seconds, 0.0
        while not condition(job := self.job(number)):
            if time.monotonic() > deadline:
                raise AssertionError(f"job {number} is {job}\n{self.logs()}")
            if job["JobState"] != "PENDING" or job["Restarts"] == "0":
                pending_since = time.monotonic()
            elif time.monotonic() - pending_since > 3 and job["Reason"] != "Dependency":
                self.let_go(number)
            time.sleep(0.2)
        return job

    def let_go(self, number: str | int) -> None:
        """Start a job now that waits for its time."""
        subprocess.run(
            ["scontrol", "update", f"JobId={number}", "StartTime=now"],
            env=self.environment,
            check=False,
            capture_output=True,
        )

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(f"{path}:\n{path.read_text(errors='replace')[-3000:]}" for path in self.folder.glob("*.log"))

    def _start(self) -> None:
        folder, host = self.folder, socket.gethostname().split(".")[0]
        folder.chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder / 'munge.sock'}",
            f"--pid-file={folder / 'munge.pid'}", f"--log-file={folder / 'munge.log'}", f"--seed-file={folder / 'seed'}",
            "--num-threads=2",
        )  # fmt: skip
        control, *ports = free_ports(1 + len(self.nodes))
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 State=UNKNOWN"
            for name, port in zip(self.nodes, ports, strict=True)
        )
        (folder / "slurm.conf").write_text(f"""\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={control}
AuthType=auth/munge
AuthInfo=socket={folder / "munge.sock"}
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmctldPidFile={folder}/ctl.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
StateSaveLocation={folder}/ctl
SlurmUser=root
SlurmdUser=root
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=10
GresTypes=gpu
SuspendProgram=/bin/true
ResumeProgram=/bin/true
SuspendTime=60
SuspendExcNodes={",".join(self.nodes)}
{nodes}
NodeName=gpu[001-064] CPUs=96 RealMemory=2000000 Gres=gpu:8 State=CLOUD
PartitionName=debug Nodes={",".join(self.nodes)} Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=gpu[001-064] MaxTime=INFINITE State=UP
PartitionName=cpu Nodes=gpu[001-064] MaxTime=INFINITE State=UP
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/%n.log
""")
        (folder / "ctl").mkdir()
        for name in self.nodes:
            (folder / name).mkdir()
        self._until(lambda: (folder / "munge.sock").exists())
        self._daemon("slurmctld", "-D", "-i")
        for name in self.nodes:
            self._daemon("slurmd", "-D", "-N", name)
        self._until(lambda: self._states().count("idle") == len(self.nodes))

    def _states(self) -> list[str]:
        done = subprocess.run(
            ["sinfo", "--Node", "--noheader", "--partition=debug", "--format=%T"], env=self.environment, check=False,
            capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.split()

    def _daemon(self, *command: str) -> None:
        with open(self.folder / f"{command[0]}.{len(self._daemons)}.log", "wb") as log:
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
            )

    def _until(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            ended = [daemon.args for daemon in self._daemons if daemon.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"Slurm did not start ({ended} ended): {self.logs()}")
            time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _step_pids(spool: Path) -> list[int]:
    """Processes whose environment or command line names this spool folder: what jobs have left."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(spool.parent).encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return [pid for pid in found if pid != os.getpid()]


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
