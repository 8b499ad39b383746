"""The clean stage: what becomes of a record, the account, and the language of a page."""

import pytest

from megatron_native.corpus.clean import Cleaner, CleanSettings, clean, main_language
from megatron_native.corpus.filters import load_preset
from megatron_native.corpus.stage import Account
from megatron_native.errors import UserError
from megatron_native.manifest import file_digest
from tests.corpus.corpus_files import ENGLISH, LIBRARY, STORY, read_part, write_jsonl


def cleaned(text, preset="msa", **settings):
    chosen = CleanSettings(preset=preset, **settings)
    thresholds = load_preset(preset)["languages"]
    account = Account()
    return *Cleaner(chosen, thresholds).clean(text, account), account


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
        ("خبر قصير", "", "too few words"),
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
    text, language, reason, account = cleaned(dirty)
    assert (text, language, reason) == (f"{sentence}\n\n{LIBRARY}", "ar", None)
    assert account.edits == {"boilerplate lines removed": 2}


def test_edits_of_a_document_that_leaves_are_not_counted():
    assert not cleaned("إعلان\nخبر قصير")[3].edits


def test_a_page_is_arabic_from_85_percent_of_its_letters_on():
    assert main_language("ب" * 85 + "\n" + "x" * 15) == ("ar", "ب" * 85 + "\n" + "x" * 15, 0)
    assert main_language("ب" * 84 + "\n" + "x" * 16) == ("ar", "ب" * 84, 1)
    assert main_language("ب" * 15 + "\n" + "x" * 85)[0] == "en"


def test_marks_do_not_weigh_in_the_language():
    assert main_language("بَّ" * 30 + "\n" + "x" * 40)[0] == "en"


def test_a_mixed_page_keeps_numbers_and_the_paragraphs_of_its_language():
    page = f"{STORY}\n{ENGLISH}\n١٤٤٥ / 2024\n\n{LIBRARY}"
    assert main_language(page) == ("ar", f"{STORY}\n١٤٤٥ / 2024\n\n{LIBRARY}", 1)
    assert main_language(f"{ENGLISH}\n{ENGLISH}\n{STORY}") == ("en", f"{ENGLISH}\n{ENGLISH}", 1)


def test_tatweel_that_is_to_stay_stays_on_a_mixed_page_too():
    drawn = STORY.replace("المعلمة", "المعـــلمة")
    assert cleaned(f"{drawn}\n{ENGLISH}\n{LIBRARY}", tatweel="keep")[0] == f"{drawn}\n{LIBRARY}"


def test_records_come_out_with_their_keys_and_their_source(tmp_path):
    path = write_jsonl(tmp_path / "in" / "news.jsonl", [
        {"title": "عنوان"},
        {"body": STORY, "url": "https://example.org/1", "metadata": {"licence": "cc0"}, "key": 7},
        {"body": ENGLISH},
    ])  # fmt: skip
    settings = CleanSettings(text_key="body", id_key="key")
    manifest = clean([str(path)], tmp_path / "out", settings).manifest
    assert read_part(tmp_path / "out/ar/part-00000.jsonl.zst") == [{
        "text": STORY, "id": "7",
        "metadata": {"licence": "cc0", "url": "https://example.org/1", "lang": "ar", "from": {"file": "news.jsonl", "line": 2}},
    }]  # fmt: skip
    assert [record["id"] for record in read_part(tmp_path / "out/en/part-00000.jsonl.zst")] == ["news.jsonl:3"]
    assert read_part(tmp_path / "out/_quarantine/part-00000.jsonl.zst") == [{
        "source": str(path), "offset": 0, "line": 1, "reason": "no text key", "raw": '{"title": "عنوان"}',
        "detail": "no 'body' in it",
    }]  # fmt: skip
    assert manifest["counts"] == {
        "read": 3, "kept": 2, "dropped": {}, "quarantined": {"no text key": 1}, "kept_by_language": {"ar": 1, "en": 1},
        "edits": {}, "bytes_read": len((STORY + ENGLISH).encode()), "bytes_kept": len((STORY + ENGLISH).encode()),
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


@pytest.mark.parametrize("languages", [(), ("fr",), ("ar", "fr")])
def test_languages_that_the_preset_does_not_know_are_refused(tmp_path, languages):
    path = write_jsonl(tmp_path / "a.jsonl", [])
    with pytest.raises(UserError, match="preset msa knows ar, en"):
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
