"""Character errors: the textbook's distances, and what an independent dynamic programme finds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_native.alignment.character_errors import character_error_rate, character_errors

WORDS = st.text(alphabet="اأبتةهي ", max_size=12)


def by_definition(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    table = [[i + j if i * j == 0 else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            replaced = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(table[i - 1][j] + 1, table[i][j - 1] + 1, replaced)
    return table[-1][-1]


def test_known_distances() -> None:
    assert character_errors("kitten", "sitting") == 3
    assert character_errors("مدرسة", "مدرسه") == 1
    assert character_errors("إلى المدينة", "الى المدينه") == 2
    assert character_errors("", "نص") == 2
    assert character_errors("نص", "") == 2
    assert character_errors("😀نص", "نص") == 1


@given(WORDS, WORDS)
def test_as_by_the_definition(a: str, b: str) -> None:
    assert character_errors(a, b) == by_definition(a, b) == character_errors(b, a)


def test_the_rate_is_of_all_characters_together() -> None:
    assert character_error_rate([("مدرسة", "مدرسه"), ("في البيت الكبير", "في البيت الكبير")]) == 1 / 20
    with pytest.raises(ValueError, match="no character"):
        character_error_rate([("", "نص")])
