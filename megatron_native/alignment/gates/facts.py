"""Gates of what can be checked to the letter: numbers and dates, addresses, quotations, scripture."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_native.alignment.gates.alignment import ALIGNED, Text
from megatron_native.alignment.gates.gate import RESIDUE, Judgement, Pair, register, shown
from megatron_native.alignment.gates.lexicon import number_words, values_of

_DIGITS = str.maketrans("٠١٢٣٤٥٦٧٨٩۰۱۲۳۴۵۶۷۸۹٫٬", "01234567890123456789.,")
_NUMBER = re.compile(r"\d+(?:[.,٫٬:/\-–]\d+)*")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
_ENUMERATOR = re.compile(r"(?m)^[ \t>*|]*\(?(\d{1,2})[.)\-][ \t]")
_ADDRESS = re.compile(
    r"(?:https?://|www\.)[^\s<>\"«»“”()\[\]،؛]+|[\w.+\-]+@[\w\-]+(?:\.[\w\-]+)+|"
    r"(?<![\w.@])(?:[a-zA-Z0-9\-]+\.)+(?:com|org|net|gov|edu|info|io|sa|eg|ae|example|me|tv|co)(?:/[^\s<>\"«»()\[\]،؛]*)?"
)
_MAY_HAVE_ADDRESS = re.compile(r"://|www\.|@|[A-Za-z0-9]\.[A-Za-z]")
_TRAILING = ".,:;!?؟*"
_QUOTES = (
    re.compile(r"«([^«»\n]{1,600})»"), re.compile(r"“([^“”\n]{1,600})”"), re.compile(r"\"([^\"\n]{1,600})\""),
)  # fmt: skip
_MARKS = re.compile("[\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed\u0640\u200c-\u200f\\s]")
_CARELESS = str.maketrans("أإآةى", "اااهي")
_ONLY_MARKS = re.compile("[\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06ed]")


def _canonical(number: str) -> str:
    """One spelling: no thousands separators, `/` in dates, no zeros in front of a whole number's parts."""
    if _GROUPED.fullmatch(number):
        number = number.replace(",", "")
    if "," in number and number.count(",") == 1 and "." not in number:
        number = number.replace(",", ".")
    number = number.replace("–", "-")
    if number.count("-") == 2:
        number = number.replace("-", "/")
    if "/" in number:
        return "/".join(part.lstrip("0") or "0" for part in number.split("/"))
    return number


def numbers_of(text: str) -> list[tuple[str, int]]:
    """(number in one spelling, its place) for all numbers in digits; a range is two numbers."""
    found = []
    for match in _NUMBER.finditer(text):
        number = _canonical(match.group().translate(_DIGITS))
        if number.count("-") == 1 and "/" not in number and ":" not in number:
            low, high = number.split("-")
            found += [(low, match.start()), (high, match.start() + len(low) + 1)]
        else:
            found.append((number, match.start()))
    return found


def _enumerators(text: str) -> set[int]:
    return {match.start(1) for match in _ENUMERATOR.finditer(text)}


