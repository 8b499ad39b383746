"""Settings of every test: generated examples are the same in every run, so a failure can be made again.

Tests of vLLM's engine live in an environment of their own (`make test-vllm`); where vLLM is not installed they are no part
of the run.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import pytest
from hypothesis import settings

settings.register_profile("reproducible", derandomize=True, deadline=None)
settings.load_profile("reproducible")

collect_ignore = [] if find_spec("vllm") else ["vllm"]


class Done(NamedTuple):
    """How a command ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[[list[str]], Done]:
    """Run a command in this process."""
    from megatron_native.cli import main

    def in_this_process(command: list[str]) -> Done:
        capfd.readouterr()
        code = main(command)
        return Done(code, *capfd.readouterr())

    return in_this_process
