"""What a node is asked before a run: `python -m megatron_native.slurm.health_check`, once on every node.

It leaves `NODE.ok` or `NODE.bad` (with the reason, one line) in a folder that all nodes see. A node that leaves neither is
bad too: it hung, or could not start Python.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

_SMI_SECONDS = 60
_ECC = "ecc.errors.uncorrected.volatile.total"


def gpu_findings(expected: int) -> list[str]:
    """What is wrong with this node's GPUs by `nvidia-smi`: their number, and ECC errors that could not be corrected."""
    if not expected:
        return []
    if shutil.which("nvidia-smi") is None:
        return ["there is no nvidia-smi"]
    command = ["nvidia-smi", f"--query-gpu=index,{_ECC}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return [f"nvidia-smi gave no answer in {_SMI_SECONDS} s"]
    if done.returncode:
        return [f"nvidia-smi ended with {done.returncode}: {_one_line(done.stdout + done.stderr)}"]
    return smi_findings(done.stdout, expected)


def smi_findings(table: str, expected: int) -> list[str]:
    """What is wrong, by the lines `index, uncorrected ECC errors` that nvidia-smi printed."""
    rows = [[cell.strip() for cell in line.split(",")] for line in table.splitlines() if line.strip()]
    findings = [] if len(rows) == expected else [f"{len(rows)} GPUs instead of {expected}"]
    for row in rows:
        errors = row[1] if len(row) > 1 else ""
        if errors.isdigit() and int(errors):
            findings.append(f"GPU {row[0]} has {errors} uncorrected ECC errors")
    return findings


def disk_findings(free_gb: dict[str, float]) -> list[str]:
    """Folders that are not there, can't be written to or have less than so many free gigabytes."""
    findings = []
    for folder, wanted in free_gb.items():
        path = Path(os.path.expandvars(folder))
        try:
            free = shutil.disk_usage(path).free / 1e9
            probe = path / f".megatron-native-{socket.gethostname()}-{os.getpid()}"
            probe.write_bytes(b"ok")
            probe.unlink()
        except OSError as error:
            findings.append(f"{path}: {error.strerror or error}")
            continue
        if free < wanted:
            findings.append(f"{path} has {free:.1f} GB free of {wanted:g} GB")
    return findings


def compute_findings(gpus: int) -> list[str]:
    """A matrix product whose result is known on every GPU, and a sum over all of them; on the CPU without GPUs.

    Every entry of the product of an `n × n` matrix of ones and one of `1 / n` (n a power of two) is exactly 1.
    """
    try:
        import torch
    except ImportError:
        return []
    findings: list[str] = []
    size = 4096 if gpus else 256
    if gpus and torch.cuda.device_count() != gpus:
        return [f"torch sees {torch.cuda.device_count()} GPUs instead of {gpus}"]
    devices = [f"cuda:{index}" for index in range(gpus)] or ["cpu"]
    results = []
    for device in devices:
        try:
            dtype = torch.bfloat16 if gpus else torch.float32
            product = torch.ones(size, size, device=device, dtype=dtype) @ torch.full(
                (size, size), 1 / size, device=device, dtype=dtype
            )
            if not bool((product == 1).all()):
                findings.append(f"a matrix product on {device} is wrong")
            results.append(product)
        except RuntimeError as error:
            findings.append(f"a matrix product on {device} failed: {_one_line(str(error))}")
    if len(results) > 1 and not findings:
        try:
            total = torch.cuda.comm.reduce_add(results)  # NCCL within the node
            if not bool((total == len(results)).all()):
                findings.append("the sum over all GPUs is wrong")
        except RuntimeError as error:
            findings.append(f"the sum over all GPUs failed: {_one_line(str(error))}")
    return findings


def main(argv: Sequence[str] | None = None) -> int:
    """Check this node; 0 where it is sound, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the answer is left")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that this node must have")
    parser.add_argument(
        "--free-gb", action="append", default=[], metavar="FOLDER=GB", help="free space that it must have"
    )
    parser.add_argument("--compute", action="store_true", help="compute something, where torch is")
    arguments = parser.parse_args(argv)
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    wanted = {folder: float(amount) for folder, _, amount in (text.rpartition("=") for text in arguments.free_gb)}
    findings = gpu_findings(arguments.gpus) + disk_findings(wanted)
    if arguments.compute and not findings:
        findings = compute_findings(arguments.gpus)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    report = arguments.folder / f"{node}.{'bad' if findings else 'ok'}"
    report.write_text(("; ".join(findings) or "sound") + "\n", encoding="utf-8")
    if findings:
        print(f"{node}: {'; '.join(findings)}", file=sys.stderr, flush=True)
    return 1 if findings else 0


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


if __name__ == "__main__":
    sys.exit(main())
