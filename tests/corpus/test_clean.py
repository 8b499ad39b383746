"""The clean stage: what becomes of a record, the account, and the language of a page."""

from collections import Counter

import pytest

from megatron_native.corpus.clean import CleanSettings, clean
from megatron_native.corpus.cleaner import Cleaner, CleanerSettings, one_script
from megatron_native.corpus.filters import load_preset
from megatron_native.corpus.folding import code_points
from megatron_native.corpus.survey import survey
from megatron_native.documents.records import ReadSettings
from megatron_native.errors import UserError
from megatron_native.manifest import file_digest
from tests.corpus.corpus_files import ENGLISH, LIBRARY, STORY, read_part, write_jsonl


def cleaned(text, preset="msa", **settings):
    edits = Counter()
    found = Cleaner(CleanerSettings(preset, load_preset(preset)["languages"], **settings)).clean(text, edits)
    return found.text, found.language, found.reason, edits


@pytest.mark.parametrize(
    ("text", "language", "reason"),
    [
        (STORY, "ar", None),
        (ENGLISH, "en", None),
        ("", "", "empty"),
        (" \n\u00a0\t", "", "empty"),
        ("\u200b\ufeff", "", "empty after cleaning"),
        ("<div><br/></div>", "", "empty after cleaning"),
        ("إعلان\nاقرأ المزيد", "", "empty after cleaning"),
        ("12 345 ... ١٢٣ !", "", "language not told"),
        ("خبر قصير", "ar", "too few words"),
    ],
)
def test_why_a_document_leaves(text, language, reason):
    assert cleaned(text)[1:3] == (language, reason)


def test_everything_that_sites_leave_in_a_text_is_taken_out_in_one_pass():
    sentence = STORY.split(". ")[0] + "."
    dirty = (
        "<div class='x'><p>" + sentence.replace("المعلمة", "المعـــلمة").replace("لا", "ﻻ").replace(" ", "&nbsp;", 3)
        + "\u200f</p><p>إعلان</p></div><script>track()</script>\r\n\r\n\r\nنستخدم ملفات تعريف الارتباط. موافق\r\n" + LIBRARY
    )  # fmt: skip
    text, language, reason, edits = cleaned(dirty)
    assert (text, language, reason) == (f"{sentence}\n\n{LIBRARY}", "ar", None)
    assert edits == {"boilerplate lines removed": 2, "HTML taken out": 1}


def test_edits_of_a_document_that_leaves_are_not_counted():
    assert not cleaned("إعلان\nخبر قصير")[3]


def in_one_script(text):
    found = survey(code_points(text))
    return one_script(text, found.arabic, found.latin)


def test_a_page_with_85_percent_of_its_letters_in_one_script_stays_whole():
    assert in_one_script("ب" * 85 + "\n" + "x" * 15) == ("ب" * 85 + "\n" + "x" * 15, 0)
    assert in_one_script("ب" * 84 + "\n" + "x" * 16) == ("ب" * 84, 1)
    assert in_one_script("ب" * 15 + "\n" + "x" * 85)[1] == 0


def test_marks_do_not_weigh_in_the_script():
    assert in_one_script("بَّ" * 30 + "\n" + "x" * 40) == ("x" * 40, 1)


def test_a_mixed_page_keeps_numbers_and_the_paragraphs_of_its_script():
    page = f"{STORY}\n{ENGLISH}\n١٤٤٥ / 2024\n\n{LIBRARY}"
    assert in_one_script(page) == (f"{STORY}\n١٤٤٥ / 2024\n\n{LIBRARY}", 1)
    assert in_one_script(f"{ENGLISH}\n{ENGLISH}\n{STORY}") == (f"{ENGLISH}\n{ENGLISH}", 1)


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (STORY.encode().decode("latin-1"), STORY),
        (STORY.encode("cp1256").decode("latin-1"), STORY),
        ("Ça déjà vu à l'été, où êtes-vous? Où çà?" * 3, None),
    ],
)
def test_bytes_that_were_misread_are_decoded_anew(raw, text):
    found = cleaned(raw, "none")
    assert found[0] == (text or raw) or (text is None and found[1] not in ("ar",))
    assert found[3]["misread bytes repaired"] == (1 if text else 0)


