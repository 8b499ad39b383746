"""Two views of Arabic text: one to train on, which changes as little as possible, and one to compare with.

`normalise` repairs what encodings, old PDFs and web editors did to the letters and keeps everything a writer wrote:
diacritics, hamzas, religious ligatures (ﷺ ﷲ) and Qur'anic marks stay. `fold` (`folding.py`) throws all of that away, so
that two spellings of one text compare equal; its result is never trained on.
"""

from __future__ import annotations

import re
import unicodedata

import regex

from megatron_native.corpus.folding import code_points
from megatron_native.corpus.survey import (
    CONTROL,
    INVISIBLE,
    JOINER,
    PRESENTATION,
    SPACES,
    Survey,
    survey,
    tidy,
)
from megatron_native.corpus.survey import (
    TATWEEL as HAS_TATWEEL,
)

TATWEEL = "\u0640"
_LEAST_MISREAD = 20
# Ligatures that are words of their own, ornate parentheses and the pedagogical symbols: kept as they are.
_FROZEN_PRESENTATION_FORMS = frozenset(
    [chr(code) for code in range(0xFDF0, 0xFDFE)] + ["\ufd3e", "\ufd3f"] + [chr(code) for code in range(0xFBB2, 0xFBC3)]
)


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


def normalise(text: str, tatweel: str = "remove") -> str:
    """The training view of a text.

    NFC; presentation forms to letters; invisible and bidirectional controls out; every kind of space and line break to
    one, runs of them shortened; tatweel out except where it carries a mark.

    Args:
        text: any text; what is not Arabic only has its controls and spaces tidied.
        tatweel: `remove` or `keep`.
    """
    return normalise_where(text, survey(code_points(text)).flags, tatweel)


def normalise_where(text: str, flags: int, tatweel: str = "remove") -> str:
    """As `normalise`, with the `Survey.flags` of the text at hand: only what it can need is done."""
    if flags & CONTROL:
        text = _PARAGRAPH_BREAK.sub("\n\n", _LINE_BREAKS.sub("\n", text))
    if flags & INVISIBLE:
        text = _INVISIBLE.sub("", text)
    if flags & JOINER:
        text = _JOINERS.sub("", text)
    if flags & CONTROL:
        text = _CONTROLS.sub("", text)
    if flags & PRESENTATION:
        text = text.translate(_PRESENTATION_FORMS)
    if tatweel == "remove" and flags & (HAS_TATWEEL | PRESENTATION):
        text = _TATWEEL_WITHOUT_MARK.sub("", text)
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    if flags & (SPACES | INVISIBLE | JOINER | CONTROL | HAS_TATWEEL | PRESENTATION):
        text = tidy(code_points(text)).tobytes().decode("utf-32-le")
    return text


def repair_misread(text: str, found: Survey) -> str:
    """The text, decoded anew where it is UTF-8 or CP1256 that was read as Latin-1; the same object where it isn't.

    A text is tried when a third of its Latin letters are of the kind that misread Arabic is made of; the repair is taken
    when Arabic is what comes out.
    """
    if found.misread < _LEAST_MISREAD or found.misread * 3 < found.latin:
        return text
    import ftfy

    for repaired in (ftfy.fix_encoding(text), _as_cp1256(text)):
        after = survey(code_points(repaired))
        if after.arabic > found.arabic + found.latin // 4 and after.misread * 4 < found.misread:
            return repaired
    return text


def _as_cp1256(text: str) -> str:
    """What was meant where bytes of CP1256 were read as CP1252, or as Latin-1 where CP1252 has no character."""
    raw = bytearray()
    for character in text:
        try:
            raw += character.encode("cp1252")
        except UnicodeEncodeError:
            if ord(character) > 0xFF:
                return text
            raw.append(ord(character))
    return raw.decode("cp1256")
