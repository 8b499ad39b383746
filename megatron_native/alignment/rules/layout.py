"""Rules of layout: blanks and blank lines, prose that was wrapped at a column, lists whose bullets Markdown doesn't know.

Poetry, lists, headings and columns are told by their lines and stay as they are; code and tables are placeholders here.
"""

from __future__ import annotations

import re
from itertools import groupby, pairwise

from megatron_native.alignment.rules.punctuation import HIDDEN, LETTER, Edited
from megatron_native.alignment.rules.triggers import ODD_BLANKS

_ARABIC_LETTER = re.compile(f"[{LETTER}]")
_RUN = re.compile(r"[ \t]{2,}|\t")
_GAP = re.compile(r"(?<=\S)(?: {3,}|[ \t]*\t[ \t]*)(?=\S)")
_BLANK_LINES = re.compile(r"\n{3,}")
_ITEM = re.compile(r"\s*(?:[-*+•●▪◦■□►➤–—·]|\(?[0-9٠-٩]{1,3}[.)\-–]|\(?[أ-ي][.)\-–])(?=\s|\S)")
_LIST_ITEM = re.compile(r"[-*+] |[0-9٠-٩]{1,3}[.)] ")
_BULLET = re.compile(r"(?P<indent>[ \t]*)(?P<bullet>[•●▪◦■□►➤–—*-])[ \t]*(?=[^\s*\-–—])(?P<text>.*)")
_NUMBER = re.compile(r"[ \t]*(?P<number>[0-9]{1,2})[ ]?[-–)][ \t]*(?=[^\s\d\-–])(?P<text>.*)")
_ENDS = '.!؟?:؛…»”)"]'
_SHORTEST, _LONGEST = 40, 130
"""Characters of the longest line of wrapped prose."""
_LEAST_LINES = 4
_RAGGED = 0.75
"""Length of every line of wrapped prose but the last, over that of the longest."""
_RHYME = 0.5
"""Share of lines that end in the same letter, from which they are verse."""
_PLACEHOLDER = re.compile(f"[{HIDDEN}]")
_NOT_LETTERS = re.compile(f"[^{LETTER}]")


def blanks(text: str) -> Edited:
    """One blank between words, none at the ends of lines, no indentation of prose, one blank line at most."""
    text_now = text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
    for sign in ODD_BLANKS:
        if sign in text_now:
            text_now = text_now.replace(sign, " ")
    lines = text_now.split("\n")
    gaps: list[bool] | None = None
    for number, line in enumerate(lines):
        if not line or (line[0] not in " \t" and line[-1] not in " \t" and "  " not in line and "\t" not in line):
            continue
        bare = line.strip(" \t")
        if not _ARABIC_LETTER.search(bare):
            lines[number] = line.rstrip(" \t")
            continue
        if ("   " in bare or "\t" in bare) and gaps is None:
            gaps = [len(_GAP.findall(each.strip(" \t"))) == 1 for each in lines]
        if gaps is not None and gaps[number] and _has_company(lines, gaps, number):
            lines[number] = line.rstrip(" \t")
            continue
        indent = line[: len(line) - len(line.lstrip(" \t"))] if _LIST_ITEM.match(bare) and number else ""
        lines[number] = indent + (_RUN.sub(" ", bare) if "  " in bare or "\t" in bare else bare)
    result = "\n".join(lines)
    if "\n\n\n" in result:
        result = _BLANK_LINES.sub("\n\n", result)
    result = result.lstrip("\n").rstrip("\n ") if result[:1] == "\n" or result[-1:] in ("\n", " ") else result
    return (result, 1) if result != text else (text, 0)


def _has_company(lines: list[str], gaps: list[bool], number: int) -> bool:
    """Whether the line before or after, blank ones left out, has a gap as well: verse in two halves, or columns."""
    for step in (-1, 1):
        place = number + step
        while 0 <= place < len(lines) and not lines[place].strip():
            place += step
        if 0 <= place < len(lines) and gaps[place]:
            return True
    return False