def test_scripture_comes_through_letter_for_letter_and_is_no_boilerplate():
    verse = "﴿ قُلْ أَعُوذُ بِرَبِّ ٱلۡفَلَقِ ﴾"
    text = f"{STORY}\nاقرأ المزيد\n{verse}\n{LIBRARY}"
    found = cleaned(text)
    assert found[0] == f"{STORY}\n{verse}\n{LIBRARY}"
    assert found[3]["passages of scripture frozen"] == 1


def test_personal_data_of_what_stays_is_masked_unless_asked_not_to():
    text = f"{STORY} للتواصل: editor@example.org أو 0501234567."
    assert cleaned(text)[0] == f"{STORY} للتواصل: [EMAIL] أو [PHONE]."
    assert cleaned(text)[3] == {"masked email": 1, "masked phone": 1}
    assert cleaned(text, mask_pii=False)[0] == text


def test_dialects_and_latin_letters_have_buckets_of_their_own():
    assert cleaned("شو عم تعمل هلق؟ بدي احكي معك كتير عن هالشي، بس مو هون، تعال لعنا بكرا إذا بدك منروح سوا")[1:3] == (
        "ar-dialect",
        None,
    )
    latin = "ana msh 3aref leh keda ya 7abibi, bas yalla nro7 sawa bokra 3ashan nshof el nas illi 3ayzeen yet3allemo"
    assert cleaned(latin)[1:3] == ("ar-latn", None)


def test_tatweel_that_is_to_stay_stays_on_a_mixed_page_too():
    drawn = STORY.replace("المعلمة", "المعـــلمة")
    assert cleaned(f"{drawn}\n{ENGLISH}\n{LIBRARY}", tatweel="keep")[0] == f"{drawn}\n{LIBRARY}"


def test_records_come_out_with_their_keys_and_their_source(tmp_path):
    path = write_jsonl(tmp_path / "in" / "news.jsonl", [
        {"title": "عنوان"},
        {"body": STORY, "url": "https://example.org/1", "metadata": {"licence": "cc0"}, "key": 7},
        {"body": ENGLISH},
    ])  # fmt: skip
    settings = CleanSettings(reading=ReadSettings("body", "key"))
    manifest = clean([str(path)], tmp_path / "out", settings).manifest
    lines = path.read_bytes().split(b"\n")
    offset = len(lines[0]) + 1
    assert read_part(tmp_path / "out/ar/part-00000.jsonl.zst") == [{
        "text": STORY, "id": "7",
        "metadata": {"licence": "cc0", "url": "https://example.org/1", "lang": "ar", "from": {"file": "news.jsonl",
        "offset": offset}},
    }]  # fmt: skip
    assert [record["id"] for record in read_part(tmp_path / "out/en/part-00000.jsonl.zst")] == [
        f"news.jsonl:{offset + len(lines[1]) + 1}"
    ]
    assert read_part(tmp_path / "out/_quarantine/part-00000.jsonl.zst") == [{
        "source": "news.jsonl", "offset": 0, "reason": "no text key", "raw": '{"title": "عنوان"}',
        "detail": "no 'body' in it",
    }]  # fmt: skip
    assert manifest["counts"] == {
        "read": 3, "kept": 2, "dropped": {}, "quarantined": {"no text key": 1}, "kept_by_language": {"ar": 1, "en": 1},
        "read_by_language": {"ar": 1, "en": 1}, "edits": {}, "bytes_read": len((STORY + ENGLISH).encode()),
        "bytes_kept": len((STORY + ENGLISH).encode()),
    }  # fmt: skip
    for entry in manifest["outputs"]:
        path = tmp_path / "out" / entry["path"]
        assert (entry["bytes"], entry["xxh3_128"], entry["records"]) == (path.stat().st_size, file_digest(path), 1)


