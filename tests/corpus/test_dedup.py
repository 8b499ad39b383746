"""The dedup stage over files: who stays, who leaves, what is written down, and where it lies."""

import itertools
import json

import pytest

from megatron_native.corpus.clean import CleanSettings, clean
from megatron_native.corpus.dedup import DedupSettings, dedup
from megatron_native.errors import UserError
from tests.corpus.corpus_files import ENGLISH, LIBRARY, STORY, arabic_text, part_bytes, read_part, write_jsonl
from tests.corpus.test_minhash import changed, jaccard


def deduped(tmp_path, *texts, **settings):
    """Ids that stay and `duplicates.jsonl`, for texts called by their number."""
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": text, "id": str(number)} for number, text in enumerate(texts)])
    result = dedup([str(path)], tmp_path / "out", DedupSettings(**settings))
    kept = [record["id"] for part in (tmp_path / "out").rglob("*.jsonl.zst") for record in read_part(part)]
    return kept, duplicates(tmp_path / "out"), result.manifest["counts"]


def duplicates(folder):
    return [json.loads(line) for line in (folder / "duplicates.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    "variant",
    [
        STORY,
        STORY.replace("المعلمة", "المـــعلمة"),
        STORY.replace("أن ", "ان ").replace("إلى", "الى"),
        STORY.replace("القرية", "القريه"),
        STORY.replace("إلى", "إلي"),
        STORY.replace("،", "").replace(".", " !").replace(" ", "  "),
        STORY.replace("لا", "ﻻ"),
        STORY.replace("المدرسة", "المدر\u200dسة\u200f"),
    ],
)
def test_another_spelling_of_a_text_is_an_exact_copy(tmp_path, variant):
    kept, copies, counts = deduped(tmp_path, variant, LIBRARY, STORY)
    assert len(kept) == 2
    assert counts["dropped"] == {"exact copy": 1}
    assert [(copy["reason"], copy["similarity"]) for copy in copies] == [("exact copy", 1.0)]


def test_the_vocalised_copy_stays_since_it_is_longer(tmp_path):
    kept, copies, _ = deduped(tmp_path, "كتب الطالب الدرس", "كَتَبَ الطَّالِبُ الدَّرْسَ", "كتب الطّالب الدرس")
    assert kept == ["1"]
    assert copies == [
        {"id": "0", "copy_of": "1", "reason": "exact copy", "similarity": 1.0},
        {"id": "2", "copy_of": "1", "reason": "exact copy", "similarity": 1.0},
    ]


def test_of_copies_of_one_length_the_first_stays(tmp_path):
    assert deduped(tmp_path, LIBRARY, STORY, STORY, LIBRARY)[0] == ["0", "1"]


def test_a_near_copy_leaves_with_its_similarity(tmp_path):
    text = arabic_text(1, 400)
    near, far = changed(text, 4), changed(text, 100)
    assert jaccard(text, near) > 0.9
    assert jaccard(text, far) < 0.5
    kept, (copy,), counts = deduped(tmp_path, text, far, near + " ")
    assert kept == ["1", "2"]
    assert counts["dropped"] == {"near copy": 1}
    assert (copy["id"], copy["copy_of"], copy["reason"]) == ("0", "2", "near copy")
    assert copy["similarity"] == pytest.approx(jaccard(text, near), abs=0.1)


def test_near_copies_below_the_threshold_stay(tmp_path):
    text = arabic_text(1, 400)
    near = changed(text, 6)
    assert 0.8 < jaccard(text, near) < 0.95
    assert len(deduped(tmp_path, text, near, threshold=0.99)[0]) == 2


def test_copies_of_near_copies_are_one_group(tmp_path):
    text = arabic_text(2, 400)
    near = changed(text, 3) + " انتهى"
    kept, copies, counts = deduped(tmp_path, text, text.replace("أ", "ا"), near, near)
    assert kept == ["2"]
    assert {copy["copy_of"] for copy in copies} == {"2"}
    assert counts["dropped"] == {"near copy": 2, "exact copy": 1}


def test_empty_documents_leave_as_empty_and_signs_are_not_taken_for_copies(tmp_path):
    kept, copies, counts = deduped(tmp_path, "", " \n", "***", "!!!", "؟؟؟", "***", "َ", "🌙", "ء")
    assert kept == ["2", "3", "4", "6", "7", "8"]
    assert counts["dropped"] == {"empty": 2, "exact copy": 1}
    assert copies == [{"id": "5", "copy_of": "2", "reason": "exact copy", "similarity": 1.0}]


def test_short_documents_that_differ_all_stay(tmp_path):
    texts = ["نعم", "لا", "شكرا", "صباح الخير", "مساء الخير", "أهلا وسهلا بكم في بلدكم", "أهلا وسهلا بكم في بيتكم"]
    assert deduped(tmp_path, *texts)[0] == [str(number) for number in range(len(texts))]


def test_nothing_to_take_out_leaves_an_empty_list(tmp_path):
    assert deduped(tmp_path, STORY, LIBRARY, ENGLISH)[:2] == (["0", "1", "2"], [])


def test_counts_do_not_depend_on_the_order(tmp_path):
    one, two = arabic_text(1, 300), arabic_text(2, 300)
    texts = [one, changed(one, 3), one, two, two.replace("ة", "ه")]
    seen = set()
    for number, order in enumerate(itertools.permutations(texts)):
        if number % 10:
            continue
        kept, copies, counts = deduped(tmp_path / str(number), *order)
        seen.add((len(kept), len(copies), counts["kept"], counts["read"]))
    assert seen == {(2, 3, 2, 5)}


def test_copies_across_files_are_found_and_the_layout_is_kept(tmp_path):
    write_jsonl(tmp_path / "in" / "ar" / "one.jsonl", [{"text": STORY, "id": "a", "metadata": {"lang": "ar", "url": "u"}}])
    write_jsonl(tmp_path / "in" / "ar" / "two.jsonl", [{"text": STORY, "id": "b"}, {"title": "no text"}])
    write_jsonl(tmp_path / "in" / "en" / "one.jsonl", [{"text": ENGLISH, "id": "c", "metadata": {"lang": "en"}}])
    manifest = dedup([str(tmp_path / "in")], tmp_path / "out", DedupSettings()).manifest
    assert [entry["path"] for entry in manifest["outputs"]] == [
        "ar/one.jsonl.zst", "_quarantine/part-00001.jsonl.zst", "en/one.jsonl.zst",
    ]  # fmt: skip
    (record,) = read_part(tmp_path / "out" / "ar" / "one.jsonl.zst")
    assert record == {"text": STORY, "id": "a", "metadata": {"lang": "ar", "url": "u"}}
    assert manifest["counts"]["kept_by_language"] == {"ar": 1, "en": 1}
    assert manifest["counts"]["quarantined"] == {"no text key": 1}


def test_files_whose_names_differ_only_behind_a_dot_do_not_overwrite_each_other(tmp_path):
    for year, text in (("2023", STORY), ("2024", LIBRARY)):
        write_jsonl(tmp_path / "in" / f"news.{year}.jsonl", [{"text": text}])
    manifest = dedup([str(tmp_path / "in")], tmp_path / "out", DedupSettings()).manifest
    assert [entry["path"] for entry in manifest["outputs"]] == ["news_2023_jsonl.jsonl.zst", "news_2024_jsonl.jsonl.zst"]


def test_a_linked_file_is_written_where_the_link_lies(tmp_path):
    write_jsonl(tmp_path / "disk" / "real.jsonl", [{"text": STORY}])
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": LIBRARY}])
    (tmp_path / "in" / "linked.jsonl").symlink_to(tmp_path / "disk" / "real.jsonl")
    manifest = dedup([str(tmp_path / "in")], tmp_path / "out", DedupSettings()).manifest
    assert [entry["path"] for entry in manifest["outputs"]] == ["a.jsonl.zst", "linked.jsonl.zst"]


def test_clean_then_dedup_keeps_languages_apart_and_skips_the_quarantine(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": STORY}, {"text": ENGLISH}, {"text": STORY + "\u200f"}, {"x": 1}])
    clean([str(tmp_path / "a.jsonl")], tmp_path / "cleaned", CleanSettings())
    manifest = dedup([str(tmp_path / "cleaned")], tmp_path / "out", DedupSettings()).manifest
    assert manifest["counts"]["read"] == 3
    assert [entry["path"] for entry in manifest["outputs"]] == ["ar/part-00000.jsonl.zst", "en/part-00000.jsonl.zst"]
    assert manifest["lineage"][0]["manifest"] == "cleaned/manifest.json"
    assert dedup([str(tmp_path / "cleaned")], tmp_path / "out", DedupSettings()).skipped
    with pytest.raises(UserError, match=r"threshold: 0\.8 there, 0\.9 asked for"):
        dedup([str(tmp_path / "cleaned")], tmp_path / "out", DedupSettings(threshold=0.9))


def test_broken_off_and_again_gives_the_same_bytes(tmp_path, monkeypatch):
    from megatron_native.corpus import dedup as module

    for part in range(3):
        texts = [arabic_text(part * 10 + number) for number in range(5)] + [STORY]
        write_jsonl(tmp_path / "in" / f"{part}.jsonl", [{"text": text} for text in texts])
    work = module._DedupStage.work

    def dies(self, number, path, output):
        if number == 2:
            raise KeyboardInterrupt
        return work(self, number, path, output)

    monkeypatch.setattr(module._DedupStage, "work", dies)
    with pytest.raises(KeyboardInterrupt):
        dedup([str(tmp_path / "in")], tmp_path / "out", DedupSettings())
    monkeypatch.undo()
    for output in ("out", "undisturbed"):
        dedup([str(tmp_path / "in")], tmp_path / output, DedupSettings())
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "undisturbed")
    assert duplicates(tmp_path / "out") == duplicates(tmp_path / "undisturbed")