def wrapped_lines(text: str) -> Edited:
    """Lines of a paragraph that was wrapped at a column are joined.

    A paragraph counts as wrapped when no line but the last could have taken the next one's first word, as programs wrap;
    when most of its lines end without punctuation; and when they don't rhyme.
    """
    blocks = [list(group) for _, group in groupby(text.split("\n"), key=lambda line: not line.strip())]
    widths = [max(map(len, lines)) for lines in blocks if _is_wrapped(lines, 0)]
    if not widths:
        return text, 0
    result: list[str] = []
    edits = 0
    for lines in blocks:
        if len(lines) > 1 and lines[0].strip() and (_is_wrapped(lines, 0) or _is_wrapped(lines, max(widths))):
            edits += len(lines) - 1
            result.append(" ".join(line.strip() for line in lines))
        else:
            result += lines
    return "\n".join(result), edits


def _is_wrapped(lines: list[str], width: int) -> bool:
    """Whether lines are prose wrapped at their own longest line, or at a width that other paragraphs of the text have."""
    if len(lines) < (2 if width else _LEAST_LINES):
        return False
    longest = max(width, *map(len, lines))
    if not _SHORTEST <= longest <= _LONGEST:
        return False
    for line, following in pairwise(lines):
        first = following.split(maxsplit=1)[0] if following.strip() else ""
        if len(line) < _RAGGED * longest or len(line) + 1 + len(first) <= longest:
            return False
    for line in lines:
        if line[:1] in " \t#>|" or _ITEM.match(line) or _GAP.search(line) or _PLACEHOLDER.search(line):
            return False
        if not _ARABIC_LETTER.search(line):
            return False
    if width:
        return True
    ended = sum(line[-1] in _ENDS for line in lines[:-1])
    if 3 * ended > len(lines) - 1:
        return False
    last_letters = [_NOT_LETTERS.sub("", line)[-1:] for line in lines]
    return max(map(last_letters.count, last_letters)) < _RHYME * len(lines) + 1


def bullets(text: str) -> Edited:
    """Lists with `•`, `▪`, `-word` or `1-word` become Markdown lists: `- word`, `1. word`; two items at least."""
    lines = text.split("\n")
    edits = 0
    number = 0
    while number < len(lines):
        run = _run_of_bullets(lines, number) or _run_of_numbers(lines, number)
        for place, new in run:
            if lines[place] != new:
                lines[place] = new
                edits += 1
        number = run[-1][0] + 1 if run else number + 1
    return ("\n".join(lines), edits) if edits else (text, 0)


def _run_of_bullets(lines: list[str], start: int) -> list[tuple[int, str]]:
    first = _BULLET.match(lines[start])
    if first is None:
        return []
    bullet = first["bullet"]
    run: list[tuple[int, str]] = []
    place = start
    while place < len(lines):
        found = _BULLET.match(lines[place])
        if found is None or found["bullet"] != bullet:
            if run and not lines[place].strip() and place + 1 < len(lines) and place - run[-1][0] == 1:
                place += 1
                continue
            break
        run.append((place, f"{found['indent'] if run else ''}- {found['text']}"))
        place += 1
    if len(run) < 2 or not any(_ARABIC_LETTER.search(line) for _, line in run):
        return []
    if bullet == "*" and any("*" in line for _, line in run):
        return []  # emphasis
    if bullet in "–—" and len(run) < 3:
        return []  # two lines of a dialogue
    return run


def _run_of_numbers(lines: list[str], start: int) -> list[tuple[int, str]]:
    run: list[tuple[int, str]] = []
    place, expected = start, -1
    while place < len(lines):
        found = _NUMBER.match(lines[place])
        if found is None:
            if run and not lines[place].strip() and place + 1 < len(lines) and place - run[-1][0] == 1:
                place += 1
                continue
            break
        value = int(found["number"])
        if expected >= 0 and value != expected:
            break
        expected = value + 1
        run.append((place, f"{found['number']}. {found['text']}"))
        place += 1
    if len(run) < 2 or not all(_ARABIC_LETTER.search(line) for _, line in run):
        return []
    return run
