"""How far a text is from a reference, by characters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numba
import numpy as np

from megatron_native.corpus.folding import code_points


@numba.njit(cache=True, nogil=True)
def _distance(a: Any, b: Any) -> int:
    row = np.arange(len(b) + 1, dtype=np.int32)
    for i in range(1, len(a) + 1):
        diagonal, row[0] = row[0], i
        for j in range(1, len(b) + 1):
            above = row[j]
            row[j] = min(above + 1, row[j - 1] + 1, diagonal + (a[i - 1] != b[j - 1]))
            diagonal = above
    return int(row[len(b)])


def character_errors(reference: str, text: str) -> int:
    """Characters to insert, delete or replace to make one text of the other (Levenshtein, 1966); time is their product."""
    return _distance(code_points(reference), code_points(text))


def character_error_rate(pairs: Iterable[tuple[str, str]]) -> float:
    """Character errors of (reference, text) pairs together, by the characters of the references.

    Raises:
        ValueError: the references have no character.
    """
    errors = characters = 0
    for reference, text in pairs:
        errors += character_errors(reference, text)
        characters += len(reference)
    if not characters:
        raise ValueError("the references have no character")
    return errors / characters
