"""Records of the usual instruction data as conversations: system, user and assistant turns, checked.

In go records with `messages` (OpenAI), `instruction`/`input`/`output` (Alpaca) or `conversations` (ShareGPT); out comes
a `Conversation`, or an error with one of a few reasons, by which the record is quarantined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

from megatron_native.documents.records import text_fault

Shape = Literal["messages", "alpaca", "sharegpt"]
SHAPES: tuple[Shape, ...] = ("messages", "alpaca", "sharegpt")
_KEYS: dict[Shape, tuple[str, ...]] = {
    "messages": ("messages",), "sharegpt": ("conversations",), "alpaca": ("instruction", "output"),
}  # fmt: skip
"""The keys by which a shape is known, in the order in which they are looked for."""
_ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
}  # fmt: skip
_CALLS = ("tool_calls", "function_call")


class Message(TypedDict):
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str
    weight: NotRequired[int]
    """0 for an answer that is shown and not learned, as OpenAI's format has it."""


@dataclass(frozen=True)
class Conversation:
    """A conversation that can be learned from: at most one system turn, first; then user and assistant in turn, the
    assistant last.
    """

    id: str
    messages: list[Message]


class RefusedConversationError(Exception):
    """A record that no conversation can be made of.

    Attributes:
        reason: one of a few phrases, counted in the account.
        detail: what exactly.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def conversation_of(record: Mapping[str, Any], identifier: str, shape: Shape | None = None) -> Conversation:
    """The conversation that a record holds.

    Args:
        record: its keys and values.
        identifier: the conversation's id.
        shape: which of the three it has; None: by its keys.

    Raises:
        RefusedConversationError: it holds none.
    """
    chosen = shape or shape_of(record)
    missing = [key for key in _KEYS[chosen] if record.get(key) is None]
    if missing:
        raise RefusedConversationError("no conversation", f"no '{missing[0]}' in it, which {chosen} has")
    if chosen == "alpaca":
        messages = _of_alpaca(record)
    else:
        messages = _of_turns(record[_KEYS[chosen][0]])
    system = record.get("system")
    if chosen != "messages" and system and messages[:1] and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": _text(system)})
    return Conversation(identifier, checked(messages))


def shape_of(record: Mapping[str, Any]) -> Shape:
    """The shape that a record's keys are of. Raises `RefusedConversationError` where they are of none."""
    for shape, keys in _KEYS.items():
        if all(record.get(key) is not None for key in keys):
            return shape
    known = "; ".join(" and ".join(keys) for keys in _KEYS.values())
    raise RefusedConversationError(
        "no conversation", f"it has the keys {', '.join(record) or 'of nothing'}, not {known}"
    )


def checked(messages: list[Message]) -> list[Message]:
    """The same messages, if they are a conversation that can be learned from.

    Raises:
        RefusedConversationError: no or an empty turn, an order that no template knows, no answer that is learned.
    """
    turns = [message["role"] for message in messages]
    if "assistant" not in turns:
        raise RefusedConversationError("no answer", "no assistant turn")
    for place, message in enumerate(messages):
        if not message["content"].strip():
            what = {"assistant": "empty answer", "user": "empty question", "system": "empty system turn"}[
                message["role"]
            ]
            raise RefusedConversationError(what, f"turn {place + 1}")
        if fault := text_fault(message["content"]):
            raise RefusedConversationError(fault, f"turn {place + 1}")
    first = 1 if turns[0] == "system" else 0
    for place, role in enumerate(turns[first:]):
        expected = "assistant" if place % 2 else "user"
        if role == expected:
            continue
        if role == "system":
            raise RefusedConversationError("system turn later on", f"turn {first + place + 1}")
        if place == 0:
            raise RefusedConversationError("begins with an answer")
        raise RefusedConversationError(f"two {role} turns in a row", f"turns {first + place} and {first + place + 1}")
    if turns[-1] != "assistant":
        raise RefusedConversationError("last turn not answered")
    if not any(message.get("weight", 1) for message in messages if message["role"] == "assistant"):
        raise RefusedConversationError("no answer", "every answer has weight 0")
    return messages


def _of_turns(turns: Any) -> list[Message]:
    """Turns of `role` and `content`, or of `from` and `value`."""
    if not isinstance(turns, (list, tuple)) or not turns:
        raise RefusedConversationError("no conversation", "its turns are no list, or an empty one")
    messages: list[Message] = []
    for place, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise RefusedConversationError("turn is not an object", f"turn {place + 1}")
        said = turn.get("role") if turn.get("role") is not None else turn.get("from")
        role: Any = _ROLES.get(said) if isinstance(said, str) else None
        if role is None:
            raise RefusedConversationError("unknown role", f"turn {place + 1}: {said!r}")
        if any(turn.get(key) for key in _CALLS):
            raise RefusedConversationError("tool calls", f"turn {place + 1}")
        message: Message = {"role": role, "content": _text(turn.get("content", turn.get("value")))}
        weight = turn.get("weight")
        if weight is not None:
            if weight not in (0, 1) or role != "assistant":
                raise RefusedConversationError("weight is not 0 or 1 of an answer", f"turn {place + 1}: {weight!r}")
            message["weight"] = int(weight)
        messages.append(message)
    return messages


def _of_alpaca(record: Mapping[str, Any]) -> list[Message]:
    """Instruction and input, a blank line between, are the question; `history` has earlier pairs."""
    question, given = _text(record["instruction"]), record.get("input")
    if given:
        question += "\n\n" + _text(given)
    messages: list[Message] = []
    for pair in record.get("history") or []:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise RefusedConversationError("history is not pairs")
        messages.append({"role": "user", "content": _text(pair[0])})
        messages.append({"role": "assistant", "content": _text(pair[1])})
    messages.append({"role": "user", "content": question})
    messages.append({"role": "assistant", "content": _text(record["output"])})
    return messages


def _text(content: Any) -> str:
    """A string, or OpenAI's list of parts where all of them are text; nothing is an empty one."""
    if content is None:
        return ""
    if isinstance(content, (list, tuple)):
        parts = [
            part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None for part in content
        ]
        if all(isinstance(part, str) for part in parts):
            return "".join(part for part in parts if part)
    if not isinstance(content, str):
        raise RefusedConversationError("content is not text", type(content).__name__)
    return content
