"""What a run opens its data with: digests that the start-up check has found, and orders that are built ahead."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import xxhash

from megatron_native.config.run import RunConfig
from megatron_native.data import index_cache
from megatron_native.data.indexed import idx_path
from megatron_native.data.ledger import Ledger
from megatron_native.data.startup_check import STAMP_FILE, check_datasets, checked_digests
from megatron_native.training.course import Course, Progress
from megatron_native.training.data_source import run_data, warm_up
from tests.tiny_models import VOCAB_SIZE
from tests.training.conftest import write_token_dataset


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """A run over datasets of 100 and 9 documents."""
    entries = [
        {"name": name, "prefix": write_token_dataset(tmp_path / name, seed, documents=documents)}
        for seed, (name, documents) in enumerate((("large", 100), ("small", 9)))
    ]
    return RunConfig.model_validate({
        "run_dir": tmp_path / "run", "model": {"hf_config": "x"}, "data": {"seq_length": 128, "blend": entries},
        "training": {"steps": 3, "global_batch_size": 8},
    })  # fmt: skip


def check(run: RunConfig) -> None:
    model: Any = SimpleNamespace(vocab_size=VOCAB_SIZE)  # all that the check asks of a model
    check_datasets(run, model, lambda _: None)


def digest(prefix: Path) -> str:
    return xxhash.xxh3_128_hexdigest(idx_path(prefix).read_bytes())


def test_an_index_is_digested_once_a_run(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    check(run)

    def read_again() -> None:
        raise AssertionError("a file is read whole again")

    prefixes = {entry.name: entry.prefix for entry in run.data.blend}
    expected = {name: digest(prefix) for name, prefix in prefixes.items() if name is not None}
    monkeypatch.setattr(xxhash, "xxh3_128", read_again)
    data = run_data(run, Course(run, Ledger(run.seed), Progress()))
    assert {name: data.record(name).digest for name in expected} == expected


def test_a_digest_that_may_not_hold_is_found_anew(run: RunConfig) -> None:
    prefixes = [entry.prefix for entry in run.data.blend]
    assert checked_digests(run.run_dir, prefixes) == {}, "nothing was checked yet"
    check(run)
    assert checked_digests(run.run_dir, prefixes) == {prefix: digest(prefix) for prefix in prefixes}
    write_token_dataset(prefixes[1], seed=77, documents=9)
    assert list(checked_digests(run.run_dir, prefixes)) == prefixes[:1], "the other one was written again"
    data = run_data(run, Course(run, Ledger(run.seed), Progress()))
    assert data.record("small").digest == digest(prefixes[1])
    (run.run_dir / STAMP_FILE).write_text('{"format": "ano')
    assert checked_digests(run.run_dir, prefixes) == {}


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_what_is_kept_is_built_ahead_and_nothing_else(
    run: RunConfig, packing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_cache, "IN_MEMORY", 50)
    run = run.model_copy(update={"data": run.data.model_copy(update={"packing": packing})})
    course = Course(run, Ledger(run.seed), Progress())
    plan = course.next_step()
    assert plan is not None
    course.enter(plan)
    data, read = run_data(run, course), []
    spans = type(data.index(0, "large")).spans
    monkeypatch.setattr(
        "megatron_native.data.sequence_index.SequenceIndex.spans",
        lambda index, n: read.append(index.dataset.prefix.name) or spans(index, n),
    )
    warm_up(data, plan.samples)
    assert {data.locate(sample).dataset for sample in plan.samples} == {"large", "small"}
    assert set(read) == {"large"}
    kept = list((run.run_dir / "index_cache").iterdir())
    assert kept, "the orders of the large one are on the disk"
    data = run_data(run, course)
    for sample in plan.samples:
        data.spans(sample)
    assert sorted(kept) == sorted((run.run_dir / "index_cache").iterdir()), "training finds them all"
