"""What a passage shows at first sight: counts and shares that speak for a rewrite, and the character n-grams of a text.

Everything is counted on the passage as the rules left it; what the rules had to edit is a sign of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import yaml
from numpy.typing import NDArray

from megatron_native.alignment.rules.triggers import places_of
from megatron_native.corpus.folding import WordFolder, code_points, mix, word_hash
from megatron_native.corpus.languages import dialect_markers
from megatron_native.corpus.statistics import Lexicons, hash_set, measure

LEXICON = Path(__file__).with_name("first_look.yaml")
RESIDUE_RULES = ("html", "bbcode", "wiki", "templates", "site_lines", "advertisements")
"""Rules whose edits point to residue that they may not have got whole."""
LAYOUT_RULES = ("blanks",)
"""Rules whose edits say nothing about the text."""
BUCKETS = 1 << 16
NGRAMS = (2, 3, 4)
_PHONE = re.compile(r"(?<![\d٠-٩])(?:\+|00)?[\d٠-٩](?:[\s-]?[\d٠-٩]){8,13}(?![\d٠-٩])")
_LINKS = re.compile(r"https?://|www\.|@[A-Za-z0-9_]{3}")
_ELONGATED = re.compile(r"([\u0621-\u063a\u0641-\u064a])\1\1|ـ{2}")
_FEMININE = re.compile(r"(?<![ء-ي])[وبف]?(ال[ء-ي]{2,}يه)(?![ء-ي])")
_HANGING = re.compile(r"[^\n.!؟?:؛…»”\")\]]\n(?=[^\n])")
_STRANGE = re.compile(r"[\ufffd\u00c0-\u00ff]{2}|[ØÙ][\u0080-\u00bf]|[ء-ي]\?[ء-ي]|&[a-z]{2,8};|</?[a-z]")
_STOPS = re.compile(r"[.،؛؟!:,;?\n]")


class Signs(NamedTuple):
    """What speaks for a rewrite, each at least 0; the names are those of the settings' limits.

    Attributes:
        residue: edits of the rules that take markup and advertisements out.
        edits: edits of the other rules, without blanks, for 100 words.
        symbols: share of the characters.
        latin: share of the letters.
        broken_lines: lines that break off without punctuation, over all lines, from three on.
        elongated: words with a letter three times in a row.
        strange: signs of misread bytes and of markup.
        harm: words of abuse and of calls to violence, unsafe words among them.
        offers: telephone numbers and links, each worth two, and words of shops and channels.
        mixed_digits: digits of the system that the passage uses less.
        unpunctuated: words for every sign of punctuation, in passages of 40 words and more.
        colloquial: markers of dialects for 100 words.
        misspelt: common words without their hamza, dots or ة, for 100 words.
        repeated: share of the letters in 5-grams of words that came before.
    """

    residue: float
    edits: float
    symbols: float
    latin: float
    broken_lines: float
    elongated: float
    strange: float
    harm: float
    offers: float
    mixed_digits: float
    unpunctuated: float
    colloquial: float
    misspelt: float
    repeated: float


class _Words(NamedTuple):
    harm: NDArray[np.uint64]
    offers: NDArray[np.uint64]
    dialect: NDArray[np.uint64]
    misspelt: frozenset[str]
    feminine: frozenset[str]


@cache
def lexicon() -> dict[str, list[str]]:
    """The words of `first_look.yaml`."""
    return dict(yaml.safe_load(LEXICON.read_text(encoding="utf-8")))


@cache
def _words() -> _Words:
    from importlib import resources

    written = lexicon()
    unsafe = yaml.safe_load(
        resources.files("megatron_native.corpus").joinpath("lexicons/unsafe.yaml").read_text(encoding="utf-8")
    )["words"]
    marked = [word for word, (_, worth) in dialect_markers().items() if worth >= 3]
    return _Words(
        hash_set(map(word_hash, [*written["harm"], *unsafe])), hash_set(map(word_hash, written["offers"])),
        hash_set(map(word_hash, marked)), frozenset(written["misspelt"]), frozenset(written["feminine"]),
    )  # fmt: skip


class Observer:
    """Looks at one passage after another; not to be shared by threads."""

    def __init__(self) -> None:
        self._folder = WordFolder()
        self._words = _words()
        self._no_words = Lexicons(hash_set(()), hash_set(()))

    def signs(self, text: str, rule_edits: Mapping[str, int]) -> Signs:
        """The signs of a passage, with the edits that the rules made in it."""
        codes = code_points(text)
        words = self._folder.words_of_codes(codes)
        found = measure(codes, words, self._no_words)
        number = max(1, found.words)
        hundreds = max(1.0, number / 100)
        known = self._words
        others = sum(n for name, n in rule_edits.items() if name not in RESIDUE_RULES and name not in LAYOUT_RULES)
        lines = text.count("\n") + 1
        written = text.split()
        wrong = len(known.misspelt.intersection(written)) and sum(map(known.misspelt.__contains__, written))
        if "يه" in text:
            wrong += sum(word not in known.feminine for word in _FEMININE.findall(text))
        eastern = int(_count_between(codes, 0x660, 0x669))
        western = int(_count_between(codes, 0x30, 0x39))
        contacts = (len(_PHONE.findall(text)) if eastern + western > 8 else 0) + (
            len(_LINKS.findall(text)) if "://" in text or "www" in text or "@" in text else 0
        )
        stops = len(_STOPS.findall(text))
        return Signs(
            residue=float(sum(rule_edits.get(name, 0) for name in RESIDUE_RULES)),
            edits=others / hundreds,
            symbols=found.symbols / max(1, found.characters),
            latin=found.latin / max(1, found.arabic + found.latin),
            broken_lines=len(_HANGING.findall(text)) / lines if lines > 2 else 0.0,
            elongated=float(len(_ELONGATED.findall(text))) if _has_run(codes) else 0.0,
            strange=float(len(_STRANGE.findall(text))) if _has_strange(codes) else 0.0,
            harm=float(len(places_of(words.hashes, known.harm))),
            offers=2.0 * contacts + len(places_of(words.hashes, known.offers)),
            mixed_digits=float(min(eastern, western)),
            unpunctuated=number / (stops + 1) if number >= 40 else 0.0,
            colloquial=len(places_of(words.hashes, known.dialect)) / hundreds,
            misspelt=wrong / hundreds,
            repeated=found.duplicate_ngrams[0],
        )


@numba.njit(cache=True, nogil=True)
def _count_between(codes: Any, first: int, last: int) -> int:
    count = 0
    for code in codes:
        count += first <= code <= last
    return count


@numba.njit(cache=True, nogil=True)
def _has_run(codes: Any) -> bool:
    """Whether a letter stands three times in a row, or tatweel twice."""
    for place in range(2, len(codes)):
        twice = codes[place] == codes[place - 1] and codes[place] > 0x620
        if twice and (codes[place] == codes[place - 2] or codes[place] == 0x640):
            return True
    return False


@numba.njit(cache=True, nogil=True)
def _has_strange(codes: Any) -> bool:
    for code in codes:  # noqa: SIM110 (compiled)
        if code == 0xFFFD or 0xC0 <= code <= 0xFF or code == 63 or code == 38 or code == 60:
            return True
    return False


@numba.njit(cache=True, nogil=True)
def _fill(codes: Any, sizes: Any, buckets: Any, counts: Any) -> int:
    used = 0
    for size in sizes:
        for place in range(len(codes) - size + 1):
            state = np.uint64(0xCBF29CE484222325) + np.uint64(size)
            for index in range(place, place + size):
                code = codes[index]
                if 0x30 <= code <= 0x39 or 0x660 <= code <= 0x669:
                    code = np.uint32(0x30)  # which number it is says nothing
                state = (state ^ np.uint64(code)) * np.uint64(0x100000001B3)
            bucket = np.int64(mix(state) & np.uint64(len(counts) - 1))
            if counts[bucket] == 0:
                buckets[used] = bucket
                used += 1
            counts[bucket] += 1
    return used


class Ngrams:
    """Hashed character n-grams of one text after another, in buffers that are used again."""

    def __init__(self) -> None:
        self._counts = np.zeros(BUCKETS, dtype=np.int32)
        self._buckets = np.empty(BUCKETS, dtype=np.int64)
        self._sizes = np.array(NGRAMS, dtype=np.int64)

    def features(self, text: str) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Buckets int32 [different n-grams] and values float32, log(1 + count), of length 1 together."""
        used = _fill(code_points(text), self._sizes, self._buckets, self._counts)
        buckets = np.sort(self._buckets[:used])
        values = np.log1p(self._counts[buckets]).astype(np.float32)
        self._counts[buckets] = 0
        length = float(np.sqrt(np.dot(values, values)))
        return buckets.astype(np.int32), values / np.float32(length or 1.0)
