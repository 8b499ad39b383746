"""Masked datasets: the mask goes wherever the ids go, and nothing is learned where it is lost, damaged or mixed up."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_native.data.dataset_files import DatasetFiles
from megatron_native.data.document_stream import Span
from megatron_native.data.indexed import IndexedTokens, IndexedWriter, merge
from megatron_native.data.ledger import Ledger
from megatron_native.data.merge_datasets import merge_datasets
from megatron_native.data.repair_dataset import repair_dataset
from megatron_native.data.run_data import RunData
from megatron_native.data.samples import LossPolicy, make_sample
from megatron_native.data.sequence_index import SequenceIndex
from megatron_native.data.verify_dataset import verify_dataset
from megatron_native.errors import UserError
from megatron_native.manifest import file_entry, read_manifest, write_json
from tests.data.planted_datasets import EOD, documents, write_dataset, write_ids, write_manifest
from tests.data.test_startup_check import check, run_of

LENGTHS = (7, 30, 12, 41)
CHAT = {"template_hash": "b" * 64, "learn": "all", "end_of_turn": "<|im_end|>", "end_of_turn_id": 9}


def learned_of(texts: list[Any], seed: int = 0) -> list[Any]:
    """Random masks; the last id of every document is learned."""
    rng = np.random.default_rng(seed)
    masks = [rng.integers(0, 2, len(text)).astype(np.uint8) for text in texts]
    for mask in masks:
        mask[-1:] = 1
    return masks


def masked_dataset(prefix: Path, seed: int = 0, lengths: tuple[int, ...] = LENGTHS, **changes: Any) -> Path:
    """A masked dataset with its manifest, as the prepare stage writes them."""
    texts = documents(*lengths, seed=seed)
    masks = learned_of(texts, seed)
    with IndexedWriter(prefix, np.uint16, masked=True) as writer:
        for text, mask in zip(texts, masks):
            writer.add_document(text, learned=mask)
    write_ids(prefix, [f"{prefix.name}{number}" for number in range(len(texts))])
    counts = {"learned_tokens": int(sum(mask.sum() for mask in masks))}
    write_manifest(prefix, texts, policy={"end": None}, counts=counts, **changes)
    files = DatasetFiles(prefix)
    manifest = read_manifest(files.manifest_path)
    assert manifest is not None
    manifest["outputs"].append(file_entry(files.mask, prefix.parent))
    write_json(files.manifest_path, {**manifest, "chat": CHAT, **changes})
    return prefix


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return masked_dataset(tmp_path / "chats")


def packed_run(folder: Path, *prefixes: Path, mode: str = "sampled", **data: Any) -> Any:
    run = run_of(folder, *prefixes, mode=mode).model_dump(mode="json", exclude_unset=True)
    return type(run_of(folder, *prefixes)).model_validate(
        {**run, "data": {**run["data"], "packing": "best_fit", "seq_length": 64, **data}}
    )


def test_the_mask_is_read_where_the_ids_are(whole: Path) -> None:
    texts, masks = documents(*LENGTHS), learned_of(documents(*LENGTHS))
    for dataset in (IndexedTokens(whole), pickle.loads(pickle.dumps(IndexedTokens(whole)))):
        assert dataset.masked
        for number, mask in enumerate(masks):
            assert dataset.read_learned(*dataset.document_place(number)).tolist() == mask.tolist()
            assert dataset.document(number).tolist() == texts[number].tolist()
    plain = IndexedTokens(write_dataset(whole.with_name("plain"), texts))
    assert not plain.masked and plain.read_learned(3, 5).tolist() == [1] * 5


def test_a_sample_learns_what_the_mask_says(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "x", np.uint16, masked=True) as writer:
        writer.add_document(np.array([11, 12, EOD, 14, EOD]), learned=np.array([1, 0, 1, 0, 1], np.uint8))
        writer.add_document(np.array([21, 22, 23]), learned=np.array([0, 1, 1], np.uint8))
        writer.add_document(np.array([31, 32]), learned=np.array([1, 1], np.uint8))
    dataset = IndexedTokens(tmp_path / "x")
    spans = [Span(0, 0, 5, 0), Span(1, 0, 2, 0)]
    sample = make_sample(dataset, spans, None, 9, LossPolicy(on_first=False))
    assert sample.labels.tolist() == [12, EOD, 14, EOD, 0, 22, 23, 0, 0]
    assert sample.loss_mask.tolist() == [0, 1, 0, 1, 0, 1, 1, 0, 0]
    # without boundaries, the first token of what follows counts as its own mask says
    joined = make_sample(dataset, [Span(0, 0, 5, 0), Span(1, 0, 3, 0)], Span(2, 0, 1, 0), 8, LossPolicy())
    assert joined.labels.tolist() == [12, EOD, 14, EOD, 21, 22, 23, 31]
    assert joined.loss_mask.tolist() == [0, 1, 0, 1, 0, 1, 1, 1]
    # a separator that ends a turn is learned all the same
    ends = make_sample(dataset, spans, None, 9, LossPolicy(False, on_separator=False, separator=EOD))
    assert ends.loss_mask.tolist() == sample.loss_mask.tolist()


@settings(max_examples=25)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), packing=st.sampled_from(["best_fit", "single"]))
def test_an_epoch_learns_every_learned_token_once(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], packing: str
) -> None:
    prefix, masks = tmp_path_factory.mktemp("m") / "x", []
    with IndexedWriter(prefix, np.int32, masked=True) as writer:
        for number, length in enumerate(lengths):
            masks.append(np.arange(length) % 3 > 0)
            writer.add_document(np.arange(length) + 1000 * (number + 1), learned=masks[-1].astype(np.uint8))
    index = SequenceIndex(IndexedTokens(prefix), 30, 4, packing=packing, policy=LossPolicy(on_first=False))
    samples = [index.sample(n) for n in range(index.sequences_in(0))]
    counted = sorted(label for sample in samples for label in sample.labels[sample.loss_mask == 1].tolist())
    expected = [1000 * (n + 1) + at for n, mask in enumerate(masks) for at in np.flatnonzero(mask).tolist() if at > 0]
    assert counted == expected


def test_single_gives_every_document_its_own_sequence(tmp_path: Path) -> None:
    lengths = [3, 8, 1, 20, 5]
    index = SequenceIndex(IndexedTokens(write_dataset(tmp_path / "x", documents(*lengths))), 8, 3, packing="single")
    for epoch in range(2):
        spans = [index.spans(n) for n in range(index.first_sequence(epoch), index.first_sequence(epoch + 1))]
        assert all(len(group) == 1 for group in spans)
        pieces = sorted((group[0].document, group[0].start, group[0].stop) for group in spans)
        assert pieces == [(0, 0, 3), (1, 0, 8), (2, 0, 1), (3, 0, 8), (3, 8, 16), (3, 16, 20), (4, 0, 5)]
    sample = next(index.sample(n) for n in range(7) if index.spans(n)[0].document == 0)
    assert sample.document_lengths.tolist() == [3, 5]


def test_a_writer_wants_a_mask_for_every_document_or_for_none(tmp_path: Path, whole: Path) -> None:
    with IndexedWriter(tmp_path / "x", np.uint16) as writer, pytest.raises(ValueError, match="3 ids with 3 mask"):
        writer.add_document(np.arange(3), learned=np.ones(3, np.uint8))
    with (
        pytest.raises(ValueError, match="3 ids with no mask"),
        IndexedWriter(tmp_path / "y", np.uint16, True) as writer,
    ):
        writer.add_document(np.arange(3))
    assert not list(tmp_path.glob("y*"))
    plain = write_dataset(masked_dataset(tmp_path / "plain", lengths=(4,)), documents(4))
    assert not IndexedTokens(plain).masked, "a mask that lay there is not taken for the new dataset's"
    with pytest.raises(UserError, match="masked and unmasked data can't be joined"):
        merge([whole, plain], tmp_path / "z", np.uint16, masked=True)


@pytest.mark.parametrize("moment", [".bin", ".idx", ".mask", ".ids.jsonl.zst"])
def test_a_killed_merge_leaves_no_dataset_without_its_mask(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The files on disk after each replacement are those that a kill at that moment leaves."""
    inputs, out = [str(whole), str(masked_dataset(tmp_path / "other", 1))], DatasetFiles(tmp_path / "out" / "both")
    replace = os.replace

    def killed(old: Path, new: Path) -> None:
        replace(old, new)
        if str(new).endswith(moment):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        merge_datasets(inputs, out.prefix)
    assert not out.manifest_path.exists()
    if out.idx.exists():
        assert IndexedTokens(out.prefix).masked
    merge_datasets(inputs, out.prefix)
    assert IndexedTokens(out.prefix).masked and verify_dataset(out.prefix).passed


