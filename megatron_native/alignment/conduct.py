"""Codes of conduct: the principles by which passages are rewritten, as data that a team can read and change.

A code is a YAML file: one of `codes/*.yaml` by its name, or a team's own by its path. In comes a name or a path, out
comes a checked, immutable `Conduct`. See docs/concepts/code-of-conduct.md for the form of the file.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from megatron_native.config.merge import merged
from megatron_native.errors import UserError
from megatron_native.manifest import parameters_hash

FOLDER = Path(__file__).parent / "codes"
Language = Literal["ar", "en"]
Severity = Literal["primary", "required", "recommended"]
SEVERITIES: tuple[Severity, ...] = ("primary", "required", "recommended")
ADVISED_GOOD = 3
ADVISED_BAD = 2
_ARABIC_LETTER = re.compile(r"[\u0621-\u064A]")
_KEYED = ("principles", "instructions")
"""Sections whose entries have names, so that a code which extends another can change one of them."""
_SHOWN_CHARACTERS = 60


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is empty; write it, or leave the entry out")
    return text


def _arabic(text: str) -> str:
    if not _ARABIC_LETTER.search(text):
        raise ValueError("has no Arabic letter; the Arabic text belongs here, the English one under 'en'")
    return text


def _key(text: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", text):
        raise ValueError("is no name of an entry: small Latin letters, digits and _, beginning with a letter")
    return text


Written = Annotated[str, AfterValidator(_not_blank)]
WrittenInArabic = Annotated[str, AfterValidator(_not_blank), AfterValidator(_arabic)]
Key = Annotated[str, AfterValidator(_key)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Bilingual(_Part):
    """One text in both languages."""

    ar: WrittenInArabic
    en: Written

    def in_language(self, language: Language) -> str:
        """The text in `language`."""
        return self.ar if language == "ar" else self.en


class Instruction(Bilingual):
    """One rule about how to edit, as opposed to what the principles want of the text."""

    key: Key


class Example(_Part):
    """A passage, what became of it, and why that is right (or, among the bad ones, wrong)."""

    origin: WrittenInArabic
    rewritten: Written
    why: WrittenInArabic

    @property
    def unchanged(self) -> bool:
        """Whether the passage was to be left as it is."""
        return self.origin == self.rewritten


class Examples(_Part):
    """Examples of one principle: `good` ones show a model what to do, `bad` ones show people what is refused."""

    good: tuple[Example, ...] = ()
    bad: tuple[Example, ...] = ()


class Principle(_Part):
    """One principle.

    Attributes:
        key: its name in the file.
        severity: `primary` (wins over every other; one a code), `required` or `recommended`.
        title: a few words.
        rule: what a rewriter has to do; this is what prompts hold.
        rationale: why, for the people who decide about the code; never in a prompt.
        examples: passages before and after.
    """

    key: Key
    severity: Severity
    title: Bilingual
    rule: Bilingual
    rationale: Bilingual
    examples: Examples = Examples()


class Conduct(_Part):
    """A code of conduct, with what it extends already filled in.

    Attributes:
        name: the shipped name, or the file's name without its ending.
        source: the file it was read from.
        lineage: the names from this code to the one that extends nothing.
    """

    name: str
    source: str
    lineage: tuple[str, ...]
    title: Bilingual
    purpose: Bilingual
    principles: tuple[Principle, ...] = Field(min_length=1)
    instructions: tuple[Instruction, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_primary(self) -> Conduct:
        primary = [principle.key for principle in self.principles if principle.severity == "primary"]
        if len(primary) != 1:
            raise ValueError(
                f"one principle must have 'severity: primary', the duty that wins over the others; "
                f"here {', '.join(primary) or 'none'} has it"
            )
        return self

    @property
    def content(self) -> dict[str, Any]:
        """What the code says, and nothing of where it came from: two files that say the same have equal contents."""
        return self.model_dump(mode="json", exclude={"name", "source", "lineage"})

    @cached_property
    def hash(self) -> str:
        """sha256 of the content: every text, key, severity, example and their order."""
        return parameters_hash(self.content)

    def as_yaml(self) -> str:
        """A file of its own that says the same, with what the code extends filled in: loaded, it has the same hash."""
        raw = self.content
        for section in _KEYED:
            raw[section] = {entry.pop("key"): entry for entry in raw[section]}
        return yaml.safe_dump(raw, allow_unicode=True, sort_keys=False, width=120)

    def by_severity(self) -> list[Principle]:
        """The principles, the primary one first, then in the file's order within each severity."""
        return sorted(self.principles, key=lambda principle: SEVERITIES.index(principle.severity))

    def advice(self) -> list[str]:
        """What is allowed but weak: principles with fewer examples than a reader needs to see the line."""
        remarks = []
        for principle in self.principles:
            good, bad = len(principle.examples.good), len(principle.examples.bad)
            if good < ADVISED_GOOD or bad < ADVISED_BAD:
                remarks.append(
                    f"principles.{principle.key}.examples: {good} good and {bad} bad; "
                    f"{ADVISED_GOOD} and {ADVISED_BAD} show where the line is"
                )
        return remarks


