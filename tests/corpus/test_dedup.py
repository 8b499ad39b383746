"""The dedup stage over files: who stays, who leaves, what is written down, and where it lies."""

import itertools

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
    kept = [record["id"] for part in (tmp_path / "out").glob("*.jsonl.zst") for record in read_part(part)]
    return kept, duplicates(tmp_path / "out"), result.manifest["counts"]


def duplicates(folder):
    keys = ("id", "copy_of", "reason", "similarity")
    return [
        {key: record[key] for key in keys}
        for path in sorted((folder / "_duplicates").glob("*.jsonl.zst")) for record in read_part(path)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "variant",
    [
        STORY,
        STORY.replace("المعلمة", "المـــعلمة"),
        STORY.replace("أن ", "ان ").replace("إلى", "الى"),
        STORY.replace("القرية", "القريه"),
        STORY.replace("إلى", "إلي"),
        STORY.replace("،", "").replace(".", " !").replace(" ", "  "),
        STORY.replace("لأ", "ﻷ"),
        STORY.replace("المدرسة", "المدر\u200dسة\u200f"),
    ],
)
def test_another_spelling_of_a_text_is_an_exact_copy(tmp_path, variant):
    kept, copies, counts = deduped(tmp_path, variant, LIBRARY, STORY)
    assert len(kept) == 2
    assert counts["dropped"] == {"exact copy": 1}
    assert [(copy["reason"], copy["similarity"]) for copy in copies] == [("exact copy", 1.0)]


def test_marks_make_no_copy_longer_so_the_first_stays(tmp_path):
    kept, copies, _ = deduped(tmp_path, "كتب الطالب الدرس", "كَتَبَ الطَّالِبُ الدَّرْسَ", "كتب الطّالب الدرس")
    assert kept == ["0"]
    assert copies == [
        {"id": "1", "copy_of": "0", "reason": "exact copy", "similarity": 1.0},
        {"id": "2", "copy_of": "0", "reason": "exact copy", "similarity": 1.0},
    ]


def test_of_copies_of_one_length_the_first_stays(tmp_path):
    assert deduped(tmp_path, LIBRARY, STORY, STORY, LIBRARY)[0] == ["0", "1"]


def test_a_near_copy_leaves_with_its_similarity(tmp_path):
    text = arabic_text(1, 400)
    near, far = changed(text, 4), changed(text, 100)
    assert jaccard(text, near) > 0.9
    assert jaccard(text, far) < 0.5
    kept, (copy,), counts = deduped(tmp_path, text, far, near + " تم")
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


def test_copies_across_files_are_found_and_the_folders_are_kept(tmp_path):
    write_jsonl(
        tmp_path / "in" / "ar" / "one.jsonl", [{"text": STORY, "id": "a", "metadata": {"lang": "ar", "url": "u"}}]
    )
    write_jsonl(tmp_path / "in" / "ar" / "two.jsonl", [{"text": STORY, "id": "b"}, {"title": "no text"}])
    write_jsonl(tmp_path / "in" / "en" / "one.jsonl", [{"text": ENGLISH, "id": "c", "metadata": {"lang": "en"}}])
    manifest = dedup([str(tmp_path / "in")], tmp_path / "out", DedupSettings()).manifest
    assert [entry["path"] for entry in manifest["outputs"]] == [
        "ar/part-00000.jsonl.zst", "_quarantine/part-00000.jsonl.zst", "_duplicates/part-00000.jsonl.zst",
        "en/part-00001.jsonl.zst",
    ]  # fmt: skip
    (record,) = read_part(tmp_path / "out" / "ar" / "part-00000.jsonl.zst")
    assert record == {"text": STORY, "id": "a", "metadata": {"lang": "ar", "url": "u", "copies": 1}}
    assert manifest["counts"]["kept_by_language"] == {"ar": 1, "en": 1}
    assert manifest["counts"]["quarantined"] == {"no text key": 1}
    assert manifest["clusters"] == {"clusters": 1, "largest": 2, "sizes": {"2": 1}, "repeated_lines": 0}


def test_one_language_alone_lies_where_two_would(tmp_path):
    """Whoever names the folder of a stage finds `ar/` in the output, whatever else was there."""
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"{STORY}\n{LIBRARY}"}])
    clean([str(tmp_path / "a.jsonl")], tmp_path / "cleaned", CleanSettings())
    manifest = dedup([str(tmp_path / "cleaned")], tmp_path / "out", DedupSettings()).manifest
    assert [entry["path"] for entry in manifest["outputs"]] == ["ar/part-00000.jsonl.zst"]