def test_only_the_languages_asked_for_are_kept(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": STORY}, {"text": ENGLISH}])
    counts = clean([str(path)], tmp_path / "out", CleanSettings(languages=("ar",))).manifest["counts"]
    assert (counts["kept"], counts["dropped"]) == (1, {"language en not kept": 1})
    assert not (tmp_path / "out" / "en").exists()


def test_files_with_nothing_in_them_leave_a_manifest_and_no_parts(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"\n\n")
    manifest = clean([str(tmp_path / "a.jsonl")], tmp_path / "out", CleanSettings()).manifest
    assert (manifest["counts"]["read"], manifest["outputs"]) == (0, [])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("languages", [("fr",), ("ar", "fr")])
def test_languages_that_the_preset_does_not_know_are_refused(tmp_path, languages):
    path = write_jsonl(tmp_path / "a.jsonl", [])
    with pytest.raises(UserError, match="preset msa knows ar, ar-dialect, ar-latn, en"):
        clean([str(path)], tmp_path / "out", CleanSettings(languages=languages))
    assert not (tmp_path / "out").exists()


def test_cleaning_what_was_cleaned_changes_no_text(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"<p>{STORY}</p>\n{ENGLISH}\n{LIBRARY}"}, {"text": ENGLISH}])
    clean([str(tmp_path / "a.jsonl")], tmp_path / "once", CleanSettings())
    counts = clean([str(tmp_path / "once")], tmp_path / "twice", CleanSettings()).manifest["counts"]
    assert (counts["read"], counts["kept"], counts["edits"]) == (2, 2, {})
    for part in ("ar/part-00000.jsonl.zst", "en/part-00001.jsonl.zst"):
        once, twice = tmp_path / "once" / part.replace("00001", "00000"), tmp_path / "twice" / part
        assert [record["text"] for record in read_part(once)] == [record["text"] for record in read_part(twice)]


def test_why_documents_left_and_how_they_began_is_kept(tmp_path):
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"text": STORY}, {"text": "خبر قصير", "id": "short"}, {"text": "س " * 2000}]
    )
    clean([str(path)], tmp_path / "out", CleanSettings())
    first, second = read_part(tmp_path / "out/_dropped/part-00000.jsonl.zst")
    assert (first["id"], first["reason"], first["language"], first["text"]) == (
        "short",
        "too few words",
        "ar",
        "خبر قصير",
    )
    assert len(second["text"]) == 500


def test_parquet_out_is_read_as_what_jsonl_out_is(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": STORY, "id": "1", "url": "u"}, {"text": LIBRARY, "id": "2"}])
    for output_format in ("jsonl.zst", "parquet"):
        clean([str(path)], tmp_path / output_format, CleanSettings(output_format=output_format))
    again = clean([str(tmp_path / "parquet")], tmp_path / "again", CleanSettings()).manifest
    assert again["counts"]["kept"] == 2
    texts = [[r["text"] for r in read_part(tmp_path / f / "ar/part-00000.jsonl.zst")] for f in ("jsonl.zst", "again")]
    assert texts[0] == texts[1] == [STORY, LIBRARY]
    with pytest.raises(UserError, match=r"one of jsonl\.zst, parquet"):
        clean([str(path)], tmp_path / "x", CleanSettings(output_format="csv"))


def test_the_preview_counts_and_shows_and_writes_nothing(tmp_path):
    from megatron_native.corpus.preview import preview

    path = write_jsonl(tmp_path / "a.jsonl", [*[{"text": STORY}] * 3, {"text": "خبر قصير", "id": "short"}, {"x": 1}])
    found = preview([str(path)], CleanSettings())
    assert (found.read, dict(found.kept), dict(found.refused["ar"]), dict(found.quarantined)) == (
        5, {"ar": 3}, {"too few words": 1}, {"no text key": 1},
    )  # fmt: skip
    assert found.samples["ar", "too few words"] == [("short", "خبر قصير")]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
