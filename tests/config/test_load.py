"""From YAML and overrides to a checked configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_native.config.load import apply_overrides, dump_run_config, load_run_config
from megatron_native.errors import UserError

YAML = """
run_dir: runs/x
model: {hf_config: CONFIG}
data: {blend: [{prefix: PREFIX, weight: 0.7}], seq_length: 128}
training: {steps: 100, global_batch_size: 8}
"""


@pytest.fixture
def run_yaml(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    for ending in (".bin", ".idx"):
        (tmp_path / f"tokens{ending}").write_bytes(b"")
    path = tmp_path / "run.yaml"
    path.write_text(YAML.replace("CONFIG", str(tmp_path / "config.json")).replace("PREFIX", str(tmp_path / "tokens")))
    return path


def test_overrides_reach_sections_and_list_items(run_yaml: Path) -> None:
    run = load_run_config(run_yaml, ["training.steps=7", "data.blend.0.weight=0.25", "optimizer.lr=3e-5"])
    assert (run.training.steps, run.data.blend[0].weight, run.optimizer.lr) == (7, 0.25, 3e-5)


def test_the_resolved_configuration_loads_to_itself(run_yaml: Path, tmp_path: Path) -> None:
    run = load_run_config(run_yaml)
    (tmp_path / "resolved.yaml").write_text(dump_run_config(run))
    assert load_run_config(tmp_path / "resolved.yaml") == run


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.steps", "is not an override"),
        ("data.blend.3.weight=1", "'3' is no item of a list of 1"),
        ("run_dir.x=1", "'run_dir' is a value"),
        ("training.steps=[", "is not YAML"),
    ],
)
def test_a_malformed_override_is_explained(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("[", r"\[")):
        apply_overrides({"run_dir": "x", "data": {"blend": [{}]}, "training": {}}, [override])


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimiser.lr=1", "unknown key optimiser: did you mean 'optimizer'"),
        ("data.blend=[]", "data.blend"),
        ("data.blend.0.weight=0", "every weight of data.blend is 0"),
        ("model.checkpoint=x", "exactly one of model.checkpoint"),
        ("training.micro_batch_size=3", "global_batch_size 8 is no multiple of training.micro_batch_size 3"),
        ("optimizer.warmup_steps=100", "leaves no step"),
        ("training.steps=0", "training.steps = 0"),
    ],
)
def test_a_wrong_value_is_named(run_yaml: Path, override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_run_config(run_yaml, [override])
    assert said in str(caught.value)


def test_invalid_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("training: [unclosed")
    with pytest.raises(UserError, match=r"run\.yaml is not valid YAML"):
        load_run_config(path)


def test_held_out_conversations_are_a_dataset_and_held_out_text_is_a_file(run_yaml: Path, tmp_path: Path) -> None:
    prefix, text = tmp_path / "tokens", tmp_path / "held.jsonl"
    text.write_text("{}")

    def heldout(path: Path, kind: str) -> list[str]:
        return [f"evaluation.heldout=[{{name: a, path: {path}, kind: {kind}}}]"]

    assert load_run_config(run_yaml, heldout(prefix, "conversations")).evaluation.heldout[0].kind == "conversations"
    assert load_run_config(run_yaml, heldout(text, "text")).evaluation.heldout[0].path == text
    with pytest.raises(UserError, match=r"held\.jsonl is no dataset's prefix"):
        load_run_config(run_yaml, heldout(text, "conversations"))
    with pytest.raises(UserError, match="tokens is not a file"):
        load_run_config(run_yaml, heldout(prefix, "text"))
