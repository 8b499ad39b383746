"""Where bytes lie: torch's archive written and found without torch, rows moved by number, boxes read in parts."""

import io
import pickle
import zipfile

import pytest
import torch

from megatron_native.checkpoint.import_tensors import _boxes
from megatron_native.checkpoint.row_runs import box_runs, row_length, tensor_runs
from megatron_native.checkpoint.torch_archive import TensorArchive, crc32, locate_tensor
from megatron_native.checkpoint.torch_dist import TorchDistReader, TorchDistWriter
from megatron_native.config.model import ModelConfig
from megatron_native.models.families import model_pieces, to_model_config
from tests.tiny_models import SHAPES

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 3, 5), (7,), (4, 1, 2), ()])
def test_torch_loads_the_archive_and_its_checksums_hold(dtype, shape):
    tensor = torch.randn(shape).to(dtype)
    archive = TensorArchive(dtype, shape)
    whole = archive.prefix + bytes_of(tensor) + archive.suffix(crc32(bytes_of(tensor)))
    assert len(whole) == archive.length and len(archive.prefix) % 64 == 0
    loaded = torch.load(io.BytesIO(whole), weights_only=True)
    assert loaded.dtype == dtype and loaded.shape == tensor.shape and bytes_of(loaded) == bytes_of(tensor)
    with zipfile.ZipFile(io.BytesIO(whole)) as members:
        assert members.testzip() is None
        assert members.read("archive/data/0") == bytes_of(tensor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_checksums", [True, False])
def test_a_tensor_that_torch_saved_is_found_where_it_lies(dtype, with_checksums):
    tensor = torch.randn(3, 5).to(dtype)
    saved = io.BytesIO()
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(with_checksums)
    try:
        torch.save(tensor, saved)
    finally:
        torch.serialization.set_crc32_options(before)
    file = io.BytesIO(b"before" + saved.getvalue() + b"after")
    found = locate_tensor(file, 6, len(saved.getvalue()))
    assert (found.dtype, found.shape) == (dtype, (3, 5))
    assert file.getvalue()[found.position : found.position + tensor.nbytes] == bytes_of(tensor)


@pytest.mark.parametrize(
    "value",
    [
        torch.ones(4, 4).t(),
        [torch.ones(2)],
        {"a": 1},
        torch.ones(3, dtype=torch.int64),
        torch.nn.Parameter(torch.ones(2)),
    ],
)
def test_what_is_no_plain_tensor_is_left_to_torch(value):
    saved = io.BytesIO()
    torch.save(value, saved)
    assert locate_tensor(saved, 0, len(saved.getvalue())) is None


def tiny_config(shape: str) -> ModelConfig:
    described = SHAPES[shape]
    return to_model_config(
        {"model_type": described.model_type, "torch_dtype": "float32", "hidden_act": "silu", **described.config}
    )


@pytest.mark.parametrize("shape", ["llama3.1", "qwen1.5", "qwen3"])
def test_moving_rows_by_number_is_what_the_table_does_with_the_tensors(shape):
    for piece in model_pieces(tiny_config(shape)):
        tensors = [torch.randn(extent) for extent in piece.hf_shapes]
        box = piece.to_megatron(tensors)
        length = row_length(piece)
        rows = [tensor.reshape(-1, length) for tensor in tensors]
        moved = torch.cat([rows[run.tensor][run.first : run.first + run.rows] for run in box_runs(piece)])
        assert torch.equal(moved.reshape(piece.shape), box), piece.key
        box_rows = box.reshape(-1, length)
        for tensor, runs in zip(tensors, tensor_runs(piece), strict=True):
            back = torch.cat([box_rows[run.first : run.first + run.rows] for run in runs])
            assert torch.equal(back.reshape(tensor.shape), tensor), piece.key


def test_a_box_too_large_for_an_archive_is_cut_between_rows_and_nothing_is_lost():
    for piece in model_pieces(tiny_config("llama3.1"))[:6]:
        tensors = dict(zip(piece.hf_names, (torch.randn(extent) for extent in piece.hf_shapes), strict=True))
        boxes = _boxes(piece, torch.float32, most_bytes=10_000)
        assert len(boxes) > 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 10_000
        whole = b""
        for box in boxes:
            part = b"".join(
                bytes_of(tensors[stretch.name])[stretch.first : stretch.first + stretch.length]
                for stretch in box.stretches
            )
            assert len(part) == torch.Size(box.place.shape).numel() * 4 <= 10_000
            whole += part
        assert whole == bytes_of(piece.to_megatron(list(tensors.values())))


def test_any_part_of_a_tensor_is_read_from_any_chunks_whole_or_in_blocks(tmp_path):
    tensor = torch.randn(2, 12, 10)
    writer = TorchDistWriter(tmp_path)
    for layer in range(2):  # the first layer cut by rows, the second by columns
        for part in range(2):
            cut = (slice(layer, layer + 1), slice(part * 6, part * 6 + 6), slice(None)) if layer == 0 else (
                slice(1, 2), slice(None), slice(part * 5, part * 5 + 5)
            )  # fmt: skip
            writer.write("w", (2, 12, 10), tuple(axis.start or 0 for axis in cut), tensor[cut])
    writer.finish()
    reader = TorchDistReader(tmp_path)
    buffer = memoryview(bytearray(64))
    for offset, shape in [
        ((0, 0, 0), (2, 12, 10)), ((0, 1, 0), (1, 4, 10)), ((0, 4, 2), (1, 5, 3)), ((1, 0, 0), (1, 12, 10)),
        ((1, 3, 6), (1, 2, 4)), ((0, 6, 0), (1, 6, 10)), ((1, 2, 4), (1, 1, 3)), ((0, 0, 9), (2, 1, 1)),
    ]:  # fmt: skip
        expected = tensor[tuple(slice(start, start + extent) for start, extent in zip(offset, shape, strict=True))]
        assert torch.equal(reader.read("w", offset, shape), expected)
        assert b"".join(bytes(block) for block in reader.stream("w", offset, shape, buffer)) == bytes_of(expected)


def test_a_chunk_that_is_saved_transposed_is_read_all_the_same(tmp_path):
    writer = TorchDistWriter(tmp_path)
    tensor = torch.randn(6, 4)
    writer.write("w", (6, 4), (0, 0), tensor)
    writer.finish()
    saved = io.BytesIO()
    torch.save(tensor.t().contiguous().t(), saved)
    with open(tmp_path / "__0_0.distcp", "ab") as file:
        start = file.tell()
        file.write(saved.getvalue())
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    (info,) = metadata.storage_data.values()
    info.offset, info.length = start, len(saved.getvalue())
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    reader = TorchDistReader(tmp_path)
    assert torch.equal(reader.read("w", (1, 1), (3, 2)), tensor[1:4, 1:3])
    streamed = reader.stream("w", (1, 0), (3, 4), memoryview(bytearray(64)))
    assert b"".join(bytes(block) for block in streamed) == bytes_of(tensor[1:4])
