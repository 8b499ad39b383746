"""The documentation matches the code: settings, modules, links, commands and the example of a run's file."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from megatron_native.cli import COMMANDS
from megatron_native.config.run import RunConfig

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")])
LINK = re.compile(r"\]\(([^)#:]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(page.read_text(encoding="utf-8")) if name == language]


def documented_commands() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for body in blocks(page, "sh"):
            for line in body.replace("\\\n", " ").splitlines():
                if line.startswith("megatron-native ") and not line.startswith("megatron-native --"):
                    yield page.name, line


def test_the_configuration_page_is_what_its_script_prints() -> None:
    path = REPOSITORY / "docs" / "make_configuration.py"
    spec = importlib.util.spec_from_file_location("make_configuration", path)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    committed = (REPOSITORY / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert committed == script.page(), "python docs/make_configuration.py > docs/configuration.md"


def test_the_architecture_page_names_every_module_and_no_other() -> None:
    text = (REPOSITORY / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    tree = text[text.index("### megatron_native") : text.index("## Where to add")]
    named = set()
    for section in re.split(r"^### ", tree, flags=re.MULTILINE)[1:]:
        package, body = section.split("\n", 1)
        folder = "" if package == "megatron_native" else f"{package}/"
        cells = [line.split("|")[1] if line.startswith("|") else line for line in body.splitlines()]
        named |= {folder + name for cell in cells for name in re.findall(r"`(\w+\.py)`", cell)}
    package = REPOSITORY / "megatron_native"
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    described = {name for name in modules if not name.endswith("__init__.py")} | {"platform/__init__.py"}
    assert named == described


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize(("page", "line"), documented_commands())
def test_documented_commands_are_understood(page: str, line: str) -> None:
    name, *words = shlex.split(line, comments=True)[1:]
    module = importlib.import_module(f"megatron_native.commands.{COMMANDS[name][0]}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    parser.parse_args(words)


def test_the_examples_of_a_run_are_valid_configurations() -> None:
    whole, *changes = blocks(REPOSITORY / "docs" / "pretrain.md", "yaml")
    example = yaml.safe_load(whole)
    RunConfig.model_validate(example)
    assert len(changes) == 2
    for change in changes:  # sections that take the place of the example's
        RunConfig.model_validate({**example, "training": {"global_batch_size": 64}, **yaml.safe_load(change)})
    for block in blocks(REPOSITORY / "docs" / "faults.md", "yaml"):
        RunConfig.model_validate({**example, **yaml.safe_load(block)})
