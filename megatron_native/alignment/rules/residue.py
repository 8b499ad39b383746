"""Rules for what is left of markup: HTML, BBCode, wiki text, templates, shortcodes, trackers, buttons of sites.

HTML and the lines that sites put around a text are those of `corpus.markup`; the rest is here. Placeholders stand for
addresses, code and scripture, so that markup around an address is taken away and the address is not cut.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

import numpy as np
import yaml
from numpy.typing import NDArray

from megatron_native.alignment.rules.punctuation import HIDDEN, Edited
from megatron_native.alignment.rules.triggers import places_of
from megatron_native.corpus.folding import WordFolder, word_hash
from megatron_native.corpus.markup import remove_boilerplate_lines, strip_html
from megatron_native.corpus.statistics import hash_set

LONGEST_LINE = 200
"""Characters of a line that is taken out at most."""
_PAIRED = "b|i|u|s|center|left|right|justify|quote|color|size|font|url|email|list|align|right|highlight|spoiler|indent"
_BBCODE_DROPPED = re.compile(
    r"\[(?P<name>img|youtube|media|video|attach|gallery|audio)(?:[= ][^\[\]\n]{0,200})?\][^\[\]\n]{0,300}\[/(?P=name)\]",
    re.IGNORECASE,
)
_BBCODE_PAIR = re.compile(
    rf"\[(?P<name>{_PAIRED})(?:=[^\[\]\n]{{0,200}})?\](?P<text>[^\[\]]*?)\[/(?P=name)\]", re.IGNORECASE
)
_SHORTCODE = re.compile(
    r"\[/?(?:caption|embed|gallery|vc_\w+|et_pb_\w+|su_\w+|contact-form-7|rev_slider|wpdm_\w+|adrotate)"
    r"(?:\s[^\[\]\n]{0,300})?/?\]"
)
_WIKI_FILE = re.compile(
    r"\[\[(?:ملف|صورة|تصنيف|File|Image|Category):(?:[^\[\]\n]|\[\[[^\[\]\n]*\]\])*\]\]", re.IGNORECASE
)
_WIKI_LINK = re.compile(r"\[\[(?:[^\[\]|\n]{1,200}\|(?P<text>[^\[\]|\n]{1,200})|(?P<title>[^\[\]|\n،.؛:]{1,60}))\]\]")
_WIKI_TEMPLATE = re.compile(r"\{\{[^{}\n]{0,300}\}\}")
_WIKI_EMPHASIS = re.compile(r"'''(?P<text>[^'\n]{1,300})'''")
_WIKI_HEADING = re.compile(r"^(?P<level>={2,5})[ \t]*(?P<text>[^=\n]{1,120}?)[ \t]*(?P=level)[ \t]*$", re.MULTILINE)
_WIKI_EDIT = re.compile(
    r"[ \t]*\[(?:عدل|تعديل|تحرير|عدّل|edit)(?:[ \t]*\|[ \t]*(?:عدل المصدر|تعديل المصدر|تحرير المصدر))?\]"
)
_EMPTY_IMAGE = re.compile(rf"!\[\]\([^()\s]{{0,300}}\)|!\[\]\([{HIDDEN}]\)")
_DEAD_LINK = re.compile(r"(?<!!)\[(?P<text>[^\[\]\n]{1,200})\]\((?:javascript:[^()\n]*(?:\([^()\n]*\))?[^()\n]*|#)\)")
_TEMPLATE_VARIABLE = re.compile(
    r"\$\{[A-Za-z_][\w.]{0,60}\}|\{%[^{}\n]{1,200}%\}|<%[^%\n]{1,200}%>|%%[A-Z_]{2,40}%%|\[%[^\[\]\n]{1,80}%\]"
)
TRACKER = re.compile(
    r"^[^\n؀-ۿ]*(?:adsbygoogle|googletag\.|_taboola|fbq\(|gtag\(|ga\('|dataLayer\.push|FB\.init|twttr\.|_gaq\.push"
    r"|document\.write\()[^\n؀-ۿ]*$\n?",
    re.MULTILINE,
)
_LABELS = (
    "اقرأ", "إقرأ", "اقرا", "أقرأ", "للمزيد", "لمزيد", "المزيد", "تابع القراءة", "أكمل القراءة", "اقرأ أيضا", "اقرأ أيضاً",
    "Read more", "Continue reading", "Loading", "جاري التحميل", "جارٍ التحميل", "شارك هذا الموضوع", "انشر الموضوع",
    "نسخ الرابط", "Share", "Tweet", "Pin it", "Like", "أعجبني", "إعجاب", "Print", "Email", "صورة أرشيفية", "صورة تعبيرية",
    "أرشيفية", "image", "صورة", "undefined", "null", "NaN", "object Object",
)  # fmt: skip
"""Of buttons, placeholders and captions of pictures that are not there: lines that have nothing else."""
_SITE_LINE = re.compile(
    rf"[ \t]*[-*•»«<>|…. \[\]()]*(?:(?:{'|'.join(_LABELS)})[ \t]*(?:[:…»«.>|\[\]()-]|\d{{1,6}})*[ \t]*){{1,6}}",
    re.IGNORECASE,
)
_COUNTED = (
    "المشاهدات|المشاركات|مشاهدات|مشاهدة|مشاركة|مشاركات|التعليقات|تعليقات|تعليق|إعجابات|الإعجابات|إعجاب"
    "|shares?|views?|likes?|tweets?|comments?"
)
_COUNT = "[0-9٠-٩][0-9٠-٩.,٬kKmM]*"
_SHARE_COUNTS = re.compile(
    rf"[ \t]*(?:(?:عدد )?(?:{_COUNTED})[ \t]*[:(]?[ \t]*{_COUNT}[ \t]*\)?[ \t]*[|•·,،-]?[ \t]*){{1,6}}"
    rf"|[ \t]*(?:{_COUNT}[ \t]*(?:{_COUNTED})[ \t]*[|•·,،-]?[ \t]*){{1,6}}",
    re.IGNORECASE,
)


def html(text: str) -> Edited:
    """HTML tags, comments, scripts and entities, as `clean` takes them out."""
    stripped = strip_html(text)
    return (stripped, 1) if stripped != text else (text, 0)


def _kept(found: re.Match[str]) -> str:
    return found["text"]


def _label(found: re.Match[str]) -> str:
    return found["text"] or found["title"]


def bbcode(text: str) -> Edited:
    """BBCode and WordPress shortcodes: the words between tags stay, pictures and players go."""
    total = 0
    for pattern in (_BBCODE_DROPPED, _SHORTCODE):
        text, edits = pattern.subn("", text)
        total += edits
    while True:
        text, edits = _BBCODE_PAIR.subn(_kept, text)
        if not edits:
            return text, total
        total += edits


def wiki(text: str) -> Edited:
    """Wiki text: links and emphasis become their words, `== x ==` a heading, files, categories and templates go."""
    total = 0
    for pattern, new in (
        (_WIKI_FILE, ""), (_WIKI_LINK, _label), (_WIKI_TEMPLATE, ""), (_WIKI_EMPHASIS, _kept), (_WIKI_EDIT, ""),
        (_WIKI_HEADING, lambda found: "#" * len(found["level"]) + " " + found["text"]),
    ):  # fmt: skip
        text, edits = pattern.subn(new, text)
        total += edits
    return text, total


def templates(text: str) -> Edited:
    """Variables of templates that nobody filled in, dead links and empty pictures of Markdown, calls of trackers."""
    total = 0
    for pattern, new in ((_TEMPLATE_VARIABLE, ""), (_EMPTY_IMAGE, ""), (_DEAD_LINK, _kept), (TRACKER, "")):
        text, edits = pattern.subn(new, text)
        total += edits
    return text, total


def site_lines(text: str) -> Edited:
    """Lines that are buttons, counters or captions of pictures that are not there; the lines `clean` takes out."""
    taken = [line for line in lines_with(text, site_words()) if _is_site_line(text[slice(*line)])]
    return without_lines(text, taken), len(taken)


def _is_site_line(line: str) -> bool:
    if len(line) > LONGEST_LINE:
        return False
    if _SITE_LINE.fullmatch(line) or _SHARE_COUNTS.fullmatch(line):
        return True
    return remove_boilerplate_lines(line)[1] > 0


def lines_with(text: str, wanted: NDArray[np.uint64]) -> list[tuple[int, int]]:
    """(begin, end) of the lines that have one of the words, as `hash_set` makes them of their hashes."""
    words = _folder().words(text)
    lines: list[tuple[int, int]] = []
    end = -1
    for place in words.begins[places_of(words.hashes, wanted)].tolist():
        if place < end:
            continue
        begin = text.rfind("\n", 0, place) + 1
        end = text.find("\n", place)
        end = len(text) if end < 0 else end
        lines.append((begin, end))
    return lines


def without_lines(text: str, lines: list[tuple[int, int]]) -> str:
    """The text without some of its lines, which are ascending."""
    pieces, last = [], 0
    for begin, end in lines:
        pieces.append(text[last : max(last, begin - 1)])
        last = end
    return "".join([*pieces, text[last:]])


@cache
def _folder() -> WordFolder:
    return WordFolder()


@cache
def site_words() -> NDArray[np.uint64]:
    """The words of which every line that `site_lines` takes out has at least one."""
    return hash_set(word_hash(word) for word in (*boilerplate_words(), *SITE_WORDS))


@cache
def boilerplate_words() -> tuple[str, ...]:
    """The words of which every line that `corpus.markup` takes out has at least one."""
    raw = resources.files("megatron_native.corpus").joinpath("presets/boilerplate.yaml").read_text(encoding="utf-8")
    return tuple(yaml.safe_load(raw)["triggers"])


SITE_WORDS = (
    "اقرأ", "للمزيد", "لمزيد", "المزيد", "القراءة", "continue", "loading", "التحميل", "انشر", "نسخ", "tweet", "pin", "like",
    "أعجبني", "إعجاب", "print", "email", "أرشيفية", "تعبيرية", "image", "صورة", "undefined", "null", "nan", "object",
    "المشاركات", "مشاهدات", "مشاهدة", "مشاركات", "تعليقات", "تعليق", "إعجابات", "الإعجابات", "shares", "view", "views", "likes",
    "tweets", "comment", "comments",
)  # fmt: skip
"""Words of which every line that is taken out here has at least one."""
