"""Rewrites as replacements: a model names the spans it changes, and everything else stays as it was to the letter.

In goes an answer of JSON objects `{"find": …, "replace": …}`, out come edits with their places in the passage, and
a problem for every one that has no single place. Nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

ProblemKind = Literal["no edits", "malformed", "empty", "missing", "ambiguous", "overlapping"]
_WORD_OR_BLANKS = re.compile(r"\s+|\S+")
_STRING = r'(?:"(?:[^"\\]|\\.)*"|[“”„](?:[^“”„\\]|\\.)*[“”])'
_LOOSE_OBJECT = re.compile(
    rf"\{{\s*{_STRING}\s*:\s*{_STRING}(?:\s*,\s*{_STRING}\s*:\s*{_STRING})*\s*,?\s*\}}", re.DOTALL
)
_LOOSE_STRING = re.compile(_STRING, re.DOTALL)
_NEXT_OBJECT = re.compile(r"\n[ \t]*[\[,]?[ \t]*(?=\{)")
_EMPTY_LIST = re.compile(r"\[\s*\]")


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys stand once; of two edits run together in one object, JSON would drop the first unseen."""
    items = list(pairs)
    if len(dict(items)) != len(items):
        raise ValueError("a key stands twice")
    return dict(items)


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_once)  # not strict: models write raw line breaks


@dataclass(frozen=True)
class Edit:
    """One replacement: `passage[start:end]` is `find` and becomes `replace`."""

    start: int
    end: int
    find: str
    replace: str


@dataclass(frozen=True)
class EditProblem:
    """An edit, or a part of an answer, that was not taken: the kind, the text as it came, and what is wrong."""

    kind: ProblemKind
    text: str
    detail: str


@dataclass(frozen=True)
class EditResult:
    """The edits of an answer that have one place each, in the passage's order, and the problems of all others."""

    edits: tuple[Edit, ...]
    problems: tuple[EditProblem, ...]

    @property
    def complete(self) -> bool:
        """Whether the whole answer was understood and placed."""
        return not self.problems

    @property
    def unchanged(self) -> bool:
        """Whether the answer says, and says clearly, that nothing is to be changed."""
        return self.complete and all(edit.find == edit.replace for edit in self.edits)


def parse_edits(answer: str, passage: str) -> EditResult:
    """Read a model's edits and find their places in the passage.

    Code fences, text before and after, one list instead of lines, `{"edits": […]}`, and curly quotes as delimiters of
    keys and values are understood. `[]` means that nothing changes; an answer with neither `[]` nor an edit is a
    problem, since it may be a refusal. A `find` must occur once; where it occurs more often, the optional `before`
    chooses the occurrence that follows it most closely. Edits that share a character are all refused.
    """
    placed: list[tuple[Edit, str]] = []
    problems: list[EditProblem] = []
    found_any = False
    for text, item in _objects(answer):
        found_any = True
        if isinstance(item, EditProblem):
            problems.append(item)
            continue
        outcome = _place(item, text, passage)
        if isinstance(outcome, EditProblem):
            problems.append(outcome)
        else:
            placed.append((outcome, text))
    if not found_any and not _EMPTY_LIST.search(answer):
        problems.append(EditProblem("no edits", answer, "the answer has neither an edit nor the empty list []"))
    edits, overlapping = _apart(placed)
    return EditResult(edits, (*problems, *overlapping))


def apply_edits(passage: str, edits: Iterable[Edit]) -> str:
    """The passage with every edit made.

    Raises:
        ValueError: edits overlap, or one of them was made for another passage.
    """
    pieces = []
    position = 0
    for edit in sorted(edits, key=lambda edit: edit.start):
        if edit.start < position:
            raise ValueError(f"the edit of {edit.find!r} at {edit.start} overlaps the one before it")
        if passage[edit.start : edit.end] != edit.find:
            raise ValueError(f"the passage has no {edit.find!r} at {edit.start}; the edit is for another passage")
        pieces += [passage[position : edit.start], edit.replace]
        position = edit.end
    return "".join([*pieces, passage[position:]])


def render_edits(edits: Sequence[Edit]) -> str:
    """Edits as an answer: one JSON object a line, or `[]` where there are none."""
    if not edits:
        return "[]"
    return "\n".join(json.dumps({"find": edit.find, "replace": edit.replace}, ensure_ascii=False) for edit in edits)


def edits_between(origin: str, rewritten: str) -> tuple[Edit, ...]:
    """Short edits that turn `origin` into `rewritten`, each with a `find` that occurs once.

    Raises:
        ValueError: the origin is empty, so that nothing in it can be found, and the rewritten text is not.
    """
    if origin == rewritten:
        return ()
    if not origin:
        raise ValueError("an empty text can't be edited: there is nothing to find in it")
    before, after = _WORD_OR_BLANKS.findall(origin), _WORD_OR_BLANKS.findall(rewritten)
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    waiting = deque([i1, i2, j1, j2] for tag, i1, i2, j1, j2 in matcher.get_opcodes() if tag != "equal")
    done: list[list[int]] = []
    while waiting:
        span = waiting.popleft()
        left = True
        while waiting and not "".join(before[span[1] : waiting[0][0]]).strip():
            span[1], span[3] = waiting[0][1], waiting.popleft()[3]
        while not _stands_alone("".join(before[span[0] : span[1]]), origin):
            if (left and span[0] > 0) or span[1] == len(before):
                if done and done[-1][1] == span[0]:
                    span[0], _, span[2], _ = done.pop()
                else:
                    span[0], span[2] = span[0] - 1, span[2] - 1
            elif waiting and waiting[0][0] == span[1]:
                _, span[1], _, span[3] = waiting.popleft()
            else:
                span[1], span[3] = span[1] + 1, span[3] + 1
            left = not left
        done.append(span)
    starts = [0]
    for word in before:
        starts.append(starts[-1] + len(word))
    return tuple(
        Edit(starts[i1], starts[i2], origin[starts[i1] : starts[i2]], "".join(after[j1:j2])) for i1, i2, j1, j2 in done
    )


