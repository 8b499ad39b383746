"""Presets: under the file's own settings, valid as they are, and every value with its source."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_native.cli import main
from megatron_native.config.layout_presets import layout_preset_names
from megatron_native.config.load import dump_run_config, load_run_config
from megatron_native.config.presets import preset_names, read_preset, replay_remark, replay_share
from megatron_native.config.run import BlendEntry, RunConfig
from megatron_native.errors import UserError

NAMES = (
    "anneal", "benchmark", "continued-strong-shift", "continued-weak-shift", "long-context", "vocabulary-extension",
)  # fmt: skip


def leaves(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from leaves(inner, f"{name}.{number}")
    else:
        yield name


@pytest.fixture
def write(tmp_path: Path):
    """Writes a run's file, with `sections` over a base that says no more than it must."""

    def written(**sections: Any) -> Path:
        (tmp_path / "config.json").write_text("{}")
        for name in ("ar", "replay-en"):
            for ending in (".bin", ".idx"):
                (tmp_path / f"{name}{ending}").write_bytes(b"")
        base = {
            "run_dir": str(tmp_path / "run"),
            "model": {"hf_config": str(tmp_path / "config.json")},
            "data": {"blend": [{"prefix": str(tmp_path / "ar"), "weight": 3}]},
            "training": {"global_batch_size": 8, **({} if "phases" in sections else {"steps": 1000})},
        }
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**base, **sections}))
        return path

    return written


def of_phases(name: str) -> dict[str, Any]:
    return {"training": {"global_batch_size": 8}} if "phases" in read_preset(name).settings else {}


def test_these_are_the_presets() -> None:
    assert tuple(preset_names()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_value_of_a_preset_has_one_source(name: str) -> None:
    preset = read_preset(name)
    sourced = [setting for source in preset.sources for setting in source["of"]]
    values = [*leaves(preset.settings), *(["replay_share"] if preset.replay_share else [])]
    assert sorted(sourced) == sorted(values)
    for source in preset.sources:
        assert re.search(r"[Aa] choice|arXiv \d{4}\.\d{5}|et al\. \(20\d\d\)", source["source"]), source


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_valid_and_its_values_arrive(write, name: str) -> None:
    run = load_run_config(write(preset=name, **of_phases(name)))
    assert run.preset == name
    resolved = run.model_dump(mode="json")

    def check(expected: Any, found: Any) -> None:
        if isinstance(expected, dict):
            for key, value in expected.items():
                check(value, found[key])
        elif isinstance(expected, list):
            assert len(expected) == len(found)
            for value, other in zip(expected, found):
                check(value, other)
        else:
            assert expected == found

    check(read_preset(name).settings, resolved)


def test_the_files_own_settings_are_over_the_presets(write) -> None:
    path = write(preset="continued-strong-shift", optimizer={"lr": 7e-5})
    run = load_run_config(path, ["optimizer.warmup_steps=3"])
    settings = read_preset("continued-strong-shift").settings["optimizer"]
    assert run.optimizer.lr == 7e-5  # the file's
    assert run.optimizer.warmup_steps == 3  # the command line's
    assert run.optimizer.min_lr == settings["min_lr"]  # the preset's, beside them in one section
    assert run.optimizer.embedding_lr_multiplier == settings["embedding_lr_multiplier"]


def test_a_list_of_the_file_replaces_the_presets(write) -> None:
    run = load_run_config(write(preset="anneal", phases=[{"name": "only", "steps": 5}]))
    assert [phase.name for phase in run.phases] == ["only"]


def test_an_override_reaches_into_the_presets_list(write) -> None:
    run = load_run_config(write(**of_phases("anneal")), ["preset=anneal", "phases.1.tokens=77"])
    assert [phase.tokens for phase in run.phases] == [read_preset("anneal").settings["phases"][0]["tokens"], 77]


def test_an_override_chooses_another_preset(write) -> None:
    run = load_run_config(write(preset="continued-weak-shift"), ["preset=continued-strong-shift"])
    assert run.preset == "continued-strong-shift"
    assert run.optimizer.lr == read_preset("continued-strong-shift").settings["optimizer"]["lr"]


def test_no_preset_is_the_defaults(write) -> None:
    run = load_run_config(write(preset="continued-strong-shift"), ["preset=null"])
    assert run.preset is None
    assert run.optimizer == RunConfig.model_fields["optimizer"].default


@pytest.mark.parametrize("name", NAMES)
def test_the_resolved_configuration_loads_to_itself(write, tmp_path: Path, name: str) -> None:
    run = load_run_config(write(preset=name, **of_phases(name)), ["optimizer.lr=0.5"])
    (tmp_path / "resolved.yaml").write_text(dump_run_config(run))
    assert load_run_config(tmp_path / "resolved.yaml") == run


def test_an_unknown_preset_gets_a_suggestion(write) -> None:
    with pytest.raises(UserError, match=r"'continued-weak-shfit'.*did you mean 'continued-weak-shift'"):
        load_run_config(write(preset="continued-weak-shfit"))


def test_an_error_names_the_preset_that_takes_part_in_it(write) -> None:
    with pytest.raises(UserError, match=r"over the preset anneal.*training.steps or phases"):
        load_run_config(write(preset="anneal"))


def test_the_datasets_of_phases_must_be_there(write, tmp_path: Path) -> None:
    phase = {"name": "late", "steps": 5, "blend": [{"prefix": str(tmp_path / "gone")}]}
    with pytest.raises(UserError, match=r"phases\.0\.blend\.0\.prefix = .*gone"):
        load_run_config(write(phases=[phase]))


def test_the_share_of_replay_is_that_of_sequences() -> None:
    blend = [
        BlendEntry(prefix=Path("x/ar"), weight=6), BlendEntry(prefix=Path("x/en"), name="replay-en", weight=1),
        BlendEntry(prefix=Path("x/replay_books"), weight=1),
    ]  # fmt: skip
    assert replay_share(blend) == 0.25


@pytest.mark.parametrize(
    ("weight", "said"),
    [(1, None), (3, None), (0.99, "24.8% of data.blend is replay"), (3.1, "50.8% of data.blend is replay"),
     (0, "no dataset of data.blend is named 'replay…'")],
)  # fmt: skip
def test_replay_beside_the_presets_range_is_remarked(write, tmp_path: Path, weight: float, said: str | None) -> None:
    blend = [{"prefix": str(tmp_path / "ar"), "weight": 3}, {"prefix": str(tmp_path / "replay-en"), "weight": weight}]
    remark = replay_remark(load_run_config(write(preset="continued-strong-shift", data={"blend": blend})))
    assert remark is None if said is None else said in str(remark)


def test_without_a_preset_replay_is_nobodys_business(write) -> None:
    assert replay_remark(load_run_config(write())) is None


def test_the_command_lists_them_with_their_sources(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "presets"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in NAMES)
    assert main(["config", "presets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [preset["name"] for preset in listed] == [*NAMES, *layout_preset_names()]
    assert all(preset["sources"] for preset in listed)
    assert main(["config", "presets", "anneal"]) == 0
    said = capsys.readouterr().out
    assert "rotary_base" not in said and "schedule: sqrt" in said and "Hägele" in said


def test_show_keeps_the_name_and_remarks_on_replay(write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "show", "--config", str(write(preset="continued-weak-shift"))]) == 0
    said = capsys.readouterr()
    assert yaml.safe_load(said.out)["preset"] == "continued-weak-shift"
    assert "stands for 1% to 5% of replay" in said.err
