"""Thresholds as settings: shipped, of a file, of the command line; and gates of a team's own."""

import json

import pytest

from megatron_native.alignment.gates.gate import REGISTRY, Judgement, register
from megatron_native.alignment.gates.judging import build_gates
from megatron_native.alignment.gates.settings import default_settings, load_settings
from megatron_native.errors import UserError

ORIGIN = "زار الوفد مدينة الطائف وبقي فيها 3 أيام ثم غادرها مساء الخميس."
REWRITTEN = "زار الوفد مدينة الطائف وبقي فيها 4 أيام ثم غادرها مساء الخميس."


def test_every_shipped_gate_has_settings_and_the_other_way_round():
    build_gates()
    assert set(default_settings()) == set(REGISTRY)
    assert all(isinstance(values["enabled"], bool) for values in default_settings().values())


def test_models_are_off_by_default():
    assert not {"similarity", "judge"} & set(build_gates().names)


def test_a_gate_is_switched_off():
    assert build_gates().judge(ORIGIN, REWRITTEN).refused_by == ("numbers",)
    for settings in (load_settings(overrides=["numbers=false"]), load_settings(overrides=["numbers.enabled=false"])):
        gates = build_gates(settings)
        assert "numbers" not in gates.names
        assert gates.judge(ORIGIN, REWRITTEN).passed


def test_a_file_and_overrides_lie_over_the_shipped_values(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("numbers: {most_new: 1}\nnames: false\n", encoding="utf-8")
    settings = load_settings(file, ["numbers.most_lost=1"])
    assert settings["numbers"] == {"enabled": True, "most_new": 1, "most_lost": 1}
    assert settings["names"]["enabled"] is False
    assert settings["length"] == default_settings()["length"]
    assert build_gates(settings).judge(ORIGIN, REWRITTEN).passed


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("numbrs.most_new=1", "did you mean 'numbers'"), ("numbers.most_nw=1", "did you mean 'most_new'"),
        ("numbers.most_new=many", "a number, 0 or more"), ("numbers.most_new=-1", "a number, 0 or more"),
        ("numbers.enabled=3", "true or false"), ("numbers", "gate.key=value"), ("numbers=3", "mapping"),
    ],
)  # fmt: skip
def test_mistakes_are_named(override, said):
    with pytest.raises(UserError, match=said):
        load_settings(overrides=[override])


def test_a_broken_file_is_named(tmp_path):
    file = tmp_path / "mine.yaml"
    with pytest.raises(UserError, match="can't be read"):
        load_settings(file)
    file.write_text("- a\n", encoding="utf-8")
    with pytest.raises(UserError, match="must be a mapping"):
        load_settings(file)
    file.write_text("a: [", encoding="utf-8")
    with pytest.raises(UserError, match="not valid YAML"):
        load_settings(file)


def test_parameters_are_json_and_change_with_every_setting():
    plain = build_gates().parameters
    assert json.loads(json.dumps(plain)) == plain
    assert build_gates({"numbers": {"most_new": 1}}).parameters != plain
    assert build_gates({"numbers": {"enabled": False}}).parameters != plain


def test_a_gate_of_ones_own():
    class Shouting:
        name, cost, defaults = "shouting", 1, {"most": 1}

        def __init__(self, settings):
            self.most = settings["most"]

        def judge(self, pair):
            marks = pair.rewritten.count("!")
            return Judgement(self.name, float(marks), marks <= self.most, "too many exclamation marks")

    register(Shouting)
    try:
        assert "shouting" in build_gates().judge(ORIGIN, ORIGIN + "!!").refused_by
        assert build_gates({"shouting": {"most": 2}}).judge(ORIGIN, ORIGIN + "!!").passed
    finally:
        del REGISTRY["shouting"]
