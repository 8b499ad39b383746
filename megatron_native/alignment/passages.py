"""Documents cut into passages for rewriting, and joined again.

`split` cuts a text where it is cut most willingly (`sentence_bounds`), so that a passage fits a budget of tokens.
Passages are slices of the text without the white space around them; what lies between them is kept apart, so that
`join` puts rewritten passages into the layout of the original, and a passage that was not rewritten stays as it was.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import xxhash

from megatron_native.alignment.layout_blocks import blocks_of, frozen_reason, inside, merged
from megatron_native.alignment.refinement import Piece, Refiner
from megatron_native.alignment.sentence_bounds import BLANKS, SENTENCE, bounds, trimmed, word_ends
from megatron_native.errors import UserError

Counter = Callable[[str], int]
"""How many tokens a text is."""
_LEAST_FILLED = 0.5
_LEAST_TAIL = 0.25
_STRIPPED = "".join(BLANKS)
_MARKS = "\u064e\u064f\u0650\u0651\u0652\u064b\u064d\u064c"


def estimated_tokens(text: str) -> int:
    """How many tokens LLaMA-3 makes of a text, by its letters, marks and spaces; tokenizers near it differ little.

    Right for whole news articles to 3% (median), 8% (nine of ten); for single lines to 4% and 11%. Arabic letters are
    0.30 tokens each, marks 1.1, since LLaMA-3 knows few words with marks; mostly Latin text is 0.26 a letter.
    """
    size = len(text)
    beyond = len(text.encode("utf-8", "surrogatepass")) - size  # bytes beyond the first: 1 for an Arabic letter
    spaces = text.count(" ")
    ascii_signs = max(size - beyond - spaces, 0)
    if beyond < ascii_signs // 4:
        return int(0.7 * beyond + 0.265 * ascii_signs + 0.213 * spaces) + 1 if text else 0
    marks = sum(map(text.count, _MARKS))
    return int(0.3 * (beyond - marks) + 1.09 * marks + 0.73 * spaces + 0.45 * ascii_signs) + 1


@dataclass(frozen=True, slots=True)
class Passage:
    """A slice of a document.

    Attributes:
        id: `<document id>#<number>`, numbers from 0.
        start, stop: its offsets in the document's text, in characters.
        text: the slice; no white space at its ends.
        before, after: text of the document next to it, white space at the ends left out, for the writer to read and not
            to rewrite.
        tokens: what the counter said of `text`.
        frozen: why it is passed through unchanged (`code`, `table`, `scripture`, `address`, `no words`, `over the
            budget`), or None.
        digest: xxh3_128 of `text`, hexadecimal.
    """

    id: str
    start: int
    stop: int
    text: str
    before: str
    after: str
    tokens: int
    frozen: str | None
    digest: str


class Outcome(NamedTuple):
    """What became of a passage.

    Attributes:
        id, digest: the passage's.
        text: what takes its place; None keeps the original, "" takes the passage out.
    """

    id: str
    digest: str
    text: str | None


def digest_of(text: str) -> str:
    """The digest of a passage's text: xxh3_128, hexadecimal."""
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))


def split(
    text: str,
    budget: int,
    count: Counter = estimated_tokens,
    context: int = 0,
    document_id: str = "",
    scripture: Sequence[tuple[int, int]] = (),
) -> list[Passage]:
    """The passages of a text, in order; none of a blank text.

    Args:
        text: any text.
        budget: tokens of a passage at most. Only a frozen passage can exceed it: one that can't be cut, such as a fence
            of code, a verse, or an address.
        count: tokens of a text; called for every sentence and every passage.
        context: tokens of `before` and of `after` at most, cut at sentences, or at words where no sentence fits.
        document_id: begins the passages' ids.
        scripture: (begin, end) of verses without brackets, as `ScriptureFinder.spans` finds them; ﴿ ﴾ need none.

    Raises:
        ValueError: `budget` below 1 or `context` below 0.
    """
    if budget < 1 or context < 0:
        raise ValueError(f"budget {budget}, context {context}: a passage has 1 token or more, its context 0 or more")
    start, stop = trimmed(text, 0, len(text))
    if start == stop:
        return []
    whole = text[start:stop]
    tokens = count(whole)
    if tokens <= budget:
        verses = scripture if scripture or "﴿" not in text else bounds(text).verses
        frozen = frozen_reason(text, start, stop, blocks_of(text).fences, verses)
        return [Passage(f"{document_id}#0", start, stop, whole, "", "", tokens, frozen, digest_of(whole))]
    return _Splitter(text, budget, count, context, document_id, scripture).passages()


