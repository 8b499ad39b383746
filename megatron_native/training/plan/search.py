"""Layouts ranked: which ways to spread a run over its GPUs fit, and which of them would be fastest.

Every combination of tensor, pipeline, virtual pipeline and context parallelism, micro-batch and recomputation that the
configuration's own check accepts is estimated. What can't fit by a rough count is left out, what is left is put in order by the
time of the busiest stage, the first of these are simulated, and then looked at in the order of their speed: their memory is
worked out as `plan` does, until enough are found that fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_native.config.layout import data_parallel_size
from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import ResolvedPhase, resolve_phases
from megatron_native.config.run import RunConfig
from megatron_native.training.plan.gpus import Gpu
from megatron_native.training.plan.rough_memory import rough_peak
from megatron_native.training.plan.run_plan import micro_batch_settings, peak_if_fits, with_settings
from megatron_native.training.plan.step_time import estimate_step, least_step_seconds
from megatron_native.training.plan.validate import layout_findings

_SIMULATED = 40
_LOOKED_AT = 24
"""Layouts whose memory is worked out, at most: each builds models."""


@dataclass(frozen=True)
class Candidate:
    """A layout that fits."""

    tensor: int
    pipeline: int
    chunks: int
    """Model chunks a pipeline rank."""
    context: int
    data: int
    micro_batch: int
    recompute: str
    tokens_a_second: float
    """Estimate of one GPU."""
    peak: int
    """Bytes of the fullest stage."""
    bubble: float
    settings: dict[str, Any]
    """Dotted name → value: what to put over the run's configuration; empty for the layout that it has."""

    def as_json(self) -> dict[str, Any]:
        """Its fields."""
        return dict(vars(self))


@dataclass(frozen=True)
class SearchResult:
    """What a search found."""

    candidates: list[Candidate]
    """Fastest first."""
    examined: int
    """Layouts that are possible."""
    looked_at: int
    """Of them, those whose memory was worked out."""

    def as_json(self) -> dict[str, Any]:
        """Everything, for other programs."""
        return {
            "examined": self.examined, "looked_at": self.looked_at, "estimate": True,
            "layouts": [candidate.as_json() for candidate in self.candidates],
        }  # fmt: skip


def search_layouts(run: RunConfig, model: ModelConfig, gpu: Gpu, world_size: int, wanted: int = 8) -> SearchResult:
    """Rank the layouts of a run on `world_size` GPUs; its batch, precision and data stay as they are.

    The layout that it has, if it fits, is always among what is found: the search does not reach every one, such as those of
    `pipeline_layout`.
    """
    possible = []
    for settings in itertools.chain([{}], _layouts(run, model, gpu, world_size)):
        changed = with_settings(run, settings)
        if settings and changed == run:
            continue  # it is there already
        if all(finding.kind != "error" for finding in layout_findings(changed, model, gpu, world_size)):
            possible.append((settings, changed))
    rough = [
        (settings, changed)
        for settings, changed in possible
        if rough_peak(changed, model, world_size) <= gpu.usable_bytes
    ]
    by_bound = sorted(rough, key=lambda pair: least_step_seconds(pair[1], model, gpu, world_size, _phase(pair[1])))
    estimated = [
        (estimate_step(changed, model, gpu, world_size, _phase(changed)), settings, changed)
        for place, (settings, changed) in enumerate(by_bound)
        if place < _SIMULATED or not settings
    ]
    estimated.sort(key=lambda one: one[0].seconds)
    found: list[Candidate] = []
    looked_at = 0
    for step, settings, changed in estimated:
        if settings and (len(found) >= wanted or looked_at >= _LOOKED_AT):
            continue
        looked_at += 1
        peak = peak_if_fits(changed, model, gpu, world_size)
        if peak is None:
            continue
        parallel, training = changed.parallel, changed.training
        found.append(Candidate(
            parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size,
            parallel.virtual_pipeline_model_parallel_size or 1, parallel.context_parallel_size,
            data_parallel_size(changed, world_size), training.micro_batch_size,
            training.recompute + ("" if training.recompute != "selective" else f" {','.join(training.recompute_modules)}"),
            step.tokens_a_second, peak, step.timeline.bubble, settings,
        ))  # fmt: skip
    return SearchResult(found, len(possible), looked_at)


def _phase(run: RunConfig) -> ResolvedPhase:
    return resolve_phases(run)[0]


def _layouts(run: RunConfig, model: ModelConfig, gpu: Gpu, world_size: int) -> Iterator[dict[str, Any]]:
    """Settings of every layout that divides the GPUs and the layers."""
    tensors = [n for n in _divisors(model.num_query_groups) if n <= gpu.gpus_a_node]
    recomputes: list[dict[str, Any]] = [
        {"training.recompute": "none"},
        {"training.recompute": "selective", "training.recompute_modules": ["mlp"]},
        {"training.recompute": "full", "training.recompute_method": "uniform", "training.recompute_num_layers": 1},
    ]
    for tp, pp, cp in itertools.product(tensors, _divisors(world_size), (1, 2, 4)):
        if world_size % (tp * pp * cp) or tp * cp > gpu.gpus_a_node or pp > model.num_layers:
            continue
        for virtual, ends in _splits(model.num_layers, pp):
            layout = {
                "parallel.tensor_model_parallel_size": tp, "parallel.pipeline_model_parallel_size": pp,
                "parallel.virtual_pipeline_model_parallel_size": virtual, "parallel.context_parallel_size": cp,
                "parallel.sequence_parallel": tp > 1, "parallel.tp_comm_overlap": run.parallel.tp_comm_overlap and tp > 1,
                "parallel.account_for_embedding_in_pipeline_split": ends, "parallel.account_for_loss_in_pipeline_split": ends,
                "parallel.pipeline_layout": None, "parallel.num_layers_in_first_pipeline_stage": None,
                "parallel.num_layers_in_last_pipeline_stage": None, "parallel.overlap_p2p_comm": None,
            }  # fmt: skip
            for micro, recompute in itertools.product((1, 2, 4), recomputes):
                yield {**layout, **micro_batch_settings(run, micro), **recompute}


def _splits(layers: int, pp: int) -> Iterator[tuple[int | None, bool]]:
    """Virtual stages, and whether embedding and loss count as layers: at most four ways for a pipeline of `pp`."""
    if pp == 1:
        yield None, False
        return
    found = []
    for ends in (False, True):
        total = layers + 2 * ends
        if total % pp == 0 and total // pp > ends:
            found += [(None if virtual == 1 else virtual, ends) for virtual in _divisors(total // pp)]
    found.sort(key=lambda split: split[0] or 1)
    keep = {found[0], found[-1], *found[len(found) // 3 :: max(1, len(found) // 3)]} if found else set()
    yield from (split for split in found if split in keep)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
