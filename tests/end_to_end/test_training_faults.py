"""Runs that are killed, told to stop, robbed of their newest checkpoint or of their disk, or given a loss that is no number.

Whatever happens, the run ends with the losses of the one that nothing happened to, bit for bit, and its ledger gives every
sample to exactly one step. `make test-faults` does many seeded runs of each fault (`MEGATRON_NATIVE_FAULT_RUNS`), on four
processes in two layouts, and writes down what happened; `make test` does a few.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.data.ledger import read_ledger
from megatron_native.training.line_file import read_json_lines
from megatron_native.training.restarts import last_step
from megatron_native.training.retention import checkpoint_folder, checkpoints_of, step_of
from tests.distributed import REPOSITORY, run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.conftest import run_config, write_token_dataset

STEPS, DEADLINE = 14, 300
LAYOUTS = {
    "TP2 × DP2": {"tensor_model_parallel_size": 2}, "PP2 × DP2": {"pipeline_model_parallel_size": 2},
}  # fmt: skip
FAULTS = ("kill", "stop", "torn", "disk", "nan")
RUNS = int(os.environ.get("MEGATRON_NATIVE_FAULT_RUNS", "0"))
RESULT = os.environ.get("MEGATRON_NATIVE_TRAINING_FAULTS_RESULT")
CASES = [(fault, list(LAYOUTS)[seed % 2], seed) for seed in range(RUNS // len(FAULTS)) for fault in FAULTS] or [
    ("kill", "TP2 × DP2", 0), ("torn", "PP2 × DP2", 1), ("disk", "PP2 × DP2", 2), ("nan", "TP2 × DP2", 3),
]  # fmt: skip


class Run:
    """A run folder and the launcher over it."""

    def __init__(self, folder: Path, config: dict[str, Any], fault: dict[str, Any] | None = None) -> None:
        self.folder, self.run_dir = folder, Path(config["run_dir"])
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "run.yaml"
        self.file.write_text(yaml.safe_dump(config), encoding="utf-8")
        self.starts = 0
        self.fault = fault or {}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the launcher with its four ranks."""
        self.starts += 1
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "FAULT": json.dumps(self.fault)}
        code = (
            "import sys; from pathlib import Path; from megatron_native.training.launch import launch_local;"
            f"sys.exit(launch_local(Path({str(self.file)!r}), [], 4, worker=('-m', 'tests.end_to_end.fault_rank')))"
        )
        log = open(self.folder / f"start-{self.starts}.log", "wb")  # noqa: SIM115 (the process keeps it)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        log.close()

    def wait(self) -> int:
        """Until the launcher ends; its exit code."""
        assert self.process is not None
        try:
            return self.process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError(f"the run hangs:\n{self.log()}") from None

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for something to become true while the run goes on."""
        assert self.process is not None
        deadline = time.monotonic() + DEADLINE
        while not holds():
            assert self.process.poll() is None, f"the run ended before:\n{self.log()}"
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.01)

    def step(self) -> int:
        """The last step that is done."""
        return last_step(self.run_dir)

    def ranks(self) -> list[int]:
        """Process ids of the ranks."""
        assert self.process is not None
        found = subprocess.run(["pgrep", "-P", str(self.process.pid), "-f", "fault_rank"], capture_output=True, text=True)
        return [int(word) for word in found.stdout.split()]

    def log(self) -> str:
        """What the last start has said."""
        return (self.folder / f"start-{self.starts}.log").read_text(encoding="utf-8", errors="replace")[-6000:]

    def losses(self) -> dict[int, float]:
        """Step → loss."""
        records = read_json_lines(self.run_dir / "metrics.jsonl")
        return {int(str(record["step"])): float(str(record["loss"])) for record in records if "loss" in record}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, imported, and tokens."""
    folder = tmp_path_factory.mktemp("faults")
    import_hf(make_tiny_model(folder / "hf", "tied-llama"), folder / "imported")
    write_token_dataset(folder / "a", seed=3)
    return folder


def configured(material: Path, run_dir: Path, layout: str) -> dict[str, Any]:
    return run_config(
        run_dir, material / "imported", material / "a", parallel=LAYOUTS[layout],
        training={"steps": STEPS, "micro_batch_size": 1}, checkpointing={"save_interval": 3, "verify_on_resume": "full"},
        data={"seq_length": 32},
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(material: Path) -> Callable[[str], dict[int, float]]:
    """The losses of a layout when nothing happens."""
    known: dict[str, dict[int, float]] = {}

    def losses(layout: str) -> dict[int, float]:
        if layout not in known:
            folder = material / "undisturbed" / layout
            config = configured(material, folder / "run", layout)
            run_jobs(folder, 4, [{"train": config}], timeout=DEADLINE)
            known[layout] = Run(folder, config).losses()
            assert len(known[layout]) == STEPS
        return known[layout]

    return losses


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 40 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("a small disk can't be mounted here (mount -t tmpfs is refused)")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=False)


def kill(run: Run, chance: random.Random) -> str:
    """A rank is killed; the launcher starts them all again."""
    at = chance.randrange(1, STEPS - 1)
    run.start()
    run.until(lambda: run.step() >= at)
    victim = chance.choice(run.ranks())
    os.kill(victim, signal.SIGKILL)
    assert run.wait() == 0, run.log()
    return f"a rank killed after step {at}"


