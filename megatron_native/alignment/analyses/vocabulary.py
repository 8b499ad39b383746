"""Which words rewriting brings in and takes out, by log-likelihood (Dunning 1993), and how the vocabulary changes.

Words are those of the matching view, so spelling, vowel signs and digits of another system make no new word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from megatron_native.alignment.analyses.pairs import RewritePair
from megatron_native.corpus.folding import TABLE_SIZE, WordFolder, code_points, fold

SIGNIFICANT = 15.13
"""G² of one degree of freedom beyond which p < 0.0001."""
_ARABIC = ((0x0600, 0x06FF), (0x0750, 0x077F), (0x0870, 0x08FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF))


@dataclass(frozen=True, slots=True)
class WordShift:
    """A word and how often it stands on each side.

    Attributes:
        word: in the matching view.
        before, after: occurrences in originals and rewrites.
        g2: Dunning's G² of the two frequencies, 0 or more.
    """

    word: str
    before: int
    after: int
    g2: float


@dataclass(frozen=True, slots=True)
class VocabularyShift:
    """What became of the vocabulary.

    Attributes:
        words_before, words_after: all words.
        types_before, types_after: different words; types_gained, types_lost: those on one side alone.
        gained, lost: words that became more and less frequent, the surest first; only those beyond `SIGNIFICANT`.
        foreign_before, foreign_after: letters of other scripts than Arabic; letters_before, letters_after: all letters.
    """

    words_before: int
    words_after: int
    types_before: int
    types_after: int
    types_gained: int
    types_lost: int
    gained: list[WordShift]
    lost: list[WordShift]
    foreign_before: int
    foreign_after: int
    letters_before: int
    letters_after: int


def log_likelihood(
    before: NDArray[np.int64], after: NDArray[np.int64], total_before: int, total_after: int
) -> NDArray[np.float64]:
    """G² of each word, float64 [words]: 2 Σ O ln(O/E) over word or other word, before or after.

    Args:
        before, after: occurrences of each word, [words].
        total_before, total_after: all words of each side.
    """
    a, b = before.astype(np.float64), after.astype(np.float64)
    rest_a, rest_b = total_before - a, total_after - b
    total = max(1, total_before + total_after)

    def term(observed: NDArray[np.float64], row: NDArray[np.float64], column: int) -> NDArray[np.float64]:
        expected = row * column / total
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(observed > 0, observed * np.log(observed / expected), 0.0)

    word, rest = a + b, rest_a + rest_b
    g2 = term(a, word, total_before) + term(b, word, total_after)
    g2 += term(rest_a, rest, total_before) + term(rest_b, rest, total_after)
    return np.asarray(np.maximum(0.0, 2 * g2))


def vocabulary_shift(pairs: Sequence[RewritePair], shown: int = 40) -> VocabularyShift:
    """The shift over the pairs; `shown` words of each kind at most."""
    sides = [[pair.origin for pair in pairs], [pair.rewritten or "" for pair in pairs]]
    counted = [_counted(texts) for texts in sides]
    hashes = np.union1d(counted[0][0], counted[1][0])
    occurrences = []
    for own, counts in counted:
        whole = np.zeros(len(hashes), dtype=np.int64)
        whole[np.searchsorted(hashes, own)] = counts
        occurrences.append(whole)
    before, after = occurrences
    total_before, total_after = int(before.sum()), int(after.sum())
    g2 = log_likelihood(before, after, total_before, total_after)
    grew = after * max(1, total_before) > before * max(1, total_after)
    chosen = {}
    for kind, mask in (("gained", grew), ("lost", ~grew)):
        places = np.flatnonzero(mask & (g2 > SIGNIFICANT))
        chosen[kind] = places[np.lexsort((hashes[places], -g2[places]))][:shown]
    names = _names(hashes[np.concatenate(list(chosen.values()))], sides)
    listed = {
        kind: [WordShift(names[int(hashes[p])], int(before[p]), int(after[p]), round(float(g2[p]), 2)) for p in places]
        for kind, places in chosen.items()
    }
    letters = [_letters(texts) for texts in sides]
    return VocabularyShift(
        total_before, total_after, int((before > 0).sum()), int((after > 0).sum()), int((before == 0).sum()),
        int((after == 0).sum()), listed["gained"], listed["lost"],
        letters[0][0], letters[1][0], letters[0][1], letters[1][1],
    )  # fmt: skip


def _counted(texts: Sequence[str]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """The hashes of the words of all texts, ascending, and how often each stands there."""
    folder = WordFolder()
    found = [folder.words(text).hashes.copy() for text in texts]
    hashes, counts = np.unique(np.concatenate([np.zeros(0, np.uint64), *found]), return_counts=True)
    return hashes, counts.astype(np.int64)


def _names(wanted: NDArray[np.uint64], sides: Sequence[Sequence[str]]) -> dict[int, str]:
    """The words of these hashes, looked for in the texts."""
    folder, names = WordFolder(), dict[int, str]()
    for texts in sides:
        for text in texts:
            if len(names) == len(wanted):
                return names
            words = folder.words(text)
            for place in np.flatnonzero(np.isin(words.hashes, wanted)):
                key = int(words.hashes[place])
                if key not in names:
                    names[key] = fold(text[words.begins[place] : words.ends[place]])
    return names


@cache
def _tables() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Is it a letter, is it of the Arabic script: bool [TABLE_SIZE] each."""
    letters = np.array([chr(code).isalpha() for code in range(TABLE_SIZE)])
    arabic = np.zeros(TABLE_SIZE, dtype=np.bool_)
    for first, last in _ARABIC:
        arabic[first : last + 1] = True
    return letters, arabic


def _letters(texts: Sequence[str]) -> tuple[int, int]:
    """(letters of other scripts than Arabic, all letters); tatweel is none."""
    letters, arabic = _tables()
    foreign = whole = 0
    for text in texts:
        codes = code_points(text)
        codes = codes[(codes < TABLE_SIZE) & (codes != 0x640)]
        found = codes[letters[codes]]
        whole += len(found)
        foreign += int((~arabic[found]).sum())
    return foreign, whole
