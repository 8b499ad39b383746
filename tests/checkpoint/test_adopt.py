"""Megatron-LM checkpoints come in whole, in whatever form their optimizer state is, and nothing hostile in them is run."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import types
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.transformer.enums import AttnBackend
from safetensors.torch import load_file

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.adopt import adopt
from megatron_native.checkpoint.export_hf import export_hf
from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.megatron_common import read_megatron_common
from megatron_native.checkpoint.restricted_pickle import read_metadata
from megatron_native.checkpoint.torch_dist import TorchDistReader, TorchDistWriter, read_common
from megatron_native.checkpoint.vocabulary import VOCABULARY_FILE
from megatron_native.cli import main
from megatron_native.errors import UserError
from tests.checkpoint.another_process import another_at_work
from tests.checkpoint.test_refusals import EarlyPickler, Looked
from tests.distributed import REPOSITORY, run_jobs
from tests.tiny_models import make_tiny_model

VOCABULARY, PADDED = 381, 512
STATES = ("param", "exp_avg", "exp_avg_sq")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, `buckets`: saved by bare megatron-core at TP2 after one step, the vocabulary padded to 512, and `… PP2` at PP2;
    `hf`: their model."""
    folder = tmp_path_factory.mktemp("megatron")
    make_tiny_model(folder / "hf", "tied-llama", vocab_size=VOCABULARY)
    import_hf(folder / "hf", folder / "imported", reference_logits=False)
    ids = torch.arange(2 * 4 * 17).reshape(2, 4, 17) % VOCABULARY
    samples = {"tokens": ids[..., :-1], "labels": ids[..., 1:], "mask": torch.ones(2, 4, 16)}
    torch.save({name: tensor.contiguous() for name, tensor in samples.items()}, folder / "samples.pt")
    common = {
        "hf": str(folder / "hf"), "source": str(folder / "imported"), "samples": str(folder / "samples.pt"), "save_at": 1,
        "lr": 1e-2, "min_lr": 1e-3, "tp": 2, "bf16": True,
    }  # fmt: skip
    jobs = [
        {**common, "save": str(folder / "run")},
        {**common, "save": str(folder / "buckets"), "metadata": {"distrib_optim_sharding_type": "dp_reshardable"}},
    ]
    jobs += [{**job, "save": f"{job['save']} PP2", "tp": 1, "pp": 2} for job in jobs]
    run_jobs(folder, 2, jobs, module="tests.checkpoint.megatron_lm_process")
    return folder


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to change."""
    shutil.copytree(folder / "run" / "iter_0000001", tmp_path / "copied")
    return tmp_path / "copied"


def rewrite_common(checkpoint: Path, **changes: Any) -> None:
    """Change entries of common.pt; `args` are merged into those of the run."""
    common = read_megatron_common(checkpoint)
    arguments = {**vars(common["args"]), **changes.pop("args", {})}
    torch.save({**common, "args": Namespace(**arguments), **changes}, checkpoint / "common.pt")


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """What is in a checkpoint, without vocabulary padding."""
    reader = TorchDistReader(checkpoint)
    return {
        key: reader.read(key)[:VOCABULARY] if "word_embeddings" in key else reader.read(key) for key in reader.tensors
    }


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key], tensor), key


def test_files_are_linked_and_tensors_are_the_same(folder, tmp_path):
    result = adopt(folder / "run", folder / "hf", tmp_path / "adopted")
    assert result.linked and not result.skipped and result.source.name == "iter_0000001"
    assert (result.elsewhere.steps, result.elsewhere.samples, result.elsewhere.tokens) == (1, 4, 64)
    for path in (tmp_path / "adopted").glob("__*.distcp"):
        assert path.samefile(folder / "run" / "iter_0000001" / path.name)
    reader = TorchDistReader(tmp_path / "adopted")
    assert reader.tensors["embedding.word_embeddings.weight"].shape[0] == PADDED
    assert_equal(tensors_of(tmp_path / "adopted"), tensors_of(folder / "run" / "iter_0000001"))
    assert not any(name.startswith(("rng_state", "args")) for name in reader.objects)  # nothing that loading unpickles
    assert read_common(tmp_path / "adopted")["progress"]["position"]["step"] == 1
    layout.check_complete(tmp_path / "adopted", full=True)
    assert adopt(folder / "run", folder / "hf", tmp_path / "adopted").skipped


@pytest.mark.parametrize("weights_only", [False, True])
def test_the_export_has_no_padding(folder, tmp_path, weights_only):
    adopt(folder / "run", folder / "hf", tmp_path / "adopted", weights_only=weights_only)
    export_hf(tmp_path / "adopted", tmp_path / "export", dtype="bfloat16")
    exported = load_file(tmp_path / "export" / "model.safetensors")
    imported = load_file(folder / "hf" / "model.safetensors")
    saved = TorchDistReader(folder / "run" / "iter_0000001")
    assert {name: tensor.shape for name, tensor in exported.items()} == {name: t.shape for name, t in imported.items()}
    embedding = saved.read("embedding.word_embeddings.weight")
    assert embedding[VOCABULARY:].any()  # the padding was trained, too
    assert torch.equal(exported["model.embed_tokens.weight"], embedding[:VOCABULARY])
    gate_up = saved.read("decoder.layers.mlp.linear_fc1.weight")[2]
    assert torch.equal(exported["model.layers.2.mlp.gate_proj.weight"], gate_up[: len(gate_up) // 2])
    assert torch.equal(exported["model.layers.2.mlp.up_proj.weight"], gate_up[len(gate_up) // 2 :])
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    assert "| iteration of Megatron-LM | 1 |" in card and "those that were imported" not in card
    assert ("| tokens | 64 |" in card) != weights_only
    assert (tmp_path / "export" / "tokenizer.json").read_bytes() == (folder / "hf" / "tokenizer.json").read_bytes()
    if weights_only:
        assert not any("optimizer" in key for key in TorchDistReader(tmp_path / "adopted").tensors)


def test_after_an_interruption_the_same_bytes_come_out(folder, tmp_path):
    adopt(folder / "run", folder / "hf", tmp_path / "undisturbed", weights_only=True)
    adopt(folder / "run", folder / "hf", tmp_path / "first", weights_only=True)
    interrupted = tmp_path / "adopted.partial"
    shutil.copytree(tmp_path / "first", interrupted)
    (interrupted / layout.CHECKSUMS_FILE).unlink()
    (interrupted / "__0_7.distcp").write_bytes(b"half of a tensor")
    adopt(folder / "run", folder / "hf", tmp_path / "adopted", weights_only=True)
    assert not interrupted.exists()
    files = [path.relative_to(tmp_path / "undisturbed") for path in (tmp_path / "undisturbed").rglob("*")]
    assert sorted(path.relative_to(tmp_path / "adopted") for path in (tmp_path / "adopted").rglob("*")) == sorted(files)
    for name in files:
        if (tmp_path / "adopted" / name).suffix == ".distcp":
            assert (tmp_path / "adopted" / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()


def flattened(source: Path, target: Path) -> None:
    """The same state as megatron-core up to 0.14 saved it at TP2: [X, Y] in blocks [x, y] as [X / x, Y / y, x · y]."""
    target.mkdir()
    reader, writer = TorchDistReader(source), TorchDistWriter(target)
    for key, info in reader.tensors.items():
        tensor = reader.read(key)
        if not key.startswith("optimizer."):
            writer.write(key, info.shape, [0] * tensor.dim(), tensor)
            continue
        name = key.split(".", 3)[3]
        stacked = name.startswith("decoder.layers.")
        cuts = [1] * tensor.dim()
        if stacked:
            cuts[0] = tensor.shape[0]
        if name.endswith(("linear_qkv.weight", "word_embeddings.weight")):
            cuts[int(stacked)] = 2
        if name.endswith("linear_fc1.weight"):
            cuts[1] = 4  # gate and up, each cut in two
        if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
            cuts[2] = 2
        for at in torch.cartesian_prod(*(torch.arange(cut) for cut in cuts)).reshape(-1, len(cuts)).tolist():
            block = tensor
            for axis, (place, cut) in enumerate(zip(at, cuts, strict=True)):
                block = block.chunk(cut, axis)[place]
            flat = block.reshape(*(1 for _ in cuts), -1)
            middle = flat.shape[-1] // 3  # two data-parallel ranks, whose shards end anywhere
            for start, part in ((0, flat[..., :middle]), (middle, flat[..., middle:])):
                key_there = key.replace("state.param.", "state.fp32_param.")
                writer.write(key_there, [*cuts, flat.shape[-1]], [*at, start], part.clone())
    common = read_megatron_common(source)
    optimizer = common.pop("optimizer")["optimizer"]
    writer.write_object("optimizer.distributed.dp_group_idx_0.optimizer/shard_0_1", optimizer)
    writer.finish(common)


def test_flattened_state_is_put_together_again(folder, tmp_path):
    flattened(folder / "run" / "iter_0000001", tmp_path / "flattened")
    result = adopt(tmp_path / "flattened", folder / "hf", tmp_path / "adopted")
    assert not result.linked
    assert_equal(tensors_of(tmp_path / "adopted"), tensors_of(folder / "run" / "iter_0000001"))
    groups = read_common(tmp_path / "adopted")["optimizer"]["optimizer"]["param_groups"]
    assert {group["wd_mult"] for group in groups} == {0.0, 1.0} and {group["step"] for group in groups} == {1}


@pytest.mark.parametrize("layout_there", ["", " PP2"])
def test_buckets_are_put_together_again(folder, tmp_path, layout_there):
    result = adopt(folder / f"buckets{layout_there}", folder / "hf", tmp_path / "adopted")
    assert not result.linked
    assert_equal(tensors_of(tmp_path / "adopted"), tensors_of(folder / f"run{layout_there}" / "iter_0000001"))
    groups = read_common(tmp_path / "adopted")["optimizer"]["optimizer"]["param_groups"]
    assert {group["wd_mult"] for group in groups} == {0.0, 1.0} and {group["step"] for group in groups} == {1}


def in_buffers_of_transformer_engine(source: Path, target: Path, sizes: list[int]) -> None:
    """State at TP1 as one process with Transformer Engine's modules has it, in buckets of so many parameters each."""
    target.mkdir()
    reader, writer = TorchDistReader(source), TorchDistWriter(target)
    for key, info in reader.tensors.items():
        if not key.startswith("optimizer."):
            writer.write(key, info.shape, [0] * len(info.shape), reader.read(key))
    layer = ("self_attention.linear_proj.weight", "self_attention.linear_qkv.layer_norm_weight",
             "self_attention.linear_qkv.weight", "mlp.linear_fc1.layer_norm_weight", "mlp.linear_fc1.weight",
             "mlp.linear_fc2.weight")  # fmt: skip
    order: list[tuple[str, int | None]] = [("embedding.word_embeddings.weight", None)]
    order += [(f"decoder.layers.{name}", number) for number in range(4) for name in layer]
    order += [("decoder.final_layernorm.weight", None)]
    order.reverse()
    assert sum(sizes) == len(order)
    for state in STATES:
        first = 0
        for bucket, size in enumerate(sizes):
            flat = torch.zeros(0)
            for key, number in order[first : first + size]:
                tensor = reader.read(f"optimizer.state.{state}.{key}")
                tensor = tensor if number is None else tensor[number]
                flat = torch.cat([flat, torch.full((-flat.numel() % 64,), float("nan")), tensor.reshape(-1)])
            first += size
            name = f"gbuf_idx_0.dtype_(torch.bfloat16, torch.float32).bucket_idx_{bucket}.{state}"
            writer.write(f"optimizer.distributed.dp_group_idx_0.{name}", flat.shape, [0], flat)
    common = read_megatron_common(source)
    writer.write_object(
        "optimizer.distributed.dp_group_idx_0.optimizer/shard_0_1", common.pop("optimizer")["optimizer"]
    )
    writer.finish(common)
    rewrite_common(target, args={"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1})


def test_buckets_of_transformer_engine_are_put_together_again(folder, tmp_path):
    in_buffers_of_transformer_engine(folder / "run" / "iter_0000001", tmp_path / "buffers", [3, 20, 3])
    adopt(tmp_path / "buffers", folder / "hf", tmp_path / "adopted")
    assert_equal(tensors_of(tmp_path / "adopted"), tensors_of(folder / "run" / "iter_0000001"))


def test_masters_that_are_not_the_weights_are_refused(folder, tmp_path):
    source = folder / "run" / "iter_0000001"
    in_buffers_of_transformer_engine(source, tmp_path / "buffers", [26])
    shutil.copytree(tmp_path / "buffers", tmp_path / "swapped")
    metadata = read_metadata(tmp_path / "swapped" / ".metadata")
    where = {index.fqn: index for index in metadata.storage_data if "bucket_idx_0" in index.fqn}
    param, moment = (next(i for name, i in where.items() if name.endswith(end)) for end in (".param", ".exp_avg"))
    metadata.storage_data[param] = metadata.storage_data[moment]
    (tmp_path / "swapped" / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(UserError, match="the masters found are not those of the weights"):
        adopt(tmp_path / "swapped", folder / "hf", tmp_path / "adopted")


def test_buckets_of_an_unknown_order_are_refused_with_the_way_out(folder, tmp_path):
    for changes in ({"tensor_model_parallel_size": 1}, {"decoder_first_pipeline_num_layers": 1}):
        copied = tmp_path / next(iter(changes))
        shutil.copytree(folder / "buckets" / "iter_0000001", copied)
        rewrite_common(copied, args=changes)
        with pytest.raises(UserError, match="--dist-ckpt-optim-fully-reshardable"):
            adopt(copied, folder / "hf", tmp_path / "adopted")
        assert not (tmp_path / "adopted").exists()
    adopt(copied, folder / "hf", tmp_path / "adopted", weights_only=True)
    theirs = {k: t for k, t in tensors_of(folder / "run" / "iter_0000001").items() if not k.startswith("optimizer.")}
    assert_equal(tensors_of(tmp_path / "adopted"), theirs)


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def test_a_hostile_common_file_is_refused_by_name_and_not_run(folder, copied, tmp_path):
    torch.save({"args": Hostile(tmp_path / "mark"), "iteration": 1}, copied / "common.pt")
    with pytest.raises(UserError, match=rf"names {os.system.__module__}\.system"):
        adopt(copied, folder / "hf", tmp_path / "adopted")
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), copied / "common.pt")
    with pytest.raises(UserError, match="TorchScript"):
        adopt(copied, folder / "hf", tmp_path / "adopted")
    (copied / "common.pt").write_bytes(pickle.dumps(Hostile(tmp_path / "mark")))
    with pytest.raises(UserError, match="damaged"):
        adopt(copied, folder / "hf", tmp_path / "adopted")
    assert not (tmp_path / "mark").exists() and not (tmp_path / "adopted").exists()


def test_arguments_with_enumerations_are_read_as_text(folder):
    arguments = vars(read_megatron_common(folder / "run" / "iter_0000001")["args"])
    backend = "megatron.core.transformer.enums.AttnBackend"
    assert arguments["attention_backend"] in (f"{backend}(5)", f"{backend}.auto")  # Python 3.11.0 to 3.11.3 save names
    assert arguments["params_dtype"] is torch.bfloat16
    assert arguments["data_path"] == ["0.5", "عربي_text_document"]


def test_arguments_saved_by_an_early_python_3_11_are_read(tmp_path):
    early = types.ModuleType("early")
    early.Pickler = EarlyPickler
    arguments = Namespace(attention_backend=AttnBackend.flash, exit_signal=signal.SIGTERM, lr=0.1)
    torch.save({"args": arguments}, tmp_path / "common.pt", pickle_module=early)
    assert vars(read_megatron_common(tmp_path)["args"]) == {
        "attention_backend": "megatron.core.transformer.enums.AttnBackend.flash", "exit_signal": signal.SIGTERM, "lr": 0.1
    }  # fmt: skip
    torch.save({"args": Looked(Namespace, "__init__")}, tmp_path / "common.pt")
    with pytest.raises(UserError, match=r"names builtins\.getattr"):
        read_megatron_common(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rotary_base": 500000}, "rotary_base = 500000"),
        ({"use_rope_scaling": True}, "use_rope_scaling = True"),
        ({"norm_epsilon": 1e-6}, "norm_epsilon = 1e-06"),
        ({"consumed_train_samples": None}, "consumed_train_samples = None"),
    ],
)
def test_a_run_of_another_model_is_refused_with_the_setting(folder, copied, tmp_path, changes, said):
    rewrite_common(copied, args=changes)
    with pytest.raises(UserError, match=said):
        adopt(copied, folder / "hf", tmp_path / "adopted")


