"""From prepared datasets to the configuration of a run: how long, how large a batch, how often to look.

Nothing is trained here and no torch is needed: sequences are counted as the trainer will cut them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from megatron_native.config.layout import check_layout
from megatron_native.config.load import apply_overrides, validate_run_config
from megatron_native.config.merge import merged
from megatron_native.config.model import ModelConfig
from megatron_native.config.presets import over_preset
from megatron_native.config.run import RunConfig
from megatron_native.errors import UserError
from megatron_native.posttraining.finetune_settings import FinetuneSettings

LEARNING_RATE = 1e-5
MIN_LR_SHARE = 0.1
WARMUP_SHARE = 0.03
LEAST_STEPS_PER_EPOCH = 8
"""A batch is no larger than leaves an epoch so many steps: few conversations are not learned in two large steps."""
MOST_EVALUATIONS = 50
"""A run of many short epochs is not measured, and saved, after every step."""
SOURCE = "the run of this fine-tuning"
_MANY_STEPS = 1_000_000
HELDOUT = "conversations"
"""Name of the held-out set in metrics."""


@dataclass(frozen=True)
class PreparedData:
    """One masked dataset of the mixture.

    Attributes:
        name: what it is called in the run.
        prefix: of its `.bin`, `.idx` and `.mask`.
        weight: how often each of its conversations is seen in an epoch.
        conversations, tokens, learned_tokens: how many it has.
    """

    name: str
    prefix: Path
    weight: float
    conversations: int
    tokens: int
    learned_tokens: int


@dataclass(frozen=True)
class Plan:
    """How long a fine-tuning is.

    Attributes:
        conversations: of the mixture, in an epoch: those of weight 2 count twice.
        tokens: their tokens; learned_tokens: those of answers.
        sequences: that an epoch is packed into.
        fill: share of the sequences' room that holds tokens.
        batch: sequences a step.
        steps: optimizer steps.
        epochs: that the steps come to.
        evaluation_interval: steps between evaluations; 0 where nothing is held out.
        batch_multiple: what the batch was made a multiple of, for the layout that the run begins in.
    """

    conversations: float
    tokens: float
    learned_tokens: float
    sequences: float
    fill: float
    seq_length: int
    batch: int
    steps: int
    epochs: float
    evaluation_interval: int
    batch_multiple: int

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def sequences_in_an_epoch(prefix: Path, seq_length: int, seed: int, name: str, packing: str) -> int:
    """How many sequences one pass over a dataset is packed into."""
    from megatron_native.data.indexed import IndexedTokens
    from megatron_native.data.sequence_index import SequenceIndex

    return SequenceIndex(IndexedTokens(prefix), seq_length, seed, name, packing).sequences_in(0)


def finetune_run(
    settings: FinetuneSettings, checkpoint: Path, data: Sequence[PreparedData], heldout: Path | None, seq_length: int,
    batch_multiple: int | None = None,
) -> tuple[RunConfig, Plan]:  # fmt: skip
    """The run of a fine-tuning, complete and checked, and how long it is.

    Args:
        settings: what was asked for; its `config` and `overrides` win over every value that is worked out here.
        checkpoint: the imported base; it may not be there yet.
        data: the mixture.
        heldout: prefix of the held-out masked dataset, if there is one.
        seq_length: tokens of context, unless the run's settings say otherwise.
        batch_multiple: of the plan that is gone on with, whatever layout it goes on in; None: the layout's own.

    Raises:
        UserError: the settings of the run are wrong, or leave nothing to train.
    """
    asked = _with_settings(_defaults(settings, checkpoint, data, heldout, seq_length, 1, 1), settings)
    length, packing = int(asked["data"]["seq_length"]), str(asked["data"]["packing"])
    counts = [
        sequences_in_an_epoch(one.prefix, length, int(asked.get("seed", 1234)), one.name, packing) * one.weight
        for one in data
    ]
    sequences = sum(counts)
    conversations = sum(one.conversations * one.weight for one in data)
    if not sequences:
        raise UserError("the conversations give no sequence to train on: look at the account of what was dropped.")
    multiple = batch_multiple or _batch_multiple(settings, asked)
    batch = given_setting(settings, "training", "global_batch_size") or _batch(
        settings, multiple, conversations, sequences
    )
    steps = given_setting(settings, "training", "steps") or max(1, math.ceil(settings.epochs * sequences / batch))
    interval = max(1, round(sequences / batch / settings.evaluations_per_epoch), math.ceil(steps / MOST_EVALUATIONS))
    blend = [replace(one, weight=count) for one, count in zip(data, counts, strict=True)]
    raw = _defaults(settings, checkpoint, blend, heldout, seq_length, batch, steps, min(interval, steps), asked)
    config = validate_run_config(_with_settings(raw, settings), SOURCE)
    tokens = sum(one.tokens * one.weight for one in data)
    real = config.training.steps or 0
    plan = Plan(
        conversations, tokens, sum(one.learned_tokens * one.weight for one in data), sequences,
        tokens / (sequences * config.data.seq_length), config.data.seq_length, config.training.global_batch_size, real,
        real * config.training.global_batch_size / sequences, config.evaluation.interval, multiple,
    )  # fmt: skip
    return config, plan


def check_run(settings: FinetuneSettings, model: ModelConfig, seq_length: int) -> None:
    """Refuse settings of the run that can't be, before anything is encoded or imported.

    Raises:
        UserError: a key, a value or the layout is wrong.
    """
    data = [PreparedData(f"data-{n}", Path(f"data-{n}"), one.weight, 1, 1, 1) for n, one in enumerate(settings.data)]
    heldout = Path(HELDOUT) if settings.heldout or settings.heldout_share else None
    asked = _with_settings(_defaults(settings, Path("base"), data, heldout, seq_length, 1, 1), settings)
    batch = given_setting(settings, "training", "global_batch_size") or _batch(
        settings, _batch_multiple(settings, asked), 1.0, 1.0
    )
    raw = _defaults(settings, Path("base"), data, heldout, seq_length, batch, _MANY_STEPS, 1, asked)
    check_layout(validate_run_config(_with_settings(raw, settings), SOURCE), model, settings.processes)


def _batch(settings: FinetuneSettings, multiple: int, conversations: float, sequences: float) -> int:
    """Sequences a step: about the conversations asked for, at least eight steps an epoch, and what the layout divides."""
    wanted = settings.conversations_per_step * sequences / max(1.0, conversations)
    batch = max(1, min(round(wanted), int(sequences // LEAST_STEPS_PER_EPOCH)))
    return math.ceil(batch / multiple) * multiple


def _batch_multiple(settings: FinetuneSettings, asked: Mapping[str, Any]) -> int:
    """What a batch has to be a multiple of, so that the layout divides it."""
    parallel = asked["parallel"]
    tp, pp = (int(parallel.get(f"{kind}_model_parallel_size", 1)) for kind in ("tensor", "pipeline"))
    copies = max(1, settings.processes // (tp * pp))
    multiple = int(asked["training"]["micro_batch_size"]) * copies
    if parallel.get("virtual_pipeline_model_parallel_size"):
        multiple *= pp
    return multiple


def _defaults(
    settings: FinetuneSettings, checkpoint: Path, data: Sequence[PreparedData], heldout: Path | None, seq_length: int,
    batch: int, steps: int, interval: int = 1, asked: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """What a fine-tuning is where nobody says otherwise."""
    lr = LEARNING_RATE if asked is None else float(asked["optimizer"]["lr"])
    evaluation: dict[str, Any] = {}
    if heldout is not None:
        evaluation = {
            "heldout": [{"name": HELDOUT, "path": str(heldout), "kind": "conversations"}], "interval": interval,
        }  # fmt: skip
        evaluation["early_stop"] = {"set": HELDOUT, "patience": settings.patience or None}
    return {
        "run_dir": str(settings.work_folder / "run"),
        "model": {"checkpoint": str(checkpoint)},
        "data": {
            "blend": [{"prefix": str(one.prefix), "weight": one.weight, "name": one.name} for one in data],
            "seq_length": seq_length, "packing": "best_fit", "document_boundaries": True,
        },
        "parallel": {},
        "training": {"steps": steps, "micro_batch_size": 1, "global_batch_size": batch, "precision": "bf16"},
        "optimizer": {
            "lr": lr, "min_lr": lr * MIN_LR_SHARE, "schedule": "cosine",
            "warmup_steps": min(math.ceil(steps * WARMUP_SHARE), steps - 1),
        },
        "evaluation": evaluation,
        "checkpointing": {"save_interval": interval, "keep_last": 1},
    }  # fmt: skip


def _with_settings(defaults: dict[str, Any], settings: FinetuneSettings) -> dict[str, Any]:
    """The run's own settings over the defaults; a preset that they name lies under both."""
    raw = merged(defaults, settings.config)
    presets = apply_overrides(raw, [text for text in settings.overrides if text.startswith("preset=")])
    if presets.get("preset") is not None:
        raw = over_preset(presets["preset"], raw)
    raw = apply_overrides(raw, settings.overrides)
    if raw.get("phases"):
        raise UserError("a fine-tuning has no phases: its length is --epochs, or training.steps.")
    return raw


def given_setting(settings: FinetuneSettings, section: str, key: str) -> int | None:
    """A setting of the run that the user gave, or None."""
    over = [text for text in settings.overrides if text.startswith(f"{section}.{key}=")]
    value = (apply_overrides(dict(settings.config), over).get(section) or {}).get(key)
    return None if value is None else int(value)
