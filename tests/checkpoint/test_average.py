"""The average of checkpoints is the weighted mean of their masters, or of their weights, whatever wrote them."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.average import average, shares
from megatron_native.checkpoint.export_hf import export_hf
from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.torch_dist import TorchDistReader, TorchDistWriter
from megatron_native.checkpoint.vocabulary import ExtensionSettings
from megatron_native.cli import main
from megatron_native.errors import UserError
from megatron_native.manifest import write_json
from megatron_native.models.families import model_pieces
from tests.checkpoint.another_process import another_at_work
from tests.distributed import REPOSITORY
from tests.tiny_models import make_tiny_model

SHAPE = "llama3.1"


def imported(folder: Path, name: str, seed: int, shape: str = SHAPE, dtype: torch.dtype = torch.bfloat16) -> Path:
    hf = make_tiny_model(folder / f"{name} hf", shape, seed=seed, dtype=dtype, tokenizer=name == "a")
    import_hf(hf, folder / name, reference_logits=False)
    return folder / name


def with_masters(folder: Path, source: Path, seed: int) -> Path:
    """A checkpoint as a BF16 run saves it: weights rounded from FP32 masters, and the position in the run."""
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir()
    writer = TorchDistWriter(folder)
    for piece in model_pieces(layout.read_model_config(source)):
        master = torch.randn(piece.shape, generator=generator)
        writer.write(piece.key, piece.global_shape, piece.offset, master.bfloat16())
        writer.write(f"optimizer.state.param.{piece.key}", piece.global_shape, piece.offset, master)
        writer.write(f"optimizer.state.exp_avg.{piece.key}", piece.global_shape, piece.offset, master * 0)
    writer.finish({"progress": {"position": {"step": seed, "consumed_tokens": 10 * seed}}})
    layout.copy_run_files(source, folder)
    layout.write_checksums(folder)
    return folder


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("average")
    return [imported(folder, name, seed) for seed, name in enumerate("abc")]


def expected(folders: list[Path], weights: list[float]) -> dict[str, torch.Tensor]:
    """By safetensors and float64 alone."""
    tensors = [load_file(next(folder.with_name(f"{folder.name} hf").glob("*.safetensors"))) for folder in folders]
    return {name: sum(w * part[name].double() for w, part in zip(weights, tensors, strict=True)) for name in tensors[0]}


def exported(checkpoint: Path, output: Path, dtype: str) -> dict[str, torch.Tensor]:
    export_hf(checkpoint, output, dtype=dtype)
    return load_file(output / "model.safetensors")


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, [1 / 3, 1 / 3, 1 / 3]),
        ({"method": "ema", "decay": 0.9}, [0.81, 0.09, 0.1]),  # 0.9 (0.9 a + 0.1 b) + 0.1 c
        ({"weights": [1.0, 0.0, 3.0]}, [0.25, 0.0, 0.75]),
    ],
)
def test_the_export_of_the_average_is_the_mean(three, options, weights, tmp_path):
    result = average(three, tmp_path / "average", dtype="float32", **options)
    assert result.weights == pytest.approx(weights)
    assert result.masters == (False, False, False)
    ours, theirs = exported(tmp_path / "average", tmp_path / "hf", "float32"), expected(three, weights)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name].double(), tensor, rtol=1e-6, atol=1e-6)


def test_by_default_it_has_the_dtype_of_the_weights_rounded_once(three, tmp_path):
    average(three[:2], tmp_path / "average")
    ours, theirs = exported(tmp_path / "average", tmp_path / "hf", "bfloat16"), expected(three[:2], [0.5, 0.5])
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor.float().bfloat16()), name  # halves of sums of two are exact in FP32


def test_masters_are_averaged_where_there_are_any(three, tmp_path):
    trained = [with_masters(tmp_path / f"step {seed}", three[0], seed) for seed in (1, 2)]
    result = average([*trained, three[2]], tmp_path / "average", dtype="float32")
    assert result.masters == (True, True, False)
    own, average_reader = (
        [TorchDistReader(folder) for folder in (*trained, three[2])],
        TorchDistReader(tmp_path / "average"),
    )
    assert not any(key.startswith("optimizer.") for key in average_reader.tensors)
    for key in average_reader.tensors:
        parts = [
            own[0].read(f"optimizer.state.param.{key}"),
            own[1].read(f"optimizer.state.param.{key}"),
            own[2].read(key),
        ]
        mean = sum(part.double() for part in parts) / 3
        torch.testing.assert_close(average_reader.read(key).double(), mean, rtol=1e-6, atol=1e-6)
    lineage = layout.read_json(tmp_path / "average" / layout.MANIFEST_FILE)["lineage"]
    assert [(one.get("step"), one["averaged"]) for one in lineage] == [
        (1, "masters"),
        (2, "masters"),
        (None, "weights"),
    ]
    assert not (tmp_path / "average" / layout.REFERENCE_LOGITS_FILE).exists()
    layout.check_complete(tmp_path / "average", full=True)


def test_the_export_says_that_it_is_an_average_and_of_which_runs(three, tmp_path):
    trained = [with_masters(tmp_path / f"step {seed}", three[0], seed) for seed in (1, 2)]
    run = {
        "name": "trunk", "seed": 1, "began_from": "a", "phases": [], "steps": 2, "consumed_samples": 4,
        "consumed_tokens": 20, "passed_over": 0, "not_learned": 0, "datasets": {}, "evaluation": None, "commit": None,
        "modified": False, "software": {}, "saved": "2026-01-01",
    }  # fmt: skip
    write_json(trained[1] / layout.LINEAGE_FILE, {"format": layout.LINEAGE_FORMAT, "runs": [run]})
    layout.write_checksums(trained[1])
    average(trained, tmp_path / "average", weights=[1, 3])
    export_hf(tmp_path / "average", tmp_path / "export")
    found = layout.read_json(tmp_path / "export" / "lineage.json")
    assert [one["name"] for one in found["runs"]] == ["trunk"]
    assert [(one["checkpoint"], one["step"], one["share"]) for one in found["made"][0]["of"]] == [
        ("step 1", 1, 0.25),
        ("step 2", 2, 0.75),
    ]
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    assert "| step 2 | 2 | 0.7500 | masters |" in card and "## Training: trunk" in card
    assert "متوسط أوزان" in card and str(tmp_path) not in card
    average([three[1], three[2]], tmp_path / "plain")
    export_hf(tmp_path / "plain", tmp_path / "plain export")
    card = (tmp_path / "plain export" / "README.md").read_text(encoding="utf-8")
    assert "those that were imported" not in card and "من غير تدريب إضافي" not in card


def test_other_new_tokens_have_no_average(three, tmp_path):
    hf = three[0].with_name("a hf")
    for name, words in (("one", " إلى\n"), ("two", " من\n"), ("same", " إلى\n")):
        (tmp_path / f"{name}.txt").write_text(words, encoding="utf-8")
        settings = ExtensionSettings(tmp_path / f"{name}.txt", noise=0.1, noise_seed=len(name))
        import_hf(hf, tmp_path / name, reference_logits=False, add_tokens=settings)
    sizes = {layout.read_model_config(tmp_path / name).vocab_size for name in ("one", "two", "same")}
    assert len(sizes) == 1
    with pytest.raises(UserError, match="other new tokens"):
        average([tmp_path / "one", tmp_path / "two"], tmp_path / "average")
    assert not average([tmp_path / "one", tmp_path / "same"], tmp_path / "average").skipped


def swap_two_tokens(tokenizer: dict[str, Any]) -> None:
    vocabulary = tokenizer["model"]["vocab"]
    first, second = (next(token for token, index in vocabulary.items() if index == at) for at in (300, 301))
    vocabulary[first], vocabulary[second] = 301, 300


def reverse_merges(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["merges"].reverse()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap_two_tokens, "tokenizer.json: id 300 is "),
        (reverse_merges, "tokenizer.json: the same tokens, but merges differ"),
        (lambda tokenizer: tokenizer.update(truncation={"max_length": 8, "stride": 0, "strategy": "LongestFirst",
                                                        "direction": "Right"}), None),
    ],
)  # fmt: skip
def test_other_tokenizers_have_no_average_and_the_difference_is_named(three, tmp_path, change, said):
    shutil.copytree(three[0].with_name("a hf"), tmp_path / "hf")
    path = tmp_path / "hf" / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    change(tokenizer)
    path.write_text(json.dumps(tokenizer), encoding="utf-8")  # in another format of JSON, too
    import_hf(tmp_path / "hf", tmp_path / "other", reference_logits=False)
    if said is None:
        assert not average([three[0], tmp_path / "other"], tmp_path / "average").skipped
        return
    with pytest.raises(UserError, match="has another tokenizer than") as refusal:
        average([three[0], tmp_path / "other"], tmp_path / "average")
    assert said in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "other"]


def test_another_average_at_work_on_the_same_output_is_not_disturbed(three, tmp_path):
    with another_at_work(tmp_path / "average") as written:
        with pytest.raises(UserError, match=r"another average is writing to .*average\.partial"):
            average(three, tmp_path / "average")
        assert written.exists()
    average(three, tmp_path / "average")  # the other is gone; what it left is begun anew
    average(three, tmp_path / "undisturbed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["average", "undisturbed"]
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("average", "undisturbed")]
    assert names[0] == names[1]
    layout.check_complete(tmp_path / "average", full=True)


def test_the_room_that_a_broken_off_average_takes_is_not_needed_twice(three, tmp_path, monkeypatch):
    left = tmp_path / "average.partial" / "__0_0.distcp"
    left.parent.mkdir()
    left.write_bytes(b"half of a tensor")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=0 if left.exists() else 1 << 40))
    assert not average(three, tmp_path / "average").skipped


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))


def test_a_disk_that_refuses_is_one_paragraph_and_the_same_command_works_once_there_is_room(three, tmp_path):
    command = ["average", "--checkpoints", *map(str, three), "--output", str(tmp_path / "average")]
    done = subprocess.run(
        [sys.executable, "-m", "megatron_native", *command], cwd=REPOSITORY, preexec_fn=limited, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the average could not be made" in done.stderr and "average.partial" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["average.partial"]
    assert main(command) == 0
    layout.check_complete(tmp_path / "average", full=True)


def test_equal_checkpoints_average_to_themselves(three, tmp_path):
    # values such as 0.1, whose thirds don't add up in floating point
    copy = tmp_path / "a hf"
    copy.mkdir()
    for path in three[0].with_name("a hf").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    import_hf(copy, tmp_path / "again", reference_logits=False)
    import_hf(copy, tmp_path / "once more", reference_logits=False)
    average([three[0], tmp_path / "again", tmp_path / "once more"], tmp_path / "average")
    ours, first = TorchDistReader(tmp_path / "average"), TorchDistReader(three[0])
    for key in first.tensors:
        assert torch.equal(ours.read(key), first.read(key)), key


def test_a_second_time_there_is_nothing_to_do_and_other_settings_are_refused(three, tmp_path):
    assert not average(three, tmp_path / "average", method="ema").skipped
    assert average(three, tmp_path / "average", method="ema").skipped
    with pytest.raises(UserError, match="other settings or inputs"):
        average(three[::-1], tmp_path / "average", method="ema")
    assert not list(tmp_path.glob("*.partial"))


def test_refusals(three, tmp_path, capsys):
    other = imported(tmp_path, "other", 3, SHAPE, dtype=torch.float32)
    hf = tmp_path / "wide hf"
    make_tiny_model(hf, SHAPE, intermediate_size=256)
    import_hf(hf, tmp_path / "wide", reference_logits=False)
    command = ["average", "--output", str(tmp_path / "average"), "--checkpoints", str(three[0])]
    assert main([*command, str(tmp_path / "wide")]) == 2
    assert "ffn_hidden_size = 256" in capsys.readouterr().err
    assert main([*command, str(three[0])]) == 2
    assert "at least two" in capsys.readouterr().err
    assert main([*command, str(three[1]), "--weights", "1", "-1"]) == 2
    assert "--weights has -1.0" in capsys.readouterr().err
    assert main([*command, str(other), "--method", "ema", "--decay", "1"]) == 2
    assert "--decay is 1.0" in capsys.readouterr().err
    (other / layout.CHECKSUMS_FILE).unlink()
    assert main([*command, str(other)]) == 2
    assert "cut short" in capsys.readouterr().err
    assert not (tmp_path / "average").exists()


def test_the_command_says_what_was_averaged(three, tmp_path, capsys):
    command = ["average", "--output", str(tmp_path / "average"), "--weights", "1", "3"]
    assert main([*command, "--checkpoints", *map(str, three[:2])]) == 0
    said = capsys.readouterr().out
    assert f"0.2500 × {three[0]} (weights)" in said and f"0.7500 × {three[1]} (weights)" in said


def test_shares_of_the_moving_average_sum_to_one():
    assert sum(shares(7, "ema", 0.8)) == pytest.approx(1)
    assert shares(2, "ema", 0.0) == [0.0, 1.0]  # nothing is kept
