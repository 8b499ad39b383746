"""Context parallelism as far as it needs no GPU: who computes which tokens, and sums over the parts."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from megatron.core import parallel_state
from megatron.core.models.common.embeddings.rope_utils import _get_thd_freqs_on_this_cp_rank
from megatron.core.utils import get_batch_on_this_cp_rank

from megatron_native.config.requirements import fp8_multiple
from megatron_native.training import boundaries
from megatron_native.training.batches import (
    MicroBatch,
    context_indices,
    context_parallel_batches,
    on_context_rank,
    pack,
    pad_documents,
    positions_of,
)
from megatron_native.training.step import multiple_of_tokens
from tests.distributed import run_jobs
from tests.training import context_worker

CPU = torch.device("cpu")


def rows(count: int, length: int) -> MicroBatch:
    tokens = torch.arange(1, count * length + 1).reshape(count, length)
    return MicroBatch(tokens, tokens + 1000, (tokens % 3 > 0).float(), positions_of(tokens))


def test_slices_by_hand() -> None:
    assert context_indices(8, rank=0, size=2).tolist() == [0, 1, 6, 7]
    assert context_indices(8, rank=1, size=2).tolist() == [2, 3, 4, 5]
    assert context_indices(12, 1, 2, torch.tensor([0, 4, 12])).tolist() == [1, 2, 6, 7, 8, 9]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_rows_are_cut_as_megatron_core_cuts_them(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = rows(2, 24)
    monkeypatch.setattr(parallel_state, "get_context_parallel_world_size", lambda: size)
    for rank in range(size):
        monkeypatch.setattr(parallel_state, "get_context_parallel_rank", lambda rank=rank: rank)
        ours = on_context_rank(batch, rank, size)
        theirs = get_batch_on_this_cp_rank({"tokens": batch.tokens, "labels": batch.labels})
        assert torch.equal(ours.tokens, theirs["tokens"])
        assert torch.equal(ours.labels, theirs["labels"])


@pytest.mark.parametrize("size", [2, 4])
def test_documents_are_cut_where_megatron_core_looks_up_their_rotary_positions(size: int) -> None:
    """It takes the frequencies of a rank's part of each document from the document's beginning on."""
    (batch,) = pad_documents([pack(rows(2, 32), np.array([9, 1, 22, 3, 29]))], 2 * size)
    bounds = batch.packed.cu_seqlens_q_padded
    positions = torch.arange(64)
    for rank in range(size):
        at = 0
        indices = context_indices(batch.tokens.shape[1], rank, size, bounds)
        for start, end in zip(bounds.tolist(), bounds.tolist()[1:]):
            here = torch.empty((end - start) // size)
            looked_up = _get_thd_freqs_on_this_cp_rank(rank, size, here, positions)
            assert torch.equal(indices[at : at + len(here)] - start, looked_up)
            at += len(here)
        assert at == len(indices)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_parts_are_a_partition(size: int, packed: bool) -> None:
    batch = rows(2, 32)
    if packed:
        (batch,) = pad_documents([pack(batch, np.array([9, 1, 22, 3, 29]))], 2 * size)
    parts = [on_context_rank(batch, rank, size) for rank in range(size)]
    for name in ("tokens", "labels", "loss_mask", "position_ids"):
        together = torch.cat([getattr(part, name) for part in parts], dim=1)
        assert torch.equal(together.sort(dim=1).values, getattr(batch, name).sort(dim=1).values), name
    bounds = batch.packed.cu_seqlens_q_padded if packed else None
    indices = torch.cat([context_indices(batch.tokens.shape[1], rank, size, bounds) for rank in range(size)])
    assert sorted(indices.tolist()) == list(range(batch.tokens.shape[1]))


def test_filling_up_keeps_every_document_and_counts_nothing() -> None:
    lengths = [np.array([9, 1, 22, 3, 29]), np.array([64])]
    originals = [pack(rows(2, 32), length) for length in lengths]
    filled = pad_documents(originals, 4, total_multiple=2)
    assert {batch.tokens.shape for batch in filled} == {(1, 80)}, "12 + 4 + 24 + 4 + 32 = 76, up to a multiple of 8"
    for original, batch, length in zip(originals, filled, lengths):
        packed = batch.packed
        real, wide = packed.cu_seqlens_q.diff().tolist(), packed.cu_seqlens_q_padded
        assert real[: len(length)] == length.tolist()
        assert int(wide[-1]) == 80
        assert all(count % 4 == 0 for count in wide.diff().tolist())
        assert packed.max_seqlen_q % 4 == 0
        assert max(wide.diff().tolist()[len(length) :], default=0) <= packed.max_seqlen_q
        for name in ("tokens", "labels", "loss_mask", "position_ids"):
            kept = [getattr(batch, name)[0, start : start + n] for start, n in zip(wide.tolist(), length)]
            assert torch.equal(torch.cat(kept)[None], getattr(original, name)), name
        assert batch.loss_mask.sum() == original.loss_mask.sum()


@pytest.mark.parametrize(("recipe", "multiple"), [("tensorwise", 16), ("delayed", 16), ("blockwise", 128)])
def test_in_fp8_every_process_has_a_share_that_its_products_can_take(
    recipe: str, multiple: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents' padding makes lengths of any kind; Transformer Engine refuses what is no multiple on a process."""
    for name, value in (
        ("context_parallel_rank", 0),
        ("context_parallel_world_size", 2),
        ("tensor_model_parallel_world_size", 4),
    ):
        monkeypatch.setattr(parallel_state, f"get_{name}", lambda value=value: value)
    assert fp8_multiple(recipe) == multiple
    ids = torch.arange(96)[None]
    batch = pack(MicroBatch(ids, ids, torch.ones(1, 96), ids), np.array([5, 1, 18, 72]))
    (part,), length = context_parallel_batches([batch], fp8_multiple(recipe))
    assert part.tokens.shape[1] == length // 2
    assert (length // 2 // 4) % multiple == 0, "also of what sequence parallelism leaves a process"
    assert float(part.loss_mask.sum()) <= 96
    _, plain = context_parallel_batches([batch])
    assert plain == 112 < length  # 8 + 4 + 20 + 72, filled up to a multiple of 2 · 2 · 4


def test_the_longest_length_is_never_that_of_the_whole() -> None:
    """Where it is, megatron-core lets rotary positions run on from document to document."""
    for lengths in ([16], [8, 8], [4, 12], [15, 1], [1] * 16):
        (batch,) = pad_documents([pack(rows(1, 16), np.array(lengths))], 4)
        assert batch.packed.max_seqlen_q != batch.tokens.shape[1], lengths


def test_a_length_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="10 tokens don't divide into the 2 × 2 slices"):
        context_indices(10, 0, 2)


