"""Turn the quickstart's clean source documents into what crawls look like, in the formats that teams have.

In: `source/{ar_a,ar_b,en}.jsonl`, clean documents `{"text", "id", "metadata"}`. Out, in `data/`: JSONL, JSONL.gz,
JSONL.zst, Parquet and plain text, with the noise that cleaning has to undo (tatweel, presentation forms, invisible
characters, HTML, notices, advertisements), copies that deduplication has to find, and records that must be refused.
Everything is seeded: `python examples/quickstart/make_dump.py` writes the same content every time.
"""

from __future__ import annotations

import argparse
import gzip
import html
import io
import itertools
import json
import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

HERE = Path(__file__).resolve().parent
SEED = 20
Document = dict[str, Any]
Noise = Callable[[str, random.Random], str]

ARABIC_LETTER = re.compile("[\u0621-\u064a]")
TASHKEEL = "\u064b\u064c\u064d\u064e\u064f\u0650\u0651\u0652"
TATWEEL = "\u0640"
JOINS_ON_BOTH_SIDES = "بتثجحخسشصضطظعغفقكلمنهيئ"
INVISIBLE = ["\u200b", "\ufeff", "\u200e", "\u200f", "\u2060", "\u00ad"]
BIDI_PAIRS = [("\u202b", "\u202c"), ("\u2067", "\u2069"), ("\u202a", "\u202c")]

ARABIC_NOTICES = [
    "نستخدم ملفات تعريف الارتباط (الكوكيز) لتحسين تجربتك على موقعنا. باستمرارك في التصفح فإنك توافق على سياسة الخصوصية.",
    "هذا الموقع يستخدم ملفات تعريف الارتباط. اقرأ المزيد | موافق",
]
ARABIC_ADVERTISEMENTS = [
    "إعلان: اشترك الآن واحصل على خصم 50% لفترة محدودة!",
    "مساحة إعلانية",
    "حمّل تطبيقنا المجاني من متجر جوجل بلاي أو آب ستور",
    "اشترك في النشرة البريدية ليصلك كل جديد",
]
ARABIC_SHARE_LINES = [
    "شارك المقال: فيسبوك | تويتر | واتساب | تيليجرام",
    "اقرأ أيضا:",
    "طباعة الصفحة | إرسال إلى صديق",
    "الرئيسية > الأخبار > التفاصيل",
    "التعليقات (0)   المشاهدات: 1243",
]
ENGLISH_NOTICES = ["This website uses cookies to improve your experience. Accept all cookies | Cookie settings"]
ENGLISH_ADVERTISEMENTS = ["ADVERTISEMENT", "Subscribe to our newsletter and get 20% off your first order!"]
ENGLISH_SHARE_LINES = ["Share this article: Facebook | Twitter | WhatsApp", "Read more »", "Click here to comment (0)"]
SPAM = [
    "اضغط هنا",
    "ارباح يومية مضمونة اربح الان اربح الان اربح الان سجل معنا سجل معنا سجل معنا http://win.example.com اربح الان",
]


def add_tatweel(text: str, rng: random.Random) -> str:
    """Stretch one word in ten with tatweel, as headlines and forum posts do."""

    def stretch(word: str) -> str:
        places = [i for i in range(1, len(word)) if word[i - 1] in JOINS_ON_BOTH_SIDES and ARABIC_LETTER.match(word[i])]
        if not places or rng.random() > 0.1:
            return word
        at = rng.choice(places)
        return word[:at] + TATWEEL * rng.randint(1, 4) + word[at:]

    return _map_words(text, stretch)


def use_presentation_forms(text: str, rng: random.Random) -> str:
    """Write one word in six in the shaped letters of U+FE70–FEFF, as text taken out of old PDFs has it."""
    return _map_words(text, lambda word: _shape(word) if rng.random() < 1 / 6 else word)


def add_invisible_characters(text: str, rng: random.Random) -> str:
    """Zero-width characters in and after words, bidirectional marks around them, a byte order mark at the start."""

    def dirty(word: str) -> str:
        chance = rng.random()
        if chance < 0.04 and len(word) > 2:
            at = rng.randrange(1, len(word))
            return word[:at] + rng.choice(INVISIBLE) + word[at:]
        if chance < 0.08:
            opening, closing = rng.choice(BIDI_PAIRS)
            return opening + word + closing
        return word + rng.choice(INVISIBLE) if chance < 0.11 else word

    return "\ufeff" + _map_words(text, dirty)


def leave_html(text: str, rng: random.Random) -> str:
    """What a careless extraction leaves: tags around paragraphs, links inside them, entities for signs and spaces."""
    paragraphs = []
    for paragraph in text.split("\n"):
        words = html.escape(paragraph, quote=True).split(" ")
        if len(words) > 8:
            at = rng.randrange(2, len(words) - 2)
            words[at] = f'<a href="https://example.com/tag/{rng.randrange(1000)}" target="_blank">{words[at]}</a>'
            words[at + 1] = "&nbsp;" + words[at + 1]
        paragraphs.append(f"<p>{' '.join(words)}</p>" if paragraph else "<br />")
    return '<div class="article-body">\n' + "\n".join(paragraphs) + "\n</div><!-- end article -->"


