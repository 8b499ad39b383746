"""Which passages are chosen: uniform, order-free, by quotas that can be worked out by hand, the extremes of a model."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import xxhash

from megatron_native.alignment.passages import split
from megatron_native.alignment.perplexity import Perplexity
from megatron_native.alignment.rewriting.settings import RewriteSettings
from megatron_native.alignment.seeds.candidates import (
    LEAST_KEPT,
    WHOLE,
    Candidate,
    Keeper,
    gather,
    key_of,
    limit_for,
)
from megatron_native.alignment.seeds.choosing import NotEnoughError, choose, extremes, quotas
from megatron_native.alignment.seeds.settings import AnnotateSettings, SelectionSettings
from megatron_native.documents.parts import plan_parts
from megatron_native.documents.writers import ShardWriter
from megatron_native.errors import UserError
from tests.alignment.rewriting.jobs import SENTENCES, text_of
from tests.tiny_models import make_tiny_model

BUDGET = 64


def settings_of(**selection: Any) -> AnnotateSettings:
    asking = RewriteSettings(engine="openai", rules=None, first_look=None, gates=None, passage_tokens=BUDGET)
    return AnnotateSettings(SelectionSettings(**selection), asking, "expert")


def write(path: Path, documents: Sequence[tuple[str, str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"id": key, "text": text, "metadata": {"source": source}}, ensure_ascii=False)
        for key, source, text in documents
    ]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def chosen_from(
    files: Sequence[Path], settings: AnnotateSettings, limit: int = WHOLE, part_bytes: int = 1 << 25
) -> tuple[list[Candidate], dict[str, dict[str, int]]]:
    root = files[0].parent
    folder = root / f"work-{part_bytes}-{limit:x}"
    parts = plan_parts(files, root, part_bytes=part_bytes)
    gathered = [gather(part, lambda size: None, folder, folder / "found", settings, limit) for part in parts]
    return choose(folder / "found", gathered, settings.selection, limit)


def documents_of(count: int) -> list[tuple[str, str, str]]:
    return [(f"d{number}", "site", text_of(number)) for number in range(count)]


def one_passage(number: int) -> str:
    return f"الفقرة {number}: {SENTENCES[0]}"


def drawn_by_hand(documents: Sequence[tuple[str, str, str]], seed: int, sample: int) -> set[str]:
    """Ids of the passages whose hashes are the smallest of all."""
    keys = {}
    for key, _, text in documents:
        for passage in split(text, BUDGET, document_id=key):
            if passage.frozen is None and passage.tokens >= 16:
                keys[passage.id] = xxhash.xxh3_128_intdigest(f"{seed}\0\0{passage.text}".encode())
    return set(sorted(keys, key=lambda one: keys[one])[:sample])


def test_random_is_the_smallest_hashes_whatever_the_files_and_parts(tmp_path: Path) -> None:
    documents = documents_of(60)
    expected = drawn_by_hand(documents, 7, 40)
    settings = settings_of(sample=40, seed=7)
    whole, figures = chosen_from([write(tmp_path / "one" / "a.jsonl", documents)], settings)
    assert {one.id for one in whole} == expected
    assert figures[""]["chosen"] == 40
    shuffled = random.Random(1).sample(documents, len(documents))
    files = [write(tmp_path / "many" / f"{place}.jsonl", shuffled[place::4]) for place in range(4)]
    others, _ = chosen_from(files, settings, part_bytes=4000)
    assert [(one.id, one.text, one.before, one.after) for one in others] == [
        (one.id, one.text, one.before, one.after) for one in whole
    ]


def test_a_limit_changes_nothing_but_what_is_kept(tmp_path: Path) -> None:
    documents = documents_of(100)
    file = write(tmp_path / "a.jsonl", documents)
    settings = settings_of(sample=100)
    whole, _ = chosen_from([file], settings)
    parts = plan_parts([file], tmp_path, part_bytes=20000)
    assert len(parts) > 3
    limited, _ = chosen_from([file], settings, limit=WHOLE // 2, part_bytes=20000)
    assert [one.id for one in limited] == [one.id for one in whole]
    with pytest.raises(NotEnoughError):
        chosen_from([file], settings, limit=WHOLE // 100, part_bytes=20000)


def test_the_limit_leaves_several_times_the_sample(tmp_path: Path) -> None:
    documents = documents_of(400)
    parts = plan_parts([write(tmp_path / "a.jsonl", documents)], tmp_path, part_bytes=50000)
    limit = limit_for(parts, BUDGET, 20)
    assert limit < WHOLE
    keys = [
        key_of(0, "", passage.text) for key, _, text in documents for passage in split(text, BUDGET, document_id=key)
    ]
    assert sum(int(key, 16) < limit for key in keys) >= 40


def test_few_are_kept_of_a_large_part() -> None:
    keeper = Keeper(WHOLE // 1000)
    for number in range(30000):
        keeper.add(candidate(number))
    kept = keeper.candidates()
    keys = sorted(key_of(0, "", f"نص {number}") for number in range(30000))
    below = sum(int(key, 16) < WHOLE // 1000 for key in keys)
    assert [one.key for one in kept] == keys[: max(below, LEAST_KEPT)]


def candidate(number: int, stratum: str = "", seed: int = 0) -> Candidate:
    text = f"نص {number}"
    return Candidate(
        key_of(seed, stratum, text), stratum, f"d{number}#0", f"d{number}", 0, text, "", "", 20, "a", number, ""
    )  # fmt: skip


def test_every_passage_is_drawn_as_often(tmp_path: Path) -> None:
    """5 of 20, under 2000 seeds: Pearson's statistic, for draws without replacement, against chi-square with 19 degrees."""
    passages, sample, seeds = 20, 5, 2000
    counts: Counter[str] = Counter()
    for seed in range(seeds):
        with ShardWriter(tmp_path / "part-00000.jsonl.zst") as writer:
            for number in range(passages):
                writer.write(candidate(number, seed=seed))
        gathered = [{"name": "part-00000", "candidates": passages, "eligible": {"": passages}}]
        drawn, _ = choose(tmp_path, gathered, SelectionSettings(sample=sample, seed=seed), WHOLE)
        assert len({one.id for one in drawn}) == sample
        counts.update(one.id for one in drawn)
    share = sample / passages
    expected = seeds * share
    statistic = sum((counts[f"d{number}#0"] - expected) ** 2 for number in range(passages))
    statistic *= (passages - 1) / passages / (expected * (1 - share))
    assert 5.4 < statistic < 43.8  # 0.1 % and 99.9 % of chi-square with 19 degrees of freedom