def test_sums_over_the_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    """Two processes of one context-parallel group: each loss counts once, and both know the sum."""
    run_jobs(tmp_path, 2, [{"output": str(tmp_path / "told")}], module="tests.training.context_worker")
    told = [json.loads((tmp_path / f"told.{rank}.json").read_text()) for rank in (0, 1)]
    count, length = context_worker.SEQUENCES, context_worker.LENGTH
    batch = rows(count, length)
    losses = context_worker.losses_of(batch.tokens).double()
    total, tokens = float((losses * batch.loss_mask).sum()), int(batch.loss_mask.sum())
    for name in ("rows", "packed"):
        for one in told:
            assert one[name]["reduced"][0] == pytest.approx(total, rel=1e-6)
            assert one[name]["reduced"][1] == tokens
        assert told[0][name]["whole"] == told[1][name]["whole"]
        parts = [np.array(one[name]["part"]) for one in told]
        assert parts[0].shape[1] == parts[1].shape[1] == told[0][name]["length"] // 2
    assert told[0]["rows"]["whole"] == batch.tokens.tolist()
    whole = [token for token in told[0]["packed"]["whole"][0] if token]
    assert whole == batch.tokens.flatten().tolist()


@pytest.mark.parametrize("fp8", [None, "hybrid"])
def test_the_probe_of_document_boundaries_needs_no_filling_up(fp8: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its losses are put together again by the bounds that it was made with."""
    sizes = {"context_parallel_world_size": 2, "tensor_model_parallel_world_size": 4}
    for name, value in sizes.items():
        monkeypatch.setattr(parallel_state, f"get_{name}", lambda value=value: value)
    chunks = [SimpleNamespace(config=SimpleNamespace(fp8=fp8, fp8_recipe="tensorwise"))]
    probed: list[MicroBatch] = []

    def losses(_: Any, batch: MicroBatch) -> torch.Tensor:
        probed.append(batch)
        return batch.tokens.float().cos()

    monkeypatch.setattr(boundaries, "token_losses_of", losses)
    boundaries.assert_boundaries(chunks, 500, 24, "bf16", CPU)
    (filled,) = pad_documents(probed[:1], 2 * 2, 4 * multiple_of_tokens(chunks))
    assert torch.equal(filled.tokens, probed[0].tokens)
    assert filled.packed.cu_seqlens_q_padded.tolist() == probed[0].packed.cu_seqlens_q.tolist()
