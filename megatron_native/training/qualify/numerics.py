"""The rungs about numbers: logits, document masks, cross entropy, masters, overlaps, FP8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch.distributed as dist
from torch import Tensor

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.reference_logits import load_reference_logits
from megatron_native.checkpoint.verify_hf import verify_hf
from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError
from megatron_native.training.boundaries import TOLERANCE, assert_boundaries
from megatron_native.training.import_gate import TOLERANCES, check_masters, compare_running
from megatron_native.training.qualify.session import (
    Built,
    GradientComparison,
    built,
    compare_gradients,
    gradients_of,
    random_micro_batches,
    train,
)
from megatron_native.training.qualify.task import Task
from megatron_native.training.qualify.verdict import Measure, RungResult, judged, not_run
from megatron_native.training.step import compute_gradients

OVERLAP_LIMITS = {"fp32": 1e-5, "bf16": 1e-2}
"""Relative, of gradients and losses with overlaps on against off: the same sums, at most in another order."""
FUSED_LIMIT = 2e-2
"""Relative error of a parameter's gradient: megatron-core's fused kernel rounds the gradient of logits to BF16 (2⁻⁹)."""
FP8_LOSS_LIMIT = 2e-2
"""Relative difference of a step's loss, FP8 against BF16, over a few steps of a slice with random weights."""
FP8_COSINE_LIMIT = 0.95
"""Cosine of FP8's and BF16's gradients, all parameters as one vector."""


def logits(task: Task) -> RungResult:
    """The built model's logits against transformers'."""
    run = task.own or task.run
    assert run.model.checkpoint is not None
    path = run.model.checkpoint / layout.REFERENCE_LOGITS_FILE
    if not path.is_file():
        return not_run(
            "logits", f"{run.model.checkpoint} has no {layout.REFERENCE_LOGITS_FILE}: import the model again"
        )
    references = load_reference_logits(path)
    with built(run, task.platform) as one:
        figures = compare_running(one.model, references, task.platform.device)
        spec = one.model.configs.layer_spec
    largest, log_probability, rms = (float(figures[:, column].max()) for column in range(3))
    divergence, disagreement = float(figures[:, 3].mean()), float(figures[:, 4].mean())
    limits = TOLERANCES["fp32" if run.training.precision == "fp32" else "bf16"]
    measures = [
        Measure("max |Δ logit|", largest, limits.logit),
        Measure("max |Δ log-probability|", log_probability, limits.log_probability),
        Measure("RMS Δ log-probability", rms, limits.rms_log_probability),
        Measure("mean KL", divergence, limits.mean_kl),
        Measure("top-1 agreement", 1 - disagreement, limits.top1_agreement, at_least=True),
    ]
    return judged(
        "logits", measures, f"{spec} layers in {run.training.precision}, {len(references)} texts, {task.weights}"
    )


def boundaries(task: Task) -> RungResult:
    """One document of a packed sequence changed: the losses of the others stay."""
    precision: Literal["fp32", "bf16"] = "fp32" if task.run.training.precision == "fp32" else "bf16"
    with built(task.run, task.platform) as one:
        length = task.run.data.seq_length
        try:
            worst = assert_boundaries(one.model.chunks, one.shape.vocab_size, length, precision, task.platform.device)
        except UserError as error:
            return RungResult("boundaries", "failed", message=str(error))
    measure = Measure("max |Δ loss| of other documents", worst, TOLERANCE[precision])
    return judged("boundaries", [measure], f"packed (THD) sequence of {length} tokens")


def cross_entropy(task: Task) -> RungResult:
    """Gradients under megatron-core's fused cross entropy against those under its plain one."""
    with built(task.run, task.platform) as one:
        config = one.model.configs.transformer
        found = {}
        for fused in (False, True):
            config.cross_entropy_loss_fusion = fused
            found[fused] = _gradients(one)
        comparison = compare_gradients(found[True][0], found[False][0])
    loss = abs(found[True][1] - found[False][1]) / abs(found[False][1])
    measures = [
        Measure("max relative error of a gradient", comparison.worst, FUSED_LIMIT),
        Measure("relative Δ loss", loss, 1e-3),
    ]
    kernel = "compiled" if task.platform.name == "cuda" else "the kernel's code, not compiled, on the CPU"
    return judged("cross-entropy", measures, f"worst: {comparison.parameter}; {kernel}")


