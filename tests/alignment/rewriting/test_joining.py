import shutil
from pathlib import Path

import pytest

from megatron_native.alignment.rewriting.joining import join_if_complete
from megatron_native.alignment.rewriting.leases import leases_in
from tests.alignment.rewriting.jobs import finish, prepared_job, rewritten_texts, settings_of, text_of


def test_a_part_that_another_run_joined_and_cleared_away_keeps_its_output(tmp_path: Path) -> None:
    """A task of a job array that lets go of its engine while another one writes the manifest still holds its list of
    parts; those of which no passage waited look complete to it."""
    job = prepared_job(tmp_path, settings_of(first_look={"limits": {}}))
    assert [part["chunks"] for part in job.parts] == [[]], "all is clean at first look"
    finish(job)
    assert rewritten_texts(job.output) == {f"d{number}": text_of(number) for number in range(6)}
    shutil.rmtree(job.work)
    with leases_in(job.work / "leases") as leases, pytest.raises(FileNotFoundError):
        join_if_complete(job.parts[0], job.output, job.work, job.settings, leases)
    assert rewritten_texts(job.output) == {f"d{number}": text_of(number) for number in range(6)}
