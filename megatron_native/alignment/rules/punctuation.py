"""Rules of punctuation: Arabic signs in Arabic text, the spaces around signs, repeated signs, quotation marks, tatweel.

Every rule takes a text with placeholders in it (`protection.py`) and gives the text and the number of its edits. Signs
change only where the letters around them are Arabic; between digits nothing changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable

LETTER = "\u0620-\u063f\u0641-\u064a\u0671-\u06d3\u06d5\u06fa-\u06fc\u0750-\u077f"
MARK = "\u064b-\u065f\u0670"
DIGIT = "0-9٠-٩۰-۹"
HIDDEN = "\U00100000-\U0010fffd"
"""Placeholders."""
Edited = tuple[str, int]
_ARABIC_SIGNS = {",": "،", ";": "؛", "?": "؟"}
_LATIN_SIGN = re.compile("[,;?]")
_ANY_LETTER = re.compile(r"[^\W\d_]")
_REACH = 80
# Every pattern begins with the characters it is about, so that the search jumps from one to the next.
_BLANK_BEFORE = re.compile(rf"[ \u00a0]+(?=[،؛؟!.:,;?])(?<=[{LETTER}{MARK}{DIGIT})\]»”\"%] )")
_GLUED_SIGN = re.compile(
    rf"[،؛؟!:.](?:(?<=[{LETTER}{MARK}{DIGIT})\]»”\"][،؛؟])(?=[{LETTER}«“(])|(?<=[{LETTER}{MARK})\]»”\"][،؛])(?=[{DIGIT}])"
    rf"|(?:(?<=[{LETTER}{MARK}][{LETTER}{MARK}][!:])|(?<=[)\]»”][!:]))(?=[{LETTER}«“][{LETTER}])"
    rf"|(?<=[{LETTER}][{LETTER}{MARK}][{LETTER}{MARK}]\.)(?=[{LETTER}]{{3}})"
    rf"(?!(?:نت|كوم|أورج|اورج|نيت|غوف|جوف|دوت)(?![{LETTER}])))"
)
_GLUED_BRACKET = re.compile(
    rf"[(«“](?:(?<=[{LETTER}][{LETTER}][{LETTER}][(«“])(?P<before>)(?=[{LETTER}]{{3}})"
    rf"|(?P<after>(?=\S)[^()«»“”\n]{{3,300}}(?<=\S)[)»”])(?=[{LETTER}]{{3}}))"
)
_PARTICLES = frozenset(["ال", "وال", "بال", "كال", "فال", "لل", "ولل", "فلل", "وبال", "وكال"])
_BLANK_INSIDE = re.compile(
    r"[(«“\[ \u00a0](?:(?<=[(«“\[])[ \u00a0]+(?=[^\s)\]»”])|(?<=[ \u00a0])[ \u00a0]*(?P<close>[)\]»”]))"
)
_PAIRS = {"(": ")", "«": "»", "“": "”", "[": "]"}
_OPENERS = {closing: opening for opening, closing in _PAIRS.items()}
_REPEATED = re.compile(
    r"[!؟?،,؛.…](?:(?<=[!؟?])(?P<mixed>[!؟?]+)|(?<=[،,])(?P<comma>(?:[ \u00a0]*[،,])+)|(?<=؛)(?P<semi>(?:[ \u00a0]*؛)+)"
    r"|(?<=\.)(?:(?P<spaced>(?:[ \u00a0]\.){2,})|(?P<dots>\.{3,}))|(?<=…)(?P<ellipsis>…+|\.+))"
)
_TATWEEL_INSIDE = re.compile(
    rf"\u0640(?<=[{LETTER}{MARK}]\u0640)(?<![{DIGIT}]ه\u0640)(?<![{DIGIT}] ه\u0640)(?!(?<=[^{LETTER}{MARK}]ل\u0640)ال)"
    rf"\u0640*(?=[{LETTER}])"
)
_TATWEEL_END = re.compile(rf"\u0640(?<=[{LETTER}]\u0640)\u0640+(?![{LETTER}{MARK}\u0640])")
_QUOTED_LINE = re.compile(r"^[^\n\"]*\"[^\n]*$", re.MULTILINE)
_INCHES = re.compile(rf"[{DIGIT}]\"")
_STRAIGHT_PAIR = re.compile(r"\"([^\"]*)\"")
_WORD_BEFORE = re.compile(rf"[{LETTER}{MARK}\u0640]+\Z")
_MIRRORED_LINE = re.compile(r"^[^\n]*[»”][^\n]*$", re.MULTILINE)
_MIRRORED_PAIR = re.compile(rf"(?<![^\s(\[])»(?=[{LETTER}{DIGIT}])([^«»\n]*[^\s«»])«(?![^\s،؛:؟!.,)\]])")
_MIRRORED_CURLY = re.compile(rf"(?<![^\s(\[])”(?=[{LETTER}{DIGIT}])([^“”\n]*[^\s“”])“(?![^\s،؛:؟!.,)\]])")


_TWO_LETTERS = re.compile(f"[{LETTER}][{LETTER}{MARK}]")
_FREE_BEFORE = ("", " ", "\u00a0", "(", "[", ":", "،", "-", "–", "/")
_FREE_AFTER = ("", " ", "\u00a0", ")", "]", ".", "،", "؛", ":", "؟", "!", ",", "-", "–", "/")


def _replace(pattern: re.Pattern[str], replacement: Callable[[re.Match[str]], str | None], text: str) -> Edited:
    """The text with the replacement of every match, and how many changed; None keeps a match."""
    pieces: list[str] = []
    last = edits = 0
    for found in pattern.finditer(text):
        new = replacement(found)
        if new is not None and new != found.group():
            pieces += [text[last : found.start()], new]
            last = found.end()
            edits += 1
    return ("".join([*pieces, text[last:]]), edits) if edits else (text, 0)


def _is_arabic(character: str) -> bool:
    return "\u0600" <= character <= "\u08ff"


def arabic_before(text: str, place: int) -> bool:
    """Whether the nearest letter before an offset, in its line, is Arabic."""
    for index in range(place - 1, max(-1, place - 1 - _REACH), -1):
        character = text[index]
        if character == "\n":
            return False
        if character.isalpha():
            return _is_arabic(character)
    return False


def _latin_after(text: str, place: int) -> bool:
    for character in text[place : place + _REACH]:
        if character == "\n":
            return False
        if character.isalpha():
            return not _is_arabic(character)
    return False


def _after_blanks(text: str, place: int) -> str:
    while place < len(text) and text[place] in " \u00a0":
        place += 1
    return text[place : place + 1]


def _is_lost_run(text: str, place: int) -> bool:
    """Whether a `?` is of several after a blank: digits or letters that an encoding lost."""
    begin = place
    while begin and text[begin - 1] == "?":
        begin -= 1
    several = begin < place or text[place + 1 : place + 2] == "?"
    return several and (begin == 0 or text[begin - 1].isspace())


def arabic_signs(text: str) -> Edited:
    """`,` `;` `?` become `،` `؛` `؟` between Arabic words; not in numbers, nor where the next word is Latin."""

    def arabic(found: re.Match[str]) -> str | None:
        place, sign = found.start(), found.group()
        following = text[place + 1 : place + 2]
        if place and text[place - 1].isdecimal() and following.isdecimal():
            return None
        if sign == "?" and following and not (following.isspace() or following in "?!؟.،,؛:)]}»”\"'"):
            return None  # a letter that was lost, or the query of an address
        if sign == "?" and _is_lost_run(text, place):
            return None
        if place and text[place - 1].isdecimal() and _after_blanks(text, place + 1).isdecimal():
            return None
        if not arabic_before(text, place) or _latin_after(text, place + 1):
            return None
        return _ARABIC_SIGNS[sign]

    return _replace(_LATIN_SIGN, arabic, text)


def repeated_signs(text: str) -> Edited:
    """`!!!` becomes `!`, `؟؟` `؟`, `،،` `،`, four dots and more three; two dots are the writer's own."""

    def once(found: re.Match[str]) -> str | None:
        kind, signs = found.lastgroup, found.group()
        if not arabic_before(text, found.start()):
            return None
        if kind == "mixed":
            asks, calls = any(sign in "؟?" for sign in signs), "!" in signs
            if len(signs) == 2 and asks and calls:
                return None
            if "?" in signs and (text[found.end() : found.end() + 1].isalpha() or _is_lost_run(text, found.start())):
                return None
            return ("؟" if asks else "") + ("!" if calls else "")
        if kind == "comma":
            return "،" if "،" in signs or not _latin_after(text, found.end()) else None
        return {"semi": "؛", "spaced": "...", "dots": "...", "ellipsis": "…"}[kind or ""]

    return _replace(_REPEATED, once, text)


