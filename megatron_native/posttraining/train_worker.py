"""From seed pairs to a worker: conversations as `rewrite` holds them, a fine-tuning, and `worker.json` beside the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_native.alignment.backends.worker import PROMPT_FILE, PROMPT_FORMAT
from megatron_native.alignment.prompts import prompt_hash
from megatron_native.errors import UserError
from megatron_native.posttraining.finetune import FinetuneResult, finetune, plan_finetune
from megatron_native.posttraining.finetune_settings import DataSource, FinetuneSettings
from megatron_native.posttraining.worker_seeds import SeedFiles, SeedSettings, write_conversations


@dataclass(frozen=True)
class WorkerResult:
    """A fine-tuning, and the pairs that it was made of."""

    training: FinetuneResult
    seeds: SeedFiles

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**self.training.as_json(), "seeds": self.seeds.as_json()}


def train_worker(
    seeds: list[str],
    pairs: SeedSettings,
    settings: FinetuneSettings,
    say: Callable[[str], None],
    *,
    train: bool = True,
    dry_run: bool = False,
) -> WorkerResult:
    """Make conversations of the seeds and fine-tune the base on them.

    Args:
        seeds: files, folders or globs of pairs.
        pairs: how they become conversations.
        settings: of the fine-tuning; its data and what is held out come from the seeds.
        say: gets a line for each part.
        train: without, stop when everything is prepared.
        dry_run: only work out how long it would be.

    Raises:
        UserError: something that was given is wrong.
    """
    import tempfile

    if settings.data or settings.heldout:
        raise UserError("train-worker learns from --seeds; for other conversations use megatron-native finetune.")
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="megatron-native-") as folder:
            written = write_conversations(seeds, Path(folder), pairs)
            return WorkerResult(plan_finetune(_with_files(settings, written), say), written)
    written = write_conversations(seeds, settings.work_folder / "seeds", pairs)
    description = {PROMPT_FILE: worker_description(pairs, written)}
    return WorkerResult(finetune(_with_files(settings, written), say, description, train), written)


def worker_description(pairs: SeedSettings, written: SeedFiles) -> dict[str, Any]:
    """What `worker.json` says: with which prompt the worker was trained, so that `rewrite` can send the same."""
    return {
        "format": PROMPT_FORMAT,
        "conduct": {"name": pairs.conduct.name, "hash": pairs.conduct.hash},
        "form": pairs.form,
        "language": pairs.language,
        "detail": pairs.detail,
        "prompt_hash": prompt_hash(pairs.conduct, pairs.form, pairs.language, detail=pairs.detail),
        "context_tokens": 0,
        "rules": pairs.rules,
        "seeds": {"pairs": written.learned, "held_out": written.held_out},
    }


def _with_files(settings: FinetuneSettings, written: SeedFiles) -> FinetuneSettings:
    heldout = () if written.heldout is None else (str(written.heldout),)
    return replace(settings, data=(DataSource(str(written.train)),), heldout=heldout, heldout_share=0.0)