def stop(run: Run, chance: random.Random) -> str:
    """The launcher gets a signal; the run saves, ends with 75 and is started again."""
    at, number = chance.randrange(1, STEPS - 2), chance.choice((signal.SIGTERM, signal.SIGUSR1))
    run.start()
    run.until(lambda: run.step() >= at)
    assert run.process is not None
    run.process.send_signal(number)
    assert run.wait() == 75, run.log()
    stopped = run.step()
    assert stopped < STEPS
    assert checkpoint_folder(run.run_dir, stopped).is_dir()
    (event,) = read_json_lines(run.run_dir / "incidents.jsonl")
    assert (event["kind"], event["step"]) == ("stop_requested", stopped)
    assert number.name in event["message"]
    run.start()
    assert run.wait() == 0, run.log()
    return f"{number.name} after step {at}, saved at {stopped}"


def torn(run: Run, chance: random.Random) -> str:
    """The run is killed whole, its newest checkpoint is damaged, and it is started again."""
    at = chance.randrange(7, STEPS - 1)
    run.start()
    run.until(lambda: run.step() >= at and len(checkpoints_of(run.run_dir)) >= 2)
    assert run.process is not None
    os.killpg(run.process.pid, signal.SIGKILL)
    run.process.wait()
    time.sleep(1)  # ranks end with their launcher
    newest = checkpoints_of(run.run_dir)[-1]
    way = chance.choice(("cut", "flipped", "missing"))
    victim = chance.choice(sorted(newest.glob("*.distcp")))
    if way == "cut":
        os.truncate(victim, victim.stat().st_size // 2)
    elif way == "flipped":
        with open(victim, "r+b") as file:
            file.seek(victim.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 255]))
    else:
        (newest / "run" / "checksums.json").unlink()
    run.start()
    assert run.wait() == 0, run.log()
    (event,) = read_json_lines(run.run_dir / "incidents.jsonl")
    assert (event["kind"], event["step"]) == ("checkpoint_damaged", step_of(newest))
    assert newest.name in (run.folder / "start-2.log").read_text(), "it is said which one was damaged"
    return f"killed after step {at}, {newest.name} {way}"


def disk(run: Run, chance: random.Random) -> str:
    """The disk is full for a while: saves fail, the run goes on and ends with a whole checkpoint."""
    at = chance.randrange(1, STEPS - 7)
    run.start()
    run.until(lambda: run.step() >= at)
    filler = run.run_dir.parent / "filler"
    with open(filler, "wb") as file:
        try:
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        except OSError:
            pass
    incidents = run.run_dir / "incidents.jsonl"
    # metrics can't be written either, so the console tells how far the run is
    run.until(lambda: "was not saved" in run.log())
    filler.unlink()
    code = run.wait()
    if code == 1:  # the last save failed, too: the same command goes on
        run.start()
        code = run.wait()
    assert code == 0, run.log()
    failed = sum(event["kind"] == "save_failed" for event in read_json_lines(incidents))
    assert failed, "the disk was full when the run wanted to save"
    return f"disk full from step {at} on, {failed} saves failed"


def nan(run: Run, chance: random.Random) -> str:
    """The loss of a step is no number the first time it is computed."""
    run.fault = {"nan_at": chance.randrange(2, STEPS)}
    run.start()
    assert run.wait() == 0, run.log()
    kinds = [event["kind"] for event in read_json_lines(run.run_dir / "incidents.jsonl")]
    assert kinds == ["recomputed"]
    return f"no number in step {run.fault['nan_at']}"


@pytest.mark.parametrize(("fault", "layout", "seed"), CASES)
def test_a_run_ends_as_if_nothing_had_happened(
    material: Path, undisturbed: Callable[[str], dict[int, float]], tmp_path: Path, request: pytest.FixtureRequest,
    fault: str, layout: str, seed: int,
) -> None:  # fmt: skip
    expected = undisturbed(layout)
    place = request.getfixturevalue("small_disk") if fault == "disk" else tmp_path
    run = Run(tmp_path / "logs", configured(material, place / "run", layout))
    if fault == "disk":
        config = configured(material, place / "run", layout)
        config["checkpointing"] |= {"keep_last": 1, "save_interval": 2}
        run = Run(tmp_path / "logs", config)
    what = {"kill": kill, "stop": stop, "torn": torn, "disk": disk, "nan": nan}[fault](run, random.Random(f"{fault}/{seed}"))

    assert run.losses() == expected, what
    ledger = read_ledger(run.run_dir)
    assert [ledger.samples_of(step) for step in range(1, STEPS + 1)] == [range(8 * n, 8 * n + 8) for n in range(STEPS)]
    assert not ledger.passed_over and not ledger.not_learned
    assert (run.run_dir / "finished.json").is_file()
    if RESULT:
        with open(RESULT, "a", encoding="utf-8") as file:
            file.write(f"| {fault} | {layout} | {seed} | {what} | {run.starts} | equal |\n")
    shutil.rmtree(tmp_path / "logs", ignore_errors=True)