def blanks_before_signs(text: str) -> Edited:
    """No blank before `،؛؟!.:`; scores and times between digits, decimals, domains and smileys stay."""

    def nothing(found: re.Match[str]) -> str | None:
        begin, end = found.span()
        sign, following = text[end], text[end + 1 : end + 2]
        if sign in ".:,;?!" and following and following in ".:=)(-/\\*^'\"DPpo" and not (sign == following == "!"):
            return None
        if sign in ".," and following and (following.isalnum() or following in "_"):
            return None
        if text[begin - 1].isdecimal() and (following.isdecimal() or _after_blanks(text, end + 1).isdecimal()):
            return None
        if sign == "." and text[end + 1 : end + 3] == " .":
            return None
        return "" if arabic_before(text, begin) else None

    return _replace(_BLANK_BEFORE, nothing, text)


def blanks_after_signs(text: str) -> Edited:
    """A blank after `،؛؟!:` and after a full stop between words of three letters; around brackets glued to words."""

    def parted(found: re.Match[str]) -> str | None:
        sign = found.group()
        if sign == "." and text[found.start() - 40 : found.start()].rpartition(" ")[2].find(".") >= 0:
            return None
        return sign + " "

    text_after, edits = _replace(_GLUED_SIGN, parted, text)

    def apart(found: re.Match[str]) -> str | None:
        if found["before"] is None:
            return found.group() + " "
        word = _WORD_BEFORE.search(text_after, max(0, found.start() - 30), found.start())
        return None if word is not None and word.group() in _PARTICLES else " " + found.group()

    text_after, more = _replace(_GLUED_BRACKET, apart, text_after)
    return text_after, edits + more