def test_copies_across_corpora_and_the_preferred_source_stays(tmp_path):
    for corpus in ("web", "books"):
        write_jsonl(tmp_path / corpus / "a.jsonl", [{"text": LIBRARY + " تم" * (corpus == "web"), "id": corpus}])
    inputs = [str(tmp_path / "web"), str(tmp_path / "books")]
    for prefer, stays in (((), "web"), (("books",), "books"), (("other", "web"), "web")):
        output = tmp_path / "out" / "-".join(("x", *prefer))
        dedup(inputs, output, DedupSettings(prefer=prefer))
        assert [r["id"] for path in output.glob("[bw]*/*.zst") for r in read_part(path)] == [stays]


@pytest.mark.parametrize(("keep", "stays"), [("longest", "b"), ("newest", "c"), ("first", "a")])
def test_who_stays_is_a_policy(tmp_path, keep, stays):
    text = arabic_text(4, 300)
    records = [
        {"text": text, "id": "a", "date": "2015-07-21"},
        {"text": text + " ومن ثم انتهى", "id": "b", "date": "not a date"},
        {"text": text, "id": "c", "date": "2015-07-22T10:00:00Z"},
    ]
    dedup([str(write_jsonl(tmp_path / "a.jsonl", records))], tmp_path / "out", DedupSettings(keep=keep))
    (kept,) = [record for path in (tmp_path / "out").glob("*.zst") for record in read_part(path)]
    assert (kept["id"], kept["metadata"]["copies"]) == (stays, 2)


def test_copies_of_an_earlier_dedup_are_added_up(tmp_path):
    records = [{"text": STORY, "id": str(number), "metadata": {"copies": 3}} for number in range(2)]
    dedup([str(write_jsonl(tmp_path / "a.jsonl", records))], tmp_path / "out", DedupSettings())
    (kept,) = read_part(tmp_path / "out" / "part-00000.jsonl.zst")
    assert kept["metadata"]["copies"] == 4


def test_lines_that_a_site_repeats_are_taken_out_but_not_prose_and_not_another_sites(tmp_path):
    menu, notice = "الرئيسية أخبار رياضة اقتصاد", "تابعونا على صفحاتنا"
    records = [
        {
            "text": f"{menu}\n{arabic_text(number, 60)}\n{notice}",
            "id": str(number),
            "url": f"https://www.example.org/{number}",
        }
        for number in range(6)
    ]
    records.append({"text": f"{menu}\n{arabic_text(99, 60)}", "id": "other", "url": "https://example.net/"})
    records.append({"text": f"{menu}\n{notice}", "id": "nothing else", "url": "https://example.org/x"})
    path = write_jsonl(tmp_path / "a.jsonl", records)
    manifest = dedup([str(path)], tmp_path / "out", DedupSettings(repeated_lines=5)).manifest
    kept = {record["id"]: record["text"] for record in read_part(tmp_path / "out" / "part-00000.jsonl.zst")}
    assert kept == {
        **{str(number): arabic_text(number, 60) for number in range(6)},
        "other": f"{menu}\n{arabic_text(99, 60)}",
    }
    assert manifest["counts"]["dropped"] == {"only repeated lines": 1}
    assert manifest["counts"]["edits"] == {"repeated lines removed": 12}


def test_copies_of_one_page_do_not_make_its_lines_repeated(tmp_path):
    text = "\n".join(arabic_text(number, 12) for number in range(5))
    records = [{"text": text, "id": str(number), "source": "site"} for number in range(8)]
    dedup([str(write_jsonl(tmp_path / "a.jsonl", records))], tmp_path / "out", DedupSettings(repeated_lines=3))
    assert [record["text"] for record in read_part(tmp_path / "out" / "part-00000.jsonl.zst")] == [text]


def test_who_is_joined_by_a_chain_alone_stays_when_it_is_far_from_who_stays(tmp_path):
    """a ~ b ~ c ~ d, but d has little of a: dropping it for a would lose text."""
    words = arabic_text(8, 400).split()
    texts = []
    for step in range(5):
        for place in range(step * 30, step * 30 + 30):
            words[place] = f"مختلف{step}و{place}"
        texts.append(" ".join([*words, *(["زيادة"] if step == 0 else [])]))
    assert jaccard(texts[0], texts[1]) > 0.8 and jaccard(texts[3], texts[4]) > 0.8
    assert jaccard(texts[0], texts[4]) < 0.53
    kept, copies, _ = deduped(tmp_path, *texts, threshold=0.75)
    assert "0" in kept and len(kept) == 2
    assert copies
    for copy in copies:
        assert jaccard(texts[int(copy["id"])], texts[int(copy["copy_of"])]) > 0.55


