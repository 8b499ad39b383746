"""From an expert's answer to a rewritten passage: JSON by the schema, JSON in words or fences, or the passage itself."""

from __future__ import annotations

import json
import re
from typing import Any

from megatron_native.alignment.prompts import Messages

KEY = "rewritten"
RESPONSE_FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "rewriting",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {KEY: {"type": "string"}},
            "required": [KEY],
            "additionalProperties": False,
        },
    },
}
"""What a server with structured output is asked to keep to."""

_AS_JSON = {
    "ar": 'اكتب جوابك كائن JSON واحدًا: {"rewritten": "…"}، وقيمة rewritten هي المقطع بعد تحريره كاملًا.',
    "en": 'Write your answer as one JSON object: {"rewritten": "…"}, where rewritten is the whole edited passage.',
}
_AGAIN = {
    "ar": "لم يأتِ جوابك بالصيغة المطلوبة. أعد الجواب بالصيغة المطلوبة وحدها.",
    "en": "Your answer was not in the form that was asked for. Answer again, in that form alone.",
}
_FENCED = re.compile(r"\s*```[\w-]*[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)
_THOUGHT = re.compile(r"\s*<think>.*?</think>\s*", re.DOTALL)


def messages_for(messages: Messages, language: str, structured: bool, unread: int = 0) -> Messages:
    """The chat for one attempt: a schema is announced in the system message; a repeated question says what was wrong.

    Args:
        messages: as `RewriteSettings.messages` gives them.
        language: of the prompt's own words.
        structured: whether JSON is asked for.
        unread: answers before this one that could not be read.
    """
    asked: Messages = [{**message} for message in messages]
    if structured:
        asked[0]["content"] += "\n" + _AS_JSON[language]
    if unread:
        asked[-1]["content"] += "\n\n" + "\n".join([_AGAIN[language]] * unread)
    return asked


def object_in(answer: str) -> str | None:
    """The passage in a JSON object of the schema that an answer holds, whatever stands around it; None where none does."""
    decoder = json.JSONDecoder(strict=False)  # line breaks that are not escaped are put up with
    place = answer.find("{")
    while place >= 0:
        try:
            found, _ = decoder.raw_decode(answer, place)
        except (ValueError, RecursionError):  # no JSON, or nested without end
            found = None
        if isinstance(found, dict) and isinstance(found.get(KEY), str):
            return str(found[KEY])
        place = answer.find("{", place + 1)
    return None


def is_structured(answer: str) -> bool:
    """Whether an answer is an object of the schema and nothing else, as a server that knows schemas gives it."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and set(found) == {KEY} and isinstance(found[KEY], str)


def _is_text(found: str) -> bool:
    """Whether it can be UTF-8; one of the two escapes that a character beyond U+FFFF is written with can't."""
    try:
        found.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def passage_in(answer: str, origin: str, structured: bool) -> str | None:
    """The rewritten passage in an answer, boundary lines not yet taken off; None where it can't be read.

    Thoughts before the answer go, and a fence around all of it where the passage itself has none. An object of the
    schema is taken for what it holds also where none was asked for; an answer without one is the passage itself, unless
    it is a broken object, another object where one was asked for, or a thought that has no end.

    Args:
        answer: what the expert wrote.
        origin: the passage it was asked about.
        structured: whether JSON was asked for.
    """
    text = answer
    if "<think>" not in origin and (thought := _THOUGHT.match(text)):
        text = text[thought.end() :]
    if "<think>" not in origin and text.lstrip().startswith("<think>"):
        return None
    if "```" not in origin and (fenced := _FENCED.fullmatch(text)):
        text = fenced[1]
    if structured or text.lstrip().startswith("{") or f'"{KEY}"' not in origin:
        found = object_in(text)
        if found is not None:
            return found if _is_text(found) else None
    if text.lstrip().startswith("{") and not origin.lstrip().startswith("{") and (structured or f'"{KEY}"' in text):
        return None
    return text if text.strip() else None