def test_another_shape_and_other_tensors_are_refused(folder, copied, tmp_path):
    hf = tmp_path / "hf"
    for changes, said in (
        ({"vocab_size": PADDED + 1}, r"embedding.word_embeddings.weight' has shape \[512, 128\]"),
        ({"intermediate_size": 256}, r"linear_fc1.weight' has shape \[4, 384, 128\].*\[4, 512, 128\]"),
        ({"tie_word_embeddings": False}, "has no 'output_layer.weight'"),
    ):
        shutil.copytree(folder / "hf", hf, dirs_exist_ok=True)
        config = json.loads((folder / "hf" / "config.json").read_text()) | changes
        (hf / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match=said):
            adopt(copied, hf, tmp_path / "adopted")
    assert not (tmp_path / "adopted").exists()


def test_what_is_no_such_checkpoint_is_refused(folder, copied, tmp_path, capsys):
    command = ["adopt", "--hf", str(folder / "hf"), "--output", str(tmp_path / "adopted"), "--checkpoint"]
    assert main([*command, str(tmp_path)]) == 2
    assert "latest_checkpointed_iteration.txt" in capsys.readouterr().err
    next(copied.glob("__1_*.distcp")).unlink()
    assert main([*command, str(copied)]) == 2
    assert "cut short" in capsys.readouterr().err
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    assert main([*command, str(tmp_path)]) == 2
    assert "iter_0000007" in capsys.readouterr().err
    assert not (tmp_path / "adopted").exists()


