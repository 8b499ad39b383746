"""Which tokens would shorten a text most: BPE training that goes on from a tokenizer's own tokens.

The sample is encoded with the tokenizer; then the most frequent pair of neighbouring tokens is joined everywhere, again and
again, as BPE is trained (Sennrich et al., 2016). So every proposed token is a join of two others, old or proposed before
it, and a list in this order needs no parts (`data/tokenizer_extension.py`). Only whole characters with an Arabic letter
among them are proposed.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import pairwise
from pathlib import Path

from megatron_native.data.tokenizer_extension import read_byte_level_bpe, text_of

_ARABIC = re.compile(r"[\u0620-\u064a\u0671-\u06d3\u06fa-\u06fc\u0750-\u077f\u08a0-\u08c7]")
Pair = tuple[str, str]


@dataclass(frozen=True)
class ProposedToken:
    """One token, and what it is worth."""

    token: str
    saved: int
    """Tokens that the sample has fewer with it, after those proposed before it."""


def propose_tokens(path: Path, texts: Iterable[str], count: int, minimum: int = 2) -> list[ProposedToken]:
    """At most `count` tokens for the tokenizer.json at `path`, the most useful first; equal counts in the order of spelling.

    Args:
        path: a byte-level BPE.
        texts: the sample; what is kept of it is one entry for each different piece.
        count: how many to propose.
        minimum: how often a pair must occur.

    Raises:
        UserError: another kind of tokenizer, or one that can't be read.
    """
    _, tokenizer = read_byte_level_bpe(path)
    pieces: Counter[str] = Counter()
    for text in texts:
        if tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        pieces.update(piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    words = [[token.value for token in tokenizer.model.tokenize(piece)] for piece in pieces]
    return list(_joined(words, list(pieces.values()), count, minimum))


def _joined(words: list[list[str]], counts: list[int], wanted: int, minimum: int) -> Iterator[ProposedToken]:
    """Join the most frequent admissible pair, `wanted` times; `words` change in place."""
    frequency: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for number, word in enumerate(words):
        for pair in pairwise(word):
            frequency[pair] += counts[number]
            where[pair].add(number)
    admissible: dict[Pair, bool] = {}

    def admitted(pair: Pair) -> bool:
        if pair not in admissible:
            text = text_of(pair[0] + pair[1])
            admissible[pair] = text is not None and _ARABIC.search(text) is not None
        return admissible[pair]

    # Every change of a frequency puts a new entry into the heap; one that is out of date is passed over when it comes up.
    heap = [(-found, pair) for pair, found in frequency.items()]
    heapify(heap)
    proposed = 0
    while heap and proposed < wanted:
        negated, pair = heappop(heap)
        if -negated < minimum:
            return
        if frequency[pair] != -negated or not admitted(pair):
            continue
        saved, changed = 0, {pair}
        for number in where.pop(pair):
            before, after = words[number], _replaced(words[number], pair)
            if len(after) == len(before):
                continue
            for old in pairwise(before):
                frequency[old] -= counts[number]
            for new in pairwise(after):
                frequency[new] += counts[number]
                where[new].add(number)
            changed.update(pairwise(before), pairwise(after))
            saved += (len(before) - len(after)) * counts[number]
            words[number] = after
        for other in changed:
            if frequency[other] >= minimum:
                heappush(heap, (-frequency[other], other))
        text = text_of(pair[0] + pair[1])
        if text is not None and saved:
            proposed += 1
            yield ProposedToken(text, saved)


def _replaced(word: list[str], pair: Pair) -> list[str]:
    result: list[str] = []
    at = 0
    while at < len(word):
        step = 2 if tuple(word[at : at + 2]) == pair else 1
        result.append("".join(word[at : at + step]))
        at += step
    return result