def blanks_inside_brackets(text: str) -> Edited:
    """No blank after an opening bracket or quotation mark, none before a closing one, where the other one is there."""

    def tight(found: re.Match[str]) -> str | None:
        if found["close"] is None:
            opening = found.group()[0]
            line_end = text.find("\n", found.end())
            rest = text[found.end() : line_end if line_end >= 0 else len(text)]
            closing, again = rest.find(_PAIRS[opening]), rest.find(opening)
            ok = closing >= 0 and not 0 <= again < closing
            return opening if ok and arabic_around(text, found.start(), found.end()) else None
        closing_sign = found["close"]
        if text[found.start() - 1 : found.start()] in ("", "\n", *_PAIRS):
            return None
        line = text[text.rfind("\n", 0, found.start()) + 1 : found.start()]
        ok = line.rfind(_OPENERS[closing_sign]) > line.rfind(closing_sign)
        return closing_sign if ok and arabic_around(text, found.start(), found.end()) else None

    return _replace(_BLANK_INSIDE, tight, text)


def arabic_around(text: str, begin: int, end: int) -> bool:
    """Whether the nearest letter before or after a stretch is Arabic."""
    return arabic_before(text, begin) or any(map(_is_arabic, _ANY_LETTER.findall(text[end : end + 12])[:1]))


def straight_quotes(text: str) -> Edited:
    """Inside "…" no blank at the edges, outside one; only in lines whose quotation marks pair without doubt."""
    edits = 0

    def line_of(found: re.Match[str]) -> str | None:
        nonlocal edits
        line = found.group()
        if line.count('"') % 2 or _INCHES.search(line):
            return None
        pieces: list[str] = []
        last, done = 0, 0
        for pair in _STRAIGHT_PAIR.finditer(line):
            begin, end = pair.span()
            inside = pair[1]
            before, after = line[begin - 1 : begin], line[end : end + 1]
            if not inside.strip(" \u00a0"):
                return None
            loose = inside[0] in " \u00a0" or inside[-1] in " \u00a0"
            free_before = before in _FREE_BEFORE
            free_after = after in _FREE_AFTER
            if loose:
                if not (free_before and free_after and arabic_around(line, begin, begin + 1)):
                    return None
                inside = inside.strip(" \u00a0")
            new = f'"{inside}"'
            if _is_arabic(before) and before not in "،؛؟":
                word = _WORD_BEFORE.search(line, max(0, begin - 30), begin)
                if word is None:
                    return None
                if len(word.group()) > 2 and word.group() not in _PARTICLES and not word.group().endswith("\u0640"):
                    new = " " + new
            if _TWO_LETTERS.match(line, end):
                new += " "
            if new != pair.group():
                done += 1
                pieces += [line[last:begin], new]
                last = end
        edits += done
        return "".join([*pieces, line[last:]])

    changed, _ = _replace(_QUOTED_LINE, line_of, text)
    return changed, edits


def mirrored_quotes(text: str) -> Edited:
    """`»…«` becomes `«…»` and `”…“` `“…”` in lines where all of them are mirrored."""
    edits = 0

    def line_of(found: re.Match[str]) -> str | None:
        nonlocal edits
        line = found.group()
        for pattern, opening, closing in ((_MIRRORED_PAIR, "«", "»"), (_MIRRORED_CURLY, "“", "”")):
            pairs = len(pattern.findall(line))
            if pairs and line.count(opening) == line.count(closing) == pairs:
                line = pattern.sub(rf"{opening}\1{closing}", line)
                edits += pairs
        return line

    changed, _ = _replace(_MIRRORED_LINE, line_of, text)
    return changed, edits


def tatweel(text: str) -> Edited:
    """Tatweel between letters goes, at the end of a word one stays (هـ, لـ«…»); one that carries a mark stays."""
    text, inside = _replace(_TATWEEL_INSIDE, lambda found: "", text)
    text, ends = _replace(_TATWEEL_END, lambda found: "\u0640", text)
    return text, inside + ends
