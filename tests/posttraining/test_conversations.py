"""Records become conversations, or are refused with a reason."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_native.posttraining.conversations import RefusedConversationError, conversation_of, shape_of

USER, ANSWER = {"role": "user", "content": "ما عاصمة عُمان؟"}, {"role": "assistant", "content": "مسقط."}
SYSTEM = {"role": "system", "content": "أجب بإيجاز."}


def test_messages_as_they_are() -> None:
    found = conversation_of({"messages": [SYSTEM, USER, ANSWER, USER, ANSWER]}, "a")
    assert found.id == "a"
    assert found.messages == [SYSTEM, USER, ANSWER, USER, ANSWER]


def test_content_in_parts_and_a_weight() -> None:
    parts = [{"type": "text", "text": "ما عاصمة "}, {"type": "text", "text": "عُمان؟"}]
    record = {"messages": [{"role": "user", "content": parts}, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}]}
    assert conversation_of(record, "a").messages == [USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}]


def test_alpaca_with_input_history_and_system() -> None:
    record = {
        "instruction": "ترجم إلى العربية.", "input": "Good morning", "output": "صباح الخير", "system": "أنت مترجم.",
        "history": [["مرحبا", "أهلا"]],
    }  # fmt: skip
    assert conversation_of(record, "a").messages == [
        {"role": "system", "content": "أنت مترجم."},
        {"role": "user", "content": "مرحبا"},
        {"role": "assistant", "content": "أهلا"},
        {"role": "user", "content": "ترجم إلى العربية.\n\nGood morning"},
        {"role": "assistant", "content": "صباح الخير"},
    ]
    alone = conversation_of({"instruction": "عدّ إلى ثلاثة.", "input": "", "output": "١ ٢ ٣"}, "a")
    assert [message["content"] for message in alone.messages] == ["عدّ إلى ثلاثة.", "١ ٢ ٣"]


def test_sharegpt_names_its_turns_otherwise() -> None:
    record = {"conversations": [
        {"from": "system", "value": "أجب بإيجاز."}, {"from": "human", "value": "ما عاصمة عُمان؟"},
        {"from": "gpt", "value": "مسقط."},
    ]}  # fmt: skip
    assert conversation_of(record, "a").messages == [SYSTEM, USER, ANSWER]


def test_a_shape_is_known_by_its_keys_and_can_be_forced() -> None:
    both: dict[str, Any] = {"messages": [USER, ANSWER], "instruction": "س", "output": "ج"}
    assert shape_of(both) == "messages"
    assert conversation_of(both, "a", "alpaca").messages[0]["content"] == "س"
    with pytest.raises(RefusedConversationError, match="no conversation: no 'conversations' in it"):
        conversation_of(both, "a", "sharegpt")


@pytest.mark.parametrize(("messages", "reason"), [
    ([USER, {"role": "assistant", "content": " \n"}], "empty answer"),
    ([{"role": "user", "content": ""}, ANSWER], "empty question"),
    ([USER, {"role": "assistant", "content": None}], "empty answer"),
    ([USER], "no answer"),
    ([USER, {**ANSWER, "weight": 0}], "no answer"),
    ([USER, USER, ANSWER], "two user turns in a row"),
    ([USER, ANSWER, ANSWER], "two assistant turns in a row"),
    ([ANSWER, USER, ANSWER], "begins with an answer"),
    ([USER, ANSWER, USER], "last turn not answered"),
    ([USER, ANSWER, SYSTEM, USER, ANSWER], "system turn later on"),
    ([{"role": "tool", "content": "3"}, USER, ANSWER], "unknown role"),
    ([USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}], "tool calls"),
    ([USER, {"role": "assistant", "content": 5}], "content is not text"),
    ([USER, {**ANSWER, "weight": 0.5}], "weight is not 0 or 1 of an answer"),
    ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, ANSWER], "content is not text"),
    ([USER, {"role": "assistant", "content": "a\x00b"}], "NUL character"),
    (["ما؟", ANSWER], "turn is not an object"),
    ([], "no conversation"),
    ("ما؟", "no conversation"),
])  # fmt: skip
def test_what_can_not_be_learned_from_is_refused_with_its_reason(messages: Any, reason: str) -> None:
    with pytest.raises(RefusedConversationError) as refused:
        conversation_of({"messages": messages}, "a")
    assert refused.value.reason == reason


def test_other_records_are_refused() -> None:
    with pytest.raises(RefusedConversationError, match="it has the keys text"):
        conversation_of({"text": "نص"}, "a")