def masters(task: Task) -> RungResult:
    """The optimizer's FP32 masters against the weights, and the weights against the Hugging Face folder, by bits."""
    run = task.own or task.run
    if task.fp8:  # as it will be trained: weights that are kept in FP8 must not be what the masters come from
        run = with_sections(run, "masters", training={"precision": "fp8"})
    with built(run, task.platform) as one:
        try:
            result = check_masters(one.model, run.model.checkpoint)
        except UserError as error:
            return RungResult("masters", "failed", message=str(error))
    different = 0
    if task.own is None:
        found = [0]
        if task.platform.is_main:
            verification = verify_hf(task.folder / "checkpoint", task.folder / "hf", logits=False)
            found = [len(verification.different) + len(verification.missing) + len(verification.shapes)]
        dist.broadcast_object_list(found, src=0)
        different = found[0]
    measures = [
        Measure("masters that differ from their weight", 0, 0),
        Measure("tensors that differ from Hugging Face", different, 0),
    ]
    if result.values:
        measures.append(Measure("values compared", result.values, 1, at_least=True))
    return judged("masters", measures, f"{result.message}; {task.weights}")


def overlaps(task: Task) -> RungResult:
    """Training with communication overlapped against training without: gradients of a step, losses of a short run."""
    on = {
        "overlap_grad_reduce": True,
        "overlap_param_gather": True,
        "tp_comm_overlap": task.overlapped.parallel.tp_comm_overlap and task.platform.name == "cuda",
    }
    runs = {"on": with_sections(task.run, "overlaps-on", parallel=on), "off": with_sections(task.run, "overlaps-off")}
    found, curves = {}, {}
    for name, run in runs.items():
        with built(run, task.platform) as one:
            found[name] = _gradients(one)
        curves[name] = train(run, task.platform)
    comparison = compare_gradients(found["on"][0], found["off"][0])
    limit = OVERLAP_LIMITS["fp32" if task.run.training.precision == "fp32" else "bf16"]
    measures = [
        Measure("max relative error of a gradient", comparison.worst, limit),
        Measure(f"max relative Δ loss of {len(curves['off'])} steps", _worst(curves["on"], curves["off"]), limit),
    ]
    tried = ", ".join(name for name, value in on.items() if value)
    return judged("overlaps", measures, f"{tried}; worst: {comparison.parameter}")


def fp8(task: Task) -> RungResult:
    """FP8 against BF16: gradients of the first step, losses of a short run; and FP8 has to make a difference."""
    comparison, curves = _against_bf16(task)
    steps = len(curves["bf16"])
    different = sum(curves["fp8"].get(step) != loss for step, loss in curves["bf16"].items())
    measures = [
        Measure(f"max relative Δ loss of {steps} steps", _worst(curves["fp8"], curves["bf16"]), FP8_LOSS_LIMIT),
        Measure("cosine of gradients", comparison.cosine, FP8_COSINE_LIMIT, at_least=True),
        Measure("steps whose loss FP8 changes", different, 1, at_least=True),
    ]
    how = (
        "Transformer Engine" if task.platform.name == "cuda" else "emulated on the CPU: says nothing of a GPU's kernels"
    )
    return judged("fp8", measures, f"recipe {task.run.fp8.recipe}, {how}; worst: {comparison.parameter}")


def _against_bf16(task: Task) -> tuple[GradientComparison, dict[str, dict[int, float]]]:
    found, curves = {}, {}
    for precision in ("bf16", "fp8"):
        run = with_sections(task.run, f"fp8-{precision}", training={"precision": precision})
        with built(run, task.platform) as one:
            found[precision] = _gradients(one)[0]
        curves[precision] = train(run, task.platform)
    return compare_gradients(found["fp8"], found["bf16"]), curves


def _gradients(one: Built) -> tuple[dict[str, Tensor], float]:
    """Gradients and loss of the same micro-batches each time.

    They are computed twice: in the first batch megatron-core only counts gradients, and overlaps nothing yet.
    """
    count = 2 * one.run.parallel.pipeline_model_parallel_size
    for chunk in one.model.chunks:
        chunk.train()
    batches = random_micro_batches(one, count)
    compute_gradients(one.model.chunks, one.model.optimizer, batches, one.platform.device)
    result = compute_gradients(one.model.chunks, one.model.optimizer, batches, one.platform.device)
    return gradients_of(one.model), result.loss


def with_sections(run: RunConfig, name: str, **sections: Mapping[str, object]) -> RunConfig:
    """A run of its own folder with sections changed."""
    settings = run.model_dump()
    settings["run_dir"] = run.run_dir.parent / name
    for section, values in sections.items():
        settings[section] |= values
    return RunConfig.model_validate(settings)


def _worst(found: dict[int, float], expected: dict[int, float]) -> float:
    """Largest relative difference of two loss curves; inf where a step is missing."""
    if found.keys() != expected.keys() or not expected:
        return float("inf")
    return max(abs(found[step] - loss) / abs(loss) for step, loss in expected.items())
