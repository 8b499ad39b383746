"""Two views of Arabic text: one to train on, which changes as little as possible, and one to compare with.

`normalise` repairs what encodings, old PDFs and web editors did to the letters and keeps everything a writer wrote:
diacritics, hamzas, religious ligatures (ﷺ ﷲ) and Qur'anic marks stay. `fold` throws all of that away, so that two
spellings of one text compare equal; its result is never trained on.
"""

from __future__ import annotations

import re
import unicodedata

import regex

TATWEEL = "\u0640"
# Ligatures that are words of their own, ornate parentheses and the pedagogical symbols: kept as they are.
_FROZEN_PRESENTATION_FORMS = frozenset(
    [chr(code) for code in range(0xFDF0, 0xFDFE)] + ["\ufd3e", "\ufd3f"] + [chr(code) for code in range(0xFBB2, 0xFBC3)]
)
_MARKS = "\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u08d3-\u08e1\u08e3-\u08ff"


def _base_letters() -> dict[int, str]:
    """Presentation forms → the letters they are shapes of (their compatibility decomposition)."""
    table = {}
    for code in (*range(0xFB50, 0xFE00), *range(0xFE70, 0xFEFF)):
        character = chr(code)
        base = unicodedata.normalize("NFKC", character)
        if base != character and character not in _FROZEN_PRESENTATION_FORMS:
            table[code] = base.lstrip(" ")  # an isolated mark decomposes to a space and the mark
    return table


_PRESENTATION_FORMS = _base_letters()
_HAS_PRESENTATION_FORM = re.compile("[\ufb50-\ufdff\ufe70-\ufefe]")
# Invisible controls: zero-width space and no-break space, soft hyphen, word joiner, byte order mark, bidi controls.
_INVISIBLE = re.compile("[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]")
# Joiners shape letters in Arabic script and mean nothing to a model; between emoji or other scripts they matter.
# (Marks stand between, in an order that NFC may change.)
_JOINERS = regex.compile(
    "[\u200c\u200d](?<![\ufe0f\u2600-\u27bf\U0001f000-\U0001faff\u0900-\u0dff]\\p{M}*[\u200c\u200d])"
)
_TATWEEL_WITHOUT_MARK = regex.compile(TATWEEL + r"+(?!\p{M})")
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LINE_BREAKS = re.compile("\r\n?|\u2028|\u0085|\x0b|\x0c")
_PARAGRAPH_BREAK = re.compile("\u2029")
_SPACES = re.compile("[\t \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_AROUND_BREAK = re.compile(" *\n *")
_MANY_BREAKS = re.compile("\n{3,}")


def normalise(text: str, tatweel: str = "remove") -> str:
    """The training view of a text.

    NFC; presentation forms to letters; invisible and bidirectional controls out; every kind of space and line break to
    one, runs of them shortened; tatweel out except where it carries a mark.

    Args:
        text: any text; what is not Arabic only has its controls and spaces tidied.
        tatweel: `remove` or `keep`.
    """
    text = _PARAGRAPH_BREAK.sub("\n\n", _LINE_BREAKS.sub("\n", text))
    text = _INVISIBLE.sub("", text)
    text = _JOINERS.sub("", text)
    text = _CONTROLS.sub("", text)
    if _HAS_PRESENTATION_FORM.search(text):
        text = text.translate(_PRESENTATION_FORMS)
    if tatweel == "remove" and TATWEEL in text:
        text = _TATWEEL_WITHOUT_MARK.sub("", text)
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    text = _AROUND_BREAK.sub("\n", _SPACES.sub(" ", text))
    return _MANY_BREAKS.sub("\n\n", text).strip()


def _folding() -> dict[int, str | None]:
    table: dict[int, str | None] = {ord(TATWEEL): None, 0x0621: None}
    for variant in "أإآٱٲٳٵ":
        table[ord(variant)] = "ا"
    for variants, letter in (("ىیېئ", "ي"), ("ة", "ه"), ("ؤ", "و"), ("کڪ", "ك")):
        for variant in variants:
            table[ord(variant)] = letter
    for zero in (0x0660, 0x06F0):
        for digit in range(10):
            table[zero + digit] = str(digit)
    return table


_FOLDING = _folding()
_ALL_MARKS = re.compile(f"[{_MARKS}]")
_INVISIBLE_OR_JOINER = re.compile(f"{_INVISIBLE.pattern}|[\u200c\u200d]")
_NOT_WORD = regex.compile(r"[^\p{L}\p{N}]+")


def fold(text: str) -> str:
    """The matching view: words in one spelling, one space apart.

    Compatibility forms, diacritics, tatweel, hamza, alef, ya and ta-marbuta variants, digit systems, case and
    punctuation are folded away.
    """
    text = unicodedata.normalize("NFKC", _INVISIBLE_OR_JOINER.sub("", text))
    text = _ALL_MARKS.sub("", text).translate(_FOLDING).casefold()
    return _NOT_WORD.sub(" ", text).strip()


_ARABIC_LETTERS = regex.compile(r"[\p{Script=Arabic}&&\p{L}]", regex.VERSION1)
_LATIN_LETTERS = regex.compile(r"[\p{Script=Latin}&&\p{L}]", regex.VERSION1)


def letter_counts(text: str) -> tuple[int, int]:
    """How many Arabic and how many Latin letters a text has; marks and digits are no letters."""
    return len(_ARABIC_LETTERS.findall(text)), len(_LATIN_LETTERS.findall(text))
