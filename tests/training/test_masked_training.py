"""Conversations through the real model: prompts teach nothing, packing changes nothing, answers are what is measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.data.indexed import IndexedTokens
from megatron_native.posttraining.encode_conversations import PrepareSettings
from megatron_native.posttraining.prepare import prepare
from tests.distributed import run_jobs
from tests.tiny_models import VOCAB_SIZE, make_tiny_model
from tests.training.conftest import run_config
from tests.training.masked_worker import SEQ_LENGTH

CHATS = [
    [("ما لغتنا؟", "اللغة العربية.")],
    [("أين ذهب الولد؟", "إلى المدرسة."), ("ومتى؟", "في الصباح.")],
    [("The fox?", "Quick and brown.")],
    [("من معه؟", "أخته.")],
    [("Who learns?", "Models do."), ("From what?", "Text.")],
    [("قل نعم", "نعم")],
]
TP, PP = "tensor_model_parallel_size", "pipeline_model_parallel_size"
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "TP2 with sequence parallel": (2, {TP: 2, "sequence_parallel": True}),
    "PP2": (2, {PP: 2}),
}


def write_chats(path: Path, name: str, copies: int = 1) -> Path:
    records = [
        {"id": f"{name}{copy}/{number}", "messages": [
            {"role": role, "content": content} for pair in chat for role, content in zip(("user", "assistant"), pair)
        ]}
        for copy in range(copies) for number, chat in enumerate(CHATS)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "hf", "llama3.1")


@pytest.fixture(scope="module")
def checkpoint(model: Path) -> Path:
    import_hf(model, model.parent / "imported", reference_logits=False)
    return model.parent / "imported"


@pytest.fixture(scope="module")
def chats(model: Path) -> Path:
    """The masked dataset of `CHATS`."""
    source = write_chats(model.parent / "chats.jsonl", "a")
    settings = PrepareSettings(model, SEQ_LENGTH, template="chatml")
    made = prepare([str(source)], model.parent / "chats", settings, say=lambda line: None)
    assert made.manifest["counts"]["kept"] == len(CHATS), made.summary()
    return made.prefix


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, chats: Path) -> dict[str, Any]:
    """What `masked_worker` found in every layout."""
    folder = tmp_path_factory.mktemp("masked")
    jobs: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    for name, (world_size, parallel) in LAYOUTS.items():
        config = run_config(folder / name, checkpoint, chats, data={"seq_length": SEQ_LENGTH}, parallel=parallel)
        job = {"config": config, "prefix": str(chats), "vocab_size": VOCAB_SIZE, "output": str(folder / f"{name}.json")}
        jobs[world_size].append(job)
    for world_size, group in jobs.items():
        run_jobs(folder, world_size, group, module="tests.training.masked_worker")
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in LAYOUTS}


def by_transformers(model: Path, prefix: Path) -> tuple[float, int]:
    """Nats of the learned labels, conversation by conversation, and how many labels that are."""
    hf, dataset = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), IndexedTokens(prefix)
    nats, count = 0.0, 0
    for number in range(dataset.document_count):
        start, length = dataset.document_place(number)
        ids = torch.from_numpy(dataset.read(start, length).astype("int64"))
        with torch.no_grad():
            log_probabilities = hf(input_ids=ids[None]).logits[0].double().log_softmax(-1)
        for place in (dataset.read_learned(start, length) == 1).nonzero()[0]:
            nats -= float(log_probabilities[place - 1, ids[place]])
            count += 1
    return nats, count


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_is_that_of_the_answers_by_transformers(
    found: dict[str, Any], model: Path, chats: Path, layout: str
) -> None:
    nats, count = by_transformers(model, chats)
    assert found[layout]["packed"]["tokens"] == count
    assert found[layout]["packed"]["loss"] == pytest.approx(nats / count, rel=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_packed_and_single_give_the_same_loss_and_gradients(found: dict[str, Any], layout: str) -> None:
    packed, single = found[layout]["packed"], found[layout]["single"]
    assert single["sequences"] == len(CHATS) and packed["sequences"] < len(CHATS)
    assert single["tokens"] == packed["tokens"]
    assert single["loss"] == pytest.approx(packed["loss"], rel=1e-6)
    assert single["norm"] == pytest.approx(packed["norm"], rel=1e-5)
    assert single["gradients differ by"] < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_of_prompts_contribute_nothing(found: dict[str, Any], layout: str) -> None:
    packed, perturbed = found[layout]["packed"], found[layout]["prompts perturbed"]
    assert perturbed["loss"] == packed["loss"]
    assert perturbed["gradients differ by"] == 0.0
    assert abs(found[layout]["answers perturbed"]["loss"] - packed["loss"]) > 0.1
    assert found[layout]["answers perturbed"]["gradients differ by"] > 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conversations_of_a_sequence_do_not_see_each_other(found: dict[str, Any], layout: str) -> None:
    moved = found[layout]["influence"]
    assert moved["documents"] >= 3
    assert moved["own"] > 0.1
    assert moved["others"] == 0.0


def test_a_mixture_is_trained_on_and_held_out_answers_are_measured(
    tmp_path: Path, model: Path, checkpoint: Path, chats: Path, token_dataset: Path
) -> None:
    settings = PrepareSettings(model, SEQ_LENGTH, template="chatml", learn="last")
    source = write_chats(tmp_path / "more.jsonl", "b", copies=3)
    more = prepare([str(source)], tmp_path / "more", settings, say=lambda line: None).prefix
    blend = [{"prefix": str(chats), "weight": 2}, {"prefix": str(more)}, {"prefix": str(token_dataset)}]
    config = run_config(
        tmp_path / "run", checkpoint, chats, training={"steps": 3}, optimizer={"warmup_steps": 1},
        data={"seq_length": SEQ_LENGTH, "packing": "best_fit", "blend": blend},
        evaluation={"heldout": [{"name": "chats", "path": str(chats), "kind": "conversations"}], "micro_batch_size": 2},
    )  # fmt: skip
    config["data"]["blend"] = blend
    run_jobs(tmp_path, 1, [{"train": config}])
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    measured = [record["heldout"]["chats"] for record in records if "heldout" in record]
    nats, count = by_transformers(model, chats)
    answers = sum(len(answer.encode()) for chat in CHATS for _, answer in chat)
    assert (measured[0]["tokens"], measured[0]["text_bytes"]) == (count, answers)
    assert measured[0]["loss"] == pytest.approx(nats / count, rel=1e-5)
    assert measured[0]["bits_per_byte"] == pytest.approx(nats / math.log(2) / answers, rel=1e-5)
    assert measured[-1]["loss"] < measured[0]["loss"]
