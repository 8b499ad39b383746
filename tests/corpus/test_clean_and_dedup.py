"""The clean and dedup stages over files: accounts, layout, what leaves and why, kills and reruns."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from megatron_native.corpus.arabic import fold
from megatron_native.corpus.clean import CleanSettings, clean, main_language
from megatron_native.corpus.dedup import DedupSettings, dedup
from megatron_native.corpus.filters import QualityFilters, load_preset
from megatron_native.corpus.markup import remove_boilerplate_lines, strip_html
from megatron_native.corpus.minhash import MinHasher, MinHashSettings, near_copies
from megatron_native.errors import UserError
from tests.distributed import REPOSITORY

SENTENCES = (
    "في كل صباح يخرج الفلاح إلى حقله ويسقي الزرع من ماء النهر القريب ثم يعود إلى بيته عند الظهر ليستريح قليلا مع أسرته "
    "قبل أن يرجع إلى العمل حتى غروب الشمس وقد تعلم من والده أن الأرض تعطي من يعتني بها وأن الصبر مفتاح الفرج"
)
WORDS = SENTENCES.split()


def text_of(seed: int, words: int = 60) -> str:
    generator = random.Random(seed)
    return " ".join([*generator.choices(WORDS, k=words)[:-1], "انتهى."])


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def read_zst(path: Path) -> list[dict[str, Any]]:
    raw = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())
    return [json.loads(line) for line in raw.decode().splitlines()]


def digests(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.zst"))}


# --- clean ---------------------------------------------------------------------------------------------------------


def test_html_goes_and_comparisons_stay() -> None:
    raw = '<div><p>أحمد &amp; علي</p><script>var x;</script><br/>إذا كان a < b فإن b > a</div><!-- end -->'
    assert strip_html(raw).split() == ["أحمد", "&", "علي", "إذا", "كان", "a", "<", "b", "فإن", "b", ">", "a"]


def test_site_lines_go_and_prose_about_them_stays() -> None:
    prose = (
        "تستخدم المتصفحات الحديثة ما يعرف باسم ملفات تعريف الارتباط، وهي ملفات نصية صغيرة تحفظ على جهاز المستخدم، وتساعد "
        "المواقع على تذكر اختياراته السابقة حتى لا يضطر إلى إعادة إدخالها في كل زيارة جديدة للموقع نفسه."
    )
    text = f"نستخدم ملفات تعريف الارتباط لتحسين تجربتك. موافق\n{prose}\nإعلان\nشارك المقال: فيسبوك | تويتر\nاقرأ أيضا:"
    assert remove_boilerplate_lines(text) == (prose, 4)


def test_a_mixed_page_keeps_the_paragraphs_of_its_main_language() -> None:
    arabic, english = text_of(1), "A paragraph in English stands between the Arabic ones of this page. " * 4
    english = english.strip()
    assert main_language(f"{arabic}\n{english}\n{arabic}") == ("ar", f"{arabic}\n{arabic}", 1)
    assert main_language("12345 ...")[0] is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (text_of(2), None),
        (" ".join(WORDS[:10]), "too few words"),
        (("اربح الان معنا " * 40), "repeated phrases"),
        ("\n".join([text_of(3, 30)] * 6), "repeated lines"),
        (" ".join(f"{word} 12 34" for word in WORDS), "too few alphabetic words"),
        (" | ".join(WORDS), "too many symbols"),
        (" ".join(f"كلمة{letter}" for letter in "ابتثجحخدذرزسشصضطظعغفقكلمنهوي"), "too few stop words"),
        (" ".join(["كلمةطويلةجدابلافواصلبينحروفها" + c for c in "ابتثجحخدذرزسشصضطظعغفقكلمنهوي"]), "mean word length"),
    ],
)  # fmt: skip
def test_each_filter_refuses_its_kind(text: str, reason: str | None) -> None:
    filters = QualityFilters(load_preset("msa")["languages"]["ar"], "msa")
    assert filters.refuse(text) == reason


def test_presets_load_and_stop_words_are_words() -> None:
    for name in ("msa", "none"):
        for thresholds in load_preset(name)["languages"].values():
            assert all(isinstance(word, str) for word in (thresholds or {}).get("stop_words", []))
    with pytest.raises(UserError, match="unknown filters"):
        QualityFilters({"min_wrods": 3}, "test")
    with pytest.raises(UserError, match="there is no preset 'mas'"):
        load_preset("mas")


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    english = (
        "The farmer walks to the field in the morning and waters the crops with care. At noon he returns home, rests for "
        "a while with the family, and then goes back to work until the sun has set behind the hills."
    )
    write_jsonl(tmp_path / "dump" / "a.jsonl", [
        {"text": text_of(1), "id": "a1", "url": "u"}, {"text": "", "id": "a2"}, {"text": english, "id": "a3"},
        {"text": "قصير", "id": "a4"},
    ])  # fmt: skip
    write_jsonl(tmp_path / "dump" / "b.jsonl", [{"text": f"<p>{text_of(4)}</p>", "id": "b1"}, {"title": "x"}])
    return tmp_path / "dump"


def test_clean_accounts_for_every_record_and_splits_by_language(dump: Path, tmp_path: Path) -> None:
    result = clean([str(dump)], tmp_path / "out", CleanSettings())
    counts = result.manifest["counts"]
    assert (counts["read"], counts["kept"]) == (6, 3)
    assert counts["dropped"] == {"empty": 1, "too few words": 1}
    assert counts["quarantined"] == {"no text key": 1}
    assert counts["kept_by_language"] == {"ar": 2, "en": 1}
    (first,) = read_zst(tmp_path / "out" / "ar" / "part-00000.jsonl.zst")
    assert first["id"] == "a1"
    assert first["metadata"] == {"url": "u", "lang": "ar", "from": {"file": "a.jsonl", "line": 1}}
    (refused,) = read_zst(tmp_path / "out" / "_quarantine" / "part-00001.jsonl.zst")
    assert (refused["line"], refused["reason"]) == (2, "no text key")


def test_the_same_again_is_skipped_and_other_settings_are_refused(dump: Path, tmp_path: Path) -> None:
    clean([str(dump)], tmp_path / "out", CleanSettings())
    assert clean([str(dump)], tmp_path / "out", CleanSettings()).skipped
    with pytest.raises(UserError, match="tatweel: 'remove' there, 'keep' asked for"):
        clean([str(dump)], tmp_path / "out", CleanSettings(tatweel="keep"))
    with pytest.raises(UserError, match="preset msa knows ar, en"):
        clean([str(dump)], tmp_path / "other", CleanSettings(languages=("fr",)))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("keep me")
    with pytest.raises(UserError, match="is not empty"):
        clean([str(dump)], tmp_path / "full", CleanSettings())


def test_workers_do_not_change_the_bytes(dump: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        clean([str(dump)], tmp_path / f"out{workers}", CleanSettings(), workers)
    assert digests(tmp_path / "out1") == digests(tmp_path / "out2")


def test_killed_and_rerun_gives_the_same_bytes(tmp_path: Path) -> None:
    for part in range(6):
        records = [{"text": text_of(part * 1000 + i, 120), "id": f"{part}-{i}"} for i in range(300)]
        write_jsonl(tmp_path / "dump" / f"{part}.jsonl", records)
    command = [
        sys.executable, "-m", "megatron_native", "clean", "--input", str(tmp_path / "dump"), "--workers", "1", "--output",
    ]  # fmt: skip
    subprocess.run([*command, str(tmp_path / "whole")], cwd=REPOSITORY, check=True, capture_output=True)
    process = subprocess.Popen([*command, str(tmp_path / "killed")], cwd=REPOSITORY, start_new_session=True)
    progress = tmp_path / "killed" / "_progress"
    deadline = time.monotonic() + 60
    while not (progress / "part-00001.json").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "manifest.json").exists(), "it was killed on the way"
    subprocess.run([*command, str(tmp_path / "killed")], cwd=REPOSITORY, check=True, capture_output=True)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert not progress.exists()


# --- dedup ---------------------------------------------------------------------------------------------------------


def jaccard(one: str, other: str, size: int = 5) -> float:
    sets = []
    for text in (one, other):
        words = fold(text).split()
        sets.append({tuple(words[i : i + size]) for i in range(len(words) - size + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def near_texts(count: int) -> list[str]:
    """Texts and copies of them with one to thirty words changed."""
    generator = random.Random(9)
    texts = []
    for seed in range(count):
        words = text_of(seed, 200).split()
        texts.append(" ".join(words))
        for place in generator.sample(range(200), generator.randint(1, 30)):
            words[place] = f"بديل{place}"
        texts.append(" ".join(words))
    return texts


def test_signatures_estimate_the_jaccard_similarity() -> None:
    hasher = MinHasher(MinHashSettings(bands=16, rows=16))
    errors = []
    texts = near_texts(40)
    for one, other in zip(texts[::2], texts[1::2]):
        estimate = float((hasher.signature(fold(one)) == hasher.signature(fold(other))).mean())
        errors.append(estimate - jaccard(one, other))
    # The standard deviation of an estimate from 256 hashes is at most sqrt(1/4 / 256) = 0.031.
    assert np.sqrt(np.mean(np.square(errors))) < 0.035
    assert abs(np.mean(errors)) < 0.02


def test_near_copies_are_found_and_others_are_not() -> None:
    settings = MinHashSettings()
    texts = near_texts(60)
    hasher = MinHasher(settings)
    found = {pair[:2] for pair in near_copies(np.stack([hasher.signature(fold(text)) for text in texts]), settings)}
    similar = {
        (i, j): jaccard(texts[i], texts[j]) for i, j in itertools.combinations(range(len(texts)), 2)
    }
    sure = {pair for pair, similarity in similar.items() if similarity >= 0.95}
    assert sure, "the sample has near copies"
    assert sure <= found
    assert all(similar[pair] > 0.65 for pair in found)


def test_the_probability_of_becoming_a_candidate_by_hand() -> None:
    assert MinHashSettings(bands=2, rows=3).candidate_probability(0.5) == pytest.approx(1 - (1 - 0.125) ** 2)


def test_dedup_keeps_the_longest_then_the_first_and_says_what_is_a_copy_of_what(tmp_path: Path) -> None:
    base = text_of(5, 300)
    vocalised = base.replace("كل", "كُلّ")
    changed = base.replace("انتهى.", "انتهى الكلام هنا.")
    other = text_of(6, 300)
    write_jsonl(tmp_path / "in" / "ar" / "one.jsonl", [
        {"text": base, "id": "base", "metadata": {"lang": "ar"}}, {"text": other, "id": "other"},
        {"text": "نعم", "id": "short1"}, {"text": "لا", "id": "short2"}, {"text": "!!!", "id": "signs1"},
    ])  # fmt: skip
    write_jsonl(tmp_path / "in" / "en" / "two.jsonl", [
        {"text": changed, "id": "changed"}, {"text": other.replace("إلى", "الى"), "id": "other2"},
        {"text": "???", "id": "signs2"},
        {"text": vocalised, "id": "vocalised"}, {"text": " ", "id": "blank"},
    ])  # fmt: skip
    result = dedup([str(tmp_path / "in")], tmp_path / "out", DedupSettings())
    assert jaccard(base, changed) > 0.95
    longest = max((base, "base"), (changed, "changed"), (vocalised, "vocalised"), key=lambda pair: len(pair[0]))[1]
    kept = {record["id"] for path in (tmp_path / "out").rglob("*.jsonl.zst") for record in read_zst(path)}
    assert kept == {longest, "other", "short1", "short2", "signs1", "signs2"}
    copies = {line["id"]: line for line in map(json.loads, (tmp_path / "out" / "duplicates.jsonl").read_text().splitlines())}
    assert copies["other2"] == {"id": "other2", "copy_of": "other", "reason": "exact copy", "similarity": 1.0}
    assert {copies[name]["copy_of"] for name in {"base", "changed", "vocalised"} - {longest}} == {longest}
    assert result.manifest["counts"]["dropped"]["empty"] == 1
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.jsonl.zst")} == {"ar", "en"}


def test_an_unfinished_stage_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "half" / "_progress").mkdir(parents=True)
    write_jsonl(tmp_path / "half" / "ar" / "part-00000.jsonl", [{"text": "x"}])
    with pytest.raises(UserError, match="did not finish"):
        dedup([str(tmp_path / "half")], tmp_path / "out", DedupSettings())


# --- the command line ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["clean", "--input", "/nowhere/x.jsonl", "--output", "OUT"], "/nowhere/x.jsonl does not exist"),
        (["clean", "--input", "IN", "--output", "OUT", "--preset", "mas"], "there is no preset 'mas'"),
        (["dedup", "--input", "/nowhere", "--output", "OUT"], "/nowhere does not exist"),
    ],
)
def test_mistakes_are_one_paragraph_and_exit_code_2(dump: Path, tmp_path: Path, words: list[str], said: str) -> None:
    words = [{"IN": str(dump), "OUT": str(tmp_path / "out")}.get(word, word) for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "megatron_native", *words], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
