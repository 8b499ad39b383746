"""Codes of conduct: what is shipped is whole, and a team's own is read exactly or refused by file and key."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from megatron_native.alignment.conduct import Conduct, conduct_names, load_conduct
from megatron_native.errors import UserError

ARABIC = re.compile(r"[\u0621-\u064A]")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "concepts" / "code-of-conduct.md"
FIVE = {"format", "values", "content_moderation", "knowledge_preservation", "advertisement_removal"}


def both(text: str = "نص") -> dict[str, str]:
    return {"ar": text, "en": "text"}


def small() -> dict[str, Any]:
    principle = {"severity": "primary", "title": both(), "rule": both("قاعدة"), "rationale": both()}
    return {
        "title": both("ميثاق"),
        "purpose": both(),
        "principles": {"knowledge": principle},
        "instructions": {"fluent": both(), "neutral": both()},
    }


def write(path: Path, raw: Any) -> Path:
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw, allow_unicode=True, sort_keys=False), "utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_conduct(path)
    return str(caught.value)


def changed(**changes: Any) -> dict[str, Any]:
    """The small code with `a__b=value` put at a.b, or taken away where the value is None."""
    raw = small()
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        target: Any = raw
        for parent in parents:
            target = target[parent]
        if value is None:
            del target[last]
        else:
            target[last] = value
    return raw


# --- what is shipped


def test_a_general_code_and_one_for_the_gulf_are_shipped() -> None:
    assert conduct_names() == ["general", "gulf"]


@pytest.mark.parametrize("name", conduct_names())
def test_a_shipped_code_is_in_both_languages_with_enough_examples(name: str) -> None:
    code = load_conduct(name)
    assert code.name == name
    assert {principle.key for principle in code.principles} >= FIVE
    assert code.advice() == []  # three good and two bad examples a principle
    texts = [code.title, code.purpose, *code.instructions]
    for principle in code.principles:
        texts += [principle.title, principle.rule, principle.rationale]
    for text in texts:
        assert ARABIC.search(text.ar), text
        assert re.search(r"[A-Za-z]{3}", text.en), text
    for text in {text.ar for text in texts}:  # an English word left in an Arabic text is a slip, format names are not
        assert set(re.findall(r"[A-Za-z]+", text)) <= {"Markdown", "LaTeX"}


@pytest.mark.parametrize("name", conduct_names())
def test_examples_of_a_shipped_code_keep_to_it(name: str) -> None:
    seen = set()
    for principle in load_conduct(name).principles:
        for example in (*principle.examples.good, *principle.examples.bad):
            assert ARABIC.search(example.origin) and ARABIC.search(example.why)
            assert example.origin == example.origin.strip() and example.rewritten == example.rewritten.strip()
            assert example.origin not in seen, "an example stands once"
            seen.add(example.origin)
        for example in principle.examples.good:
            assert ARABIC.search(example.rewritten)
            assert set(re.findall(r"\d+", example.rewritten)) <= set(re.findall(r"\d+", example.origin))
            quoted = re.compile(r"«[^»]*»|﴿[^﴾]*﴾")
            assert quoted.findall(example.rewritten) == quoted.findall(example.origin)
        for example in principle.examples.bad:
            assert not example.unchanged
        assert len([example for example in principle.examples.good if not example.unchanged]) >= 2


def test_knowledge_preservation_is_the_primary_duty_of_every_shipped_code() -> None:
    for name in conduct_names():
        assert load_conduct(name).by_severity()[0].key == "knowledge_preservation"


def test_the_instructions_of_the_paper_are_there() -> None:
    keys = [instruction.key for instruction in load_conduct("general").instructions]
    assert keys == [
        "unchanged", "same_language", "dialect", "keep_information", "markup", "least_change", "neutral", "correct",
        "fluent", "data_not_instructions", "scripture", "verbatim",
    ]  # fmt: skip


def test_the_gulf_code_is_the_general_one_and_more() -> None:
    general, gulf = load_conduct("general"), load_conduct("gulf")
    assert gulf.lineage == ("gulf", "general")
    assert gulf.principles[:5] == general.principles
    assert [principle.key for principle in gulf.principles[5:]] == [
        "faith",
        "family",
        "public_order",
        "names_and_terms",
    ]
    assert gulf.instructions[: len(general.instructions)] == general.instructions
    assert gulf.title != general.title


# --- reading


def test_a_code_cannot_be_changed_once_it_is_read() -> None:
    code = load_conduct("general")
    with pytest.raises(ValidationError):
        code.principles[0].rule.ar = "غير ذلك"  # type: ignore[misc]


def test_a_team_reads_its_own_code_by_path(tmp_path: Path) -> None:
    code = load_conduct(write(tmp_path / "ours.yaml", small()))
    assert (code.name, code.lineage) == ("ours", ("ours",))
    assert code.principles[0].rule.in_language("ar") == "قاعدة"
    assert code.principles[0].rule.in_language("en") == "text"
    assert code.advice() == ["principles.knowledge.examples: 0 good and 0 bad; 3 and 2 show where the line is"]


def test_an_extension_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    example = {"origin": "أصل", "rewritten": "أصل.", "why": "نقطة"}
    path = write(
        tmp_path / "ours.yaml",
        {
            "extends": "general",
            "principles": {
                "values": {"severity": "recommended", "rule": {"en": "Be fair."}, "examples": {"good": [example]}},
                "sources": {**small()["principles"]["knowledge"], "severity": "required"},
            },
            "instructions": {"units": both("وحدات")},
            "drop": ["advertisement_removal", "dialect"],
        },
    )
    ours, general = load_conduct(path), load_conduct("general")
    by_key = {principle.key: principle for principle in general.principles}
    assert [principle.key for principle in ours.principles] == [
        "format", "values", "content_moderation", "knowledge_preservation", "sources",
    ]  # fmt: skip
    values = ours.principles[1]
    assert (values.severity, values.rule.en, values.rule.ar) == ("recommended", "Be fair.", by_key["values"].rule.ar)
    assert [found.origin for found in values.examples.good] == ["أصل"]
    assert values.examples.bad == by_key["values"].examples.bad
    assert ours.principles[2] == by_key["content_moderation"]
    assert [rule.key for rule in ours.instructions] == [
        *(rule.key for rule in general.instructions if rule.key != "dialect"), "units",
    ]  # fmt: skip


def test_codes_extend_files_relative_to_their_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "base.yaml", small())
    write(tmp_path / "middle.yaml", {"extends": "base.yaml", "title": both("أوسط")})
    top = write(tmp_path / "deep" / "top.yaml", {"extends": "../middle.yaml", "drop": ["neutral"]})
    monkeypatch.chdir(tmp_path.parent)
    code = load_conduct(top)
    assert code.lineage == ("top", "middle", "base")
    assert code.title.ar == "أوسط"
    assert [rule.key for rule in code.instructions] == ["fluent"]


# --- the hash


@pytest.mark.parametrize("name", conduct_names())
def test_a_code_written_out_is_the_same_code(tmp_path: Path, name: str) -> None:
    path, conduct = tmp_path / "own.yaml", load_conduct(name)
    path.write_text(conduct.as_yaml(), encoding="utf-8")
    assert load_conduct(path).hash == conduct.hash and load_conduct(path).content == conduct.content
    assert conduct.title.ar in path.read_text(encoding="utf-8")


def test_the_hash_is_of_what_a_code_says_not_of_how_it_is_written_down(tmp_path: Path) -> None:
    whole = load_conduct(write(tmp_path / "whole.yaml", small()))
    write(tmp_path / "base.yaml", changed(principles__knowledge__severity="primary", title=both("عنوان آخر")))
    assembled = load_conduct(write(tmp_path / "own.yaml", {"extends": "base.yaml", "title": both("ميثاق")}))
    commented = "# a remark\n" + (tmp_path / "whole.yaml").read_text("utf-8")
    assert re.fullmatch("[0-9a-f]{64}", whole.hash)
    assert whole.hash == assembled.hash == load_conduct(write(tmp_path / "other.yaml", commented)).hash


@pytest.mark.parametrize(
    "changes",
    [
        {"title": both("آخر")},
        {"purpose__en": "another"},
        {"principles__knowledge__rule__ar": "قاعدة "},
        {"principles__knowledge__rationale__en": "because"},
        {"principles__knowledge__examples": {"bad": [{"origin": "أ", "rewritten": "ب", "why": "ج"}]}},
        {"instructions__neutral": None},
        {"instructions__another": both()},
        {"instructions": {"neutral": both(), "fluent": both()}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_any_change_of_what_a_code_says_changes_its_hash(tmp_path: Path, changes: dict[str, Any]) -> None:
    before = load_conduct(write(tmp_path / "before.yaml", small()))
    after = load_conduct(write(tmp_path / "after.yaml", changed(**changes)))
    assert before.hash != after.hash


# --- refusals


def test_a_mistyped_name_gets_a_suggestion() -> None:
    message = refusal(Path("genral"))
    assert "did you mean 'general'?" in message and "general, gulf" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"principle": {}}, ["unknown key principle", "did you mean 'principles'?"]),
        ({"name": "ours"}, ["unknown key name"]),
        ({"principles__knowledge__rulle": both()}, ["unknown key principles.knowledge.rulle", "did you mean 'rule'?"]),
        ({"principles__knowledge__key": "x"}, ["unknown key principles.knowledge.key"]),
        ({"principles__knowledge__rule__fr": "texte"}, ["unknown key principles.knowledge.rule.fr", "ar, en"]),
        ({"instructions__fluent__why": "x"}, ["unknown key instructions.fluent.why", "ar, en"]),
        (
            {"principles__knowledge__examples": {"good": [{"origin": "أ", "rewriten": "ب", "why": "ج"}]}},
            ["unknown key principles.knowledge.examples.good.0.rewriten", "did you mean 'rewritten'?"],
        ),
        ({"principles__knowledge__rule__en": None}, ["principles.knowledge.rule.en is missing"]),
        ({"principles__knowledge__rule__ar": "English"}, ["principles.knowledge.rule.ar has no Arabic letter"]),
        ({"principles__knowledge__rule__en": " "}, ["principles.knowledge.rule.en is empty"]),
        ({"principles__knowledge__rule__en": True}, ["principles.knowledge.rule.en = True", "valid string"]),
        ({"principles__knowledge__severity": "high"}, ["principles.knowledge.severity = 'high'", "'recommended'"]),
        ({"principles__knowledge__severity": "required"}, ["severity: primary", "here none has it"]),
        ({"principles__other": small()["principles"]["knowledge"]}, ["here knowledge, other has it"]),
        ({"principles__Other One": small()["principles"]["knowledge"]}, ["'Other One' under principles", "small"]),
        ({"principles": ["knowledge"]}, ["principles = ['knowledge']", "entries by name"]),
        ({"principles__knowledge": "keep"}, ["principles.knowledge = 'keep'"]),
        ({"instructions": {}}, ["instructions"]),
        ({"purpose": None}, ["purpose is missing"]),
        ({"drop": ["neutral"]}, ["drop", "extends"]),
        ({"extends": "genral"}, ["extends = 'genral'", "did you mean 'general'?"]),
        ({"extends": ["general"]}, ["extends = ['general']"]),
        ({"extends": "general", "drop": ["dialects"]}, ["drop", "no entry 'dialects'", "did you mean 'dialect'?"]),
        ({"extends": "general", "drop": "dialect"}, ["drop = 'dialect'", "list"]),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_named_by_file_and_key(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    path = write(tmp_path / "ours.yaml", changed(**changes))
    message = refusal(path)
    assert message.startswith(str(path))
    for word in words:
        assert word in message


def test_every_finding_is_in_one_message(tmp_path: Path) -> None:
    raw = changed(principles__knowledge__severity="high", purpose__en=None)
    message = refusal(write(tmp_path / "ours.yaml", raw))
    assert "severity" in message and "purpose.en" in message


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("title: [", "not valid YAML"),
        ("- a\n- b\n", "holds list"),
        ("", "holds NoneType"),
        ("title: {ar: أ, en: a}\ntitle: {ar: ب, en: b}\n", "the key 'title' stands twice"),
        ("principles:\n  a: {severity: primary}\n  a: {severity: required}\n", "the key 'a' stands twice"),
        ("on: {ar: أ, en: a}\n", "the key True is no text"),
    ],
)
def test_a_file_that_is_no_code_is_refused(tmp_path: Path, text: str, word: str) -> None:
    path = write(tmp_path / "ours.yaml", text)
    message = refusal(path)
    assert message.startswith(str(path)) and word in message


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_bytes("title: نص".encode("cp1256"))
    assert str(path) in refusal(path)


def test_codes_that_extend_each_other_in_a_circle_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", {"extends": "b.yaml"})
    write(tmp_path / "b.yaml", {"extends": "c.yaml"})
    write(tmp_path / "c.yaml", {"extends": "b.yaml"})
    write(tmp_path / "self.yaml", {"extends": "./self.yaml"})
    assert "b.yaml → c.yaml → b.yaml" in refusal(tmp_path / "a.yaml")
    assert "self.yaml → self.yaml" in refusal(tmp_path / "self.yaml")


def test_a_fault_in_the_extended_file_is_told_of_that_file(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", changed(purpose=None))
    assert refusal(write(tmp_path / "top.yaml", {"extends": "base.yaml"})).startswith(str(base))


# --- the page


def test_the_example_of_the_page_is_a_valid_code(tmp_path: Path) -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 1
    code: Conduct = load_conduct(write(tmp_path / "my_code.yaml", blocks[0]))
    assert {principle.key for principle in code.principles} == FIVE | {"sources"}
    assert "dialect" not in {rule.key for rule in code.instructions}


def test_the_page_names_every_shipped_principle() -> None:
    page = PAGE.read_text("utf-8")
    for name in conduct_names():
        assert f"`{name}`" in page
        for principle in load_conduct(name).principles:
            assert f"`{principle.key}`" in page
