"""Phases, batches, learning rates and the ledger of a run, planned without training it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_native.config.run import RunConfig
from megatron_native.data.indexed import IndexedWriter
from megatron_native.data.ledger import DatasetRecord, Ledger, read_ledger
from megatron_native.data.run_data import RunData
from megatron_native.errors import UserError
from megatron_native.training.course import Course, Progress, StepPlan


def config(**changes: Any) -> RunConfig:
    base: dict[str, Any] = {
        "run_dir": "run",
        "model": {"hf_config": "x"},
        "data": {"seq_length": 8, "blend": [{"name": "a", "prefix": "a", "weight": 3}, {"name": "b", "prefix": "b"}]},
        "training": {"global_batch_size": 4},
        "optimizer": {"lr": 1.0, "min_lr": 0.0, "schedule": "linear"},
    }
    for name, value in changes.items():
        base[name] = {**base[name], **value} if isinstance(value, dict) else value
    return RunConfig.model_validate(base)


class Walk:
    """A run that only plans: the steps it took, its ledger and where it is."""

    def __init__(self) -> None:
        self.ledger, self.progress, self.steps = Ledger(seed=1234), Progress(), list[StepPlan]()

    def go(self, run: RunConfig, steps: int | None = None) -> list[StepPlan]:
        course = Course(run, self.ledger, self.progress)
        taken = []
        while (steps is None or len(taken) < steps) and (plan := course.next_step()) is not None:
            course.enter(plan)
            course.done(plan)
            taken.append(plan)
        self.steps += taken
        return taken


def test_a_run_without_phases_is_one() -> None:
    walk = Walk()
    walk.go(config(training={"steps": 4}))
    assert [(p.step, p.first_sample, p.batch_size, p.phase.name) for p in walk.steps] == [
        (1, 0, 4, "main"), (2, 4, 4, "main"), (3, 8, 4, "main"), (4, 12, 4, "main"),
    ]  # fmt: skip
    assert [p.learning_rate for p in walk.steps] == pytest.approx([0.75, 0.5, 0.25, 0.0])
    assert walk.progress.consumed_tokens == 4 * 4 * 8


def test_phases_follow_each_other_with_their_own_batches_lengths_and_rates() -> None:
    run = config(phases=[
        {"name": "first", "tokens": 65},  # 2.03 steps of 32 tokens: 3
        {"name": "long", "steps": 2, "seq_length": 16, "global_batch_size": 2, "lr": 0.5, "schedule": "constant"},
        {"name": "last", "tokens": 32},
    ])  # fmt: skip
    walk = Walk()
    walk.go(run)
    assert [(p.phase.name, p.batch_size, p.phase.seq_length, p.begins_phase) for p in walk.steps] == [
        ("first", 4, 8, True), ("first", 4, 8, False), ("first", 4, 8, False),
        ("long", 2, 16, True), ("long", 2, 16, False), ("last", 4, 8, True),
    ]  # fmt: skip
    # the run's schedule spans the four steps of the first and the last phase
    assert [p.learning_rate for p in walk.steps] == pytest.approx([0.75, 0.5, 0.25, 0.5, 0.5, 0.0])
    assert [segment.phase for segment in walk.ledger.segments] == ["first", "long", "last"]
    assert [segment.first_sample for segment in walk.ledger.segments] == [0, 12, 16]


def test_a_batch_grows_by_tokens() -> None:
    run = config(phases=[
        {"name": "p", "tokens": 400, "global_batch_size": 8, "batch_ramp": {"start": 2, "increment": 3, "tokens": 100}}
    ])  # fmt: skip
    walk = Walk()
    walk.go(run)
    # sizes 2, 5, 8 at 0, 50 and 100 tokens; 16, 40, 64 tokens a step
    assert [p.batch_size for p in walk.steps] == [2, 2, 2, 2, 5] + [8] * 5
    assert sum(p.tokens for p in walk.steps[:-1]) < 400 <= sum(p.tokens for p in walk.steps)
    assert Course(run, Ledger(1234), Progress()).total_steps == len(walk.steps)
    assert [walk.ledger.samples_of(p.step) for p in walk.steps] == [p.samples for p in walk.steps]
    for p in walk.steps:
        assert {walk.ledger.step_of(sample) for sample in p.samples} == {p.step}


def test_stopping_and_going_on_anywhere_is_the_same_run() -> None:
    run = config(phases=[
        {"name": "p", "tokens": 400, "global_batch_size": 8, "batch_ramp": {"start": 2, "increment": 2, "tokens": 150}},
        {"name": "q", "steps": 3, "warmup_steps": 1, "seq_length": 4},
    ])  # fmt: skip
    whole = Walk()
    whole.go(run)
    for stop in range(1, len(whole.steps)):
        parts = Walk()
        parts.go(run, stop)
        parts.ledger = Ledger.loads(parts.ledger.dumps(), "test")
        parts.progress = Progress(**parts.progress.state())
        parts.go(run)
        assert parts.steps == whole.steps
        assert parts.ledger == whole.ledger


def test_a_changed_blend_begins_a_segment_where_the_datasets_stood() -> None:
    walk = Walk()
    walk.go(config(training={"steps": 10}), 4)
    walk.go(config(training={"steps": 10}, data={"blend": [{"name": "b", "prefix": "b"}, {"name": "c", "prefix": "c"}]}))
    second = walk.ledger.segments[1]
    assert len(walk.ledger.segments) == 2
    assert second.first_sample == 16 and second.first_step == 5
    assert {name: [tuple(kind) for kind in kinds] for name, kinds in second.taken.items()} == {
        "a": [("concatenate", 8, 12)], "b": [("concatenate", 8, 4)],
    }  # fmt: skip
    assert len(walk.steps) == 10


def test_unchanged_settings_begin_nothing() -> None:
    walk = Walk()
    for _ in range(3):
        walk.go(config(training={"steps": 9}), 3)
    assert len(walk.ledger.segments) == len(walk.ledger.stretches) == 1


def test_samples_passed_over_belong_to_no_step() -> None:
    walk, run = Walk(), config(training={"steps": 6})
    walk.go(run, 2)
    Course(run, walk.ledger, walk.progress).pass_over(20, "loss spike")
    walk.go(run)
    assert [p.first_sample for p in walk.steps] == [0, 4, 20, 24, 28, 32]
    assert [walk.ledger.step_of(sample) for sample in (7, 8, 19, 20, 35)] == [2, None, None, 3, 6]
    assert walk.ledger.passed_over[0].reason == "loss spike"


def test_weights_changed_by_a_monitor_last_over_a_resume() -> None:
    walk, run = Walk(), config(training={"steps": 8})
    walk.go(run, 2)
    Course(run, walk.ledger, walk.progress).reweight({"a": 1.0, "b": 1.0})
    walk.go(run, 2)
    walk.go(run)
    assert [segment.weights for segment in walk.ledger.segments] == [{"a": 3, "b": 1}, {"a": 1, "b": 1}]
    assert [segment.configured for segment in walk.ledger.segments] == [{"a": 3, "b": 1}] * 2
    assert len(walk.steps) == 8


def test_a_phase_that_is_under_way_keeps_its_name() -> None:
    walk = Walk()
    walk.go(config(phases=[{"name": "one", "steps": 4}]), 2)
    with pytest.raises(UserError, match=r"phase 'one' \(step 2\), and the configuration has the phases other only"):
        walk.go(config(phases=[{"name": "other", "steps": 4}]))


def test_a_phase_under_way_may_become_shorter_or_longer() -> None:
    walk = Walk()
    walk.go(config(phases=[{"name": "one", "steps": 4}, {"name": "two", "steps": 1}]), 2)
    assert [p.phase.name for p in walk.go(config(phases=[{"name": "one", "steps": 3}, {"name": "two", "steps": 2}]))] == [
        "one", "two", "two",
    ]  # fmt: skip
    assert [p.phase.name for p in walk.go(config(phases=[{"name": "one", "steps": 3}, {"name": "two", "steps": 3}]))] == ["two"]


def test_another_seed_is_refused() -> None:
    walk = Walk()
    walk.go(config(training={"steps": 4}), 2)
    with pytest.raises(UserError, match="seed is 7, and the run began with 1234"):
        walk.go(config(training={"steps": 4}, seed=7))


def test_another_dataset_under_the_same_name_is_refused() -> None:
    ledger = Ledger(1)
    ledger.record_dataset("a", DatasetRecord("x/a", "d1" * 16, 5, 50))
    with pytest.raises(UserError, match="'a' is another one than the run has read so far"):
        ledger.record_dataset("a", DatasetRecord("y/a", "d2" * 16, 6, 50))


def test_a_ledger_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no ledger"):
        read_ledger(tmp_path)
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "ledger.json").write_text('{"format": "other"}')
    with pytest.raises(UserError, match="is not a ledger of a run"):
        read_ledger(tmp_path)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three datasets of 40, 25 and 60 documents, ids all different."""
    folder, start = tmp_path_factory.mktemp("data"), 0
    prefixes = {}
    for name, documents in (("a", 40), ("b", 25), ("c", 60)):
        prefixes[name] = folder / name
        with IndexedWriter(folder / name, np.int32) as writer:
            for document in range(documents):
                length = 3 + document * 7 % 19
                writer.add_document(np.arange(start, start + length))
                start += length
    return prefixes


