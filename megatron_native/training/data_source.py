"""The training data of a run, opened: datasets, index cache and which labels count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from megatron_native.checkpoint.torch_dist import read_common
from megatron_native.config.run import RunConfig
from megatron_native.data.dataset_files import DatasetFiles, document_policy
from megatron_native.data.index_cache import IndexCache
from megatron_native.data.ledger import Ledger, read_ledger
from megatron_native.data.run_data import RunData
from megatron_native.data.samples import LossPolicy
from megatron_native.data.startup_check import check_datasets, checked_digests
from megatron_native.errors import UserError
from megatron_native.platform import Platform
from megatron_native.training.course import Course, Progress
from megatron_native.training.retention import checkpoints_of
from megatron_native.training.shape import read_model


def open_run_data(run: RunConfig, course: Course, platform: Platform, say: Callable[[str], None]) -> RunData:
    """The samples of a run, with the sequence indices of the next step built once a node.

    Every rank calls this.
    """
    import torch.distributed as dist

    data = run_data(run, course, say)
    plan = course.next_step()
    if plan is not None:
        for name in plan.phase.datasets:
            course.ledger.record_dataset(name, data.record(name))
        ahead = Ledger.loads(course.ledger.dumps(), "the ledger")
        Course(run, ahead, replace(course.progress)).enter(plan)
        if platform.local_rank == 0:
            warm_up(RunData(ahead, data.prefixes, data.cache, data.policies, data.digests), plan.samples)
        dist.barrier()
    return data


def run_data(run: RunConfig, course: Course, say: Callable[[str], None] | None = None) -> RunData:
    """The samples of a run, nothing built yet."""
    datasets: dict[str, Path] = {name: Path(record.prefix) for name, record in course.ledger.datasets.items()}
    for phase in course.phases:
        datasets |= phase.datasets
    cache = IndexCache(run.data.index_cache or run.run_dir / "index_cache", say)
    policies = {name: loss_policy(run, prefix) for name, prefix in datasets.items()}
    checked = checked_digests(run.run_dir, datasets.values())
    digests = {name: checked[prefix] for name, prefix in datasets.items() if prefix in checked}
    return RunData(course.ledger, datasets, cache, policies, digests)


def build_indices(run: RunConfig, say: Callable[[str], None]) -> int:
    """Build what the run's next step and the beginnings of its later phases need, with no process group; how many datasets.

    A run that has begun goes on from its ledger.
    """
    model = read_model(run)
    check_datasets(run, model, say)
    ledger, progress = Ledger(run.seed), Progress()
    newest = checkpoints_of(run.run_dir)
    if newest and run.checkpointing.resume:
        ledger = read_ledger(newest[-1])
        progress = Progress(**read_common(newest[-1])["progress"]["position"])
    course = Course(run, ledger, progress)
    built: set[str] = set()
    while (plan := course.next_step()) is not None:
        data = run_data(run, course, say)
        course.enter(plan)
        if plan.begins_phase or not built:
            warm_up(data, plan.samples)
            built |= set(plan.phase.datasets)
        course.done(plan)
    return len(built)


def warm_up(data: RunData, samples: range) -> None:
    """Build whatever these samples need that is built once and kept: of datasets that are large enough for that."""
    for number in samples:
        source = data.locate(number)
        index = data.index(source.segment, source.dataset)
        if index.kept:
            index.spans(source.n)


def loss_policy(run: RunConfig, prefix: Path) -> LossPolicy:
    """Which labels of a dataset count.

    Raises:
        UserError: its separator does not count, and nothing says which id that is.
    """
    on_first = not run.data.document_boundaries if run.data.loss_on_bos is None else run.data.loss_on_bos
    if run.data.loss_on_eod:
        return LossPolicy(on_first)
    separator = document_policy(DatasetFiles(prefix).manifest()).separator_id
    if separator is None:
        raise UserError(
            f"data.loss_on_eod is false, and {prefix}.manifest.json, which says what separates documents, is not there: make "
            "the dataset with `megatron-native tokenize`, or leave data.loss_on_eod true."
        )
    return LossPolicy(on_first, False, separator)
