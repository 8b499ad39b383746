"""`train-worker` given again, without a training: what it began with stays; other seeds or another prompt are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_native.alignment.conduct import load_conduct
from megatron_native.errors import UserError
from megatron_native.posttraining.finetune_settings import FinetuneSettings
from megatron_native.posttraining.train_worker import train_worker, worker_companions
from megatron_native.posttraining.worker_seeds import SeedSettings, write_conversations
from tests.alignment.rewriting.workers import write_conduct
from tests.posttraining.test_train_worker import RUN
from tests.posttraining.test_worker_seeds import GENERAL, PAIRS, numbered, write_seeds
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("again")
    make_tiny_model(folder / "hf", "tied-llama")
    prepare(folder, numbered(12), GENERAL)
    return folder


def prepare(folder: Path, pairs: list[tuple[str, str]], how: SeedSettings) -> None:
    seeds = write_seeds(folder / "seeds.jsonl", pairs)
    settings = FinetuneSettings(
        folder / "hf", folder / "worker", template="chatml", seq_length=256, reference_logits=False, overrides=RUN
    )
    train_worker([seeds], how, settings, print, train=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "worker.run" / "seeds").iterdir()}


@pytest.mark.parametrize(
    ("pairs", "how", "said"),
    [
        (
            numbered(12),
            replace(GENERAL, conduct=load_conduct("gulf")),
            "conduct.name: 'general' there, 'gulf' asked for",
        ),
        (numbered(12), replace(GENERAL, rules=False), "rules: True there, False asked for"),
        (numbered(12), replace(GENERAL, form="edits"), "form: 'full' there, 'edits' asked for"),
        (numbered(13), GENERAL, "seeds.pairs: 11 there, 12 asked for"),
        (numbered(13)[1:], GENERAL, "was made of other seeds"),
    ],
)
def test_another_worker_is_refused_and_the_seeds_stay(
    folder: Path, pairs: list[tuple[str, str]], how: SeedSettings, said: str
) -> None:
    before = contents(folder)
    with pytest.raises(UserError) as error:
        prepare(folder, pairs, how)
    assert said in str(error.value)
    assert contents(folder) == before and set(before) == {"train.jsonl", "heldout.jsonl"}


def test_the_same_command_goes_on(folder: Path) -> None:
    before = contents(folder)
    prepare(folder, numbered(12), GENERAL)
    assert contents(folder) == before


def test_a_code_that_is_not_shipped_goes_with_the_worker(tmp_path: Path) -> None:
    own = SeedSettings(load_conduct(write_conduct(tmp_path / "short.yaml")))
    written = write_conversations([write_seeds(tmp_path / "seeds.jsonl", PAIRS)], tmp_path / "out", own)
    companions = worker_companions(own, written)
    (tmp_path / "copy.yaml").write_text(companions["short.yaml"], encoding="utf-8")
    assert load_conduct(tmp_path / "copy.yaml").hash == own.conduct.hash
    described = json.loads(json.dumps(companions["worker.json"]))
    assert described["conduct"] == {"name": "short", "hash": own.conduct.hash, "file": "short.yaml"}
    assert set(worker_companions(GENERAL, written)) == {"worker.json"}