def test_equal_texts_are_one_passage(tmp_path: Path) -> None:
    text = one_passage(3)
    documents = [("b", "s", text), ("a", "s", text), ("c", "s", text), ("d", "s", one_passage(4))]
    drawn, figures = chosen_from([write(tmp_path / "a.jsonl", documents)], settings_of(sample=10), part_bytes=200)
    assert sorted(one.document for one in drawn) == ["a", "d"]
    assert figures[""] == {"eligible": 4, "quota": 4, "chosen": 2}


@pytest.mark.parametrize(
    ("sizes", "places", "allocation", "expected"),
    [
        # 10 · 50/100 = 5, 10 · 33/100 = 3.3, 10 · 17/100 = 1.7: 5 + 3 + 1, the tenth to the remainder 0.7
        ({"a": 50, "b": 33, "c": 17}, 10, "proportional", {"a": 5, "b": 3, "c": 2}),
        # 2/3 each: nothing whole, both places to the first names
        ({"c": 5, "b": 5, "a": 5}, 2, "proportional", {"a": 1, "b": 1, "c": 0}),
        ({"a": 2, "b": 3}, 9, "proportional", {"a": 2, "b": 3}),
        # 4 each of 12; b has 1, so its 3 places are 1 each for two, and the one that is left for the first name
        ({"a": 50, "b": 1, "c": 50}, 12, "equal", {"a": 6, "b": 1, "c": 5}),
        ({"a": 1, "b": 2, "c": 100}, 9, "equal", {"a": 1, "b": 2, "c": 6}),
    ],
)  # fmt: skip
def test_quotas(sizes: dict[str, int], places: int, allocation: Any, expected: dict[str, int]) -> None:
    assert quotas(sizes, places, allocation) == expected


def stratified_documents() -> list[tuple[str, str, str]]:
    """Passages of one document each: 24 of a site and 12 of a paper, of two lengths, and 4 of no source."""
    short = "كتب الطالب رقم {} رسالة طويلة إلى صديقه القديم في المدينة البعيدة عند البحر."
    long = short + " ثم حملها إلى البريد في الصباح الباكر قبل أن تفتح المتاجر أبوابها للناس جميعًا."
    made = [(f"s{number}", "site", short.format(number)) for number in range(18)]
    made += [(f"t{number}", "site", long.format(number)) for number in range(6)]
    made += [(f"p{number}", "paper", long.format(number + 50)) for number in range(12)]
    return made + [(f"n{number}", "", short.format(number + 90)) for number in range(4)]