def test_what_was_decided_is_explained_with_the_pair(tmp_path):
    from megatron_native.corpus.explain import explain

    text = arabic_text(1, 400)
    deduped(tmp_path, text, changed(text, 4) + " تم", LIBRARY)
    found = explain(tmp_path / "out", "0")
    assert [(record["copy_of"], record["reason"]) for record in found["left"]] == [("1", "near copy")]
    assert found["jaccard"] == pytest.approx(jaccard(text, changed(text, 4) + " تم"), abs=1e-4)
    assert [record["id"] for record in explain(tmp_path / "out", "1")["copies"]] == ["0"]
    with pytest.raises(UserError, match="no document of this id left or has copies"):
        explain(tmp_path / "out", "2")


def test_parts_and_memory_change_nothing_but_the_cut(tmp_path):
    for name in "abc":
        texts = [arabic_text(seed, 80) for seed in range(30)] + [
            changed(arabic_text(seed, 80), 1) for seed in range(15)
        ]
        write_jsonl(tmp_path / "in" / f"{name}.jsonl", [{"text": text} for text in texts])
    found = []
    for size, memory_bytes in ((1 << 25, 4 << 30), (5000, 64 << 20)):
        output = tmp_path / str(size)
        manifest = dedup(
            [str(tmp_path / "in")], output, DedupSettings(part_bytes=size), None, memory_bytes
        ).manifest
        documents = [record for path in sorted(output.glob("*.zst")) for record in read_part(path)]
        found.append((documents, duplicates(output), manifest["counts"], manifest["clusters"]))
    assert found[0] == found[1]


def test_a_linked_file_is_read_where_the_link_lies(tmp_path):
    write_jsonl(tmp_path / "disk" / "real.jsonl", [{"text": STORY}])
    write_jsonl(tmp_path / "in" / "a.jsonl", [{"text": LIBRARY}])
    (tmp_path / "in" / "linked.jsonl").symlink_to(tmp_path / "disk" / "real.jsonl")
    manifest = dedup([str(tmp_path / "in")], tmp_path / "out", DedupSettings()).manifest
    assert [entry["path"] for entry in manifest["outputs"]] == ["part-00000.jsonl.zst"]
    assert [entry["source"] for entry in manifest["inputs"]] == ["a.jsonl", "linked.jsonl"]


def test_clean_then_dedup_keeps_languages_apart_and_skips_the_quarantine(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": STORY}, {"text": ENGLISH}, {"text": STORY + "\u200f"}, {"x": 1}])
    clean([str(tmp_path / "a.jsonl")], tmp_path / "cleaned", CleanSettings())
    manifest = dedup([str(tmp_path / "cleaned")], tmp_path / "out", DedupSettings()).manifest
    assert manifest["counts"]["read"] == 3
    assert [entry["path"] for entry in manifest["outputs"]] == [
        "ar/part-00000.jsonl.zst", "_duplicates/part-00000.jsonl.zst", "en/part-00001.jsonl.zst",
    ]  # fmt: skip
    assert manifest["lineage"][0]["manifest"] == "cleaned/manifest.json"
    assert dedup([str(tmp_path / "cleaned")], tmp_path / "out", DedupSettings()).skipped
    with pytest.raises(UserError, match=r"threshold: 0\.8 there, 0\.9 asked for"):
        dedup([str(tmp_path / "cleaned")], tmp_path / "out", DedupSettings(threshold=0.9))


def test_broken_off_and_again_gives_the_same_bytes(tmp_path, monkeypatch):
    from megatron_native.corpus import dedup as module

    for part in range(3):
        texts = [arabic_text(part * 10 + number) for number in range(5)] + [STORY]
        write_jsonl(tmp_path / "in" / f"{part}.jsonl", [{"text": text} for text in texts])
    write = module._write_part

    def dies(part, on_read, **more):
        if part.number == 2:
            raise KeyboardInterrupt
        return write(part, on_read, **more)

    settings = DedupSettings(part_bytes=4000)
    monkeypatch.setattr(module, "_write_part", dies)
    with pytest.raises(KeyboardInterrupt):
        dedup([str(tmp_path / "in")], tmp_path / "out", settings)
    monkeypatch.undo()
    for output in ("out", "undisturbed"):
        dedup([str(tmp_path / "in")], tmp_path / output, settings)
    assert part_bytes(tmp_path / "out") == part_bytes(tmp_path / "undisturbed")
    assert duplicates(tmp_path / "out") == duplicates(tmp_path / "undisturbed")
