"""Real news as passages, in two halves: what damaged and good rewrites are made of.

Passages are cut from SaudiNewsNet by `alignment/passages.split` to about 170 tokens. An article belongs to one half; so
does a template (`gate_templates.py`).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import gate_templates as templates

from megatron_native.alignment.passages import split

TOKENS = 170
LEAST_WORDS = 25
WORD = re.compile(r"[\u0621-\u064a]+")
SENTENCE = re.compile(r"(?<=[.!?؟])\s+|\n+")
TITLES = (
    "الدكتور|المهندس|الأستاذ|الشيخ|الأمير|اللواء|العميد|العقيد|الوزير|الرئيس|اللاعب|المدرب|الكابتن|الفنان|الكاتب|"
    "المقدم|النقيب|السيد"
)
PERSON = re.compile(rf"(?:{TITLES}) ([\u0621-\u064a]{{3,}}) (?:بن [\u0621-\u064a]{{3,}} )?(ال[\u0621-\u064a]{{3,}}ي)\b")
TO_WESTERN = str.maketrans("٠١٢٣٤٥٦٧٨٩", "0123456789")
LETTERS = "ابتثجحخدذرزسشصضطظعغفقكلمنهوي"


class Case(NamedTuple):
    """A pair and what was done: `kind` as in tests/alignment/gate_cases, `how` in a few words."""

    kind: str
    how: str
    origin: str
    rewritten: str


class Bank:
    """One half of the news: its passages, and what damage is made of."""

    def __init__(self, articles: list[str], half: str, rng: random.Random) -> None:
        self.half = half
        self.passages: list[str] = []
        for text in articles:
            self.passages += [p.text for p in split(text, TOKENS) if len(p.text.split()) >= LEAST_WORDS]
        rng.shuffle(self.passages)
        self.words = Counter(word for text in articles for word in WORD.findall(text))
        people = [found for text in articles for found in PERSON.findall(text)]
        self.given = sorted({given for given, _ in people})
        self.families = sorted({family for _, family in people})
        self.places = [place for place in templates.PLACES if self.words[place] > 2]
        self.sentences = [
            sentence
            for text in self.passages[:4000]
            for sentence in SENTENCE.split(text)
            if 8 <= len(sentence.split()) <= 30
        ]
        raw = json.loads(resources.files("quran_text_data").joinpath("hafs.json").read_bytes())
        starts = [*raw["ayah_starts"], len(raw["words"])]
        verses = [(a, b) for a, b in itertools.pairwise(starts) if 5 <= b - a <= 20]
        self.verses = [" ".join(filter(None, raw[key][a:b])) for key in ("words", "rasm_imlai") for a, b in verses]
        english = Path(__file__).parent.parent / "examples/quickstart/data/english.jsonl"
        texts = [json.loads(line)["text"] for line in english.read_text(encoding="utf-8").splitlines()]
        self.english = [
            part for text in texts for part in re.split(r"(?<=[.!?])\s+|\n", text) if 8 <= len(part.split()) <= 30
        ]

    def of(self, entries: list[Any]) -> list[Any]:
        """This half's templates."""
        return entries[::2] if self.half == "tuning" else entries[1::2]


def load(data: Path, seed: int) -> dict[str, Bank]:
    """Both halves of the news; copies of an article fall into one half, and count once."""
    texts: dict[str, None] = {}
    for path in sorted(data.glob("*.zip")):
        with zipfile.ZipFile(path) as archive:
            for article in json.loads(archive.read(archive.namelist()[0])):
                if len(article["content"].split()) >= LEAST_WORDS:
                    texts.setdefault(article["content"].strip())
    halves: dict[str, list[str]] = {"tuning": [], "report": []}
    for text in texts:
        first = hashlib.sha256(f"{seed}\n{text[:80]}".encode()).digest()[0]
        halves["tuning" if first % 2 == 0 else "report"].append(text)
    return {half: Bank(articles, half, random.Random(f"{seed}/{half}")) for half, articles in halves.items()}


def sentences(text: str) -> list[str]:
    """The sentences of a text."""
    return [part for part in SENTENCE.split(text) if part.strip()]


Maker = Callable[[random.Random, str, Bank], "tuple[str, str, str] | None"]
"""(how, origin, rewritten), or None where the passage does not lend itself."""
