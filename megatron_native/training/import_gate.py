"""The gate before step 1: the model that is about to be trained is the model that was imported.

`check_import` sends the fixed texts through the running model, in its layout, its precision and by megatron-core's own
schedule, and compares the logits with those that transformers gave at import. `check_masters` compares the optimizer's
FP32 master weights with the weights, bit by bit: they are what training really updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.fp8_utils import is_float8tensor
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor
from torch.nn import Parameter

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.import_hf import STAGE as IMPORT_STAGE
from megatron_native.checkpoint.reference_logits import ReferenceText, load_reference_logits
from megatron_native.errors import UserError
from megatron_native.models.families import read_hf_config, to_model_config
from megatron_native.models.fp8_layers import bf16_everywhere
from megatron_native.models.rope import inverse_frequencies
from megatron_native.training.masters import masters_of, read_weights
from megatron_native.training.model import TrainableModel
from megatron_native.training.parameter_names import named_parameters

Precision = Literal["fp32", "bf16", "fp8"]

_WAY_OUT = (
    "Import the model again (import-hf), see whether verify-hf --megatron finds the same, or set model.import_gate=false to "
    "train it as it is."
)
_FREQUENCY_TOLERANCE = 1e-6
"""Relative; the frequencies are made by the same operations on every platform, so this is rounding and no more."""


@dataclass(frozen=True)
class Tolerances:
    """Up to where the running model counts as the imported one."""

    logit: float
    """Largest |Δ| of a logit, over the whole vocabulary at the last few positions of a text."""
    log_probability: float
    """Largest |Δ| of a log-probability in nats, over the recorded best tokens of every position."""
    rms_log_probability: float
    """Root mean square of the same differences of a text: rounding scatters, a fault shifts."""
    mean_kl: float
    """Mean of KL(recorded ‖ running) over those last positions, in nats."""
    top1_agreement: float
    """Share of all positions, at least, where no token beats the recorded best one."""


TOLERANCES: dict[Precision, Tolerances] = {
    "fp32": Tolerances(logit=1e-2, log_probability=1e-2, rms_log_probability=2e-3, mean_kl=1e-4, top1_agreement=0.99),
    "bf16": Tolerances(logit=1.5, log_probability=1.5, rms_log_probability=0.2, mean_kl=1e-2, top1_agreement=0.9),
    "fp8": Tolerances(logit=8.0, log_probability=10.0, rms_log_probability=1.5, mean_kl=0.25, top1_agreement=0.6),
}
"""Measured on five tiny models in several layouts and on SmolLM2-135M (30 layers), whose logits have standard deviations of
3.4 to 5.9: FP32 stays within 5e-5, 3e-5, 4e-6, 1e-11 and 1.0; BF16, whose rounding alone this is, within 0.55, 0.64, 0.10,
2.3e-3 and 0.963. Two layers or two norms in each other's place, shifted columns of a projection or twice the rope base go
beyond BF16's tolerances. What these can't tell from BF16's rounding, such as a norm's epsilon of 1e-6 for 1e-5, the comparison
of constants sees. `fp8` is for weights that are kept in FP8: emulated, in every layer and multiplied in BF16, they stay within
3.4, 4.3, 0.63, 0.10 and 0.778 on four tiny models and 2.9, 2.7, 0.43, 0.013 and 0.913 on SmolLM2-135M."""


@dataclass(frozen=True)
class TextComparison:
    """One text's logits through the running model against those recorded at import; the worst data-parallel replica's."""

    name: str
    max_logit_difference: float
    """Over every logit of the last few positions; inf for a NaN, as in the other figures."""
    max_log_probability_difference: float
    """In nats, over the recorded best tokens of all positions."""
    rms_log_probability_difference: float
    mean_kl: float
    """KL(recorded ‖ running) in nats, mean over the last few positions."""
    top1_agreement: float
    positions: int


@dataclass(frozen=True)
class GateResult:
    """What the gate found; the same on every rank."""

    texts: tuple[TextComparison, ...]
    """Empty where nothing was compared; `message` says why."""
    message: str
    """A line for the console."""

    @property
    def compared(self) -> bool:
        """Whether logits were compared."""
        return bool(self.texts)

    @property
    def max_logit_difference(self) -> float:
        """Largest |Δ| of a logit over all texts."""
        return max(text.max_logit_difference for text in self.texts)

    @property
    def max_log_probability_difference(self) -> float:
        """Largest |Δ| of a log-probability over all texts, in nats."""
        return max(text.max_log_probability_difference for text in self.texts)

    @property
    def mean_kl(self) -> float:
        """Mean over the texts of their mean KL, in nats."""
        return sum(text.mean_kl for text in self.texts) / len(self.texts)

    @property
    def top1_agreement(self) -> float:
        """Share of the positions of all texts."""
        agreed = sum(text.top1_agreement * text.positions for text in self.texts)
        return agreed / sum(text.positions for text in self.texts)


def check_import(model: TrainableModel, checkpoint: Path, device: torch.device, precision: Precision) -> GateResult:
    """Compare the running model with what was recorded when `checkpoint` was imported.

    An FP8 run is compared in BF16 arithmetic; where its weights are kept in FP8, with wider tolerances.
    Collective: every rank of the run calls it, in any layout. Weights, random generators and the train mode of the
    chunks are left as they were. Besides the logits, the norms' epsilon and the rotary frequencies are compared with
    `run/hf/config.json`; without recorded logits, only these. Nothing is compared with a checkpoint that was trained since
    its import: the logits that travel with it are the imported model's. The result's message says so.

    Raises:
        UserError: on every rank, when a figure is beyond its tolerance or a constant of the model differs from
            `run/hf/config.json`.
    """
    if not _is_import(checkpoint):
        return GateResult(
            (), f"warning: import gate: {checkpoint} was trained since its import, so nothing is compared"
        )
    _refuse_everywhere(
        f"{checkpoint}: the model about to be trained is not the imported one: ",
        _check_constants(model.modules, checkpoint),
    )
    path = checkpoint / layout.REFERENCE_LOGITS_FILE
    if not path.is_file():
        return GateResult(
            (), f"warning: import gate: {checkpoint} has no {layout.REFERENCE_LOGITS_FILE}, so logits are not compared"
        )
    references = load_reference_logits(path)
    config = model.configs.transformer
    if precision == "fp8":
        # What FP8 does to a product is the conscience's business; here it would hide a fault of a norm or a projection.
        precision = "fp8" if config.fp8_param else "bf16"
        with bf16_everywhere(config, model.modules):
            figures = compare_running(model, references, device)
    else:
        figures = compare_running(model, references, device)
    result = _result(references, figures)
    refusal = _refusal(result, checkpoint, precision)
    if refusal:
        raise UserError(refusal)
    return result


def compare_running(model: TrainableModel, references: Sequence[ReferenceText], device: torch.device) -> Tensor:
    """Each text's figures under the running model, float64 [texts, 5], known to every rank.

    Columns: largest |Δ| of logits, largest and RMS |Δ| of log-probabilities, mean KL, share of positions whose best
    token is *not* the recorded one; each the worst of the data-parallel replicas, inf for a NaN.
    """
    figures = torch.full((len(references), 5), -math.inf, dtype=torch.float64, device=device)
    modes = [chunk.training for chunk in model.chunks]
    for chunk in model.chunks:
        chunk.eval()
    try:
        with torch.no_grad():
            for index, found in _forward(model, references, device):
                figures[index] = found
    finally:
        for chunk, mode in zip(model.chunks, modes):
            chunk.train(mode)
    figures = figures.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)
    dist.all_reduce(figures, op=dist.ReduceOp.MAX)
    return figures


def _forward(
    model: TrainableModel, references: Sequence[ReferenceText], device: torch.device
) -> list[tuple[int, Tensor]]:
    """Every text through the pipeline schedule; on the last stage its number and its figures, [5]."""
    config = model.configs.transformer
    multiple = config.tensor_model_parallel_size if config.sequence_parallel else 1
    length = math.ceil(max(len(text.ids) for text in references) / multiple) * multiple
    numbers = list(range(len(references)))
    if len(model.chunks) > 1:  # the interleaved schedule wants a multiple of the pipeline's size
        numbers += [numbers[-1]] * (-len(numbers) % config.pipeline_model_parallel_size)
    # Causal attention: what is filled up at the end is seen by no position of the text.
    tokens = [torch.nn.functional.pad(text.ids, (0, length - len(text.ids)))[None] for text in references]
    positions = torch.arange(length, device=device)[None]

    def step(batches: Iterator[int], chunk: Any) -> tuple[Tensor, Any]:
        number = next(batches)
        logits = chunk(tokens[number].to(device), positions, None)
        return logits, partial(_compare, number, references[number])

    iterators = [iter(numbers) for _ in model.chunks]
    return list(
        get_forward_backward_func()(
            forward_step_func=step,
            data_iterator=iterators if len(iterators) > 1 else iterators[0],
            model=list(model.chunks),
            num_microbatches=len(numbers),
            seq_length=length,
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    )


def _compare(number: int, text: ReferenceText, logits: Tensor, non_loss_data: bool = True) -> tuple[int, Tensor]:
    """Figures of one text from `logits` [1, length, vocabulary / TP] of this rank of the last stage; collective in TP."""
    group = parallel_state.get_tensor_model_parallel_group()
    text = ReferenceText(text.name, *(getattr(text, part).to(logits.device) for part in _TENSORS))
    local = logits[0, : len(text.ids)].float()
    vocabulary, partition = text.logits.shape[1], local.shape[1]
    first = parallel_state.get_tensor_model_parallel_rank() * partition
    local = local.masked_fill(torch.arange(first, first + partition, device=local.device) >= vocabulary, -math.inf)

    best = local.amax(-1)
    dist.all_reduce(best, op=dist.ReduceOp.MAX, group=group)
    total = (local - best[:, None]).exp().sum(-1)
    dist.all_reduce(total, group=group)
    there = text.top_ids - first
    top = torch.where(
        (there >= 0) & (there < partition),
        local.gather(1, there.clamp(0, partition - 1)),
        torch.zeros((), device=local.device),
    )
    dist.all_reduce(top, group=group)
    rows = local[text.positions].contiguous()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, rows, group=group)
    rows = torch.cat(parts, dim=1)[:, :vocabulary]

    expected = text.logits.double().log_softmax(-1)
    divergence = (expected.exp() * (expected - rows.double().log_softmax(-1))).sum(-1).mean().clamp(min=0)
    log_probabilities = top - best[:, None] - total.log()[:, None]
    difference = (log_probabilities - (text.top_logits - text.logsumexp[:, None])).double()
    figures = (
        (rows - text.logits).abs().max().double(),
        difference.abs().max(),
        difference.square().mean().sqrt(),
        divergence,
        1 - (top[:, 0] >= best).double().mean(),
    )
    return number, torch.stack(figures)


_TENSORS = tuple(field for field in ReferenceText.__dataclass_fields__ if field != "name")


def _result(references: Sequence[ReferenceText], figures: Tensor) -> GateResult:
    texts = []
    for text, (logit, log_probability, rms, divergence, disagreement) in zip(references, figures.tolist()):
        agreement = max(0.0, 1 - disagreement)
        texts.append(TextComparison(text.name, logit, log_probability, rms, divergence, agreement, len(text.ids)))
    result = GateResult(tuple(texts), "")
    message = (
        f"import gate: {len(texts)} texts, {sum(text.positions for text in texts)} positions: max |Δ| of logits "
        f"{result.max_logit_difference:.1e}, of log-probabilities {result.max_log_probability_difference:.1e}, KL "
        f"{result.mean_kl:.1e}, top-1 agreement {result.top1_agreement:.4f}"
    )
    return GateResult(tuple(texts), message)


def _refusal(result: GateResult, checkpoint: Path, precision: Precision) -> str | None:
    """What is beyond its tolerance and what to do about it; None where nothing is."""
    limits = TOLERANCES[precision]
    beyond = []
    largest: tuple[tuple[str, str, float], ...] = (
        ("max |Δ| of logits", "max_logit_difference", limits.logit),
        ("max |Δ| of log-probabilities", "max_log_probability_difference", limits.log_probability),
        ("RMS Δ of log-probabilities", "rms_log_probability_difference", limits.rms_log_probability),
    )
    for words, field, limit in largest:
        worst = max(result.texts, key=lambda text: getattr(text, field))
        if getattr(worst, field) > limit:
            beyond.append(f"{words} {getattr(worst, field):.3g} on the text '{worst.name}' (at most {limit:g})")
    if result.mean_kl > limits.mean_kl:
        beyond.append(f"mean KL {result.mean_kl:.3g} nats (at most {limits.mean_kl:g})")
    if result.top1_agreement < limits.top1_agreement:
        beyond.append(f"top-1 agreement {result.top1_agreement:.4f} (at least {limits.top1_agreement:g})")
    if not beyond:
        return None
    return (
        f"{checkpoint}: the model about to be trained, in {precision}, does not compute what was imported: "
        f"{'; '.join(beyond)}. {_WAY_OUT}"
    )


def _is_import(checkpoint: Path) -> bool:
    """Whether the weights are as they were imported: a checkpoint of training carries no manifest of an import."""
    manifest = layout.read_json(checkpoint / layout.MANIFEST_FILE)
    return manifest is not None and manifest.get("stage") == IMPORT_STAGE


def _check_constants(modules: Sequence[Any], checkpoint: Path) -> str | None:
    """The first constant of this process's chunks that differs from the imported `config.json`; None where none does."""
    expected = to_model_config(read_hf_config(checkpoint / layout.HF_FOLDER))
    for module in modules:
        for name, part in module.named_modules():
            epsilon = getattr(part, "eps", None)
            if isinstance(epsilon, float) and epsilon != expected.norm_epsilon:
                return (
                    f"the norm {name} has epsilon {epsilon:g}, but {layout.HF_CONFIG_FILE} says rms_norm_eps = "
                    f"{expected.norm_epsilon:g}"
                )
        frequencies = module.rotary_pos_emb.inv_freq
        imported = inverse_frequencies(expected).to(frequencies.device)
        if frequencies.shape != imported.shape or not torch.allclose(
            frequencies.float(), imported, rtol=_FREQUENCY_TOLERANCE, atol=0.0
        ):
            return (
                f"the rotary frequencies are not those of {layout.HF_CONFIG_FILE} (base {expected.rotary_base:g}"
                f"{', scaled' if expected.rope_scaling else ''})"
            )
    return None


