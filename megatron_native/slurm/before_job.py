"""What a job does before it trains: `python -m megatron_native.slurm.before_job`, once, on its first node.

Whether there is any sense in training is asked first; then what the job runs with is written down: environment, packages and
commit, beside the script.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import distributions
from pathlib import Path

from megatron_native import __version__
from megatron_native.errors import EXIT_FAILURE
from megatron_native.manifest import source_commit
from megatron_native.slurm.progress import Progress, no_progress
from megatron_native.training.incidents import GAVE_UP, Incidents

_SECRET = re.compile(r"key|token|secret|passw|credential|auth|cookie", re.IGNORECASE)
_FUNCTION = re.compile(r"BASH_FUNC_")


def environment_text(environment: Mapping[str, str]) -> str:
    """The variables, sorted; the values of those whose names sound secret are left out."""
    lines = []
    for name in sorted(environment):
        if not _FUNCTION.match(name):
            value = "(not written down)" if _SECRET.search(name) else environment[name].replace("\n", "\\n")
            lines.append(f"{name}={value}\n")
    return "".join(lines)


def packages_text() -> str:
    """Python and every installed package with its version."""
    found = {f"{one.metadata['Name']}=={one.version}" for one in distributions() if one.metadata["Name"]}
    return "".join(f"{line}\n" for line in [f"# Python {platform.python_version()}", *sorted(found, key=str.lower)])


def commit_text() -> str:
    """The commit of this package and what differs from it; only the version where it is installed without one."""
    return "".join(f"{line}\n" for line in [f"megatron-native {__version__}", *source_commit()])


def main(argv: Sequence[str] | None = None) -> int:
    """0 where the job may train; 1 where it may not, with the reason on stderr and in `RUN/slurm/stopped`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, required=True, help="the run folder")
    parser.add_argument("--job-dir", type=Path, required=True, help="the folder of this job's logs")
    parser.add_argument("--fruitless-jobs", type=int, default=1, help="jobs in a row without progress that are enough")
    arguments = parser.parse_args(argv)
    arguments.job_dir.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("environment.txt", environment_text(os.environ)), ("packages.txt", packages_text()), ("commit.txt", commit_text()),
    ):  # fmt: skip
        (arguments.job_dir / name).write_text(text, encoding="utf-8")
    progress = Progress.read(arguments.run_dir)
    progress.begin(f"{os.environ.get('SLURM_JOB_ID', '?')}.{os.environ.get('SLURM_RESTART_COUNT', '0')}")
    reason = no_progress(progress, arguments.fruitless_jobs)
    if reason is None:
        return 0
    progress.stop(reason)
    progress.judge()
    Incidents(arguments.run_dir / "incidents.jsonl").record(GAVE_UP, reason)
    return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
