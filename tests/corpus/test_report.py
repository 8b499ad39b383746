"""The report: figures worked out by hand, an account that screams when it is wrong, texts that can't harm the page."""

import json
import math
import random
import shutil

import pytest
import xxhash

from megatron_native.corpus.report.budget import Stock, parse_blend, parse_tokens, plan
from megatron_native.corpus.report.figures import Link, Stage
from megatron_native.corpus.report.flow import exits_of, flow
from megatron_native.corpus.report.gather import ReportSettings, gather
from megatron_native.corpus.report.measures import LengthHistogram, Reservoir, measure_script
from megatron_native.corpus.report.page import page, short_names
from megatron_native.corpus.report.sources import SourceTable
from megatron_native.errors import UserError
from tests.corpus.corpus_files import ENGLISH, LIBRARY, STORY
from tests.corpus.report_runs import KEPT, read_manifest, run_of, write_lines, write_manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("run"))


@pytest.fixture
def run(made, tmp_path):
    """A copy of the run to spoil."""
    shutil.copytree(made, tmp_path / "run")
    return tmp_path / "run"


def report_of(run, **settings):
    return gather([str(run / "clean"), str(run / "dedup")], ReportSettings(**settings))


def test_the_account_of_a_run_is_what_a_hand_counts(made):
    report = report_of(made)
    totals = report.totals
    assert (totals.read, totals.kept, totals.duplicates, totals.dropped, totals.quarantined) == (13, KEPT, 3, 1, 1)
    assert report.balances and totals.balances
    assert [(link.giver, link.taker, link.records) for link in report.links] == [(0, 1, 11)]
    assert [stage.column for stage in report.stages] == [0, 1]
    assert (report.stages[0].unread, report.stages[1].unread) == (0, None)
    assert all(check.holds for check in report.checks)
    assert report.final_stages == [str(made / "dedup")]


def test_lengths_and_languages_are_those_of_the_documents_kept_at_the_end(made):
    report = report_of(made)
    assert report.languages == {"ar": KEPT - 1, "en": 1}
    assert report.words["en"].total == len(ENGLISH.split()) == report.words["en"].median
    assert report.bytes["en"].total == len(ENGLISH.encode()) == report.language_bytes["en"]
    kept = [STORY, LIBRARY]
    assert report.words["ar"].least == min(len(text.split()) for text in kept)
    assert sum(count for _, _, count in report.words["ar"].bins) == report.words["ar"].documents == KEPT - 1


def test_sources_are_counted_after_every_stage_with_what_dedup_took_out(made):
    found = {source.name: source for source in report_of(made).sources}
    assert {name: source.kept for name, source in found.items()} == {
        "books": [6, 5],
        "paper.example": [2, found["paper.example"].kept[1]],
        "letters": [1, 1],
        "other.example": [2, found["other.example"].kept[1]],
        "not recorded": [0, 0],  # what clean dropped had neither url nor source
    }
    assert found["not recorded"].dropped == [1, 0]
    assert found["paper.example"].kept[1] + found["other.example"].kept[1] == 2
    assert found["books"].dropped == [0, 1]
    assert sum(source.bytes for source in found.values()) == sum(report_of(made).language_bytes.values())


def test_input_files_say_what_became_of_their_records(made):
    files = {file.name: file for file in report_of(made).files}
    assert (files["a.jsonl"].read, files["a.jsonl"].dropped, files["a.jsonl"].kept_at_end) == (12, 1, KEPT)
    assert (files["b.jsonl"].read, files["b.jsonl"].quarantined, files["b.jsonl"].kept_at_end) == (1, 1, 0)


def test_copies_are_shown_with_both_texts(made):
    (found,) = report_of(made).duplicates
    assert (found.clusters, found.largest, found.sizes) == (3, 2, {2: 3})
    assert found.listed == {"exact copy": 2, "near copy": 1}
    assert sum(count for _, _, count in found.similarity) == 1
    near = next(pair for pair in found.pairs if pair.reason == "near copy")
    assert {near.id, near.copy_of} == {"long 0", "long 0 with a new end"}
    assert near.gone and near.stays and near.gone != near.stays
    assert {sample.note for sample in found.most_copied} == {"2"}