def type_in_haste(text: str, rng: random.Random) -> str:
    """Latin commas and question marks, blanks before signs, calls repeated: what rewriting by rules puts right."""
    for right, hasty in (("، ", " , "), ("، ", ", "), ("؟", " ?"), (". ", " . ")):
        parts = text.split(right)
        text = parts[0] + "".join((hasty if rng.random() < 0.4 else right) + part for part in parts[1:])
    return text


def add_site_lines(text: str, rng: random.Random) -> str:
    """A cookie notice above an Arabic text, an advertisement within and share buttons below it."""
    return _add_lines(text, rng, ARABIC_NOTICES, ARABIC_ADVERTISEMENTS, ARABIC_SHARE_LINES)


def add_english_site_lines(text: str, rng: random.Random) -> str:
    """The same for an English text."""
    return _add_lines(text, rng, ENGLISH_NOTICES, ENGLISH_ADVERTISEMENTS, ENGLISH_SHARE_LINES)


def change_a_sentence(text: str, rng: random.Random) -> str:
    """A near copy: another newspaper has dropped the shortest sentence and signed the text."""
    sentences = re.split(r"(?<=[.؟!])\s+", text)
    if len(sentences) > 3:
        sentences.remove(min(sentences[1:-1], key=len))
    return " ".join(sentences) + " (وكالات)"


def add_tashkeel(text: str, rng: random.Random) -> str:
    """A near copy: the same text with vowel marks on a fifth of its letters (a careless diacritiser's)."""
    marks = "\u064e\u064f\u0650\u0652"
    return "".join(
        char + (rng.choice(marks) if ARABIC_LETTER.match(char) and rng.random() < 0.2 else "") for char in text
    )


def strip_tashkeel(text: str, rng: random.Random) -> str:
    """A near copy: the same text with its vowel marks taken off."""
    return "".join(char for char in text if char not in TASHKEEL)


def write_other_alefs(text: str, rng: random.Random) -> str:
    """A near copy: hamzas left off the alefs, final ya and ta marbuta written as many people type them."""
    text = re.sub("[أإآ]", "ا", text)
    return re.sub(r"ة\b", lambda match: "ه" if rng.random() < 0.5 else match[0], re.sub(r"ي\b", "ى", text))


ARABIC_NOISES: list[Noise] = [add_tatweel, use_presentation_forms, add_invisible_characters, add_site_lines]
NEAR_COPIES: list[Noise] = [change_a_sentence, add_tashkeel, strip_tashkeel, write_other_alefs]


