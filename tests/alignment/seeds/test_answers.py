"""What an expert may write, and which passage is read from it."""

import json

import pytest

from megatron_native.alignment.seeds.answers import is_structured, messages_for, object_in, passage_in

ORIGIN = "ذهب الولد الى المدرسة ."
GOOD = "ذهب الولد إلى المدرسة."
OBJECT = json.dumps({"rewritten": GOOD}, ensure_ascii=False)


@pytest.mark.parametrize(
    "answer",
    [
        GOOD, OBJECT, f"```json\n{OBJECT}\n```", f"```\n{GOOD}\n```", f"هذا هو الجواب:\n{OBJECT}\nانتهى.",
        f"<think>\nأفكر في {{الجملة}}.\n</think>\n\n{OBJECT}", '{"note": 1} ' + OBJECT,
    ],
)  # fmt: skip
@pytest.mark.parametrize("structured", [True, False])
def test_a_passage_is_found_in_whatever_stands_around_it(answer: str, structured: bool) -> None:
    assert passage_in(answer, ORIGIN, structured) == GOOD


def test_line_breaks_inside_an_object_need_no_escape() -> None:
    assert object_in('{"rewritten": "سطر أول\nسطر ثان"}') == "سطر أول\nسطر ثان"


@pytest.mark.parametrize(
    "answer", ['{"rewritten": "ذهب الولد', '{"rewritten": 7}', '```json\n{"rewritten": ["a"]}\n```', " \n"]
)
def test_what_cannot_be_read_is_none(answer: str) -> None:
    assert passage_in(answer, ORIGIN, True) is None


@pytest.mark.parametrize("structured", [True, False])
def test_half_an_emoji_is_no_text(structured: bool) -> None:
    assert passage_in('{"rewritten": "ذهب \\ud83d"}', ORIGIN, structured) is None
    assert passage_in('{"rewritten": "ذهب \\ud83d\\ude00"}', ORIGIN, structured) == "ذهب 😀"


def test_an_answer_nested_without_end_is_none() -> None:
    for deep in ('{"rewritten": ' * 1_500, '{"rewritten": ' + "[" * 100_000):
        assert passage_in(deep, ORIGIN, True) is None
        assert not is_structured(deep)
    assert object_in("{" + "[" * 100_000 + OBJECT) == GOOD


def test_another_object_than_the_one_asked_for_is_none() -> None:
    for answer in ('{"answer": "ذهب الولد."}', '```json\n{"answer": "ذهب الولد."}\n```', '{"answer": "ذهب', "{}"):
        assert passage_in(answer, ORIGIN, True) is None
    assert passage_in("{عدد} من الطلاب.", "{عدد} من  الطلاب.", True) == "{عدد} من الطلاب."


@pytest.mark.parametrize("structured", [True, False])
def test_a_thought_without_an_end_is_none(structured: bool) -> None:
    assert passage_in(f"<think>\nأفكر في الجملة، ولعلها {OBJECT}", ORIGIN, structured) is None
    assert passage_in("<think>\nأفكر في الجملة", ORIGIN, structured) is None
    assert passage_in("<think> وسم.", "<think> وسم .", structured) == "<think> وسم."


def test_an_object_in_the_passage_itself_is_text() -> None:
    origin = 'يعيد الخادم النص {"rewritten": "مرحبا"} إلى من سأله عنه.'
    assert passage_in(origin, origin, False) == origin
    assert passage_in(json.dumps({"rewritten": origin}), origin, True) == origin


def test_a_fence_of_the_passage_stays() -> None:
    origin = "```\nprint(1)\n```"
    assert passage_in(origin, origin, False) == origin


def test_only_an_object_of_the_schema_is_structured() -> None:
    assert is_structured(OBJECT)
    assert not is_structured(GOOD)
    assert not is_structured(f"```json\n{OBJECT}\n```")
    assert not is_structured('{"rewritten": "a", "note": "b"}')


def test_each_attempt_has_words_of_its_own() -> None:
    messages = [{"role": "system", "content": "ن"}, {"role": "user", "content": "م"}]
    asked = [messages_for(messages, "ar", structured, unread) for structured in (False, True) for unread in range(3)]  # type: ignore[arg-type]
    assert len({json.dumps(one) for one in asked}) == 6
    assert asked[0] == messages
    assert messages == [{"role": "system", "content": "ن"}, {"role": "user", "content": "م"}]
