"""What a gate is: a function of a pair that gives a score, held against a threshold; and the registry of all gates.

A gate is written once, as a class with a name, its settings and `score`. It reads what it needs from the `Pair`, which
works out each feature when it is first asked for and keeps it for the next gate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from megatron_native.alignment.gates.alignment import (
    ALIGNED,
    ELSEWHERE,
    NO_SOURCE,
    RELATED,
    Aligned,
    Text,
    TextReader,
    align,
)
from megatron_native.alignment.gates.lexicon import GRAMMAR, NAME, UNKNOWN, kinds_of, phrases

_SENTENCE_END = re.compile(r"[.!?؟…]+(?=[\s\"»”')\]]|$)|\n|؛")
RESIDUE = re.compile(
    r"<(script|style)\b.*?</\1\s*>|</?[a-zA-Z!][^<>]{0,200}>|&#?\w{2,8};|\[\s*[^\]\[\n]{0,20}\d[^\]\[\n]{0,10}\]|"
    r"\[(?:عدل|تعديل|بحاجة لمصدر|وصلة مكسورة|edit|citation needed)[^\]\[\n]{0,20}\]|#\S+",
    re.DOTALL,
)
_REPEATED = re.compile(r"(.)\1+")
_DRAWN_OUT = re.compile(r"(.)\1\1")
_LEAST_OF_SENTENCE = 0.5
"""Share of a sentence's words that has to be lost for the whole of it to count as taken out."""


_MOST_OF_SENTENCE = 30
"""Words of a sentence that may go as a whole."""
_FEW_LOST = 3
_AROUND = 6
"""Words on either side of a phrase that may go with it where no sentence ends."""


class Judgement(NamedTuple):
    """What one gate says of a pair.

    Attributes:
        gate: its name.
        score: what it measured; what it means stands in the gate's description.
        passed: whether the score is within the threshold.
        reason: what was found, in English with the words it was found in; empty where nothing was.
    """

    gate: str
    score: float
    passed: bool
    reason: str = ""


class NewWord(NamedTuple):
    """A word of the rewrite that the origin does not have in any form.

    Attributes:
        place: its number among the rewrite's words.
        kind: `UNKNOWN`, `GRAMMAR`, `STOCK`, `NAME`, `NUMBER` or `DIALECT`.
        nearest: the origin's word in its place that is spelt most like it, or −1.
        edits: edits between the two, or −1.
    """

    place: int
    kind: int
    nearest: int
    edits: int


class Readers:
    """What pairs are read with; one for a process."""

    def __init__(self) -> None:
        from megatron_native.corpus.languages import LanguageIdentifier
        from megatron_native.corpus.scripture import ScriptureFinder

        self.text = TextReader()
        self.languages = LanguageIdentifier()
        self.scripture = ScriptureFinder()