@dataclass(frozen=True)
class MastersResult:
    """What `check_masters` found; the same on every rank."""

    values: int
    """Master values compared, summed over all ranks: those that tensor-parallel ranks hold alike count on each."""
    message: str
    """A line for the console."""


def check_masters(model: TrainableModel, checkpoint: Path | None = None) -> MastersResult:
    """Check that every FP32 master is bit-equal to its model weight as float32.

    Right after an import, before step 1, the model's weights are the Hugging Face ones, so the masters must be too.
    Weights that are kept in FP8 have lost bits that the masters must have: then the weights are read from the checkpoint
    once more. Collective. The distributed optimizer's masters are this rank's shards; an FP32 run without it has none.

    Args:
        model: what is about to be trained.
        checkpoint: where its weights come from; needed where they are kept in FP8.

    Raises:
        UserError: on every rank, naming a parameter whose master differs; or weights are FP8 and there is no checkpoint.
    """
    names = named_parameters(model.modules)
    exact: dict[Parameter, Tensor] = {}
    if checkpoint is not None and model.configs.transformer.fp8 and model.configs.transformer.fp8_param:
        exact = read_weights(checkpoint, model.modules)[1]
    against = f"weight in {checkpoint}" if exact else "weight"
    problem, values = None, 0
    for weight, part, master in masters_of(model.optimizer):
        if problem is None and is_float8tensor(weight) and weight not in exact:
            problem = f"{names[weight]} is an FP8 weight, by which its master can't be checked"
            continue
        expected = exact.get(weight, weight).detach().view(-1)[part].float()
        values += expected.numel()
        found = master.detach().view(-1)
        differing = int((expected.view(torch.int32) != found.view(torch.int32)).sum())
        if differing and problem is None:
            worst = float((expected - found).abs().max())
            problem = (
                f"{differing:,} of {expected.numel():,} values of {names[weight]} differ from the {against}, by up to "
                f"{worst:.3g}"
            )
    _refuse_everywhere("the optimizer's FP32 master weights don't pass: ", problem)
    total = torch.tensor(values, device=next(iter(names)).device)
    dist.all_reduce(total)
    if not total:
        return MastersResult(0, "masters: none, the FP32 weights themselves are updated")
    return MastersResult(int(total), f"masters: {int(total):,} FP32 values equal the weights bit by bit")


def _refuse_everywhere(beginning: str, problem: str | None) -> None:
    """Raise `UserError` on every rank when any has a problem, with the first one's after `beginning`."""
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    first = next((text for text in problems if text is not None), None)
    if first is not None:
        raise UserError(f"{beginning}{first}. {_WAY_OUT}")
