"""The ladder as one rank, or as a local torchrun over several processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from megatron_native.config.environment import cuda_environment
from megatron_native.config.load import load_run_config
from megatron_native.config.run import RunConfig
from megatron_native.errors import EXIT_DONE, EXIT_FAILURE, UserError
from megatron_native.platform import Platform
from megatron_native.training.launch import rank_outcome, with_this_package
from megatron_native.training.launch_folder import FOLDER_VARIABLE, LaunchFolder
from megatron_native.training.qualify.ladder import chosen_rungs, climb
from megatron_native.training.qualify.record import RECORD_VARIABLE, machine_key, record_path, update_record
from megatron_native.training.qualify.table import rung_lines, summary
from megatron_native.training.qualify.verdict import RungResult

FAILED_FILE = "ladder_failed"
"""What rank 0 leaves in the launcher's folder when a rung failed: every rank ends with 0, so that none is ended early."""
_TIMEOUT_MINUTES = 20


def launch(arguments: Sequence[str], processes: int) -> int:
    """Start `processes` ranks of the ladder on this machine; 1 when a rung, or a rank, failed.

    Args:
        arguments: of Python, for every rank.
        processes: how many.
    """
    if processes < 1:
        raise UserError(f"--nproc {processes}: the ladder needs at least one process.")
    from megatron_native.platform.quiet import silence_libraries

    silence_libraries()
    from megatron_native.training.agent import run_ranks

    with tempfile.TemporaryDirectory(prefix="megatron-native-") as shared:
        folder = LaunchFolder(Path(shared))
        os.environ[FOLDER_VARIABLE] = str(folder.path)
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // processes)))
        os.environ.update(with_this_package(os.environ))
        try:
            succeeded = run_ranks(arguments, processes, folder, lambda deaths: False)
        finally:
            os.environ.pop(FOLDER_VARIABLE)
        error = folder.user_error()
        if error is not None:
            raise error
        return EXIT_DONE if succeeded and not (folder.path / FAILED_FILE).exists() else EXIT_FAILURE


def run_rank(
    config: Path, overrides: Sequence[str], rungs: str | None, record: Path | None, keep: bool, as_json: bool
) -> int:
    """Be one rank of the ladder (torchrun's environment says which, or the only one); its exit code."""
    return rank_outcome(lambda: _climb(config, overrides, rungs, record, keep, as_json))


def _climb(
    config: Path, overrides: Sequence[str], rungs: str | None, record: Path | None, keep: bool, as_json: bool
) -> int:
    run = load_run_config(config, overrides, files=False)  # its trials make their own tokens
    chosen = chosen_rungs(rungs)
    if record is not None:
        os.environ[RECORD_VARIABLE] = str(record)
    from megatron_native.platform import start_platform, stop_platform

    platform = start_platform(run.platform, timeout_minutes=_TIMEOUT_MINUTES, cuda_environment=cuda_environment(run))
    import torch

    if platform.name == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    key, results = machine_key(platform), []
    about = {"precision": run.training.precision, "preset": run.preset, "layout": _layout(run)}

    def say(line: str) -> None:
        if platform.is_main:
            print(line, flush=True, file=sys.stderr if as_json else sys.stdout)

    def report(result: RungResult) -> None:
        results.append(result)
        for line in rung_lines(result):
            say(line)
        if platform.is_main:
            update_record(record_path(key), key, results, about)

    say(
        f"qualify: {key if platform.name == 'cuda' else _cpu(key.torch, key.megatron_core)}, {platform.world_size} process(es)"
    )
    folder = _shared_folder(run, platform)
    try:
        climb(run, platform, chosen, folder, report)
    finally:
        with contextlib.suppress(OSError):
            if platform.is_main and not keep:
                shutil.rmtree(folder)
    failed = any(result.verdict == "failed" for result in results)
    say(f"{summary(results)}; {record_path(key)}" + (f"; files of the ladder in {folder}" if keep else ""))
    if platform.is_main and as_json:
        print(
            json.dumps(
                {"key": vars(key), "rungs": [result.as_dict() for result in results]}, ensure_ascii=False, indent=2
            )
        )
    stop_platform()
    launcher = LaunchFolder.of_environment()
    if launcher is not None:
        if failed and platform.is_main:
            (launcher.path / FAILED_FILE).touch()
        return EXIT_DONE
    return EXIT_FAILURE if failed else EXIT_DONE


def _shared_folder(run: RunConfig, platform: Platform) -> Path:
    """A new folder beside the run's files, which all ranks see. Collective."""
    import torch.distributed as dist

    found: list[str | None] = [None, None]
    if platform.is_main:
        try:
            run.run_dir.mkdir(parents=True, exist_ok=True)
            found = [tempfile.mkdtemp(prefix="qualify-", dir=run.run_dir.resolve()), None]
        except OSError as error:
            found = [
                None,
                f"run_dir {run.run_dir} can't be written to ({error.strerror}): the ladder puts its files there.",
            ]
    dist.broadcast_object_list(found, src=0)
    if found[0] is None:
        raise UserError(str(found[1]))
    return Path(found[0])


def _layout(run: RunConfig) -> dict[str, int | None]:
    parallel = run.parallel
    return {
        "tp": parallel.tensor_model_parallel_size,
        "pp": parallel.pipeline_model_parallel_size,
        "vpp": parallel.virtual_pipeline_model_parallel_size,
        "cp": parallel.context_parallel_size,
    }


def _cpu(torch_version: str, core_version: str) -> str:
    return f"the CPU (no GPU is qualified by this), torch {torch_version}, megatron-core {core_version}"
