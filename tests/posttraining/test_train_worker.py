"""`train-worker` on a tiny model: it learns to undo a corruption, and its folder tells `rewrite` how to ask it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_native.alignment.backends.backend import Request
from megatron_native.alignment.backends.local_transformers import TransformersBackend
from megatron_native.alignment.backends.worker import Worker
from megatron_native.alignment.conduct import load_conduct
from megatron_native.alignment.prompts import Message
from megatron_native.posttraining.chat_encoding import ChatEncoder
from tests.posttraining.test_finetune import finish, start
from tests.posttraining.test_worker_seeds import write_seeds
from tests.tiny_models import make_tiny_model

PLACES = ("البيت", "السوق", "البحر", "الجبل", "المسجد", "النهر", "الحقل", "المتحف", "الميناء", "المطار")
RUN = (
    "training.precision=fp32", "optimizer.lr=2e-3", "logging.tensorboard=false", "platform=cpu",
    "training.global_batch_size=2", "optimizer.adam_eps=1e-5",
)  # fmt: skip


def words(folder: Path, *more: str) -> list[str]:
    return [
        "--seeds", str(folder / "seeds.jsonl"), "--base", str(folder / "hf"), "--output", str(folder / "worker"),
        "--template", "chatml", "--seq-length", "256", "--epochs", "15", "--export", "last",
        "--heldout-share", "0.1", "--patience", "0", "--evaluations-per-epoch", "0.2", *more, *RUN,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worker")
    make_tiny_model(folder / "hf", "tied-llama")
    write_seeds(folder / "seeds.jsonl", [(f"ذهب الى {place}", f"ذهب إلى {place}.") for place in PLACES])
    said, _ = finish(start(words(folder, "--json"), "train-worker"))
    (folder / "result.json").write_text(said, encoding="utf-8")
    return folder


def test_the_held_out_loss_falls(folder: Path) -> None:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["seeds"]["read"] == len(PLACES) == result["seeds"]["learned"] + result["seeds"]["held_out"]
    assert result["seeds"]["held_out"] == result["account"]["held_out"] > 0
    assert result["after"] < 0.5 * result["before"]


def test_the_folder_says_how_the_worker_is_asked(folder: Path) -> None:
    general = load_conduct("general")
    assert Worker(folder / "worker").prompt == {
        "conduct": {"name": "general", "hash": general.hash}, "form": "full", "language": "ar", "detail": "brief",
        "context_tokens": 0,
    }  # fmt: skip


def learned_pairs(folder: Path) -> list[list[Message]]:
    train = folder / "worker.run" / "seeds" / "train.jsonl"
    return [json.loads(line)["messages"] for line in train.read_text(encoding="utf-8").splitlines()]


def test_it_is_asked_with_the_ids_that_it_learned(folder: Path) -> None:
    encoder, worker = ChatEncoder(folder / "worker"), Worker(folder / "worker")
    for messages in learned_pairs(folder):
        whole = encoder.encode(messages)
        assert worker.chat_ids(messages[:-1]) == whole.ids[: int(whole.learned.argmax())].tolist()


def test_a_backend_of_rewrite_gets_the_rewrites_that_it_learned(folder: Path) -> None:
    backend = TransformersBackend(Worker(folder / "worker"))
    asked = learned_pairs(folder)[:3]
    requests = [Request(str(number), messages[:-1], 200) for number, messages in enumerate(asked)]
    answers = {answer.key: answer for answer in backend.answers(requests)}
    for number, messages in enumerate(asked):
        answer = answers[str(number)]
        assert (answer.finish, answer.text) == ("stop", messages[-1]["content"])


def test_other_conversations_are_finetunes_business(folder: Path) -> None:
    path = folder / "more.yaml"
    path.write_text("finetune: {data: chats.jsonl}\n")
    _, complained = finish(start(words(folder, "--config", str(path)), "train-worker"), 2)
    assert "megatron-native finetune" in complained
