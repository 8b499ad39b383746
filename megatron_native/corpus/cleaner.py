"""One text after another made fit to train on: repaired, freed of what sites put around it, judged, private data masked.

The order: scripture is frozen; misread bytes, HTML, characters and boilerplate lines are mended around it; scripture is
put back letter for letter; the language decides the bucket, the bucket's filters decide whether the text stays; what
stays has its personal data masked. A text that needs no edit is looked at, not copied.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from megatron_native.corpus import arabic, markup, pii
from megatron_native.corpus.filters import QualityFilters
from megatron_native.corpus.folding import WordFolder, code_points
from megatron_native.corpus.languages import LanguageIdentifier
from megatron_native.corpus.scripture import ScriptureFinder, freeze
from megatron_native.corpus.statistics import measure
from megatron_native.corpus.survey import MARKUP, survey

_MAIN_SHARE = 0.85
"""Share of the letters from which a text counts as being in one script."""


@dataclass(frozen=True)
class CleanerSettings:
    """What decides what becomes of a text.

    Attributes:
        preset: its name, for messages.
        thresholds: of every bucket (language) that is kept.
        tatweel: `remove` or `keep`.
        mask_pii: whether personal data is masked.
    """

    preset: str
    thresholds: Mapping[str, Mapping[str, Any]]
    tatweel: str = "remove"
    mask_pii: bool = True


class Cleaned(NamedTuple):
    """What became of a text.

    Attributes:
        text: to train on; of a refused document what the filters saw.
        language: its bucket, "" where it was not asked for.
        dialect: of Arabic, or None.
        reason: why the document leaves, or None when it stays.
    """

    text: str
    language: str
    dialect: str | None
    reason: str | None


class Cleaner:
    """Cleans texts under fixed settings."""

    def __init__(self, settings: CleanerSettings) -> None:
        self._settings = settings
        self._filters = {
            language: QualityFilters(thresholds or {}, f"{settings.preset}, {language}")
            for language, thresholds in settings.thresholds.items()
        }
        self._folder = WordFolder()
        self._scripture = ScriptureFinder()
        self._languages = LanguageIdentifier()

    def clean(self, text: str, edits: Counter[str]) -> Cleaned:
        """What becomes of a text; edits of one that stays are counted in `edits`."""
        if not text or text.isspace():
            return Cleaned("", "", None, "empty")
        done: Counter[str] = Counter()
        text = self._mend(text, done)
        if not text:
            return Cleaned("", "", None, "empty after cleaning")
        codes = code_points(text)
        words = self._folder.words_of_codes(codes)
        language = self._languages.identify(text, words)
        bucket = language.bucket
        if bucket == "und":
            return Cleaned(text, "", None, "language not told")
        if bucket not in self._filters:
            return Cleaned(text, bucket, language.dialect, f"language {bucket} not kept")
        filters = self._filters[bucket]
        reason = filters.refuse(measure(codes, words, filters.lexicons))
        if reason is not None:
            return Cleaned(text, bucket, language.dialect, reason)
        if self._settings.mask_pii:
            text, masked = pii.mask(text, codes)
            for kind, count in masked.items():
                done[f"masked {kind}"] += count
        edits.update(done)
        return Cleaned(text, bucket, language.dialect, None)

    def _mend(self, text: str, edits: Counter[str]) -> str:
        """The training view of a text, without HTML, boilerplate and paragraphs in another script."""
        codes = code_points(text)
        found = survey(codes)
        repaired = arabic.repair_misread(text, found)
        if repaired is not text:
            edits["misread bytes repaired"] += 1
            text, codes = repaired, code_points(repaired)
            found = survey(codes)
        spans = self._scripture.spans(codes)
        frozen = None
        if spans:
            edits["passages of scripture frozen"] += len(spans)
            frozen = freeze(text, spans)
            text = frozen.text
        if found.flags & MARKUP:
            stripped = markup.strip_html(text)
            if stripped != text:
                edits["HTML taken out"] += 1
                text = stripped
                found = survey(code_points(text))
        if found.flags or not unicodedata.is_normalized("NFC", text):
            text = arabic.normalise_where(text, found.flags, self._settings.tatweel)
        text, removed = markup.remove_boilerplate_lines(text, self._folder)
        if removed:
            edits["boilerplate lines removed"] += removed
            text = arabic.normalise(text, self._settings.tatweel)
        text, foreign = one_script(text, found.arabic, found.latin)
        if foreign:
            edits["paragraphs in another language removed"] += foreign
        return frozen.thaw(text) if frozen is not None else text


def one_script(text: str, arabic_letters: int, latin_letters: int) -> tuple[str, int]:
    """The text in its main script, and how many paragraphs in the other one were taken out.

    A text whose letters are to 85 % of one script stays whole.
    """
    letters = arabic_letters + latin_letters
    if letters == 0 or max(arabic_letters, latin_letters) / letters >= _MAIN_SHARE:
        return text, 0
    is_arabic = arabic_letters >= latin_letters
    paragraphs = text.split("\n")
    kept = []
    for paragraph in paragraphs:
        found = survey(code_points(paragraph))
        ours, others = (found.arabic, found.latin) if is_arabic else (found.latin, found.arabic)
        if ours >= others:
            kept.append(paragraph)
    if len(kept) == len(paragraphs):
        return text, 0
    return arabic.normalise("\n".join(kept), tatweel="keep"), len(paragraphs) - len(kept)
