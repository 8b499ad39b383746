"""An estimate of how long a step takes: a roofline of the layers, put through the pipeline's schedule.

It is an estimate and is always called one: rates and shares are those of `gpus.yaml`, two of them fitted to published
speeds. It knows nothing of the data loader, of slow nodes, checkpoints, evaluation or time between kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_native.config.layout import data_parallel_size
from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import ResolvedPhase, ramp_sizes, resolve_phases
from megatron_native.config.run import RunConfig
from megatron_native.training.plan.communication import (
    DataTraffic,
    StepVolume,
    data_traffic,
    groups_of,
    message_bytes,
    recomputed_layers,
    step_volume,
)
from megatron_native.training.plan.flops import layer_matrix_parameters, model_flop_utilisation, token_flops
from megatron_native.training.plan.gpus import Gpu
from megatron_native.training.plan.layer_time import Seconds, ends_time, is_fp8_layer, layer_time
from megatron_native.training.plan.schedule import ChunkTimes, Timeline, simulate
from megatron_native.training.plan.stages import Chunk, chunk_parameters, split_stages

_BUCKET_PARAMETERS = 40_000_000
"""Parameters of a bucket of megatron-core's gradient reduction, at least; with many copies it is a million for each."""


@dataclass(frozen=True)
class StepEstimate:
    """The estimate of one step of a phase, at one batch size."""

    seconds: float
    timeline: Timeline
    micro_batches: int
    tokens: int
    """Of the step, over all ranks."""
    world_size: int
    computing: Seconds
    """Forward and backward of the pipeline rank that computes longest, by what takes the time."""
    gradients_exposed: float
    parameters_exposed: float
    optimizer: float
    volumes: tuple[StepVolume, ...]
    """Bytes sent, by pipeline rank."""
    flops_a_token: dict[str, float]
    """Convention → FLOP."""
    utilisation: dict[str, float]
    """Convention → model FLOP utilisation of `peak_tflops`."""
    peak_tflops: float
    peak_of: str
    """Whose peak: `BF16 dense` or `FP8 dense`."""

    @property
    def tokens_a_second(self) -> float:
        """Of one GPU."""
        return self.tokens / self.seconds / self.world_size

    @property
    def bubble_seconds(self) -> float:
        """Time in the pipeline in which the rank that computes longest waits."""
        return self.timeline.seconds - self.computing.total

    def parts(self) -> dict[str, float]:
        """Where the seconds of a step go, on the pipeline rank that computes longest; they add up to `seconds`."""
        return {
            "matrix products": self.computing.matmul,
            "attention": self.computing.attention,
            "memory-bound": self.computing.memory,
            "tensor parallel, exposed": self.computing.tensor_exposed,
            "context parallel, exposed": self.computing.context_exposed,
            "pipeline bubble and transfers": self.bubble_seconds,
            "gradient reduction, exposed": self.gradients_exposed,
            "parameter gather, exposed": self.parameters_exposed,
            "optimizer": self.optimizer,
        }


def estimate_step(
    run: RunConfig, model: ModelConfig, gpu: Gpu, world_size: int, phase: ResolvedPhase, batch_size: int | None = None
) -> StepEstimate:
    """Estimate a step of `phase` with `batch_size` sequences (by default the phase's full batch).

    Raises:
        UserError: the GPU has no FP8 and the run wants it, or the layers can't be split so.
    """
    work = _pipeline_work(run, model, gpu, world_size, phase, batch_size or phase.global_batch_size)
    stages, times, micro_batches, tokens = work.stages, work.times, work.micro_batches, work.tokens
    ranks, batch = len(stages), batch_size or phase.global_batch_size
    timeline = simulate(times, micro_batches)
    ends_of_step = [
        _after_backward(run, model, gpu, world_size, stages[rank], sum(times.forward[rank]), sum(times.backward[rank]))
        for rank in range(ranks)
    ]
    longest = max(range(ranks), key=timeline.busy)
    computing = sum([*work.forward[longest], *work.backward[longest]], Seconds()).times(micro_batches)
    gradients, gathered, optimizer = (max(rank[part] for rank in ends_of_step) for part in range(3))
    seconds = timeline.seconds + gradients + gathered + optimizer
    volumes = tuple(
        step_volume(
            run, model, stages, rank, tokens, micro_batches, _data_traffic(run, model, world_size, stages[rank])
        )
        for rank in range(ranks)
    )
    flops = token_flops(model, phase.seq_length)
    fp8 = run.training.precision == "fp8" and gpu.fp8_tflops is not None
    peak = gpu.fp8_tflops if fp8 and gpu.fp8_tflops else gpu.bf16_tflops
    rate = batch * phase.seq_length / seconds / world_size
    conventions = {"full": flops.total("full"), "causal": flops.total("causal")}
    return StepEstimate(
        seconds=seconds, timeline=timeline, micro_batches=micro_batches, tokens=batch * phase.seq_length, world_size=world_size,
        computing=computing, gradients_exposed=gradients, parameters_exposed=gathered, optimizer=optimizer, volumes=volumes,
        flops_a_token=conventions,
        utilisation={name: model_flop_utilisation(rate, flop, peak) for name, flop in conventions.items()},
        peak_tflops=peak, peak_of="FP8 dense" if fp8 else "BF16 dense",
    )  # fmt: skip