def make_dump(source: Path, output: Path, seed: int = SEED) -> None:
    """Read the clean documents of `source` and write the dump into `output`."""
    rng = random.Random(seed)
    arabic = [document for path in sorted(source.glob("ar_*.jsonl")) for document in _read(path)]
    english = _read(source / "en.jsonl")
    rng.shuffle(arabic)
    pages = [_hasty(_soil(document, rng), seed) for document in arabic]
    copies = _copies(arabic, rng)
    cut = [len(pages) * share // 100 for share in (0, 32, 56, 76, 92, 100)]
    news, blogs, magazine, encyclopedia, letters = (pages[a:b] for a, b in itertools.pairwise(cut))
    for at, copy in enumerate(copies):
        (news, blogs, magazine, encyclopedia)[at % 4].append(copy)
    magazine += _mixed_pages(arabic, english, rng)
    news += [_page(f"spam-{i}", text, "news", "ar") for i, text in enumerate(SPAM)]
    blogs.insert(len(blogs) // 2, _page("empty-0", "", "blogs", "ar"))
    for shard in (news, blogs, magazine, encyclopedia):
        rng.shuffle(shard)

    output.mkdir(parents=True, exist_ok=True)
    (output / "news.jsonl").write_bytes(_with_bad_lines(_lines(news), arabic, rng))
    _write_gzip(output / "blogs.jsonl.gz", _lines(blogs) + [b'{"id": "no-text-0", "title": "no text key"}'])
    (output / "magazine.jsonl.zst").write_bytes(zstandard.ZstdCompressor(level=9).compress(_join(_lines(magazine))))
    pq.write_table(pa.Table.from_pylist(encyclopedia), output / "encyclopedia.parquet", compression="zstd")
    for number, document in enumerate(letters):
        (output / f"letters_{number:02d}.txt").write_text(document["text"] + "\n", encoding="utf-8", newline="")
    english = [
        _with_text(doc, add_english_site_lines(doc["text"], rng)) if rng.random() < 0.4 else doc for doc in english
    ]
    english.append({**english[0], "id": english[0]["id"] + "-again"})
    (output / "english.jsonl").write_bytes(_join(_lines(english)))


def _soil(document: Document, rng: random.Random) -> Document:
    """One page of the crawl: HTML or not, and none, one or two kinds of noise upon it; one in five stays clean."""
    text = document["text"]
    if rng.random() < 0.2:
        return document
    for noise in rng.sample(ARABIC_NOISES, k=rng.randint(1, 2)):
        text = noise(text, rng)
    if rng.random() < 0.25:
        text = leave_html(text, rng)
    return _with_text(document, text)


def _hasty(document: Document, seed: int) -> Document:
    """One page in four was typed in haste; which ones depends on their ids alone."""
    rng = random.Random(f"{seed} {document['id']}")
    return document if rng.random() < 0.75 else _with_text(document, type_in_haste(document["text"], rng))


def _copies(arabic: list[Document], rng: random.Random) -> list[Document]:
    """Eight exact copies under other ids, and three near copies of each kind."""
    chosen = rng.sample(arabic, k=min(len(arabic), 8 + 3 * len(NEAR_COPIES)))
    copies = [{**document, "id": f"{document['id']}-copy"} for document in chosen[:8]]
    for number, document in enumerate(chosen[8:]):
        change = NEAR_COPIES[number % len(NEAR_COPIES)]
        near = change(document["text"], rng)
        if near == document["text"]:  # nothing to strip in a text without marks: vocalise it instead
            near = add_tashkeel(near, rng)
        copies.append({**_with_text(document, near), "id": f"{document['id']}-near"})
    return copies


def _mixed_pages(arabic: list[Document], english: list[Document], rng: random.Random) -> list[Document]:
    """Two pages of Arabic and English paragraphs in turn, cut from documents that are elsewhere in the dump."""
    pages = []
    for number in range(2):
        pieces = []
        for _ in range(3):
            pieces += [rng.choice(arabic)["text"][:160], rng.choice(english)["text"][:200]]
        pages.append(_page(f"mixed-{number}", "\n\n".join(pieces), "magazine", "mixed"))
    return pages


def _with_bad_lines(lines: list[bytes], arabic: list[Document], rng: random.Random) -> bytes:
    """The lines of a shard with a JSON record cut off in its middle and one in Windows-1256 among them."""
    cut_off = json.dumps({"id": "cut-off-0", "text": arabic[0]["text"][:80]}, ensure_ascii=False).encode()[:-25]
    cut_off = cut_off.decode("utf-8", errors="ignore").encode()  # cut between letters: bad JSON, good UTF-8
    windows = json.dumps({"id": "windows-1256-0", "text": "هذا السطر بترميز ويندوز"}, ensure_ascii=False).encode(
        "cp1256"
    )
    for line in (cut_off, windows):
        lines.insert(rng.randrange(1, len(lines)), line)
    return _join(lines)


def _page(identifier: str, text: str, source: str, lang: str) -> Document:
    metadata = {"source": source, "licence": "Apache-2.0", "lang": lang, "subject": "none"}
    return {"text": text, "id": identifier, "metadata": metadata}


def _with_text(document: Document, text: str) -> Document:
    return {**document, "text": text}


def _add_lines(text: str, rng: random.Random, above: list[str], within: list[str], below: list[str]) -> str:
    lines = text.split("\n")
    lines.insert(rng.randint(0, len(lines)), rng.choice(within))
    return "\n".join([rng.choice(above), *lines, *rng.sample(below, k=min(2, len(below)))])


def _map_words(text: str, change: Callable[[str], str]) -> str:
    return re.sub(r"\S+", lambda match: change(match[0]), text)


def _forms() -> dict[tuple[str, str], str]:
    """(letters, form) → presentation form, from Unicode's own decompositions, lam-alef ligatures included."""
    forms = {}
    for code in range(0xFE80, 0xFEFD):
        form, *letters = unicodedata.decomposition(chr(code)).split()
        forms["".join(chr(int(letter, 16)) for letter in letters), form.strip("<>")] = chr(code)
    return forms


FORMS = _forms()


def _shape(word: str) -> str:
    """A word in presentation forms; NFKC brings back the word as it was."""
    units = re.findall("ل[اأإآ]|.", word, flags=re.DOTALL)
    shaped = []
    for i, unit in enumerate(units):
        before = i > 0 and (units[i - 1], "initial") in FORMS and (unit, "final") in FORMS
        after = i + 1 < len(units) and (unit, "initial") in FORMS and (units[i + 1], "final") in FORMS
        form = {(False, False): "isolated", (False, True): "initial", (True, True): "medial", (True, False): "final"}
        shaped.append(FORMS.get((unit, form[before, after]), unit))
    return "".join(shaped)


def _read(path: Path) -> list[Document]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _lines(documents: list[Document]) -> list[bytes]:
    return [json.dumps(document, ensure_ascii=False).encode() for document in documents]


def _join(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _write_gzip(path: Path, lines: list[bytes]) -> None:
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:  # no name, no time: the same bytes
        file.write(_join(lines))
    path.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the quickstart's raw dump from its clean source documents.")
    parser.add_argument("--source", type=Path, default=HERE / "source")
    parser.add_argument("--output", type=Path, default=HERE / "data")
    parser.add_argument("--seed", type=int, default=SEED)
    arguments = parser.parse_args()
    make_dump(arguments.source, arguments.output, arguments.seed)