@register
class Numbers:
    """Numbers, amounts, percentages and dates that came or went, in digits or words; the score is how many."""

    name, cost = "numbers", 1

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._most_new, self._most_lost = settings["most_new"], settings["most_lost"]

    def judge(self, pair: Pair) -> Judgement:
        """Digits of one set equal those of the other, and a number its word; numbers of list items are layout."""
        if pair.same_words:
            return Judgement(self.name, 0.0, True)
        listed_a, listed_b = _enumerators(pair.origin), _enumerators(pair.rewritten)
        all_a, all_b = numbers_of(pair.origin), numbers_of(pair.rewritten)
        at_a = [item for item in all_a if item[1] not in listed_a]
        at_b = [item for item in all_b if item[1] not in listed_b]
        a, b = Counter(number for number, _ in at_a), Counter(number for number, _ in at_b)
        words_a, words_b = _values(pair.a), _values(pair.b)
        if a == b and words_a == words_b:
            return Judgement(self.name, 0.0, True)
        fine_a = {str(value) for value in words_a} | _parts(a) | {n for n, place in all_a if place in listed_a}
        fine_b = {str(value) for value in words_b} | _parts(b) | {n for n, place in all_b if place in listed_b}
        new = [number for number in b if number not in a and number not in fine_a]
        lost = [
            number
            for number, place in at_a
            if number not in b and number not in fine_b and not _kept_in_parts(number, b) and not _may_go(pair, place)
        ]
        if not new and not lost:  # one of two that both stand there became the other
            more = [number for number in b if b[number] > a[number] > 0]
            fewer = [number for number, place in at_a if b[number] < a[number] and not _may_go(pair, place)]
            if more and fewer:
                new, lost = more, fewer
        around = {number for text in (pair.before, pair.after) if text for number, _ in numbers_of(text)}
        new = [number for number in new if number not in around and not _kept_in_parts(number, a)]
        new_words, lost_words = self._words(pair, words_a, words_b, a, b)
        new, lost = new + new_words, lost + lost_words
        passed = len(new) <= self._most_new and len(lost) <= self._most_lost
        told = [f"{label}: {shown(values)}" for label, values in (("new", new), ("lost", lost)) if values]
        return Judgement(self.name, float(len(new) + len(lost)), passed, "; ".join(told))

    def _words(
        self, pair: Pair, words_a: Counter[int], words_b: Counter[int], a: Counter[str], b: Counter[str]
    ) -> tuple[list[str], list[str]]:
        if words_a == words_b:
            return [], []
        new = [str(v) for v in words_b if v not in words_a and str(v) not in a]
        if lost := [v for v in words_a if v not in words_b and str(v) not in b]:
            values = values_of(pair.a.hashes, number_words())
            gone = values[(pair.aligned.kept != ALIGNED) & ~pair.allowed]
            lost = [value for value in lost if value in gone]
        return [_named(int(v)) for v in new], [_named(v) for v in lost]


def _parts(numbers: Counter[str]) -> set[str]:
    """The numbers inside dates, times and ranges."""
    return {part for number in numbers if len(parts := re.split(r"[/:\-]", number)) > 1 for part in parts}


def _named(value: int) -> str:
    return f"1/{-value}" if value < 0 else str(value)


def _values(text: Text) -> Counter[int]:
    values = values_of(text.hashes, number_words())
    return Counter(values[values != 0].tolist())


def _may_go(pair: Pair, place: int) -> bool:
    word = int(np.searchsorted(pair.a.ends, place, side="right"))
    return word < len(pair.allowed) and bool(pair.allowed[word])


def _kept_in_parts(number: str, others: Counter[str]) -> bool:
    """`2 400` for `2,400`, `12.3.2020` for `12/3/2020`: the same digits in other pieces."""
    parts = re.split(r"[/:\-.,]", number)
    if len(parts) > 1:
        return all(part in others for part in parts)
    return any(
        len(other) < len(number) and number.startswith(other) and number[len(other) :] in others for other in others
    )


@register
class Addresses:
    """URLs and e-mail addresses; the score is how many came or went."""

    name, cost = "addresses", 1

    def __init__(self, settings: Mapping[str, Any]) -> None:
        pass

    def judge(self, pair: Pair) -> Judgement:
        """An address in an advertisement may go; none may come."""
        if not (_MAY_HAVE_ADDRESS.search(pair.origin) or _MAY_HAVE_ADDRESS.search(pair.rewritten)):
            return Judgement(self.name, 0.0, True)
        at_a = [(found.group().rstrip(_TRAILING), found.start()) for found in _ADDRESS.finditer(pair.origin)]
        b = {found.group().rstrip(_TRAILING) for found in _ADDRESS.finditer(pair.rewritten)}
        a = {address for address, _ in at_a}
        if a == b:
            return Judgement(self.name, 0.0, True)
        lost = [address for address, place in at_a if address not in b and not _may_go(pair, place)]
        changed = [*lost, *sorted(b - a)]
        return Judgement(
            self.name, float(len(changed)), not changed, f"addresses differ: {shown(changed)}" if changed else ""
        )