@pytest.mark.parametrize("mode", ["sampled", "full"])
def test_a_whole_masked_dataset_passes(tmp_path: Path, whole: Path, mode: str) -> None:
    run = packed_run(tmp_path, whole, mode=mode)
    assert check(run)[whole]["longest"] == max(LENGTHS)
    assert check(run)[whole]["remembered"]
    verification = verify_dataset(whole)
    assert verification.passed, verification.summary()
    learned = int(sum(mask.sum() for mask in learned_of(documents(*LENGTHS))))
    assert f"mask: {learned} of {sum(LENGTHS)} tokens are learned" in verification.checked
    assert verify_dataset(whole, quick=True).passed


@pytest.mark.parametrize("mode", ["off", "sampled", "full"])
def test_a_lost_mask_is_an_error_everywhere(tmp_path: Path, whole: Path, mode: str) -> None:
    run = packed_run(tmp_path, whole, mode=mode)
    check(run)
    DatasetFiles(whole).mask.unlink()
    with pytest.raises(UserError, match=r"chats\.mask is gone"):
        check(run)
    with pytest.raises(UserError, match=r"chats\.mask is gone"):
        RunData(Ledger(1), {"chats": whole}).dataset("chats")
    with pytest.raises(UserError, match=r"chats\.mask is gone"):
        merge_datasets([str(whole), str(masked_dataset(tmp_path / "other", 1))], tmp_path / "both")
    assert any("is gone" in str(fault) for fault in verify_dataset(whole).faults)


