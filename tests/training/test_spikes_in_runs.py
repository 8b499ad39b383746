"""Real runs that meet a loss spike, a number that is none, a signal, a damaged checkpoint or a rule about held-out sets.

What is skipped, what is rolled back, what the ledger and the incidents say.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.data.ledger import read_ledger
from megatron_native.data.trace import Trace
from megatron_native.training.line_file import read_json_lines
from megatron_native.training.retention import checkpoints_of
from tests.distributed import run_jobs
from tests.tiny_models import TEXTS, make_tiny_model
from tests.training.conftest import run_config, write_token_dataset

SPIKE = {"window": 4, "deviations": 8.0, "minimum_increase": 3.0, "budget": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, token_dataset: Path) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    import_hf(make_tiny_model(folder / "hf", "tied-llama"), folder / "imported", reference_logits=False)

    def job(name: str, planted: dict[int, list[Any]], action: str = "none", **faults: Any) -> dict[str, Any]:
        config = run_config(
            folder / name, folder / "imported", token_dataset, training={"steps": 9}, checkpointing={"save_interval": 3},
            faults={"spike": {**SPIKE, "action": action}, **faults}, logging={"norms_interval": 4},
        )  # fmt: skip
        return {"train": config, "planted": {str(step): losses for step, losses in planted.items()}}

    nan = "nan"
    def ruled(action: str, **sections: Any) -> dict[str, Any]:
        """Two datasets, a learning rate at which everything gets worse, and a rule that minds."""
        factors = {"reweight": {"a": 0.0}, "max_times": 1} if action == "reweight" else {}
        rule = {"set": "prose", "max_increase": 0.001, "action": action, **factors}
        evaluation = {"heldout": [{"name": "prose", "path": str(prose)}], "interval": 2, "rules": [rule]}
        config = run_config(
            folder / f"rule {action}", folder / "imported", token_dataset, evaluation=evaluation,
            data={"blend": [{"name": "a", "prefix": str(token_dataset)}, {"name": "b", "prefix": str(other)}]},
            optimizer={"lr": 0.5, "warmup_steps": 0}, training={"steps": 6, "global_batch_size": 8, **sections},
        )  # fmt: skip
        return {"train": config}

    prose, other = folder / "prose.jsonl", write_token_dataset(folder / "other", seed=8)
    prose.write_text(json.dumps({"id": "1", "text": TEXTS[0]}), encoding="utf-8")
    stopped = job("stopped", {}, "warn")
    jobs = [
        job("undisturbed", {}), job("skip", {8: [99.0]}, "skip"), job("rollback", {8: [99.0]}, "rollback"),
        job("stop", {8: [99.0]}, "stop"), job("nan", {5: [nan, nan]}), job("nan once", {4: [nan], 5: [nan]}),
        job("no budget", {5: [nan, nan]}, nonfinite_budget=0),
        {**stopped, "signals": {"5": "SIGTERM"}}, {**stopped, "damaged": True, "signals": {"7": "SIGUSR1"}}, stopped,
        ruled("stop"), ruled("reweight", stop_after=4), ruled("reweight"),
    ]  # fmt: skip
    run_jobs(folder, 1, jobs, module="tests.training.planted_worker")
    return folder


def losses(run: Path) -> dict[int, float]:
    return {int(str(r["step"])): float(str(r["loss"])) for r in read_json_lines(run / "metrics.jsonl") if "loss" in r}


def test_a_skipped_step_is_consumed_and_leaves_no_trace(runs: Path) -> None:
    assert {**losses(runs / "skip"), 8: 0, 9: 0} == {**losses(runs / "undisturbed"), 8: 0, 9: 0}
    ledger = read_ledger(runs / "skip")
    assert ledger.not_learned == [8]
    assert ledger.samples_of(9) == range(64, 72)
    assert not Trace(runs / "skip").document(*a_document_of(runs / "skip", 8))[-1].learned
    assert [event["kind"] for event in read_json_lines(runs / "skip" / "incidents.jsonl")] == ["loss_spike"]


def a_document_of(run: Path, step: int) -> tuple[str, int]:
    trace = Trace(run)
    for piece in trace.step(step):
        if [sighting.step for sighting in trace.document(piece.dataset, piece.document)][-1] == step:
            return piece.dataset, piece.document
    raise AssertionError("every document of the step comes again later")


def test_a_rollback_goes_past_the_data_since_the_checkpoint(runs: Path) -> None:
    run, reference = losses(runs / "rollback"), losses(runs / "undisturbed")
    assert {step: run[step] for step in range(1, 7)} == {step: reference[step] for step in range(1, 7)}
    assert run[7] != reference[7], "other data"
    ledger = read_ledger(runs / "rollback")
    (gap,) = ledger.passed_over
    assert (gap.before_step, gap.first_sample, gap.end_sample) == (7, 48, 64)
    assert [ledger.samples_of(step).start for step in (6, 7, 8, 9)] == [40, 64, 72, 80]
    assert [ledger.step_of(sample) for sample in (47, 48, 63, 64)] == [6, None, None, 7]


def test_a_stop_saves_what_was_before_the_spike(runs: Path) -> None:
    assert (runs / "stop" / "exit_code").read_text() == "1 "
    assert max(losses(runs / "stop")) == 7
    assert (runs / "stop" / "checkpoints" / "step_00000007").is_dir()
    assert (runs / "no budget" / "exit_code").read_text() == "1 "


def test_a_number_that_is_none_is_computed_again_and_then_skipped(runs: Path) -> None:
    assert losses(runs / "nan once") == losses(runs / "undisturbed")
    assert read_ledger(runs / "nan once").not_learned == []
    assert read_ledger(runs / "nan").not_learned == [5]
    (event,) = read_json_lines(runs / "nan" / "incidents.jsonl")
    assert event["step"] == 5 and event["details"]["samples"] == [32, 40]
    assert event["details"]["documents"]["tokens_text_document"], "the batch's documents can be looked at"
    (update,) = [r["updated"] for r in read_json_lines(runs / "nan" / "metrics.jsonl") if r["step"] == 5 and "loss" in r]
    assert update is False


def test_signals_and_a_damaged_checkpoint_are_incidents_and_cost_nothing(runs: Path) -> None:
    run = runs / "stopped"
    first, damaged, second = read_json_lines(run / "incidents.jsonl")
    assert [event["kind"] for event in (first, damaged, second)] == ["stop_requested", "checkpoint_damaged", "stop_requested"]
    assert [event["step"] for event in (first, damaged, second)] == [5, 5, 7]
    assert "SIGTERM came" in first["message"] and "SIGUSR1 came" in second["message"]
    assert "step_00000005.damaged" in damaged["message"] and "Going on from step_00000003" in damaged["message"]
    assert (run / "checkpoints" / "step_00000005.damaged").is_dir() and (run / "checkpoints" / "step_00000007").is_dir()
    assert (run / "exit_code").read_text() == "75 75 0 "
    assert losses(run) == losses(runs / "undisturbed")


def test_a_held_out_set_that_gets_worse_stops_the_run_saved(runs: Path) -> None:
    run = runs / "rule stop"
    (event,) = read_json_lines(run / "incidents.jsonl")
    assert (event["kind"], event["step"]) == ("heldout_rule", 2)
    assert "held-out set 'prose'" in event["message"] and "the run is saved and stops" in event["message"]
    assert (run / "exit_code").read_text() == "1 "
    assert [folder.name for folder in checkpoints_of(run)] == ["step_00000002"]
    assert not (run / "finished.json").exists()


def test_a_held_out_set_that_gets_worse_changes_the_blend_once(runs: Path) -> None:
    run = runs / "rule reweight"
    assert (run / "exit_code").read_text() == "75 0 "
    first, second = read_ledger(run).segments
    assert (first.weights, first.first_step) == ({"a": 1.0, "b": 1.0}, 1)
    assert (second.weights, second.first_step) == ({"a": 0.0, "b": 1.0}, 3)
    assert second.configured == first.weights, "the configuration has not changed"
    read = {step: {piece.dataset for piece in Trace(run).step(step)} for step in range(1, 7)}
    assert read == {1: {"a", "b"}, 2: {"a", "b"}, 3: {"b"}, 4: {"b"}, 5: {"b"}, 6: {"b"}}
    events = read_json_lines(run / "incidents.jsonl")
    assert {event["kind"] for event in events} == {"heldout_rule"}
    assert [("weights change, a × 0 (1 of 1)" in e["message"], "stay as they are" in e["message"]) for e in events] == [
        (True, False), *[(False, True)] * (len(events) - 1),
    ]  # fmt: skip
    assert [event["step"] for event in events][:3] == [2, 4, 6], "what it has done is known after a resume"


def test_norms_are_measured_at_their_interval_and_change_nothing(runs: Path) -> None:
    measured = [r for r in read_json_lines(runs / "undisturbed" / "metrics.jsonl") if "norms" in r]
    assert [r["step"] for r in measured] == [4, 8]
    step = next(r for r in read_json_lines(runs / "undisturbed" / "metrics.jsonl") if r["step"] == 4 and "loss" in r)
    norms = measured[0]["norms"]
    assert norms["gradient"] == pytest.approx(step["grad_norm"], rel=1e-4)
    assert norms["weight"] > 0 and norms["logits"]["rms"] > 0


def test_norms_are_of_the_computation_that_is_learned_from(runs: Path) -> None:
    def norms(name: str) -> dict[int, Any]:
        return {r["step"]: r["norms"] for r in read_json_lines(runs / name / "metrics.jsonl") if "norms" in r}

    assert norms("nan once") == norms("undisturbed"), "step 4 was computed twice, and its logits are counted once"
    assert norms("skip") == {4: norms("undisturbed")[4]}, "nothing is learned from step 8"