def test_after_a_change_of_everything_no_document_comes_twice_and_shares_are_the_weights(datasets: dict[str, Path]) -> None:
    walk = Walk()
    walk.go(config(phases=[{"name": "p", "steps": 40}]), 9)
    blend = [{"name": "a", "prefix": "a", "weight": 1}, {"name": "c", "prefix": "c", "weight": 4}]
    changed = config(
        data={"blend": blend, "seq_length": 12, "packing": "best_fit"}, training={"global_batch_size": 6},
        phases=[{"name": "p", "steps": 40}],
    )  # fmt: skip
    walk.go(changed, 7)
    data = RunData(walk.ledger, datasets)
    seen: dict[str, list[tuple[int, int, int]]] = {}
    for plan in walk.steps:
        for number in plan.samples:
            name, spans = data.spans(number)
            seen.setdefault(name, []).extend((s.epoch, s.document, at) for s in spans for at in range(s.start, s.stop))
    for name, tokens in seen.items():
        assert len(set(tokens)) == len(tokens)
        complete = {token[1:] for token in tokens if token[0] == 0}
        if any(token[0] == 1 for token in tokens):
            assert len(complete) == sum(data.dataset(name).document_lengths()), "the second reading comes after the first"
    longer = changed.model_copy(update={"phases": [changed.phases[0].model_copy(update={"steps": 400})]})
    walk.go(longer)
    names = [data.locate(number).dataset for plan in walk.steps[9:] for number in plan.samples]
    assert names.count("c") / len(names) == pytest.approx(0.8, abs=0.01)


def test_a_rotary_base_stays_for_the_phases_after() -> None:
    phases = [{"name": "one", "steps": 1}, {"name": "two", "steps": 1, "rotary_base": 5e5}, {"name": "three", "steps": 1}]
    walk = Walk()
    walk.go(config(phases=phases))
    assert [p.phase.rotary_base for p in walk.steps] == [None, 5e5, 5e5]


def test_the_tokens_of_a_phase_are_those_of_its_steps() -> None:
    ramp = {"start": 2, "increment": 3, "tokens": 100}
    for phase in ({"steps": 7}, {"steps": 9, "global_batch_size": 8, "batch_ramp": ramp}):
        walk = Walk()
        walk.go(config(phases=[{"name": "p", **phase}]))
        assert walk.steps[0].phase.total_tokens == sum(step.tokens for step in walk.steps)
