"""Jobs about masked datasets on real process groups; started by `tests.distributed.run_jobs`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from megatron_native.data.indexed import IndexedTokens
from megatron_native.data.samples import LossPolicy, Sample
from megatron_native.data.sequence_index import SequenceIndex
from tests.distributed import leave_groups
from tests.training.boundary_worker import build

SEQ_LENGTH = 96


def epoch_of(prefix: str, packing: str) -> list[Sample]:
    """Every sequence of the first epoch of a dataset."""
    index = SequenceIndex(IndexedTokens(prefix), SEQ_LENGTH, 1, packing=packing, policy=LossPolicy(on_first=False))
    return [index.sample(n) for n in range(index.sequences_in(0))]


def measured(model: Any, samples: list[Sample], micro_batch_size: int, platform: Any) -> dict[str, Any]:
    """Loss, counted tokens, norm and (with one process) the gradients of all weights, of all samples as one batch."""
    import torch

    from megatron_native.training.batches import make_micro_batch
    from megatron_native.training.step import compute_gradients

    groups = [samples[at : at + micro_batch_size] for at in range(0, len(samples), micro_batch_size)]
    empty = replace(samples[0], loss_mask=np.zeros_like(samples[0].loss_mask))
    groups[-1] += [empty] * (micro_batch_size - len(groups[-1]))
    batches = [make_micro_batch(group, platform.device, document_boundaries=True) for group in groups]
    result = compute_gradients(model.chunks, model.optimizer, batches, platform.device)
    gradients = [weight.main_grad.flatten().clone() for chunk in model.chunks for weight in chunk.parameters()]
    return {
        "loss": result.loss, "tokens": result.tokens, "norm": result.grad_norm, "sequences": len(samples),
        "gradients": torch.cat(gradients),
    }  # fmt: skip


def scrambled(samples: list[Sample], counted: bool, vocab_size: int) -> list[Sample]:
    """The samples with every label that counts, or every label that doesn't, replaced."""
    generator = np.random.default_rng(0)
    changed = []
    for sample in samples:
        other = (sample.labels + generator.integers(1, vocab_size, len(sample.labels))) % vocab_size
        changed.append(replace(sample, labels=np.where((sample.loss_mask == 1) == counted, other, sample.labels)))
    return changed


def influence(model: Any, samples: list[Sample], vocab_size: int, platform: Any) -> dict[str, float]:
    """How far losses of a packed sequence move when the tokens of its first conversation change: of its own, of others."""
    from megatron_native.training.batches import make_micro_batch
    from megatron_native.training.boundaries import token_losses_of

    sample = max(samples, key=lambda one: len(one.document_lengths))
    first = int(sample.document_lengths[0])
    tokens = sample.tokens.copy()
    tokens[:first] = (tokens[:first] + 1) % vocab_size
    before, after = (
        token_losses_of(model.chunks, make_micro_batch([one], platform.device, document_boundaries=True))[0]
        for one in (sample, replace(sample, tokens=tokens))
    )
    moved = (before - after).abs()
    return {
        "own": float(moved[:first].max()),
        "others": float(moved[first:].max()),
        "documents": len(sample.document_lengths),
    }


def masked(job: dict[str, Any], platform: Any) -> dict[str, Any]:
    """All that the test asks of one layout."""
    model = build(job, platform)
    packed, single = epoch_of(job["prefix"], "best_fit"), epoch_of(job["prefix"], "single")
    runs = {
        "packed": measured(model, packed, 2, platform),
        "single": measured(model, single, 2, platform),
        "prompts perturbed": measured(model, scrambled(packed, False, job["vocab_size"]), 2, platform),
        "answers perturbed": measured(model, scrambled(packed, True, job["vocab_size"]), 2, platform),
    }
    reference = runs["packed"]["gradients"]
    found: dict[str, Any] = {"influence": influence(model, packed, job["vocab_size"], platform)}
    for name, run in runs.items():
        difference = float((run.pop("gradients") - reference).norm() / reference.norm())
        found[name] = {**run, "gradients differ by": difference}
    return found


def main(description: Path) -> None:
    """Do the jobs of a file in order; the main rank writes each one's findings."""
    from megatron_native.platform import start_platform

    platform = start_platform("cpu")
    for job in json.loads(description.read_text(encoding="utf-8")):
        found = masked(job, platform)
        if platform.is_main:
            Path(job["output"]).write_text(json.dumps(found), encoding="utf-8")
        leave_groups()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
