"""Held-out bits per byte, against transformers document by document."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from megatron_native.checkpoint.import_hf import import_hf
from tests.distributed import run_jobs
from tests.tiny_models import make_tiny_model
from tests.training.conftest import run_config

TEXTS = [
    "تشرق الشمس كل صباح فتوقظ الطيور، ويبدأ الناس يومهم بالعمل والأمل.",
    "The library opens at nine; readers come early to find a quiet place.",
    "قرأ الطالب فصلا من كتاب التاريخ، ثم كتب ملخصا قصيرا عنه في دفتره الجديد قبل أن يعود إلى البيت.",
]


@pytest.mark.parametrize("pipeline", [1, 2])
def test_bits_per_byte_equal_transformers(tmp_path: Path, token_dataset: Path, pipeline: int) -> None:
    hf = make_tiny_model(tmp_path / "hf", "llama3.1")
    import_hf(hf, tmp_path / "imported")
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    config = run_config(
        tmp_path / "run", tmp_path / "imported", token_dataset,
        data={"seq_length": 256}, training={"steps": 1}, optimizer={"warmup_steps": 0},
        parallel={"pipeline_model_parallel_size": pipeline},
        evaluation={"heldout": [{"name": "mixed", "path": str(heldout)}], "micro_batch_size": 2},
    )  # fmt: skip
    run_jobs(tmp_path, pipeline, [{"train": config}])
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    measured = next(record for record in records if "heldout" in record)["heldout"]["mixed"]

    model = AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(hf)
    nats, tokens = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert len(ids) < 256, "one window a document"
        inputs = torch.tensor([[tokenizer.eos_token_id, *ids]])
        with torch.no_grad():
            log_probabilities = model(input_ids=inputs).logits[0].double().log_softmax(-1)
        nats -= sum(float(log_probabilities[place, token]) for place, token in enumerate(ids))
        tokens += len(ids)
    text_bytes = sum(len(text.encode()) for text in TEXTS)

    assert measured["tokens"] == tokens
    assert measured["text_bytes"] == text_bytes
    assert measured["bits_per_byte"] == pytest.approx(nats / math.log(2) / text_bytes, rel=1e-5)
    assert measured["loss"] == pytest.approx(nats / tokens, rel=1e-5)


def test_evaluating_leaves_training_as_it_was(tmp_path: Path, token_dataset: Path) -> None:
    hf = make_tiny_model(tmp_path / "hf", "llama2")
    import_hf(hf, tmp_path / "imported")
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(json.dumps({"id": "1", "text": TEXTS[0]}) + "\n")
    jobs = []
    for name, evaluation in (("with", {"heldout": [{"name": "a", "path": str(heldout)}], "interval": 1}), ("without", {})):
        config = run_config(
            tmp_path / name, tmp_path / "imported", token_dataset, training={"steps": 4}, evaluation=evaluation,
            optimizer={"warmup_steps": 1},
        )  # fmt: skip
        jobs.append({"train": config})
    run_jobs(tmp_path, 1, jobs)
    losses = [
        [record["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
         if "loss" in (record := json.loads(line))]
        for name in ("with", "without")
    ]  # fmt: skip
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]


def test_weights_are_whole_where_their_gathering_overlaps(tmp_path: Path, token_dataset: Path) -> None:
    """Two processes that update halves and gather in the next forward pass evaluate what one process does."""
    import_hf(make_tiny_model(tmp_path / "hf", "llama3.1"), tmp_path / "imported")
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(json.dumps({"id": "1", "text": TEXTS[0]}) + "\n")
    figures = []
    for processes, parallel in ((1, {}), (2, {"overlap_grad_reduce": True, "overlap_param_gather": True})):
        config = run_config(
            tmp_path / str(processes), tmp_path / "imported", token_dataset, training={"steps": 4}, parallel=parallel,
            optimizer={"warmup_steps": 1, "adam_eps": 1e-5},
            evaluation={"heldout": [{"name": "a", "path": str(heldout)}], "interval": 1},
        )  # fmt: skip
        run_jobs(tmp_path, processes, [{"train": config}])
        records = [json.loads(line) for line in (tmp_path / str(processes) / "metrics.jsonl").read_text().splitlines()]
        figures.append([record["heldout"]["a"]["loss"] for record in records if "heldout" in record])
    one, two = figures
    assert len(one) == 5
    assert min(abs(before - after) for before, after in itertools.pairwise(one)) > 1e-3, "every update shows"
    assert two == pytest.approx(one, abs=1e-5)