def _stands_alone(find: str, passage: str) -> bool:
    return find == passage or (bool(find.strip()) and len(_occurrences(find, passage)) == 1)


def _occurrences(find: str, passage: str) -> list[int]:
    """Where `find` begins, overlapping ones included."""
    places = []
    place = passage.find(find)
    while place >= 0:
        places.append(place)
        place = passage.find(find, place + 1)
    return places


def _objects(answer: str) -> Iterator[tuple[str, Any]]:
    """Every JSON object of an answer as (its text, its value or a problem); what stands between them is passed over."""
    position, first, last_end = 0, answer.find("{"), -1
    in_list = first >= 0 and answer[:first].rstrip().endswith("[")
    while (place := answer.find("{", position)) >= 0:
        value, position = _decode(answer, place)
        if value is None:
            following = _NEXT_OBJECT.search(answer, place)
            position = following.end() if following else len(answer)
            text = answer[place:position].strip()
            yield text, EditProblem("malformed", text, "this is no JSON object; the answer may have been cut off")
            continue
        last_end = position
        text = answer[place:position]
        wrapped = value.get("edits")
        if set(value) == {"edits"} and isinstance(wrapped, list):
            for item in wrapped:
                yield json.dumps(item, ensure_ascii=False), item
        else:
            yield text, value
    if in_list and last_end >= 0 and not re.match(r"\s*,?\s*\]", answer[last_end:]):
        yield answer, EditProblem("malformed", answer[last_end:], "the list is not closed; the answer was cut off")


def _decode(answer: str, place: int) -> tuple[dict[str, Any] | None, int]:
    """The JSON object that begins at `place` and where it ends, or None."""
    try:
        value, end = _DECODER.raw_decode(answer, place)
        return value, end
    except (ValueError, RecursionError):
        loose = _LOOSE_OBJECT.match(answer, place)
    if loose is None:
        return None, place
    try:
        strings = [_loose_text(text) for text in _LOOSE_STRING.findall(loose[0])]
        return _once(zip(strings[::2], strings[1::2])), loose.end()
    except ValueError:
        return None, place


def _loose_text(literal: str) -> str:
    """The text of a string between straight or curly quotes."""
    inside = literal[1:-1]
    if literal[0] != '"':
        inside = re.sub(r'\\.|"', lambda match: match[0] if len(match[0]) > 1 else '\\"', inside, flags=re.DOTALL)
    return str(_DECODER.decode(f'"{inside}"'))


def _place(item: Any, text: str, passage: str) -> Edit | EditProblem:
    if not isinstance(item, dict):
        return EditProblem("malformed", text, "an edit is an object with 'find' and 'replace'")
    find, replace, before = item.get("find"), item.get("replace"), item.get("before")
    if not isinstance(find, str) or not isinstance(replace, str) or not isinstance(before, str | None):
        return EditProblem("malformed", text, "'find' and 'replace' (and 'before', where it is given) must be texts")
    if not find:
        return EditProblem("empty", text, "'find' is empty, so it has no place")
    starts = _occurrences(find, passage)
    if not starts:
        return EditProblem("missing", text, "'find' does not occur in the passage")
    if len(starts) > 1:
        start = _nearest(starts, before, passage)
        if start is None:
            hint = "there is no 'before'" if not before else "'before' does not tell which"
            return EditProblem("ambiguous", text, f"'find' occurs {len(starts)} times in the passage, and {hint}")
        starts = [start]
    return Edit(starts[0], starts[0] + len(find), find, replace)


def _nearest(starts: list[int], before: str | None, passage: str) -> int | None:
    """The one start that follows an occurrence of `before` most closely, or None where two do so alike."""
    if not before:
        return None
    ends = [place + len(before) for place in _occurrences(before, passage)]
    gaps = sorted((start - end, start) for start in starts for end in ends if end <= start)
    if not gaps or (len(gaps) > 1 and gaps[0][0] == gaps[1][0]):
        return None
    return gaps[0][1]


def _apart(placed: list[tuple[Edit, str]]) -> tuple[tuple[Edit, ...], list[EditProblem]]:
    """Edits that touch no other, in order; and a problem for each of the rest."""
    ordered = sorted(placed, key=lambda pair: (pair[0].start, pair[0].end))
    clashing = set()
    furthest, holder = 0, -1
    for index, (edit, _) in enumerate(ordered):
        if edit.start < furthest:
            clashing |= {index, holder}
        if edit.end > furthest:
            furthest, holder = edit.end, index
    problems = [
        EditProblem("overlapping", ordered[index][1], "it shares characters of the passage with another edit")
        for index in sorted(clashing)
    ]
    return tuple(edit for index, (edit, _) in enumerate(ordered) if index not in clashing), problems