def command_for(folder: Path, tmp_path: Path) -> list[str]:
    """Adopts `run` at `adopted`."""
    given = {"--checkpoint": folder / "run", "--hf": folder / "hf", "--output": tmp_path / "adopted"}
    return ["adopt", *(str(part) for option in given.items() for part in option)]


def test_the_command_says_how_to_go_on(folder, tmp_path, capsys):
    assert main(command_for(folder, tmp_path)) == 0
    said = capsys.readouterr().out
    assert f"after step 1, 4 samples, 64 tokens: go on with model.branch_from: {tmp_path / 'adopted'}" in said


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))


def test_a_disk_that_refuses_is_one_paragraph_and_leaves_no_checkpoint(folder, tmp_path):
    command = [*command_for(folder, tmp_path), "--weights-only"]
    done = subprocess.run(
        [sys.executable, "-m", "megatron_native", *command], cwd=REPOSITORY, preexec_fn=limited, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "could not be made" in done.stderr and "Traceback" not in done.stderr
    assert "adopted.partial" in done.stderr
    assert not (tmp_path / "adopted").exists()


def test_another_adoption_at_work_on_the_same_output_is_not_disturbed(folder, tmp_path):
    with another_at_work(tmp_path / "adopted") as written:
        with pytest.raises(UserError, match=r"another adopt is writing to .*adopted\.partial"):
            adopt(folder / "run", folder / "hf", tmp_path / "adopted")
        assert written.exists()
    assert adopt(folder / "run", folder / "hf", tmp_path / "adopted").linked
    assert [path.name for path in tmp_path.iterdir()] == ["adopted"]
    layout.check_complete(tmp_path / "adopted", full=True)


def test_the_record_of_new_tokens_comes_along_and_another_file_of_its_name_does_not(folder, tmp_path):
    for name, content in (("ours", {"format": "megatron-native/vocabulary/1"}), ("theirs", {"<s>": 1})):
        shutil.copytree(folder / "hf", tmp_path / name)
        (tmp_path / name / "vocabulary.json").write_text(json.dumps(content), encoding="utf-8")
        adopt(folder / "run", tmp_path / name, tmp_path / f"{name} adopted", weights_only=True)
        assert (tmp_path / f"{name} adopted" / VOCABULARY_FILE).exists() == (name == "ours")