def test_a_mask_of_another_size_or_content_is_found(tmp_path: Path, whole: Path) -> None:
    mask, run = DatasetFiles(whole).mask, packed_run(tmp_path, whole)
    content = mask.read_bytes()
    mask.write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"chats\.mask has 89 bytes, and chats\.bin has {sum(LENGTHS)} ids"):
        IndexedTokens(whole)
    with pytest.raises(UserError, match=r"chats\.mask has 89 bytes"):
        check(run)
    assert verify_dataset(whole).faults[0].file == str(mask)
    mask.write_bytes(bytes([1 - content[0]]) + content[1:])
    with pytest.raises(UserError, match=r"chats\.mask has another content than when it was made"):
        check(run)
    faults = [str(fault) for fault in verify_dataset(whole).faults]
    assert any("another content" in fault for fault in faults)
    assert any("tokens to learn" in fault for fault in faults)
    mask.write_bytes(bytes([7]) + content[1:])
    assert any("token 0: holds 7 where 0 or 1" in str(fault) for fault in verify_dataset(whole).faults)


def test_conversations_are_not_cut(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(
        UserError, match=r"data\.packing is 'concatenate' in the phase main, which cuts the conversations"
    ):
        check(packed_run(tmp_path, whole, packing="concatenate"))
    with pytest.raises(UserError, match=r"conversations of up to 41 tokens, and data\.seq_length is 40"):
        check(packed_run(tmp_path, whole, seq_length=40, packing="single"))
    check(packed_run(tmp_path, whole, seq_length=41, packing="single"))


def test_merged_masks_follow_one_another(tmp_path: Path, whole: Path) -> None:
    other = masked_dataset(tmp_path / "other", 1, (5, 50))
    merged = merge_datasets([str(whole), str(other)], tmp_path / "both", say=lambda line: None)
    assert DatasetFiles(merged.prefix).mask.read_bytes() == b"".join(
        DatasetFiles(prefix).mask.read_bytes() for prefix in (whole, other)
    )
    assert merged.manifest["chat"] == CHAT
    assert "2 datasets" in merged.summary()
    assert merged.manifest["counts"]["learned_tokens"] == int(IndexedTokens(merged.prefix).read_learned(0, 145).sum())
    verification = verify_dataset(merged.prefix)
    assert verification.passed, verification.summary()
    assert merge_datasets([str(whole), str(other)], tmp_path / "both", say=lambda line: None).skipped
    DatasetFiles(whole).mask.write_bytes(bytes(sum(LENGTHS)))
    with pytest.raises(UserError, match=r"chats\.mask is not what chats\.manifest\.json recorded"):
        merge_datasets([str(whole), str(other)], tmp_path / "again")
    assert not list(tmp_path.glob("again*"))


def test_masked_and_unmasked_are_not_merged_nor_are_different_templates(tmp_path: Path, whole: Path) -> None:
    texts = documents(4, 9)
    plain = write_dataset(tmp_path / "plain", texts)
    write_manifest(plain, texts, policy={"end": None})
    with pytest.raises(UserError, match=r"chats has a mask and .*plain has none"):
        merge_datasets([str(whole), str(plain)], tmp_path / "both")
    other = masked_dataset(tmp_path / "other", 1, chat={**CHAT, "template_hash": "c" * 64})
    with pytest.raises(UserError, match="different chat templates"):
        merge_datasets([str(whole), str(other)], tmp_path / "both")


def test_a_masked_dataset_is_not_repaired(tmp_path: Path, whole: Path) -> None:
    with open(DatasetFiles(whole).bin, "r+b") as file:
        file.truncate(40)
    with pytest.raises(UserError, match="it is not repaired"):
        repair_dataset(whole)
    DatasetFiles(whole).mask.unlink()
    with pytest.raises(UserError, match="it is not repaired"):
        repair_dataset(whole)
    assert not list(tmp_path.glob("*_repaired*"))


def test_a_moved_dataset_keeps_its_mask(tmp_path: Path, whole: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for file in tmp_path.glob("chats.*"):
        shutil.copyfile(file, tmp_path / "elsewhere" / file.name.replace("chats", "renamed"))
    verification = verify_dataset(tmp_path / "elsewhere" / "renamed")
    assert verification.passed, verification.summary()