@register
class Quotations:
    """Quotations that are not word for word in the other text; the score is how many."""

    name, cost = "quotations", 2

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._least = settings["least_words"]

    def judge(self, pair: Pair) -> Judgement:
        """Spelling in the matching view; the kind of quotation marks makes no difference."""
        if pair.same_words or not any(sign in text for text in (pair.origin, pair.rewritten) for sign in '«“"'):
            return Judgement(self.name, 0.0, True)
        nothing = np.zeros(len(pair.b.hashes), dtype=np.bool_)
        changed = self._missing(pair.a, _without_residue(pair), pair.allowed, pair.residue, pair.b, nothing)
        changed += self._missing(pair.b, pair.rewritten, nothing, nothing, pair.a, pair.residue)
        return Judgement(
            self.name, float(len(changed)), not changed, f"quotations differ: {shown(changed, 2)}" if changed else ""
        )

    def _missing(
        self, text: Text, written: str, may_go: NDArray[np.bool_], residue: NDArray[np.bool_], other: Text,
        other_residue: NDArray[np.bool_],
    ) -> list[str]:  # fmt: skip
        found = []
        for pattern in _QUOTES:
            if pattern is _QUOTES[2] and written.count('"') % 2:
                continue
            for match in pattern.finditer(written):
                first, last = np.searchsorted(text.begins, match.span(1))
                places = np.flatnonzero(~residue[first:last]) + first
                if len(places) < self._least or may_go[places].all():
                    continue
                if _holds(other.hashes[~other_residue], text.hashes[places]):
                    continue
                quoted = " ".join(_without_ending(text.folded(place)) for place in places.tolist())
                words = np.flatnonzero(~other_residue).tolist()
                if f" {quoted} " not in f" {' '.join(_without_ending(other.folded(place)) for place in words)} ":
                    found.append(match.group(1)[:60])
        return found


def _without_ending(word: str) -> str:
    """A word without the alef of the accusative and the endings of the masculine plural, which grammar decides."""
    if len(word) > 4 and word.endswith(("ون", "ين")):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("ا") else word


def _without_residue(pair: Pair) -> str:
    """The origin with blanks in the place of tags and entities."""
    if not pair.residue.any():
        return pair.origin
    return RESIDUE.sub(lambda found: " " * len(found.group()), pair.origin)


def _holds(hashes: NDArray[np.uint64], run: NDArray[np.uint64]) -> bool:
    """Whether the words stand there on end."""
    if len(run) > len(hashes):
        return False
    places = np.flatnonzero(hashes[: len(hashes) - len(run) + 1] == run[0]).tolist()
    return any(np.array_equal(hashes[place : place + len(run)], run) for place in places)


@register
class Scripture:
    """Verses letter for letter; the score is how many are changed, gone or new."""

    name, cost = "scripture", 2

    def __init__(self, settings: Mapping[str, Any]) -> None:
        pass

    def judge(self, pair: Pair) -> Judgement:
        """A verse may lose all of its marks, never a letter, and none may be put in."""
        spans = pair.readers.scripture.spans
        changed = []
        verses = [pair.origin[begin:end] for begin, end in spans(pair.a.codes) if end - begin > 1]
        for verse in verses:
            if verse in pair.rewritten or _bare_in(verse, pair.rewritten) or _repaired_in(verse, pair.rewritten):
                continue
            changed.append(verse)
        if not pair.same_words:
            for begin, end in spans(pair.b.codes):
                verse = pair.rewritten[begin:end]
                if end - begin < 2 or verse in pair.origin or _bare(verse) in _bare(pair.origin):
                    continue
                if _plain(verse) not in _plain(pair.origin):
                    changed.append(verse)
        return Judgement(
            self.name, float(len(changed)), not changed,
            f"scripture is not letter for letter: {shown([verse[:60] for verse in changed], 2)}" if changed else "",
        )  # fmt: skip


def _plain(text: str) -> str:
    """The letters with hamza, ta marbuta and alef maqsura as a careless writer leaves them; as many as `_bare` has."""
    return _bare(text).translate(_CARELESS)


def _repaired_in(verse: str, text: str) -> bool:
    """Whether the verse is there with nothing but hamza, ta marbuta and alef maqsura put right."""
    wanted, bare, plain = _bare(verse), _bare(text), _plain(text)
    place = plain.find(_plain(verse))
    while place >= 0:
        there = bare[place : place + len(wanted)]
        if all(own == other or (own in "اهي" and own == _plain(other)) for own, other in zip(wanted, there)):
            return True
        place = plain.find(_plain(verse), place + 1)
    return False


def _bare(text: str) -> str:
    return _MARKS.sub("", text)


def _bare_in(verse: str, text: str) -> bool:
    """Whether the verse is in the text with the same marks in another order or layout, or without any."""
    bare = _bare(verse)
    if bare not in _bare(text):
        return False
    pieces = re.search(r"[\s\u0640\u064b-\u065f\u0670\u06d6-\u06ed]*".join(map(re.escape, bare)), text)
    return pieces is not None and (
        not _ONLY_MARKS.search(pieces.group())
        or sorted(_ONLY_MARKS.findall(verse)) == sorted(_ONLY_MARKS.findall(pieces.group()))
    )