def least_step_seconds(run: RunConfig, model: ModelConfig, gpu: Gpu, world_size: int, phase: ResolvedPhase) -> float:
    """Close to what `estimate_step` says, without simulating: the busiest rank, and the time in which the pipeline fills."""
    work = _pipeline_work(run, model, gpu, world_size, phase, phase.global_batch_size)
    busy = [sum(there) + sum(back) for there, back in zip(work.times.forward, work.times.backward)]
    filling = (len(busy) - 1) / len(work.stages[0]) * sum(busy) / len(busy)
    after = [
        _after_backward(run, model, gpu, world_size, chunks, sum(there), sum(back))
        for chunks, there, back in zip(work.stages, work.times.forward, work.times.backward)
    ]
    return work.micro_batches * max(busy) + filling + sum(max(rank[part] for rank in after) for part in range(3))


@dataclass(frozen=True)
class _PipelineWork:
    """What the ranks of a pipeline have to do in a step."""

    stages: list[list[Chunk]]
    forward: list[list[Seconds]]
    backward: list[list[Seconds]]
    times: ChunkTimes
    micro_batches: int
    tokens: int
    """Of a micro-batch on one rank."""


def _pipeline_work(
    run: RunConfig, model: ModelConfig, gpu: Gpu, world_size: int, phase: ResolvedPhase, batch: int
) -> _PipelineWork:
    groups, stages = groups_of(run, world_size), split_stages(run, model)
    micro_batches = max(1, batch // (phase.micro_batch_size * data_parallel_size(run, world_size)))
    tokens = phase.micro_batch_size * phase.seq_length // groups.context.size
    by_precision = {
        fp8: layer_time(run, model, gpu, groups, tokens, phase.seq_length, fp8)
        for fp8 in {is_fp8_layer(run, model, layer) for layer in range(model.num_layers)}
    }
    forward: list[list[Seconds]] = []
    backward: list[list[Seconds]] = []
    for chunks in stages:
        there, back = [], []
        for chunk in chunks:
            ends = ends_time(run, model, gpu, groups, tokens, chunk)
            layers = [by_precision[is_fp8_layer(run, model, layer)] for layer in chunk.layers]
            there.append(sum((layer.forward for layer in layers), ends.forward))
            back.append(sum((layer.backward for layer in layers), ends.backward))
            if run.training.recompute == "full":
                again = layers[: recomputed_layers(run, [chunk])]
                back[-1] = sum((layer.forward for layer in again), back[-1])
        forward.append(there)
        backward.append(back)
    parallel, ranks = run.parallel, len(stages)
    overlaps = parallel.virtual_pipeline_model_parallel_size is not None
    message = message_bytes(run, model, tokens)
    times = ChunkTimes(
        [[seconds.total for seconds in rank] for rank in forward],
        [[seconds.total for seconds in rank] for rank in backward],
        transfer=message / gpu.link_bytes_s(ranks, groups.pipeline.stride) if ranks > 1 else 0.0,
        blocking=not (overlaps if parallel.overlap_p2p_comm is None else parallel.overlap_p2p_comm),
    )
    return _PipelineWork(stages, forward, backward, times, micro_batches, tokens)


def _data_traffic(run: RunConfig, model: ModelConfig, world_size: int, chunks: list[Chunk]) -> DataTraffic:
    layers = sum(len(chunk.layers) for chunk in chunks)
    matrices = layers * layer_matrix_parameters(model) // run.parallel.tensor_model_parallel_size
    parameters = sum(chunk_parameters(run, model, chunk) for chunk in chunks)
    return data_traffic(run, groups_of(run, world_size).data, parameters, matrices)


def _after_backward(
    run: RunConfig, model: ModelConfig, gpu: Gpu, world_size: int, chunks: list[Chunk], forward: float, backward: float
) -> tuple[float, float, float]:
    """Seconds of a rank beyond the pipeline: gradients exposed, parameters exposed, the update itself.

    An overlapped reduction hides behind the last micro-batch's backward pass (`backward` seconds), but for its last bucket; an
    overlapped gather behind the first one's forward pass, but for its first.
    """
    data, parallel = groups_of(run, world_size).data, run.parallel
    traffic = _data_traffic(run, model, world_size, chunks)
    parameters = sum(chunk_parameters(run, model, chunk) for chunk in chunks)
    link = gpu.link_bytes_s(data.size, data.stride)
    reduced, gathered = traffic.gradients / link, traffic.parameters / link
    buckets = max(1.0, parameters / max(_BUCKET_PARAMETERS, 1_000_000 * data.size))
    if parallel.overlap_grad_reduce:
        reduced = max(reduced / buckets, reduced - backward)
    if parallel.overlap_param_gather:
        gathered = max(gathered / buckets, gathered - forward)
    width = 4 if run.optimizer.grad_reduce_in_fp32 or run.training.precision == "fp32" else 2
    shards = data.size // parallel.num_distributed_optimizer_instances if parallel.use_distributed_optimizer else 1
    # cleared and scaled by the number of tokens; norm, then weight and two moments in FP32 read and written, weight in BF16
    moved = parameters * 3 * width + parameters / shards * (2 * width + 6 * 4 + 2)
    if run.training.precision == "fp8":
        moved += parameters * 6  # weights cast to FP8: read twice, written twice
    return reduced, gathered, moved / gpu.hbm_bytes_s


@dataclass(frozen=True)
class PhaseEstimate:
    """A phase of the run."""

    name: str
    tokens: int
    steps: int
    step: StepEstimate
    """At the full batch."""
    seconds: float
    """Of all its steps, with smaller ones where its batch grows."""

    @property
    def days(self) -> float:
        """Days without any stop."""
        return self.seconds / 86400

    @property
    def gpu_hours(self) -> float:
        """Days, times GPUs, times 24."""
        return self.seconds / 3600 * self.step.world_size


def estimate_phases(run: RunConfig, model: ModelConfig, gpu: Gpu, world_size: int) -> list[PhaseEstimate]:
    """Every phase of the run; saves, evaluations and restarts are not in it."""
    known: dict[tuple[int, int, int], StepEstimate] = {}

    def step_of(phase: ResolvedPhase, batch: int) -> StepEstimate:
        key = (phase.seq_length, phase.micro_batch_size, batch)
        if key not in known:
            known[key] = estimate_step(run, model, gpu, world_size, phase, batch)
        return known[key]

    found = []
    for phase in resolve_phases(run):
        full = step_of(phase, phase.global_batch_size)
        sizes = _tokens_by_batch(phase)
        seconds = 0.0
        for batch, tokens in sizes.items():
            seconds += tokens / (batch * phase.seq_length) * step_of(phase, batch).seconds
        found.append(PhaseEstimate(phase.name, phase.total_tokens, phase.steps_left(0, 0), full, seconds))
    return found


def _tokens_by_batch(phase: ResolvedPhase) -> dict[int, float]:
    """Batch size → tokens of the phase that are learned at it."""
    total = phase.total_tokens
    if phase.batch_ramp is None:
        return {phase.global_batch_size: float(total)}
    levels = ramp_sizes(phase.batch_ramp, phase.global_batch_size)
    each = phase.batch_ramp.tokens / (len(levels) - 1)
    found, left = {}, float(total)
    for batch in levels[:-1]:
        found[batch] = min(each, left)
        left -= found[batch]
    return {**found, levels[-1]: left}
