"""The classifier learns which passages the expert changes; files are safe and say what they are."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from megatron_native.alignment.first_look import FirstLook, FirstLookSettings
from megatron_native.alignment.first_look_classifier import (
    Classifier,
    Example,
    TrainingSettings,
    changed_share,
    train,
    wilson,
)
from megatron_native.alignment.first_look_statistics import Ngrams, Observer
from megatron_native.cli import run_command
from megatron_native.errors import UserError
from tests.alignment.look_passages import CLEAN, misspelt

QUIET = FirstLookSettings(limits={"misspelt": -1})
"""Signs that don't see the damage, so that the classifier has to."""


def sentences(number: int, seed: int) -> list[str]:
    """Passages of words of the clean ones, three clauses each."""
    chance = random.Random(seed)
    clauses = [clause.strip() for text in CLEAN for clause in text.replace("،", ".").split(".") if clause.strip()]
    return ["، ".join(chance.sample(clauses, 3)) + "." for _ in range(number)]


def examples(number: int = 400, seed: int = 3) -> list[Example]:
    chance = random.Random(seed)
    return [
        Example(misspelt(text, chance) if place % 2 else text, {}, bool(place % 2))
        for place, text in enumerate(sentences(number, seed))
    ]


def test_it_learns_what_the_expert_changes() -> None:
    trained = train(examples())
    assert trained.chosen.missed <= 0.05 and trained.chosen.skipped >= 0.4
    observer = Observer()
    for example in examples(40, seed=99):
        probability = trained.classifier.probability(example.text, observer.signs(example.text, {}))
        assert (probability > 0.5) == example.needed


def test_equal_seeds_make_equal_files(tmp_path: Path) -> None:
    for name in ("one.npz", "two.npz"):
        train(examples()).classifier.save(tmp_path / name)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    other = train(examples(), TrainingSettings(seed=5)).classifier
    assert other.hash != Classifier.load(tmp_path / "one.npz").hash


def test_a_saved_classifier_says_the_same(tmp_path: Path) -> None:
    classifier = train(examples()).classifier
    classifier.save(tmp_path / "look.npz")
    loaded = Classifier.load(tmp_path / "look.npz")
    signs = Observer().signs(CLEAN[0], {})
    assert loaded.probability(CLEAN[0], signs) == classifier.probability(CLEAN[0], signs)
    assert loaded.hash == classifier.hash and loaded.threshold == classifier.threshold
    assert loaded.metadata["pairs"] == 400 and loaded.metadata["needed"] == 200


def test_the_first_look_asks_it(tmp_path: Path) -> None:
    train(examples()).classifier.save(tmp_path / "look.npz")
    settings = FirstLookSettings(limits=QUIET.limits, classifier=str(tmp_path / "look.npz"))
    damaged = misspelt(CLEAN[1], random.Random(0))
    assert FirstLook(QUIET).look(damaged, {}).clean
    found = FirstLook(settings).look(damaged, {})
    assert not found.clean and found.reason == "classifier" and found.score > 0.5
    assert FirstLook(settings).look(CLEAN[1], {}).clean
    assert FirstLook(settings).look(CLEAN[1], {"html": 1}).reason == "residue"  # signs come first
    strict = FirstLookSettings(classifier=str(tmp_path / "look.npz"), threshold=0.0)
    assert not FirstLook(strict).look(CLEAN[1], {}).clean
    assert FirstLook(strict).parameters["threshold"] == 0.0
    assert len(FirstLook(strict).parameters["classifier"]) == 32


def test_files_with_objects_or_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    np.savez(path, weights=np.array([{"a": 1}], dtype=object), about=np.zeros(2, dtype=np.uint8))
    with pytest.raises(UserError, match="train-first-look"):
        Classifier.load(path)
    about = np.frombuffer(json.dumps({"format": "another"}).encode(), dtype=np.uint8)
    np.savez(path, weights=np.zeros(3, dtype=np.float32), about=about)
    with pytest.raises(UserError, match="another"):
        Classifier.load(path)
    path.write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(UserError, match="no classifier"):
        Classifier.load(path)


def test_ngrams_are_those_of_the_text_whatever_came_before() -> None:
    ngrams = Ngrams()
    buckets, values = ngrams.features("ابج")
    assert len(buckets) == 3  # اب، بج، ابج
    assert np.allclose(values, 1 / np.sqrt(3))
    ngrams.features("نص آخر أطول")
    again, same = ngrams.features("ابج")
    assert (again == buckets).all() and (same == values).all()
    assert (ngrams.features("عام 12")[0] == ngrams.features("عام ٣4")[0]).all()
    assert len(ngrams.features("")[0]) == 0


@pytest.mark.parametrize(
    ("before", "after", "share"),
    [
        ("a b c d", "a b c d", 0.0),
        ("a b c d", "a b x d", 0.25),
        ("a b", "x y", 1.0),
        ("a b", "a b c d", 0.5),
        ("", "", 0.0),
    ],
)
def test_the_share_of_words_changed(before: str, after: str, share: float) -> None:
    assert changed_share(before, after) == share


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 50), (50, 50), (120, 999)])
def test_intervals_are_those_of_scipy(successes: int, trials: int) -> None:
    expected = binomtest(successes, trials).proportion_ci(method="wilson")
    assert wilson(successes, trials) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_the_threshold_holds_the_miss_rate_where_it_is_chosen() -> None:
    strict = train(examples(), TrainingSettings(miss_rate=0.0)).classifier.threshold
    loose = train(examples(), TrainingSettings(miss_rate=0.3)).classifier.threshold
    assert strict <= loose


def test_too_few_pairs_and_wrong_settings_are_named() -> None:
    with pytest.raises(UserError, match="at least 40 changed"):
        train(examples(20))
    with pytest.raises(UserError, match="miss_rate"):
        train(examples(), TrainingSettings(miss_rate=2))
    with pytest.raises(UserError, match="epoch"):
        train(examples(), TrainingSettings(epochs=0))


def test_the_command_trains_and_prints_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(1)
    pairs = tmp_path / "pairs.jsonl"
    with open(pairs, "w", encoding="utf-8") as file:
        for place, text in enumerate(sentences(300, 7)):
            origin = misspelt(text, chance) if place % 2 else text
            file.write(json.dumps({"origin": origin, "rewritten": text}, ensure_ascii=False) + "\n")
    output = tmp_path / "look.npz"
    assert run_command("train-first-look", ["--seeds", str(pairs), "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "45 held-out pairs" in printed and "chosen for a miss rate of 2.0%" in printed
    assert printed.count("% to ") == 10  # nine thresholds and the chosen one
    assert Classifier.load(output).metadata["needed"] == 150


def test_the_command_refuses_records_that_are_no_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"rewritten": "نص"}\n', encoding="utf-8")
    assert run_command("train-first-look", ["--seeds", str(pairs), "--output", str(tmp_path / "x.npz")]) != 0
    assert "origin" in capsys.readouterr().err
