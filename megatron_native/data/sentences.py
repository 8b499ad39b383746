"""Sentences for `--split-sentences`: NLTK's Punkt with parameters of our own for Arabic.

NLTK ships no Arabic parameters, and Punkt untrained does not end a sentence at `؟`. Here the ends of sentences are
`. ! ? ؟ … ۔` (a semicolon is none, in Arabic as little as in English), abbreviations, initials and decimal numbers end
none, closing quotes and brackets belong to the sentence before them, and a line break always ends one. The sentences of
a text, joined, are the text: only the white space between them may be left out.
"""

from __future__ import annotations

from typing import Any

from megatron_native.errors import UserError

LANGUAGES = ("arabic", "english")
_ARABIC_ABBREVIATIONS = [
    "د", "أ", "م", "ص", "ص.ب", "ق.م", "ب.م", "هـ", "ه", "م.م", "ت", "ط", "ج", "ع", "س", "ر", "ش", "أ.د", "م.د",
    "إلخ", "الخ", "ا.د", "ف", "كم", "كجم", "سم", "مم", "ج.م", "ر.س", "د.إ", "د.ك", "ت.م", "ف.م", "ح", "ك", "ن",
    "ي", "و",
]  # fmt: skip
_ENGLISH_ABBREVIATIONS = [
    "dr", "mr", "mrs", "ms", "prof", "st", "vs", "etc", "e.g", "i.e", "inc", "ltd", "co", "no", "vol", "fig", "al",
    "jr", "sr", "u.s", "u.k", "u.n", "a.m", "p.m", "approx", "est",
]  # fmt: skip
_CLOSERS = "»”’\")]}›﴾"
_NO_LETTERS = r"()\[\]{}\"';:*@«»‹›“”‘’﴿﴾?!؟…۔"


class SentenceSplitter:
    """Cuts texts into sentences.

    Args:
        language: `arabic` (which knows English abbreviations too) or `english`.
        keep_newlines: the white space after a sentence stays at its end, as Megatron-LM's `--keep-newlines` has it;
            otherwise it is left out.
    """

    def __init__(self, language: str = "arabic", keep_newlines: bool = False) -> None:
        if language not in LANGUAGES:
            raise UserError(f"--lang {language}: sentences are split for {' and '.join(LANGUAGES)}.")
        try:
            from nltk.tokenize import punkt
        except ModuleNotFoundError as error:
            raise UserError("--split-sentences needs the package nltk: pip install 'megatron-native[sentences]'.") from error
        parameters = punkt.PunktParameters()
        parameters.abbrev_types.update(_ENGLISH_ABBREVIATIONS)
        if language == "arabic":
            parameters.abbrev_types.update(_ARABIC_ABBREVIATIONS)

        class _Ends(punkt.PunktLanguageVars):
            sent_end_chars = (".", "?", "!", "؟", "…", "۔")
            _re_non_word_chars = rf"(?:[{_NO_LETTERS}])"  # before any of these a full stop may end a sentence

        self._punkt: Any = punkt.PunktSentenceTokenizer(parameters, lang_vars=_Ends())
        self._keep_newlines = keep_newlines

    def split(self, text: str) -> list[str]:
        """The sentences of a text, in order; none of a text that is white space."""
        bounds = []
        for begin, end in _lines(text):
            bounds += [(begin + first, begin + last) for first, last in self._punkt.span_tokenize(text[begin:end])]
        bounds = _with_closers(text, bounds)
        if not self._keep_newlines:
            return [text[begin:end] for begin, end in bounds]
        ends = [begin for begin, _ in bounds[1:]] + [len(text)]
        return [text[begin if place else 0 : end] for place, ((begin, _), end) in enumerate(zip(bounds, ends))]


def _lines(text: str) -> list[tuple[int, int]]:
    """Where the lines of a text begin and end."""
    found, begin = [], 0
    for line in text.split("\n"):
        if line.strip():
            found.append((begin, begin + len(line)))
        begin += len(line) + 1
    return found


def _with_closers(text: str, bounds: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Bounds in which what closes a quotation belongs to the sentence it closes, not to the next one."""
    moved: list[tuple[int, int]] = []
    for begin, end in bounds:
        if moved and "\n" not in text[moved[-1][1] : begin]:
            closing = begin
            while closing < end and text[closing] in _CLOSERS:
                closing += 1
            if closing > begin:
                moved[-1] = (moved[-1][0], closing)
                begin = closing
                while begin < end and text[begin].isspace():
                    begin += 1
        if begin < end:
            moved.append((begin, end))
    return moved
