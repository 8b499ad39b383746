"""The quickstart's dump: made anew it is the committed one, and its noise is what its functions say it is."""

import gzip
import importlib.util
import json
import random
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import zstandard

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
ARABIC = (
    "وصل القطار إلى المحطة في السادسة صباحا، وكان الركاب ينتظرون على الرصيف. لا أحد يعرف سبب التأخير! "
    "قال مدير المحطة إن الأمطار أغلقت الطريق الأول. وأضاف أن العمل سيعود إلى طبيعته قريبا."
)


@pytest.fixture(scope="module")
def make_dump():
    spec = importlib.util.spec_from_file_location("make_dump", QUICKSTART / "make_dump.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def decoded(folder):
    """Every file's content, whatever its compression."""
    content = {}
    for path in sorted(folder.iterdir()):
        if path.suffix == ".gz":
            content[path.name] = gzip.decompress(path.read_bytes())
        elif path.suffix == ".zst":
            content[path.name] = zstandard.ZstdDecompressor().decompressobj().decompress(path.read_bytes())
        elif path.suffix == ".parquet":
            content[path.name] = pq.read_table(path).to_pylist()
        else:
            content[path.name] = path.read_bytes()
    return content


def write_source(folder, arabic=40, english=10):
    """Stand-in documents, each with words of its own."""
    folder.mkdir()
    words = ARABIC.split()

    def document(number, lang):
        rng = random.Random(f"{lang}-{number}")
        text = " ".join(rng.choices(words, k=60)) if lang == "ar" else f"Passage {number}. " + "It rains today. " * 20
        metadata = {"source": "written", "licence": "Apache-2.0", "lang": lang, "subject": "rain"}
        return json.dumps({"text": text, "id": f"{lang}-{number}", "metadata": metadata}, ensure_ascii=False) + "\n"

    halves = [range(arabic // 2), range(arabic // 2, arabic)]
    for name, numbers in zip(("ar_a", "ar_b"), halves):
        (folder / f"{name}.jsonl").write_text("".join(document(n, "ar") for n in numbers), encoding="utf-8")
    (folder / "en.jsonl").write_text("".join(document(n, "en") for n in range(english)), encoding="utf-8")
    return folder


def test_the_committed_dump_is_what_the_script_makes_of_the_committed_source(make_dump, tmp_path):
    source = QUICKSTART / "source"
    if not (QUICKSTART / "data" / "news.jsonl").exists():
        pytest.skip("examples/quickstart/data is not made yet: python examples/quickstart/make_dump.py")
    make_dump.make_dump(source, tmp_path / "data")
    assert decoded(tmp_path / "data") == decoded(QUICKSTART / "data")


def test_the_same_seed_makes_the_same_dump_and_another_seed_another(make_dump, tmp_path):
    source = write_source(tmp_path / "source")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_dump.make_dump(source, tmp_path / name, seed)
    assert decoded(tmp_path / "a") == decoded(tmp_path / "b") != decoded(tmp_path / "c")
    assert (tmp_path / "a" / "blogs.jsonl.gz").read_bytes() == (tmp_path / "b" / "blogs.jsonl.gz").read_bytes()


def test_the_dump_has_every_defect_once_and_every_document_at_least_once(make_dump, tmp_path):
    source = write_source(tmp_path / "source")
    make_dump.make_dump(source, tmp_path / "data")
    content = decoded(tmp_path / "data")
    records, bad_json, bad_utf8 = [], 0, 0
    for name, shard in content.items():
        if name.endswith(".parquet"):
            records += shard
            continue
        if name.endswith(".txt"):
            records.append({"id": name, "text": shard.decode()})
            continue
        for line in shard.splitlines():
            try:
                records.append(json.loads(line))
            except UnicodeDecodeError:
                bad_utf8 += 1
            except json.JSONDecodeError:
                bad_json += 1
    assert (bad_json, bad_utf8) == (1, 1)
    assert sum("text" not in record for record in records) == 1
    assert sum(record.get("text") == "" for record in records) == 1
    identifiers = [record["id"] for record in records]
    assert sum(name.endswith("-copy") for name in identifiers) == 8
    assert sum(name.endswith("-near") for name in identifiers) == 12
    assert sum(name.startswith("mixed-") for name in identifiers) == 2
    assert sum(name.startswith("spam-") for name in identifiers) == 2
    letters = sum(name.endswith(".txt") for name in content)
    plain = {name for name in identifiers if name.startswith(("ar-", "en-")) and name.count("-") == 1}
    assert len(plain) + letters == 50
    assert len(identifiers) == len(set(identifiers))


def test_presentation_forms_are_the_same_text_to_unicode(make_dump):
    shaped = make_dump.use_presentation_forms(ARABIC, random.Random(0))
    assert shaped != ARABIC
    assert any(0xFE70 <= ord(char) <= 0xFEFC for char in shaped)
    assert unicodedata.normalize("NFKC", shaped) == ARABIC
    assert make_dump._shape("سلام") == "\ufeb3\ufefc\ufee1"  # initial seen, final lam-alef, isolated meem


def test_tatweel_and_invisible_characters_add_only_themselves(make_dump):
    text = ARABIC * 5
    stretched = make_dump.add_tatweel(text, random.Random(0))
    assert stretched != text and stretched.replace("\u0640", "") == text
    dirty = make_dump.add_invisible_characters(text, random.Random(0))
    assert dirty != text and "".join(char for char in dirty if unicodedata.category(char) != "Cf") == text


def test_site_lines_and_html_leave_the_text_inside(make_dump):
    with_lines = make_dump.add_site_lines("الأول\nالثاني", random.Random(0)).split("\n")
    assert [line for line in with_lines if line in ("الأول", "الثاني")] == ["الأول", "الثاني"]
    assert with_lines[0] in make_dump.ARABIC_NOTICES
    assert "<p>" in make_dump.leave_html(ARABIC, random.Random(0))


def test_near_copies_differ_from_their_text_and_keep_most_of_it(make_dump):
    rng = random.Random(0)
    vocalised = make_dump.add_tashkeel(ARABIC, rng)
    assert vocalised != ARABIC and make_dump.strip_tashkeel(vocalised, rng) == ARABIC
    assert "أ" not in make_dump.write_other_alefs(ARABIC, rng)
    changed = make_dump.change_a_sentence(ARABIC, rng)
    assert changed != ARABIC and len(set(changed.split()) & set(ARABIC.split())) > 0.5 * len(set(ARABIC.split()))
