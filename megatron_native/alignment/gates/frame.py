"""Gates of what a model says of itself: scaffold around the rewrite, refusals, orders of the document that were obeyed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_native.alignment.gates.alignment import ALIGNED, PARTED, RELATED
from megatron_native.alignment.gates.alignment import JOINED as JOINED_WORD
from megatron_native.alignment.gates.gate import Judgement, Pair, register, shown
from megatron_native.alignment.gates.lexicon import GRAMMAR, kinds_of, phrases

_FENCE = "```"
_TAG = re.compile(r"</?(?:[a-zA-Z_]{2,20})(?: [^<>\n]{0,40})?>|<\|[^|<>\n]{1,30}\|>|\[/?INST\]|###\s*\w+")
_LABEL = re.compile(r"^[\s#*_>\-]*[^\n:：.!؟?]{1,40}[:：]\s*[*_]*\s*$")
_FRAGMENT = 6
"""Words of a prompt on end that no passage has by chance."""
_JOINED = 2
_OUTER_LINES = re.compile(r"\A[^\n]+(?=\n)|(?<=\n)[^\n]+\Z")
_REMARKS = re.compile(r"\A[(\[][^()\[\]]+[)\]]|[(\[][^()\[\]]+[)\]]\Z")
_OWN = np.array([ALIGNED, RELATED, PARTED, JOINED_WORD], dtype=np.uint8)


def _added_phrases(pair: Pair) -> list[str]:
    """What was added, in the matching view, runs that are parted by a word or two taken together."""
    runs: list[tuple[int, int]] = []
    for first, last in pair.added:
        if runs and first - runs[-1][1] <= _JOINED:
            runs[-1] = (runs[-1][0], last)
        else:
            runs.append((first, last))
    return [pair.words_of_rewrite(first, last) for first, last in runs]


@cache
def _prompt_fragments() -> NDArray[np.uint64]:
    """Hashes of all runs of `_FRAGMENT` words in the shipped prompts, sorted."""
    from megatron_native.alignment.conduct import conduct_names, load_conduct
    from megatron_native.alignment.gates.alignment import TextReader
    from megatron_native.alignment.prompts import constant_part

    reader, found = TextReader(), []
    for name in conduct_names():
        conduct = load_conduct(name)
        for form in ("full", "edits"):
            for language in ("ar", "en"):
                for message in constant_part(conduct, form, language):
                    found.append(_fragments(reader.read(message["content"]).hashes))
    return np.unique(np.concatenate(found))


def _fragments(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    if len(hashes) < _FRAGMENT:
        return np.empty(0, dtype=np.uint64)
    total = np.zeros(len(hashes) - _FRAGMENT + 1, dtype=np.uint64)
    for place in range(_FRAGMENT):
        total = total * np.uint64(0x9E3779B97F4A7C15) + hashes[place : len(hashes) - _FRAGMENT + 1 + place]
    return total


@register
class Scaffold:
    """What a model writes around its answer; the score is how many signs of it there are."""

    name, cost = "scaffold", 1

    def __init__(self, settings: Mapping[str, Any]) -> None:
        pass

    def judge(self, pair: Pair) -> Judgement:
        """Labels, remarks, tags, fences, JSON and fragments of the prompt that the origin does not have."""
        found = [*self._signs(pair), *self._words(pair)]
        return Judgement(self.name, float(len(found)), not found, f"scaffold: {shown(found)}" if found else "")

    def _lines(self, pair: Pair) -> list[str]:
        """The first and the last line, and remarks in brackets at the ends, where nothing of them is from the origin."""
        found = []
        text = pair.rewritten.strip()
        for piece in {*_OUTER_LINES.findall(text), *_REMARKS.findall(text)}:
            begin = pair.rewritten.index(piece)
            first, last = np.searchsorted(pair.b.begins, (begin, begin + len(piece)))
            source = pair.aligned.source[first:last]
            if last - first >= 2 and last - first < len(pair.b.hashes) and not np.isin(source, _OWN).any():
                found.append(piece[:40])
        return found

    def _signs(self, pair: Pair) -> list[str]:
        origin, rewritten = pair.origin, pair.rewritten
        found = []
        if _FENCE in rewritten and _FENCE not in origin:
            inside = rewritten.strip()
            if inside.count(_FENCE) % 2 or (inside.startswith(_FENCE) and inside.endswith(_FENCE)):
                found.append(_FENCE)
        if "<" in rewritten or "[" in rewritten or "###" in rewritten:
            known = set(_TAG.findall(origin))
            found += [tag for tag in _TAG.findall(rewritten) if tag not in known]
        begin = rewritten.lstrip()[:1]
        if begin in ("{", "[") and begin != origin.lstrip()[:1] and '"' in rewritten[:80]:
            found.append(begin)
        return found

    def _words(self, pair: Pair) -> list[str]:
        if not pair.added:
            return []
        found = []
        pattern = phrases("scaffold")
        for text in _added_phrases(pair):
            sign = pattern.search(text)
            if sign and sign.group() not in pair.words_of_origin(0, len(pair.a.hashes)):
                found.append(sign.group())
        first = pair.rewritten.split("\n", 1)[0]
        if pair.added[0][0] == 0 and _LABEL.match(first) and pair.rewritten.strip() != first.strip():
            words = int(np.searchsorted(pair.b.begins, len(first)))
            if words and not np.any(pair.aligned.source[:words] == ALIGNED):
                found.append(first.strip())
        found += self._lines(pair)
        if any(last - begin >= _FRAGMENT - 2 for begin, last in pair.added):
            grams = _fragments(pair.b.hashes)
            grams = grams[~np.isin(grams, _fragments(pair.a.hashes))]
            known = _prompt_fragments()
            places = np.minimum(np.searchsorted(known, grams), len(known) - 1)
            if len(grams) and (known[places] == grams).any():
                found.append("words of the prompt")
        return found


@register
class Refusal:
    """Phrases of refusal and apology that the origin does not have; the score is their number."""

    name, cost = "refusal", 1

    def __init__(self, settings: Mapping[str, Any]) -> None:
        pass

    def judge(self, pair: Pair) -> Judgement:
        """Only what was added is looked at."""
        if not pair.added:
            return Judgement(self.name, 0.0, True)
        pattern = phrases("refusal")
        found = [sign.group() for text in _added_phrases(pair) for sign in pattern.finditer(text)]
        if found:
            origin = pair.words_of_origin(0, len(pair.a.hashes))
            found = [sign for sign in found if sign not in origin]
        return Judgement(self.name, float(len(found)), not found, f"refusal: {shown(found)}" if found else "")


@register
class Instructions:
    """Orders to a model inside the document: the score is how many content words of them are in the rewrite without the
    order itself. An order may stay as it is, or go as a whole.
    """

    name, cost = "instructions", 2

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._most = settings["most_words"]

    def judge(self, pair: Pair) -> Judgement:
        """Words that an order shares with the rest of the passage do not count."""
        if not pair.instructions:
            return Judgement(self.name, 0.0, True)
        inside = np.zeros(len(pair.a.hashes), dtype=np.bool_)
        for first, last in pair.instructions:
            inside[first:last] = True
        elsewhere = np.isin(pair.a.hashes, pair.a.hashes[~inside])
        carried = np.flatnonzero(inside & ~elsewhere & np.isin(pair.a.hashes, pair.b.hashes))
        if len(carried):
            carried = carried[kinds_of(pair.a, carried) != GRAMMAR]
        words = [pair.a.word(place) for place in carried.tolist()]
        if len(words) <= self._most:
            return Judgement(self.name, float(len(words)), True)
        return Judgement(self.name, float(len(words)), False, f"of an order to a model there is left: {shown(words)}")