class Pair:
    """A passage and its rewrite, with what gates ask about them.

    Attributes:
        origin, rewritten: the texts.
        before, after: what stands around the passage in its document; a word from there is no invention.
    """

    def __init__(self, origin: str, rewritten: str, before: str, after: str, readers: Readers) -> None:
        self.origin, self.rewritten, self.before, self.after = origin, rewritten, before, after
        self.readers = readers

    @cached_property
    def a(self) -> Text:
        """The origin's words."""
        return self.readers.text.read(self.origin)

    @cached_property
    def b(self) -> Text:
        """The rewrite's words."""
        return self.readers.text.read(self.rewritten)

    @cached_property
    def aligned(self) -> Aligned:
        """Which words come from where; words of the context count as `ELSEWHERE`."""
        found = align(self.a, self.b)
        if self.before or self.after:
            around = self.readers.text.read(f"{self.before}\n{self.after}").hashes
            source = found.source
            source[(source == NO_SOURCE) & np.isin(self.b.hashes, around)] = ELSEWHERE
        return found

    @cached_property
    def same_words(self) -> bool:
        """Whether the texts have the same words in the same order, so that only marks and layout differ."""
        return np.array_equal(self.a.hashes, self.b.hashes)

    @cached_property
    def new_words(self) -> list[NewWord]:
        """Words of the rewrite without a source, digits left out."""
        if self.same_words:
            return []
        found = self.aligned
        places = np.flatnonzero((found.source == NO_SOURCE) | (found.source == RELATED))
        if not len(places):
            return []
        kinds = kinds_of(self.b, places)
        new = found.source[places] == NO_SOURCE
        for index in np.flatnonzero(~new & (kinds == NAME)).tolist():
            new[index] = not self._is_in_origin(self.b.folded(int(places[index])))
        places, kinds = places[new], kinds[new]
        numeric = self.b.numeric
        return [
            NewWord(place, kind, nearest, edits)
            for place, kind, nearest, edits in zip(
                places.tolist(), kinds.tolist(), found.nearest[places].tolist(), found.edits[places].tolist()
            )
            if not numeric[place] and not self._names_a_language(place) and not self._was_drawn_out(place, nearest)
        ]

    def _is_in_origin(self, name: str) -> bool:
        """Whether a name is one of the origin's words but for what is written onto its beginning."""
        core = name[1:] if name[0] in "وفبلك" and len(name) > 4 else name
        return any(self.a.folded(place).endswith(core) for place in range(len(self.a.hashes)))

    def _was_drawn_out(self, place: int, nearest: int) -> bool:
        """Whether a word is the origin's without a letter written again and again (رائع, رااااائع)."""
        if nearest < 0 or not _DRAWN_OUT.search(self.a.folded(nearest)):
            return False
        return _REPEATED.sub(r"\1", self.a.folded(nearest)) == _REPEATED.sub(r"\1", self.b.folded(place))

    def _names_a_language(self, place: int) -> bool:
        """Whether a word stands right after a fence."""
        begin = int(self.b.begins[place])
        return self.rewritten[max(0, begin - 3) : begin] == "```"

    @cached_property
    def added(self) -> list[tuple[int, int]]:
        """Runs of the rewrite's words (first, after the last) that are not aligned with the origin."""
        return _runs(self.aligned.source != ALIGNED) if not self.same_words else []

    @cached_property
    def removed(self) -> list[tuple[int, int]]:
        """Runs of the origin's words that are not aligned with the rewrite."""
        return _runs(self.aligned.kept != ALIGNED) if not self.same_words else []

    @cached_property
    def sentences(self) -> list[tuple[int, int]]:
        """The origin's sentences, roughly, as words (first, after the last)."""
        cuts = [found.end() for found in _SENTENCE_END.finditer(self.origin)]
        places = np.searchsorted(self.a.begins, [*cuts, len(self.origin) + 1]).tolist()
        return [(first, last) for first, last in zip([0, *places], places) if last > first]

    @cached_property
    def residue(self) -> NDArray[np.bool_]:
        """Bool [origin words]: words inside tags, entities, reference numbers, hashtags."""
        mask = np.zeros(len(self.a.hashes), dtype=np.bool_)
        if any(sign in self.origin for sign in "<&[#"):
            for found in RESIDUE.finditer(self.origin):
                first, last = np.searchsorted(self.a.begins, found.span())
                mask[first:last] = True
        return mask

    @cached_property
    def instructions(self) -> list[tuple[int, int]]:
        """Sentences of the origin that give a model orders and are not kept as they are."""
        return self._gone("instruction", least=0.3)

    @cached_property
    def allowed(self) -> NDArray[np.bool_]:
        """Bool [origin words]: words that may go: residue of markup, advertisements, offences, orders to a model."""
        mask = self.residue.copy()
        for name in ("advertisement", "offence"):
            for first, last in self._gone(name, _LEAST_OF_SENTENCE):
                mask[first:last] = True
        for first, last in self.instructions:
            mask[first:last] = True
        return mask

    def _gone(self, name: str, least: float) -> list[tuple[int, int]]:
        """Sentences with a phrase of this kind of which at least this share of words is lost."""
        if self.same_words:
            return []
        pattern, found = phrases(name), []
        for first, last, lost in self._lossy:
            long = last - first > _MOST_OF_SENTENCE
            if lost < (_FEW_LOST if long else least * (last - first)):
                continue
            text = self.words_of_origin(first, last)
            if not long and pattern.search(text):
                found.append((first, last))
            elif long:  # no sentence at all: what stands around the phrase
                for match in pattern.finditer(text):
                    place = first + text.count(" ", 0, match.start())
                    stop = place + match.group().count(" ") + 1
                    begin, end = max(first, place - _AROUND), min(last, stop + _AROUND)
                    if np.count_nonzero(self.aligned.kept[begin:end] != ALIGNED) >= _LEAST_OF_SENTENCE * (end - begin):
                        found.append((begin, end))
        return found

    @cached_property
    def _lossy(self) -> list[tuple[int, int, int]]:
        """Sentences of the origin that lost words, and how many."""
        lost = self.aligned.kept != ALIGNED
        if not (self.aligned.kept == NO_SOURCE).any() and not (self.aligned.kept == ELSEWHERE).any():
            return []
        sums = np.concatenate(([0], np.cumsum(lost)))
        counted = [(first, last, int(sums[last] - sums[first])) for first, last in self.sentences]
        return [entry for entry in counted if entry[2]]

    @cached_property
    def gaps(self) -> list[tuple[int, int, int, int]]:
        """Stretches between aligned words: origin (first, after the last), rewrite (first, after the last)."""
        partner = self.aligned.partner
        places = np.flatnonzero(partner >= 0)
        a = np.concatenate(([-1], partner[places], [len(self.a.hashes)]))
        b = np.concatenate(([-1], places, [len(partner)]))
        wide = np.flatnonzero((a[1:] - a[:-1] > 1) | (b[1:] - b[:-1] > 1))
        return [(int(a[i]) + 1, int(a[i + 1]), int(b[i]) + 1, int(b[i + 1])) for i in wide]

    def words_of_origin(self, first: int, last: int) -> str:
        """Words of the origin in the matching view, one space apart."""
        return self.a.phrase(first, last)

    def words_of_rewrite(self, first: int, last: int) -> str:
        """Words of the rewrite in the matching view, one space apart."""
        return self.b.phrase(first, last)

    @cached_property
    def lost(self) -> NDArray[np.bool_]:
        """Bool [origin words]: content words that are in the rewrite in no form and were not to go."""
        if self.same_words:
            return np.zeros(len(self.a.hashes), dtype=np.bool_)
        mask = self.aligned.kept == NO_SOURCE
        if not mask.any():
            return mask
        mask &= ~self.allowed
        places = np.flatnonzero(mask)
        if len(places):
            mask[places[kinds_of(self.a, places) == GRAMMAR]] = False
        return mask

    @cached_property
    def unknown_lost(self) -> NDArray[np.int64]:
        """Int64 [origin words + 1]: how many words without a trace in the rewrite, names or unknown, stand before each."""
        gone = self.aligned.kept == NO_SOURCE
        places = np.flatnonzero(gone)
        if len(places):
            kinds = kinds_of(self.a, places)
            gone[places] = (kinds == NAME) | (kinds == UNKNOWN)
        return np.concatenate(([0], np.cumsum(gone)))

    @cached_property
    def content(self) -> int:
        """Words of the origin that were to be kept, grammar included."""
        return len(self.a.hashes) if self.same_words else int(len(self.a.hashes) - np.count_nonzero(self.allowed))


def _runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    padded = np.zeros(len(mask) + 2, dtype=np.bool_)
    padded[1:-1] = mask
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return list(zip(edges[::2].tolist(), edges[1::2].tolist()))


class Gate(Protocol):
    """One check.

    A gate is made with its settings (the mapping under its name in `defaults.yaml`, `enabled` left out) and raises a
    UserError where one can't be used. One that is not in that file may have a class attribute `defaults`.
    """

    name: str
    """Its name in settings, tables and results."""
    cost: int
    """Gates are asked in the order of their cost: 0 looks at words, 9 runs a model."""

    def judge(self, pair: Pair) -> Judgement:
        """Its judgement of a pair whose texts differ."""
        ...


Factory = Callable[[Mapping[str, Any]], Gate]
REGISTRY: dict[str, Factory] = {}
"""Every known gate by its name; `register` adds one."""


def register(factory: Any) -> Any:
    """Class decorator: make a gate known by its `name`."""
    REGISTRY[factory.name] = factory
    return factory


def shown(words: list[str], most: int = 4) -> str:
    """A few words for a reason."""
    return "، ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")
