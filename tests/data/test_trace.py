"""Trace against a brute-force replay, over phases, a change of blend, a batch ramp, another packing and passed-over data."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import zstandard

from megatron_native import manifest
from megatron_native.cli import main
from megatron_native.config.run import RunConfig
from megatron_native.data.indexed import IndexedTokens, IndexedWriter
from megatron_native.data.ledger import DatasetRecord, Ledger
from megatron_native.data.run_data import RunData
from megatron_native.data.trace import Trace, lineage
from megatron_native.errors import UserError
from megatron_native.training.course import Course, Progress

DOCUMENTS = {"a": 23, "b": 9, "tiny": 1}


def config(prefixes: dict[str, Path], run_dir: Path, weights: dict[str, float], phases: list[dict[str, Any]]) -> RunConfig:
    blend = [{"name": name, "prefix": prefixes[name], "weight": weight} for name, weight in weights.items()]
    return RunConfig.model_validate({
        "run_dir": run_dir, "model": {"hf_config": "x"}, "data": {"seq_length": 8, "blend": blend},
        "training": {"global_batch_size": 4}, "phases": phases,
    })  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as training leaves it: ledger, metrics, checkpoints; its steps planned and never trained."""
    folder = tmp_path_factory.mktemp("trace")
    prefixes, start = {}, 0
    for name, documents in DOCUMENTS.items():
        prefixes[name] = folder / name
        ids = zstandard.ZstdCompressor().compress(b"".join(orjson.dumps(f"{name}/{d}") + b"\n" for d in range(documents)))
        with IndexedWriter(folder / name, np.int32) as writer:
            for document in range(documents):
                length = 3 + document * 5 % 17
                writer.add_document(np.arange(start, start + length))
                start += length
        (folder / f"{name}.ids.jsonl.zst").write_bytes(ids)
    run_dir = folder / "run"
    ledger, progress = Ledger(seed=1234), Progress()
    phases = [
        {"name": "one", "tokens": 420, "batch_ramp": {"start": 2, "increment": 1, "tokens": 100}},
        {"name": "two", "steps": 6, "seq_length": 12, "packing": "best_fit", "global_batch_size": 3},
        {"name": "three", "steps": 8},
    ]
    first = config(prefixes, run_dir, {"a": 3, "b": 1, "tiny": 0.3}, phases)
    for stop, weights in ((7, {"a": 3, "b": 1, "tiny": 0.3}), (19, {"b": 2, "a": 1}), (None, {"a": 1, "b": 1, "tiny": 0})):
        course = Course(config(prefixes, run_dir, weights, phases), ledger, progress)
        while (plan := course.next_step()) is not None and (stop is None or plan.step <= stop):
            course.enter(plan)
            course.done(plan)
        if stop == 7:
            course.pass_over(progress.consumed_samples + 5, "loss spike")
    ledger.not_learned.append(4)
    for name in first.data.blend:
        data = IndexedTokens(name.prefix)
        record = DatasetRecord(str(name.prefix), data.digest(), data.document_count, data.indexed_tokens)
        ledger.record_dataset(name.name, record)
    ledger.save(run_dir)
    (run_dir / "metrics.jsonl").write_text(json.dumps({"step": progress.step, "loss": 1.0}) + "\n")
    for step in (10, 20):
        (run_dir / "checkpoints" / f"step_{step:08d}").mkdir(parents=True)
    return run_dir


def replay(run_dir: Path) -> list[tuple[int, str, int, int, int, int]]:
    """(step, dataset, document, start, stop, epoch) of everything read, by going through every step."""
    trace = Trace(run_dir)
    data = RunData(trace.ledger, trace.prefixes)
    found = []
    for step in range(1, trace.last_step + 1):
        for sample in trace.ledger.samples_of(step):
            dataset, spans = data.spans(sample)
            found += [(step, dataset, *span) for span in spans]
    return found


def test_the_run_is_one_worth_tracing(run: Path) -> None:
    ledger = Trace(run).ledger
    assert len({segment.phase for segment in ledger.segments}) == 3
    assert len(ledger.segments) >= 5 and len(ledger.stretches) >= 5 and len(ledger.passed_over) == 1
    assert {span[-1] for span in replay(run)} >= {0, 1, 2}, "several epochs"


def test_a_step_leads_to_its_documents(run: Path) -> None:
    trace, everything = Trace(run), replay(run)
    for step in range(1, trace.last_step + 1):
        pieces = [(p.step, p.dataset, p.document, p.start, p.stop, p.epoch) for p in trace.step(step)]
        assert pieces == [entry for entry in everything if entry[0] == step]


