"""The rules in their order, and one text after another put through those that can have anything to do in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_native.alignment.rules import layout, punctuation, residue, triggers
from megatron_native.alignment.rules.advertisements import SHIPPED, load_advertisements
from megatron_native.alignment.rules.protection import protect
from megatron_native.alignment.rules.punctuation import Edited
from megatron_native.corpus.folding import WordFolder, code_points
from megatron_native.corpus.scripture import ScriptureFinder
from megatron_native.errors import UserError
from megatron_native.manifest import parameters_hash

MOST_PASSES = 10
"""Passes over one text at most; two or three do for texts people write."""
_EDGES = " \t\r\n" + triggers.ODD_BLANKS
_FIRST_ARABIC, _LAST_ARABIC = "\u0621", "\u064a"
VERSION = 1
"""Goes up when a rule does something else than before."""


class Rule(NamedTuple):
    """One rule.

    Attributes:
        name: under which it is switched and its edits are counted.
        group: `residue`, `advertisements`, `layout` or `punctuation`.
        triggers: flags of `triggers`, one of which a text must have.
        edit: the text and the number of edits; `advertisements` is given its own by `Rules`.
    """

    name: str
    group: str
    triggers: int
    edit: Callable[[str], Edited]

    @property
    def description(self) -> str:
        """What the rule does."""
        return (self.edit.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


def advertisements(text: str) -> Edited:
    """Sentences and lines that call to subscribe, click, follow, download or buy, by `advertisements.yaml`."""
    return load_advertisements().remove(text, frozenset())


RULES = (
    Rule("html", "residue", triggers.MARKUP, residue.html),
    Rule("bbcode", "residue", triggers.RESIDUE, residue.bbcode),
    Rule("wiki", "residue", triggers.RESIDUE, residue.wiki),
    Rule("templates", "residue", triggers.RESIDUE | triggers.MARKUP, residue.templates),
    Rule("blanks", "layout", triggers.BLANKS, layout.blanks),
    Rule("site_lines", "residue", triggers.SITE_WORDS, residue.site_lines),
    Rule("advertisements", "advertisements", triggers.CALLS, advertisements),
    Rule("wrapped_lines", "layout", triggers.WRAPPED, layout.wrapped_lines),
    Rule("bullets", "layout", triggers.BULLETS, layout.bullets),
    Rule("tatweel", "punctuation", triggers.TATWEEL, punctuation.tatweel),
    Rule("arabic_signs", "punctuation", triggers.LATIN_SIGNS, punctuation.arabic_signs),
    Rule("repeated_signs", "punctuation", triggers.REPEATED, punctuation.repeated_signs),
    Rule("mirrored_quotes", "punctuation", triggers.MIRRORED, punctuation.mirrored_quotes),
    Rule("blanks_before_signs", "punctuation", triggers.BEFORE, punctuation.blanks_before_signs),
    Rule("blanks_inside_brackets", "punctuation", triggers.INSIDE, punctuation.blanks_inside_brackets),
    Rule("straight_quotes", "punctuation", triggers.QUOTES, punctuation.straight_quotes),
    Rule("blanks_after_signs", "punctuation", triggers.AFTER, punctuation.blanks_after_signs),
)
"""In the order in which they work: what takes text away comes before what mends the rest."""
NAMES = tuple(rule.name for rule in RULES)


@dataclass(frozen=True)
class RuleSettings:
    """Which rules work, and with which words.

    Attributes:
        only: names of the rules to use; all of them by default.
        without: names of rules to leave out.
        advertisements: a YAML file in the form of `advertisements.yaml`; "" for the shipped one.
    """

    only: Sequence[str] = ()
    without: Sequence[str] = ()
    advertisements: str = ""

    def names(self) -> tuple[str, ...]:
        """The rules that work, in their order.

        Raises:
            UserError: there is no rule of such a name, or none is left.
        """
        for name in (*self.only, *self.without):
            if name not in NAMES:
                raise UserError(f"there is no rule '{name}'; the rules are {', '.join(NAMES)}.")
        names = tuple(name for name in NAMES if (not self.only or name in self.only) and name not in self.without)
        if not names:
            raise UserError("no rule is left to work; leave one out less.")
        return names


class RuleResult(NamedTuple):
    """What the rules made of a text.

    Attributes:
        text: the text; the same object where nothing was edited.
        edits: how often each rule edited, by its name; rules that did nothing are left out.
    """

    text: str
    edits: dict[str, int]


class Rules:
    """Puts one text after another through the rules; not to be shared by threads."""

    def __init__(self, settings: RuleSettings) -> None:
        self.names = settings.names()
        self._advertisements = load_advertisements(Path(settings.advertisements or SHIPPED))
        self.settings = settings
        self._rules = [rule for rule in RULES if rule.name in self.names]
        self._can = triggers.PROTECTED
        for rule in self._rules:
            self._can |= rule.triggers
        self._scripture = ScriptureFinder()
        self._folder = WordFolder()
        self._reads_words = bool(self._can & (triggers.SITE_WORDS | triggers.CALLS))

    @property
    def parameters(self) -> dict[str, Any]:
        """For manifests: the rules, their version and the hash of the advertisements' file."""
        return {
            "rules": list(self.names), "version": VERSION,
            "advertisements": parameters_hash(self._advertisements.content),
        }  # fmt: skip

    def apply(self, text: str, scripture_spans: Sequence[tuple[int, int]] | None = None) -> RuleResult:
        """The text after all rules, put through them until nothing changes, so that a second time changes nothing.

        Args:
            text: a passage or a document.
            scripture_spans: what `ScriptureFinder.spans` found in it, where that is at hand.
        """
        return self._apply(text, scripture_spans, MOST_PASSES)

    def _apply(self, text: str, scripture_spans: Sequence[tuple[int, int]] | None, again: int) -> RuleResult:
        edits: Counter[str] = Counter()
        now, begin = self._edges(text)
        if now is not text:
            edits["blanks"] += 1
        codes = code_points(now)
        flags = self._flags(now, codes)
        if not now or not flags & ~triggers.PROTECTED:
            return RuleResult(now, dict(edits))
        if scripture_spans is None:
            spans = self._scripture.spans(codes)
        else:
            spans = [(first - begin, last - begin) for first, last in scripture_spans]
        protected = protect(now, spans, bool(flags & triggers.PROTECTED))
        now = protected.frozen.text
        for _ in range(MOST_PASSES):
            before = now
            done: Counter[str] = Counter()
            for rule in self._rules:
                if not rule.triggers & flags:
                    continue
                if rule.name == "advertisements":
                    now, count = self._advertisements.remove(now, protected.addresses)
                else:
                    now, count = rule.edit(now)
                if count:
                    done[rule.name] += count
            if now == before:
                break
            edits += done
            flags = self._flags(now, code_points(now))
            if not flags & ~triggers.PROTECTED:
                break
        if not edits:
            return RuleResult(text, {})
        result = protected.frozen.thaw(now)
        if scripture_spans is None and protected.frozen.passages and result != text and again:
            # What was mended can make more, or less, of the text an address or a verse.
            result, more = self._apply(result, None, again - 1)
            edits.update(more)
        return RuleResult(result, dict(edits))

    def _edges(self, text: str) -> tuple[str, int]:
        """The text without blanks at its ends, where that is all that many need, and where it begins in the old one."""
        if not self._can & triggers.BLANKS or not text:
            return text, 0
        bare = text.rstrip(_EDGES)
        if bare[:1] in _EDGES:
            inner = bare.lstrip(_EDGES)
            if _FIRST_ARABIC <= inner[:1] <= _LAST_ARABIC:  # other lines may be code, whose indentation stays
                bare = inner
                return bare, len(text.rstrip(_EDGES)) - len(bare)
        return (bare, 0) if len(bare) != len(text) else (text, 0)

    def _flags(self, text: str, codes: NDArray[np.uint32]) -> int:
        flags = triggers.look(codes)
        if self._reads_words:
            words = self._folder.words_of_codes(codes)
            of_sites = words.begins[triggers.places_of(words.hashes, residue.site_words())]
            if triggers.in_short_line(codes, of_sites, residue.LONGEST_LINE):
                flags |= triggers.SITE_WORDS
            calling = words.begins[triggers.places_of(words.hashes, self._advertisements.first_words)]
            begins = triggers.beginnings(codes, calling).tolist()
            if any(self._advertisements.pattern.match(text, place) for place in begins):
                flags |= triggers.CALLS
        return flags & self._can


def build_rules(settings: RuleSettings | Mapping[str, Any] | None = None) -> Rules:
    """Rules by their settings, a `RuleSettings` or its fields by name; all rules by default.

    Raises:
        UserError: a setting is unknown or can't be used.
    """
    if isinstance(settings, Mapping):
        known = asdict(RuleSettings())
        if unknown := [key for key in settings if key not in known]:
            raise UserError(f"rules: unknown setting '{unknown[0]}'; the settings are {', '.join(known)}.")
        settings = RuleSettings(**settings)
    return Rules(settings or RuleSettings())