def test_what_left_is_shown_by_reason(made):
    groups = {(group.kind, group.label): group for group in report_of(made).samples}
    assert groups["dropped", "empty"].count == 1
    assert groups["dropped", "empty"].samples[0].id == "empty"
    (quarantined,) = groups["quarantined", "malformed JSON"].samples
    assert "نص لم يكت" in quarantined.text
    assert groups["kept", "en"].samples[0].text == ENGLISH


def test_the_same_folders_give_the_same_page_and_the_same_figures(made):
    assert page(report_of(made)) == page(report_of(made))
    figures = report_of(made).as_json()
    assert json.loads(json.dumps(figures))["totals"]["kept"] == KEPT
    assert figures["balances"] is True


def test_the_page_says_that_the_account_balances(made):
    html = page(report_of(made))
    assert "The account balances." in html
    assert f"13 read = {KEPT} kept + 3 duplicates + 1 dropped + 1 quarantined" in html
    assert "DOES NOT BALANCE" not in html


@pytest.mark.parametrize("spoil", ["kept", "dropped", "lost file", "cut file", "hand-over", "list", "unread record"])
def test_a_wrong_account_screams(run, spoil):
    manifest, dedup_manifest = read_manifest(run / "clean"), read_manifest(run / "dedup")
    documents = next(entry["path"] for entry in manifest["outputs"] if entry["path"].startswith("ar/"))
    if spoil == "kept":
        manifest["counts"]["kept"] += 1
    elif spoil == "dropped":
        manifest["counts"]["dropped"]["too many symbols"] = 2
    elif spoil == "lost file":
        (run / "clean" / documents).unlink()
    elif spoil == "cut file":
        path = (
            run
            / "dedup"
            / next(entry["path"] for entry in dedup_manifest["outputs"] if entry["path"].startswith("ar/"))
        )
        path.write_bytes(path.read_bytes()[:-20])
    elif spoil == "hand-over":
        dedup_manifest["inputs"][0]["records"] -= 1
    elif spoil == "list":
        for path in (run / "dedup" / "_duplicates").iterdir():
            write_lines(path, [{"id": "x", "copy_of": "y", "reason": "exact copy", "similarity": 1.0}])
    elif spoil == "unread record":
        lines = [{"text": "نص", "id": "1"}, {"text": 5, "id": "2"}]
        write_lines(run / "clean" / documents, lines * (manifest["counts"]["kept"] // 2))
    write_manifest(run / "clean", manifest)
    write_manifest(run / "dedup", dedup_manifest)
    report = report_of(run)
    assert not report.balances
    assert report.as_json()["balances"] is False
    html = page(report)
    assert "THE ACCOUNT DOES NOT BALANCE" in html
    assert 'role="alert"' in html
    assert "The account balances." not in html
    assert report.warnings[0] == "the account does not balance: see the checks that failed"


def test_stages_whose_folders_were_moved_apart_are_linked_by_checksum(run, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    shutil.move(run / "dedup", tmp_path / "elsewhere" / "deduped")
    report = gather([str(tmp_path / "elsewhere" / "deduped"), str(run / "clean")], ReportSettings())
    assert [(link.giver, link.taker, link.records) for link in report.links] == [(1, 0, 11)]
    assert report.balances
    assert report.totals.read == 13


def test_a_stage_that_two_others_read_is_counted_once_more(run):
    shutil.copytree(run / "dedup", run / "dedup again")
    report = gather([str(run / name) for name in ("clean", "dedup", "dedup again")], ReportSettings())
    assert (report.totals.read, report.totals.read_again, report.totals.kept) == (13, 11, 2 * KEPT)
    assert report.balances
    assert "13 read + 11 read once more" in page(report)


def test_what_no_later_stage_reads_is_not_lost(run):
    manifest = read_manifest(run / "dedup")
    english = next(entry for entry in manifest["inputs"] if "/en/" in entry["path"])
    manifest["inputs"].remove(english)
    manifest["counts"]["read"] -= 1
    manifest["counts"]["kept"] -= 1
    manifest["outputs"] = [entry for entry in manifest["outputs"] if not entry["path"].startswith("en/")]
    write_manifest(run / "dedup", manifest)
    report = report_of(run)
    assert report.stages[0].unread == 1
    assert report.totals.kept == KEPT
    assert report.balances


def test_what_was_not_recorded_is_said_and_not_guessed(run):
    for name in ("_dropped", "_quarantine"):
        shutil.rmtree(run / "clean" / name)
    shutil.rmtree(run / "dedup" / "_duplicates")
    for folder in ("clean", "dedup"):
        manifest = read_manifest(run / folder)
        manifest["outputs"] = [entry for entry in manifest["outputs"] if not entry["path"].startswith("_")]
        manifest.pop("clusters", None)
        for key in ("bytes_read", "bytes_kept", "read_by_language", "edits"):
            manifest["counts"].pop(key)
        write_manifest(run / folder, manifest)
    report = report_of(run)
    assert report.balances
    assert {check.what for check in report.checks if check.holds is None} == {
        "_dropped",
        "_quarantine",
        "list of duplicates",
    }
    assert report.stages[0].bytes_read is None
    html = page(report)
    assert "clusters not recorded" in html
    assert "Tokens a word: not recorded" in html
    assert "Dialects: not recorded" in html
    assert "none recorded to show" in html


def test_a_list_of_duplicates_as_older_runs_wrote_it_is_read(run):
    manifest = read_manifest(run / "dedup")
    manifest["outputs"] = [entry for entry in manifest["outputs"] if not entry["path"].startswith("_")]
    del manifest["clusters"]
    write_manifest(run / "dedup", manifest)
    shutil.rmtree(run / "dedup" / "_duplicates")
    copies = [
        {"id": "story again", "copy_of": "story", "reason": "exact copy", "similarity": 1.0},
        {"id": "library again", "copy_of": "library", "reason": "exact copy", "similarity": 1.0},
        {"id": "long 0", "copy_of": "long 0 with a new end", "reason": "near copy", "similarity": 0.91},
    ]
    (run / "dedup" / "duplicates.jsonl").write_text("".join(json.dumps(copy) + "\n" for copy in copies))
    report = report_of(run)
    assert report.balances
    assert report.duplicates[0].sizes == {2: 3}
    assert report.duplicates[0].similarity[0] == pytest.approx((0.9, 0.92, 1))


def test_a_reservoir_keeps_the_least_hashes_in_any_order_of_reading():
    ids = [f"document {n}" for n in range(500)]
    expected = sorted(ids, key=lambda i: xxhash.xxh3_64_intdigest(i.encode()))[:20]
    for seed in range(3):
        random.Random(seed).shuffle(ids)
        reservoir = Reservoir(20)
        for one in ids:
            reservoir.offer(one, str, one)
        assert list(reservoir) == expected
        assert reservoir.offered == 500


def test_quantiles_of_lengths_are_within_two_percent():
    drawn = random.Random(7)
    values = sorted(int(10 ** drawn.uniform(0, 6)) for _ in range(5000))
    histogram = LengthHistogram()
    for value in values:
        histogram.add(value)
    found = histogram.lengths()
    assert (found.documents, found.total, found.least, found.most) == (5000, sum(values), values[0], values[-1])
    for share_, quantile in ((0.1, found.p10), (0.5, found.median), (0.9, found.p90)):
        exact = values[math.ceil(share_ * len(values)) - 1]
        assert abs(quantile - exact) <= max(0.02 * exact, 0.5)
    for low, high, count in found.bins:
        assert count == sum(low <= value < high for value in values)


def test_marks_tatweel_forms_and_digits_are_counted():
    script, bands = measure_script(["كَتَبَ", "كتـــاب 12 ٣ ۴", "ﻛﺘﺎﺏ ﷺ", "a book of 1999"])
    assert (script.letters, script.marks) == (3 + 4, 3)
    assert bands == ["fully", "none", "none", "none"]
    assert script.vocalisation == {"none": 3, "some": 0, "partly": 0, "fully": 1}
    assert (script.tatweel, script.tatweel_documents) == (3, 1)
    assert (script.presentation_forms, script.presentation_documents) == (4, 1)
    assert script.digits == {"western": 6, "arabic-indic": 1, "extended": 1}
    assert script.digit_documents == {"none": 2, "western + arabic-indic + extended": 1, "western": 1}


def test_rare_sources_are_counted_together_when_there_are_very_many(monkeypatch):
    monkeypatch.setattr("megatron_native.corpus.report.sources._MOST", 10)
    table = SourceTable(1)
    for n in range(40):
        for _ in range(1 + 100 * (n == 3)):
            table.keep(f"site {n}", 0, 5)
    found = table.top({})
    assert table.counted_together and table.count() <= 10
    assert sum(source.kept[0] for source in found) == 140
    assert ("site 3", [101]) in [(source.name, source.kept) for source in found]


def test_epochs_of_a_budget_worked_out_by_hand():
    stocks = [Stock("ar", "t/ar_text_document", 10_000), Stock("en", "t/en_text_document", 1_000)]
    found = plan(stocks, 20_000, {"ar": 3, "en": 1})
    assert [(one.weight, one.wanted, one.epochs) for one in found.shares] == [(0.75, 15_000, 1.5), (0.25, 5_000, 5.0)]
    assert found.within_limit == 4 * 1_000 / 0.25
    by_size = plan(stocks, 22_000, None)
    assert [one.epochs for one in by_size.shares] == pytest.approx([2.0, 2.0])
    assert by_size.within_limit == pytest.approx(44_000)
    assert (
        plan([*stocks, Stock("fr", "fr, estimated", 7, estimated=True)], None, {"fr": 1, "ar": 1}).shares[0].estimated
    )


@pytest.mark.parametrize(
    ("text", "value"), [("20e9", 2e10), ("20B", 2e10), ("1,500", 1500), ("2.5 T", 2.5e12), ("300k", 3e5)]
)
def test_budgets_as_people_write_them(text, value):
    assert parse_tokens(text) == value


@pytest.mark.parametrize("text", ["", "0", "-5", "many", "1e999", "2 X"])
def test_what_is_no_budget(text):
    with pytest.raises(UserError, match="no number of tokens above 0"):
        parse_tokens(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ar", "is not NAME=WEIGHT"),
        ("ar=x", "is not NAME"),
        ("ar=-1", "is not NAME"),
        ("ar=1,ar=2", "ar comes twice"),
        ("ar=0", "above 0"),
    ],
)
def test_what_is_no_blend(text, said):
    with pytest.raises(UserError, match=said):
        parse_blend(text)


def test_a_name_of_the_blend_must_mean_one_dataset():
    stocks = [
        Stock("ar", "a/ar_text_document", 5),
        Stock("ar", "b/ar_text_document", 5),
        Stock("en", "en_text_document", 5),
    ]
    assert plan(stocks, None, {"b/ar_text_document": 1}).shares[0].dataset == "b/ar_text_document"
    with pytest.raises(UserError, match="ar may be a/ar_text_document, b/ar_text_document"):
        plan(stocks, None, {"ar": 1})
    with pytest.raises(UserError, match=r"fr is none of the datasets given \(ar, en\)"):
        plan(stocks, None, {"fr": 1})


def test_the_flow_shows_every_record_that_left():
    reasons = {f"reason {n}": 50 - n for n in range(20)}
    stage = Stage("clean", "clean", 0, 1000, 1000 - sum(reasons.values()) - 7, {**reasons}, {"malformed JSON": 7})
    ways = exits_of(stage)
    assert sum(way.records for way in ways) == sum(reasons.values()) + 7
    assert len(ways) <= 9
    assert [way.name for way in ways if "more reasons" in way.name] == [f"{20 - 6} more reasons"]
    dedup = Stage("dedup", "dedup", 1, stage.kept, stage.kept - 10, {"near copy": 10})
    html = flow([stage, dedup], [Link(0, 1, stage.kept)], {"clean": "clean", "dedup": "dedup"})
    assert f"{stage.kept:,} records from clean to dedup" in html
    assert "near copy: 10" in html
    assert flow([Stage("x", "dataset")], [], {"x": "x"}) == ""


def test_short_names_are_the_ends_that_tell_paths_apart():
    assert short_names(["a/clean", "b/clean", "b/dedup", "c/x_text"]) == {
        "a/clean": "a/clean",
        "b/clean": "b/clean",
        "b/dedup": "dedup",
        "c/x_text": "x_text",
    }