def test_a_document_leads_to_every_step_that_saw_it(run: Path) -> None:
    trace, everything = Trace(run), replay(run)
    for dataset, documents in DOCUMENTS.items():
        for document in range(documents):
            expected = sorted({(s, e) for s, d, n, _, _, e in everything if (d, n) == (dataset, document)})
            found = [(sighting.step, sighting.epoch) for sighting in trace.document(dataset, document)]
            assert found == expected, (dataset, document)
            assert all(sighting.learned == (sighting.step != 4) for sighting in trace.document(dataset, document))


def test_consumption_is_what_was_read(run: Path) -> None:
    trace, everything = Trace(run), replay(run)
    assert sum(read["sequences"] for read in trace.consumption().values()) == trace.ledger.samples_of(trace.last_step).stop
    for dataset in DOCUMENTS:
        tokens = sum(stop - start for _, name, _, start, stop, _ in everything if name == dataset)
        passed_over = 5 * 12  # at most, of all datasets together
        assert 0 <= trace.consumption()[dataset]["tokens"] - tokens <= passed_over + 12 * 18


def test_the_command_answers_both_ways(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "--run", str(run), "--step", "3", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["phase"] == "one" and answer["pieces"]
    piece = answer["pieces"][0]
    assert piece["id"] == f"{piece['dataset']}/{piece['document']}"
    assert main(["trace", "--run", str(run), "--dataset", piece["dataset"], "--document", piece["id"], "--json"]) == 0
    back = json.loads(capsys.readouterr().out)
    assert 3 in [sighting["step"] for sighting in back["steps"]]
    assert back["checkpoints"] == ["step_00000010", "step_00000020"]
    assert main(["trace", "--run", str(run)]) == 0
    assert "epochs" in capsys.readouterr().out
    assert main(["trace", "--run", str(run), "--step", "4"]) == 0
    assert "its update was skipped" in capsys.readouterr().out


def test_questions_that_have_no_answer_say_why(run: Path, tmp_path: Path) -> None:
    trace = Trace(run)
    with pytest.raises(UserError, match=r"has done \d+ steps"):
        trace.step(1000)
    with pytest.raises(UserError, match="no dataset 'news'; it has read a, b, tiny"):
        trace.document("news", 0)
    with pytest.raises(UserError, match="documents 0 to 22"):
        trace.document("a", 23)
    with pytest.raises(UserError, match=r"not what the run read as 'a'.*--moved a=PREFIX"):
        Trace(run, {"a": trace.prefixes["b"]})


def test_a_ledger_is_small_whatever_was_read(run: Path) -> None:
    assert (run / "ledger" / "ledger.json").stat().st_size < 20_000


def write_manifest(path: Path, stage: str, *inputs: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"path": os.path.relpath(entry, path.parent)} for entry in inputs]
    path.write_text(json.dumps({"format": manifest.FORMAT, "stage": stage, "inputs": entries}))
    return path


def test_lineage_goes_through_split_folders_and_merged_datasets_to_the_dump(tmp_path: Path) -> None:
    dump = tmp_path / "dump" / "news.jsonl"
    cleaned = write_manifest(tmp_path / "cleaned" / "manifest.json", "clean", dump)
    deduped = write_manifest(tmp_path / "deduped" / "manifest.json", "dedup", tmp_path / "cleaned" / "part-00000.jsonl.zst")
    shards = [tmp_path / "deduped" / "ar" / f"part-0000{number}.jsonl.zst" for number in (0, 1)]
    tokens = [
        write_manifest(tmp_path / "tokens" / f"v1.{name}.manifest.json", "tokenize", shard)
        for name, shard in zip(("one", "two"), shards)
    ]
    parts = [tmp_path / "tokens" / f"v1.{name}.{suffix}" for name in ("one", "two") for suffix in ("bin", "idx")]
    merged = write_manifest(tmp_path / "merged" / "all.manifest.json", "merge", *parts)
    write_manifest(tmp_path / "unrelated.manifest.json", "other")
    dump.parent.mkdir()
    (dump.parent / "manifest.json").write_text('[{"name": "a stranger\'s"}]')
    chain = lineage(tmp_path / "merged" / "all")
    expected = [(merged, "merge"), (tokens[0], "tokenize"), (tokens[1], "tokenize"), (deduped, "dedup"), (cleaned, "clean")]
    assert [(entry["manifest"], entry["stage"]) for entry in chain] == [(str(path), stage) for path, stage in expected]
    assert chain[0]["inputs"] == [f"../tokens/v1.{name}.{suffix}" for name in ("one", "two") for suffix in ("bin", "idx")]
    assert chain[-1]["inputs"] == ["../dump/news.jsonl"]
    assert lineage(tmp_path / "nothing") == []