def conduct_names() -> list[str]:
    """The codes that are shipped."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_conduct(name_or_path: str | Path) -> Conduct:
    """A shipped code by its name, or a team's own by the path of its YAML file.

    Raises:
        UserError: there is no such code, or the file is wrong; every finding names file, key and way out.
    """
    return _load(_locate(str(name_or_path), None), ())


def _locate(name_or_path: str, extended_by: Path | None) -> Path:
    """The file of a code; paths under `extends` are relative to the file that says so."""
    names = conduct_names()
    if name_or_path in names:
        return FOLDER / f"{name_or_path}.yaml"
    path = Path(name_or_path) if extended_by is None else extended_by.parent / name_or_path
    if path.is_file():
        return path
    where = "" if extended_by is None else f"{extended_by}: extends = {name_or_path!r}: "
    close = difflib.get_close_matches(name_or_path, names, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise UserError(
        f"{where}there is no code of conduct '{name_or_path}'; {hint}shipped are {', '.join(names)}, "
        f"and a code of your own is given as the path of its YAML file."
    )


def _load(path: Path, children: tuple[Path, ...]) -> Conduct:
    here = path.resolve()
    if here in children:
        chain = " → ".join(child.name for child in (*children[children.index(here) :], here))
        raise UserError(f"{path}: extends goes in a circle ({chain}); one of these files must not extend another.")
    raw = _read(path)
    parent_name = raw.pop("extends", None)
    if parent_name is None:
        if "drop" in raw:
            raise UserError(f"{path}: drop: there is nothing to drop from without 'extends: NAME'.")
        return _check(raw, path, ())
    if not isinstance(parent_name, str):
        raise UserError(f"{path}: extends = {parent_name!r}: name one code, such as 'extends: general'.")
    parent = _load(_locate(parent_name, path), (*children, here))
    return _check(_over(parent, raw, path), path, parent.lineage)


def _over(parent: Conduct, raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The parent's content under the child's: entries by their names, mappings merged, texts and lists replaced."""
    under = parent.content
    for section in _KEYED:
        under[section] = {entry.pop("key"): entry for entry in under[section]}
    dropped = raw.pop("drop", [])
    if not isinstance(dropped, list) or not all(isinstance(key, str) for key in dropped):
        raise UserError(f"{path}: drop = {_shown(dropped)}: give a list of keys, such as 'drop: [fluent]'.")
    for key in dropped:
        sections = [section for section in _KEYED if key in under[section]]
        if not sections:
            known = [known for section in _KEYED for known in under[section]]
            raise UserError(f"{path}: drop: {parent.name} has no entry '{key}'; {_near(key, known)}.")
        for section in sections:
            del under[section][key]
    return merged(under, raw)


def _check(raw: dict[str, Any], path: Path, lineage: tuple[str, ...]) -> Conduct:
    """Validate a raw code; a parent was checked before it was merged, so what is wrong is wrong in `path`."""
    values: dict[str, Any] = {**raw}
    for own in ("name", "source", "lineage"):
        if own in raw:
            raise UserError(f"{path}: unknown key {own}: a code is called as its file is.")
    for section in _KEYED:
        if section not in raw:
            continue
        entries = raw[section]
        if not isinstance(entries, Mapping):
            raise UserError(f"{path}: {section} = {_shown(entries)}: entries by name belong here ('format:', …).")
        for key, entry in entries.items():
            if not isinstance(entry, Mapping):
                raise UserError(f"{path}: {section}.{key} = {_shown(entry)}: keys and texts belong here, indented.")
            if "key" in entry:
                raise UserError(f"{path}: unknown key {section}.{key}.key: the name before the colon is the key.")
        values[section] = [{"key": key, **entry} for key, entry in entries.items()]
    try:
        return Conduct.model_validate(
            {**values, "name": path.stem, "source": str(path), "lineage": (path.stem, *lineage)}
        )
    except ValidationError as error:
        findings = "; ".join(_finding(cast(dict[str, Any], item), values) for item in error.errors())
        raise UserError(f"{path}: {findings}.") from None


def _finding(item: dict[str, Any], values: Mapping[str, Any]) -> str:
    location = list(item["loc"])
    if len(location) > 1 and location[0] in _KEYED:
        location[1] = values[location[0]][location[1]]["key"]
    if location and location[-1] == "key":
        return f"'{item['input']}' under {location[0]} {item['ctx']['error']}"
    where = ".".join(map(str, location))
    if item["type"] == "extra_forbidden":
        return f"unknown key {where}: {_near(str(location[-1]), _known_keys(location[:-1]))}"
    if item["type"] == "missing":
        return f"{where} is missing; a code needs it, in the form that docs/concepts/code-of-conduct.md shows"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{where} {message}".strip()
    return f"{where} = {_shown(item['input'])}: {message[0].lower()}{message[1:]}"


def _known_keys(location: list[Any]) -> list[str]:
    """Keys that may stand at a place of the file."""
    model: Any = Conduct
    for part in location:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        if field is None:  # the name of an entry, or the number of an example
            continue
        inner = [field.annotation, *getattr(field.annotation, "__args__", ())]
        model = next(kind for kind in inner if isinstance(kind, type) and issubclass(kind, BaseModel))
    if model is Conduct:
        return ["title", "purpose", *_KEYED, "extends", "drop"]
    return [name for name in model.model_fields if name != "key"]


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error; plain YAML keeps the last one and says nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror or error}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid YAML: {' '.join(str(error).split())}. "
            f"Texts with colons or quotes are safest as a block, after 'key: |-'."
        ) from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds {type(raw).__name__}, not keys such as 'title:' and 'principles:'.")
    strange = [key for key in raw if not isinstance(key, str)]
    if strange:
        raise UserError(f"{path}: the key {strange[0]!r} is no text; put quotes around it, or remove it.")
    return raw