def test_stratified_gives_each_source_and_length_its_share(tmp_path: Path) -> None:
    documents = stratified_documents()
    tokens = {key: split(text, BUDGET)[0].tokens for key, _, text in documents}
    short, long = max(tokens[f"s{n}"] for n in range(18)), min(tokens[f"t{n}"] for n in range(6))
    assert 16 <= short < long
    edge = (short + long + 1) // 2
    settings = settings_of(rule="stratified", sample=10, length_bands=(edge,))
    drawn, figures = chosen_from([write(tmp_path / "a.jsonl", documents)], settings, part_bytes=900)
    # of 40: 18, 6, 12, 4 → 4.5, 1.5, 3, 1: the place that is left goes to the first name of the two with 0.5
    names = [f"site · 0-{edge - 1}", f"site · {edge}+", f"paper · {edge}+", f"? · 0-{edge - 1}"]
    eligible = dict(zip(names, (18, 6, 12, 4), strict=True))
    assert {name: one["eligible"] for name, one in figures.items()} == eligible
    first = min(names[:2])
    expected = {names[0]: 4, names[1]: 1, names[2]: 3, names[3]: 1}
    expected[first] += 1
    assert Counter(one.stratum for one in drawn) == expected
    of_kind = Counter(one.document[0] for one in drawn)
    assert of_kind == {"s": expected[names[0]], "t": expected[names[1]], "p": 3, "n": 1}
    for stratum in names:  # within a stratum the smallest hashes
        of_stratum = {
            one[0]: key_of(0, stratum, one[2]) for one in documents if one[0][0] == "stpn"[names.index(stratum)]
        }
        mine = {one.document for one in drawn if one.stratum == stratum}
        assert mine == set(sorted(of_stratum, key=lambda one: of_stratum[one])[: len(mine)])


def test_places_of_a_stratum_with_equal_texts_go_to_the_others(tmp_path: Path) -> None:
    text = one_passage(1)
    documents = [(f"a{n}", "a", text) for n in range(10)]
    documents += [(f"b{n}", "b", one_passage(n + 2)) for n in range(10)]
    settings = settings_of(rule="stratified", sample=10, length_bands=(10_000,))
    drawn, figures = chosen_from([write(tmp_path / "a.jsonl", documents)], settings)
    assert Counter(one.origin for one in drawn) == {"a": 1, "b": 9}
    assert {name: one["quota"] for name, one in figures.items()} == {"a · 0-9999": 5, "b · 0-9999": 5}


@pytest.mark.parametrize("rule", ["high-perplexity", "low-perplexity"])
def test_extremes_are_those_of_every_candidate_scored_alone(tmp_path: Path, rule: Any) -> None:
    model = make_tiny_model(tmp_path / "model", "llama3.1")
    settings = settings_of(rule=rule, sample=5, perplexity_model=model, candidates=16)
    drawn, _ = chosen_from([write(tmp_path / "a.jsonl", documents_of(20))], settings)
    assert len(drawn) == 16
    chosen = extremes(drawn, settings.selection, tmp_path / "scores")
    scorer = Perplexity(model, device="cpu", batch_tokens=1)
    alone = {one.id: scorer.score([one.text])[0].perplexity for one in drawn}
    ordered = sorted(alone, key=lambda one: alone[one], reverse=rule == "high-perplexity")
    assert [one.candidate.id for one in chosen] == ordered[:5]
    for one in chosen:
        assert one.perplexity == pytest.approx(alone[one.candidate.id], rel=1e-4)
    assert extremes(drawn, settings.selection, tmp_path / "scores") == chosen  # from what was kept


def test_ten_candidates_for_each_of_the_sample_are_the_default(tmp_path: Path) -> None:
    assert SelectionSettings(rule="low-perplexity", sample=7, perplexity_model=tmp_path).drawn == 70


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rule": "best"}, "random, stratified"),
        ({"sample": 0}, "--sample 0"),
        ({"rule": "high-perplexity"}, "needs --perplexity-model"),
        ({"candidates": 10}, "of no use"),
        ({"rule": "low-perplexity", "perplexity_model": Path("m"), "sample": 9, "candidates": 5}, "less than"),
        ({"length_bands": (64, 64)}, "growing"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        SelectionSettings(**values)
