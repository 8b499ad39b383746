"""Damaged, hostile or mismatched input: one paragraph that names the culprit, and never a folder that looks whole."""

import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from enum import Enum
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import WriteItemType

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.conversion import Conversion
from megatron_native.checkpoint.export_hf import export_hf
from megatron_native.checkpoint.import_hf import import_hf
from megatron_native.checkpoint.import_tensors import convert, plan_import
from megatron_native.checkpoint.safetensors_files import HfWeights
from megatron_native.checkpoint.torch_dist import TorchDistReader, read_common
from megatron_native.errors import UserError
from megatron_native.models.families import model_pieces, read_hf_config, to_model_config
from tests.checkpoint.test_round_trip import assert_same_bits, tensors_of
from tests.tiny_models import make_tiny_model

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(Hugging Face folder, its checkpoint); tests copy before they damage."""
    folder = tmp_path_factory.mktemp("made")
    source = make_tiny_model(folder / "hf", "llama3.1", max_shard_size="800KB")
    import_hf(source, folder / "checkpoint")
    return source, folder / "checkpoint"


@pytest.fixture
def source(made, tmp_path):
    return Path(shutil.copytree(made[0], tmp_path / "hf"))


@pytest.fixture
def checkpoint(made, tmp_path):
    return Path(shutil.copytree(made[1], tmp_path / "checkpoint"))


def rewrite(source: Path, change) -> None:
    """Change the tensors of a folder and leave them in one file."""
    tensors = tensors_of(source)
    change(tensors)
    for file in [*source.glob("*.safetensors"), *source.glob("*.index.json")]:
        file.unlink()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, source / "model.safetensors")


def refused(action, *patterns: str) -> str:
    """The message of the `UserError` that `action` raises: one paragraph with every pattern in it."""
    with pytest.raises(UserError) as caught:
        action()
    message = str(caught.value)
    assert "\n\n" not in message
    for pattern in patterns:
        assert pattern in message
    return message


# --- Hugging Face folders -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.update({"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}), "self_attn.q_norm.weight"),
        (
            lambda t: t.update({"model.layers.4.input_layernorm.weight": torch.ones(128)}),
            "model.layers.4.input_layernorm",
        ),
        (lambda t: t.pop("model.layers.3.mlp.up_proj.weight"), "missing model.layers.3.mlp.up_proj.weight"),
        (lambda t: t.pop("lm_head.weight"), "missing lm_head.weight"),
        (lambda t: t.update({"model.norm.weight": torch.ones(64)}), "'model.norm.weight' has shape [64]"),
        (lambda t: t.update({"model.norm.weight": torch.ones(128, dtype=torch.int8)}), "dtype I8"),
        (
            lambda t: t.update({n: x.half() for n, x in t.items() if n == "model.layers.1.self_attn.k_proj.weight"}),
            "'model.layers.1.self_attn.k_proj.weight' is F16",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_model_are_named(change, named, source, tmp_path):
    rewrite(source, change)
    refused(lambda: import_hf(source, tmp_path / "out"), named)
    assert not (tmp_path / "out").exists()


def test_a_tied_model_with_a_different_output_layer_is_refused(tmp_path):
    source = make_tiny_model(tmp_path / "hf", "tied-llama")
    rewrite(source, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    refused(lambda: import_hf(source, tmp_path / "out"), "lm_head.weight", "tie_word_embeddings")


def test_a_missing_shard_is_named(source, tmp_path):
    shard = sorted(source.glob("*.safetensors"))[1]
    shard.unlink()
    refused(lambda: import_hf(source, tmp_path / "out"), shard.name)


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_damaged_shard_is_named(damage, source, tmp_path):
    shard = sorted(source.glob("*.safetensors"))[0]
    content = shard.read_bytes()
    shard.write_bytes(content[:-100] if damage == "cut" else b"\xff" * 16 + content[16:])
    refused(lambda: import_hf(source, tmp_path / "out"), shard.name)


def with_header(header: object, length: int | None = None, data: bytes = b"\0" * 8) -> bytes:
    """A safetensors file of any header, however wrong."""
    encoded = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return (len(encoded) if length is None else length).to_bytes(8, "little") + encoded + data


def entry(*offsets: int, shape: tuple[int, ...] = (2,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x10",
        with_header({"a": entry(0, 8)}, length=2**63),
        with_header({"a": entry(0, 8)}, length=10**6),
        with_header(b'{"a": '),
        with_header(b"[1, 2, 3]"),
        with_header({"a": entry(0, 8), "b": entry(4, 12)}, data=b"\0" * 12),
        with_header({"a": entry(0, 8)}, data=b"\0" * 20),
        with_header({"a": entry(0, 8, shape=(3,))}),
        with_header({"a": entry(8, 0)}),
        with_header({"a": entry(0, 8, shape=(-2,))}),
        with_header({"a": entry(0, 8, dtype="F33")}),
        with_header({"a": entry(0, 8, shape=(2**40, 2**40))}),
    ],
)
def test_a_wrong_header_is_refused_with_the_file_named_and_nothing_made(content, source, tmp_path):
    shard = sorted(source.glob("*.safetensors"))[0]
    shard.write_bytes(content)
    refused(lambda: import_hf(source, tmp_path / "out", reference_logits=False), shard.name)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(
    ("change", "named"),
    [({"model_type": "gpt2"}, "gpt2"), ({"model_type": "qwen3"}, "missing"), ({"model_type": "qwen2"}, "missing")],
)
def test_weights_of_another_family_are_refused(change, named, source, tmp_path):
    config = {**json.loads((source / "config.json").read_text()), **change}
    (source / "config.json").write_text(json.dumps(config))
    refused(lambda: import_hf(source, tmp_path / "out", reference_logits=False), named)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_a_shard_cut_short_while_it_is_read_leaves_nothing_that_looks_whole(source, tmp_path):
    weights = HfWeights(source)
    shard = weights.files[-1]
    config = to_model_config(read_hf_config(source))
    plans = plan_import(weights, model_pieces(config), 1 << 30)
    os.truncate(shard, shard.stat().st_size - 1000)
    with Conversion(tmp_path / "out", "import-hf", {}) as conversion:
        refused(lambda: convert(conversion, weights, plans, 2), shard.name, "cut short")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "out.partial"]
    refused(lambda: layout.check_complete(tmp_path / "out.partial"), "holds no checkpoint")


def test_pickled_weights_are_refused_with_the_way_out(source, tmp_path):
    for file in [*source.glob("*.safetensors"), *source.glob("*.index.json")]:
        file.unlink()
    (source / "pytorch_model.bin").write_bytes(b"")
    refused(lambda: import_hf(source, tmp_path / "out"), "pytorch_model.bin", "save_pretrained")


def test_an_index_that_points_outside_the_folder_is_refused(source, tmp_path):
    index = source / "model.safetensors.index.json"
    listing = json.loads(index.read_text())
    listing["weight_map"]["lm_head.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(listing))
    refused(lambda: import_hf(source, tmp_path / "out"), "../elsewhere.safetensors")


def test_a_tokenizer_of_another_model_is_noticed(source, tmp_path):
    vocabulary = {**json.loads((source / "config.json").read_text()), "vocab_size": 100}
    (source / "config.json").write_text(json.dumps(vocabulary))
    rewrite(source, lambda t: t.update({n: t[n][:100] for n in ("lm_head.weight", "model.embed_tokens.weight")}))
    refused(lambda: import_hf(source, tmp_path / "out"), "has only 100 tokens")
    assert not (tmp_path / "out").exists()


def test_a_broken_tokenizer_is_a_user_error(source, tmp_path):
    (source / "tokenizer.json").write_text('{"version": ')
    refused(lambda: import_hf(source, tmp_path / "out"), "tokenizer", "--no-reference-logits")


def test_a_full_disk_is_noticed_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(lambda: import_hf(source, tmp_path / "out"), "0.00 GB are free")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_an_output_that_holds_something_else_is_left_alone(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    refused(lambda: import_hf(source, tmp_path / "out"), str(tmp_path / "out"))
    assert (tmp_path / "out/thesis.txt").read_text() == "years of work"


# --- checkpoints ----------------------------------------------------------------------------------------------------


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


def test_a_hostile_metadata_is_refused_by_name_and_never_run(checkpoint, tmp_path):
    marker = tmp_path / "owned"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Hostile(marker)))
    refused(lambda: TorchDistReader(checkpoint), f"{os.system.__module__}.system", ".metadata")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [("builtins", "eval"), ("torch", "load"), ("torch.serialization", "load"), ("torch", "hub.load")],
)
def test_every_other_global_is_refused_too(module, name, checkpoint):
    payload = b"\x80\x04" + b"".join(
        b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)
    ) + b"\x93."  # STACK_GLOBAL  # fmt: skip
    (checkpoint / ".metadata").write_bytes(payload)
    refused(lambda: TorchDistReader(checkpoint), f"{module}.{name}")


class EarlyPickler(pickle.Pickler):
    """Writes a member of an enumeration as Python 3.11.0 to 3.11.3 do."""

    def reducer_override(self, value):
        return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


class Looked:
    """An attribute of something, looked up while it is read."""

    def __init__(self, *of: object) -> None:
        self.of = of

    def __reduce__(self):
        return getattr, self.of


def test_metadata_written_by_an_early_python_3_11_are_read(checkpoint):
    path = checkpoint / ".metadata"
    written = TorchDistReader(checkpoint)
    with open(path, "rb") as file:
        metadata = pickle.load(file)
    with open(path, "wb") as file:
        EarlyPickler(file).dump(metadata)
    assert b"getattr" in path.read_bytes()
    reader = TorchDistReader(checkpoint)
    assert reader.metadata == written.metadata
    assert all(torch.equal(reader.read(key), written.read(key)) for key in written.tensors)


@pytest.mark.parametrize(
    "of", [(Metadata, "__init__"), (WriteItemType, "__class__"), (WriteItemType, "mro"), (WriteItemType.TENSOR, "name")]
)
def test_no_other_attribute_is_looked_up(of, checkpoint):
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Looked(*of)))
    refused(lambda: TorchDistReader(checkpoint), "names builtins.getattr")


def test_a_hostile_common_file_is_refused_and_never_run(checkpoint, tmp_path):
    marker = tmp_path / "owned"
    torch.save({"args": Hostile(marker)}, checkpoint / "common.pt")
    refused(lambda: read_common(checkpoint), "common.pt")
    assert not marker.exists()


def test_metadata_that_points_outside_the_checkpoint_is_refused(checkpoint):
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    for info in metadata.storage_data.values():
        info.relative_path = "../../secret"
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    reader = TorchDistReader(checkpoint)
    refused(lambda: reader.read("decoder.final_layernorm.weight"), "../../secret")


def test_a_hostile_tensor_is_refused_and_never_run(checkpoint, tmp_path):
    marker = tmp_path / "owned"
    archive = io.BytesIO()
    torch.save(Hostile(marker), archive)
    metadata = pickle.loads((checkpoint / ".metadata").read_bytes())
    info = next(info for index, info in metadata.storage_data.items() if index.fqn == "decoder.final_layernorm.weight")
    path = checkpoint / info.relative_path
    info.offset, info.length = path.stat().st_size, len(archive.getvalue())
    with open(path, "ab") as file:
        file.write(archive.getvalue())
    (checkpoint / ".metadata").write_bytes(pickle.dumps(metadata))
    layout.write_checksums(checkpoint)
    refused(lambda: export_hf(checkpoint, tmp_path / "export"), path.name, "decoder.final_layernorm.weight")
    assert not marker.exists() and not (tmp_path / "export").exists()


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "common.pt", "run/model.json", "run/checksums.json"])
def test_a_missing_file_is_named(name, checkpoint, tmp_path):
    (checkpoint / name).unlink()
    refused(lambda: export_hf(checkpoint, tmp_path / "export"), name.removeprefix("run/"))
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "run/tokenizer/tokenizer.json"])
def test_a_file_cut_short_is_named_with_both_sizes(name, checkpoint, tmp_path):
    path = checkpoint / name
    size = path.stat().st_size
    os.truncate(path, size // 2)
    refused(lambda: export_hf(checkpoint, tmp_path / "export"), name, str(size // 2), str(size))


def test_a_flipped_bit_is_found_by_the_full_check(checkpoint):
    layout.check_complete(checkpoint, full=True)
    path = checkpoint / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    layout.check_complete(checkpoint)
    refused(lambda: layout.check_complete(checkpoint, full=True), "__0_0.distcp", "xxh3_128")


@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_damaged_tensor_bytes_are_a_user_error_even_without_checksums(damage, checkpoint):
    path = checkpoint / "__0_0.distcp"
    size = path.stat().st_size
    if damage == "cut":
        os.truncate(path, size // 2)
    else:
        path.write_bytes(os.urandom(size))
    reader = TorchDistReader(checkpoint)
    refused(lambda: [reader.read(key) for key in reader.tensors], "__0_0.distcp")


def test_a_folder_that_is_no_checkpoint_and_a_path_that_is_no_folder(tmp_path):
    refused(lambda: export_hf(tmp_path, tmp_path / "export"), "holds no checkpoint")
    refused(lambda: export_hf(tmp_path / "nothing", tmp_path / "export"), "is not a folder")


def test_an_unknown_dtype_is_refused_with_the_known_ones(checkpoint, tmp_path):
    refused(lambda: export_hf(checkpoint, tmp_path / "export", dtype="bf16"), "bf16", "bfloat16")


# --- killed ---------------------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from pathlib import Path
import megatron_native.checkpoint.{module} as module
import megatron_native.checkpoint.torch_dist as torch_dist
target, method = {target}, {method!r}
original, calls = getattr(target, method), []
def dying(*arguments, **keywords):
    calls.append(1)
    if len(calls) == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*arguments, **keywords)
setattr(target, method, dying)
module.{module}(Path({source!r}), Path({output!r}), **{keywords})
"""


@pytest.mark.parametrize(
    ("module", "target", "method", "after"),
    [
        ("import_hf", "torch_dist.DistcpFile", "end", 17),
        ("import_hf", "module.layout", "finish_partial", 1),
        ("export_hf", "module.ShardWriter", "begin", 23),
        ("export_hf", "module.layout", "finish_partial", 1),
    ],
)
def test_killed_at_any_moment_nothing_looks_whole_and_a_rerun_completes(module, target, method, after, made, tmp_path):
    given = made[0] if module == "import_hf" else made[1]
    script = KILLED.format(
        root=str(ROOT), module=module, target=target, method=method, after=after, source=str(given),
        output=str(tmp_path / "out"), keywords={"reference_logits": False} if module == "import_hf" else {},
    )  # fmt: skip
    killed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"]
    if module == "import_hf":
        import_hf(given, tmp_path / "out", reference_logits=False)
        for path in (tmp_path / "out").rglob("*.distcp"):
            assert path.read_bytes() == (made[1] / path.name).read_bytes()
        layout.check_complete(tmp_path / "out", full=True)
    else:
        export_hf(given, tmp_path / "out")
        assert_same_bits(tensors_of(made[0]), tensors_of(tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