class _Splitter:
    """One text on its way to passages.

    Pieces are what is not cut further: `ends[i]` is where piece i ends, `strengths[i]` how willingly the text is cut
    there, and `sums[i]` how many tokens the pieces before it have.
    """

    def __init__(
        self,
        text: str,
        budget: int,
        count: Counter,
        context: int,
        document_id: str,
        scripture: Sequence[tuple[int, int]],
    ) -> None:
        self._text, self._budget, self._count, self._context = text, budget, count, context
        self._document_id = document_id
        blocks = blocks_of(text)
        found = bounds(text, blocks=blocks.whole)
        self._fences = blocks.fences
        self._verses = merged([*found.verses, *scripture])
        ends, strengths = found.places, found.strengths
        if scripture:
            kept = [place for place, end in enumerate(ends) if end == ends[-1] or not inside(end, self._verses)]
            ends, strengths = [ends[place] for place in kept], [strengths[place] for place in kept]
        begins = [0, *ends[:-1]]
        sizes = [count(text[begin:end]) for begin, end in zip(begins, ends)]
        hard = merged([*blocks.fences, *self._verses])
        self._refiner = Refiner(text, budget, count, hard, sorted([*blocks.tables, *blocks.rows, *found.spans]))
        if max(sizes) > budget:
            pieces: list[Piece] = []
            for begin, end, strength, size in zip(begins, ends, strengths, sizes):
                pieces += self._refiner.pieces(begin, end, strength, size)
            ends, strengths, sizes = ([piece[field] for piece in pieces] for field in range(3))
        self._ends, self._strengths = ends, strengths
        self._sums = [0, *accumulate(sizes)]

    def passages(self) -> list[Passage]:
        """All of them, in order."""
        found: list[Passage] = []
        piece = 0
        while piece < len(self._ends):
            last = len(self._ends)
            whole = self._sums[last] - self._sums[piece] <= self._budget
            following = last if whole else self._cut(piece, last)
            start, stop, tokens = self._measured(piece, following)
            while tokens > self._budget:  # what the pieces have need not add up to what they have together
                if following > piece + 1:
                    following = self._cut(piece, following - 1)
                elif not self._refine(piece, tokens):
                    break
                start, stop, tokens = self._measured(piece, following)
            found.append(self._passage(len(found), piece, following, start, stop, tokens))
            piece = following
        return found

    def _measured(self, piece: int, following: int) -> tuple[int, int, int]:
        start, stop = self._span(piece, following)
        return start, stop, self._count(self._text[start:stop])

    def _refine(self, piece: int, tokens: int) -> bool:
        """Cut one piece into finer ones; False where that can't be."""
        begin = self._ends[piece - 1] if piece else 0
        finer = self._refiner.pieces(begin, self._ends[piece], self._strengths[piece], tokens)
        if len(finer) < 2:
            return False
        sizes = [after - before for before, after in zip(self._sums, self._sums[1:])]
        self._ends[piece : piece + 1], self._strengths[piece : piece + 1], sizes[piece : piece + 1] = zip(*finer)
        self._sums = [0, *accumulate(sizes)]
        return True

    def _span(self, piece: int, following: int) -> tuple[int, int]:
        return trimmed(self._text, self._ends[piece - 1] if piece else 0, self._ends[following - 1])

    def _cut(self, piece: int, last: int) -> int:
        """The piece after the passage that begins with this one: `last` at most.

        Where the strongest bound is that fills at least half of the budget; of equal ones, the first that leaves as many
        passages as there have to be, so that they come out alike. A tail under a quarter of the budget is avoided.
        """
        sums, base = self._sums, self._sums[piece]
        left = sums[-1] - base
        most = min(bisect_right(sums, base + self._budget, piece + 1, last + 1) - 1, last)
        if most <= piece + 1:
            return piece + 1
        least = max(bisect_left(sums, base + self._budget * _LEAST_FILLED, piece + 1, most + 1), piece + 1)
        if least > most:
            return most
        tail = bisect_right(sums, sums[-1] - self._budget * _LEAST_TAIL, least, most + 1) - 1
        if tail >= least and tail < most < len(self._ends):
            most = tail
        strengths = self._strengths[least - 1 : most]
        best = max(strengths)
        target = bisect_left(sums, base + left / -(-left // self._budget), least, most + 1)
        for place in range(target, most + 1):
            if strengths[place - least] == best:
                return place
        return max(place for place in range(least, min(target, most + 1)) if strengths[place - least] == best)

    def _passage(self, number: int, piece: int, following: int, start: int, stop: int, tokens: int) -> Passage:
        text = self._text[start:stop]
        frozen = frozen_reason(self._text, start, stop, self._fences, self._verses)
        if frozen is None and tokens > self._budget:
            frozen = "over the budget"
        before = self._before(piece) if self._context and piece else ""
        after = self._after(following) if self._context and following < len(self._ends) else ""
        return Passage(
            f"{self._document_id}#{number}", start, stop, text, before, after, tokens, frozen, digest_of(text)
        )

    def _before(self, piece: int) -> str:
        """The end of what precedes a piece."""
        stop = self._span(piece - 1, piece)[1]
        first = bisect_left(self._sums, self._sums[piece] - self._context, 0, piece)
        for place in range(first, piece):
            if place == 0 or self._strengths[place - 1] >= SENTENCE:
                start = trimmed(self._text, self._ends[place - 1] if place else 0, stop)[0]
                if self._fits(start, stop):
                    return self._text[start:stop]
        begin = max(self._span(piece - 1, piece)[0], stop - 16 * self._context)
        starts = [trimmed(self._text, end, stop)[0] for end in word_ends(self._text, begin, stop)]
        first = bisect_left(starts, True, key=lambda start: self._fits(start, stop))
        return self._text[starts[first] : stop] if first < len(starts) else ""

    def _after(self, piece: int) -> str:
        """The beginning of a piece and of what follows it."""
        start = self._span(piece, piece + 1)[0]
        last = bisect_right(self._sums, self._sums[piece] + self._context, piece, len(self._sums)) - 1
        for place in range(last, piece, -1):
            if self._strengths[place - 1] >= SENTENCE:
                stop = trimmed(self._text, start, self._ends[place - 1])[1]
                if self._fits(start, stop):
                    return self._text[start:stop]
        end = min(self._span(piece, piece + 1)[1], start + 16 * self._context)
        stops = word_ends(self._text, start, end)
        last = bisect_left(stops, True, key=lambda stop: not self._fits(start, stop))
        return self._text[start : stops[last - 1]] if last else ""

    def _fits(self, start: int, stop: int) -> bool:
        return self._count(self._text[start:stop]) <= self._context


def separators(text: str, passages: Sequence[Passage]) -> list[str]:
    """What stands before the first passage, between each two, and after the last: one more than there are passages.

    A text is its separators and the texts of its passages in turn, character for character.
    """
    stops = [0, *(passage.stop for passage in passages)]
    starts = [*(passage.start for passage in passages), len(text)]
    return [text[stop:start] for stop, start in zip(stops, starts)]


def join(text: str, passages: Sequence[Passage], outcomes: Iterable[Outcome]) -> str:
    """The text with what its passages became, in the layout it had.

    White space at the ends of an outcome is left out, since the text's own is kept. Where a passage is taken out, of the
    white space on its two sides the one with more line breaks stays; at the text's ends, the text's own.

    Args:
        text: the document's text.
        passages: all of them, as `split` made them.
        outcomes: one for each passage, in any order; a frozen one needs none.

    Raises:
        ValueError: the passages aren't all of this text's.
        UserError: outcomes are missing, twice there, of another document, or change a frozen passage.
    """
    between = separators(text, passages)
    for passage in passages:
        if text[passage.start : passage.stop] != passage.text:
            raise ValueError(
                f"passage {passage.id} is not of this text: its characters {passage.start}-{passage.stop} differ"
            )
    if any(before.stop > after.start for before, after in pairwise(passages)):
        raise ValueError("passages overlap or are not in the text's order")
    if any(not BLANKS.issuperset(separator) for separator in between):
        raise ValueError("passages are missing: the text has words that none of them holds")
    texts = _texts(passages, outcomes)
    pieces = [between[0]]
    for number, (became, separator) in enumerate(zip(texts, between[1:]), start=1):
        if became:
            pieces += [became, separator]
        elif number == len(texts) or (len(pieces) > 1 and separator.count("\n") > pieces[-1].count("\n")):
            pieces[-1] = separator
    return "".join(pieces)


def _texts(passages: Sequence[Passage], outcomes: Iterable[Outcome]) -> list[str]:
    """What stands in the place of each passage."""
    known = {passage.id: passage for passage in passages}
    became: dict[str, str] = {}
    for outcome in outcomes:
        passage = known.get(outcome.id)
        if passage is None:
            raise UserError(f"Passage {outcome.id} is of another document: this one has {_some(known)}.")
        if outcome.digest != passage.digest:
            raise UserError(
                f"Passage {outcome.id} was made from another text (digest {outcome.digest}, here {passage.digest}): the "
                "documents, the tokenizer or the budget changed since. Rewrite it again, or join with the documents it is of."
            )
        if outcome.id in became:
            raise UserError(f"Passage {outcome.id} has two outcomes: join one run's results at a time.")
        became[outcome.id] = passage.text if outcome.text is None else outcome.text.strip(_STRIPPED)
        if passage.frozen and became[outcome.id] != passage.text:
            raise UserError(f"Passage {outcome.id} is frozen ({passage.frozen}) and its outcome is another text.")
    missing = [passage.id for passage in passages if passage.id not in became and not passage.frozen]
    if missing:
        raise UserError(f"No outcome for {_some(missing)}: finish the rewriting, or give None to keep the original.")
    return [became.get(passage.id, passage.text) for passage in passages]


def _some(ids: Iterable[str]) -> str:
    names = list(ids)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "no passage"
