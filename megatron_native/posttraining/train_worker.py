"""From seed pairs to a worker: conversations as `rewrite` holds them, a fine-tuning, and `worker.json` beside the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_native.alignment.backends.worker import PROMPT_FILE, PROMPT_FORMAT
from megatron_native.alignment.conduct import conduct_names, load_conduct
from megatron_native.alignment.prompts import prompt_hash
from megatron_native.errors import UserError
from megatron_native.manifest import file_digest
from megatron_native.posttraining.finetune import (
    ASKED,
    FinetuneResult,
    companions_asked,
    finetune,
    plan_finetune,
    refuse_other_settings,
)
from megatron_native.posttraining.finetune_settings import DataSource, FinetuneSettings
from megatron_native.posttraining.worker_seeds import (
    HELDOUT_FILE,
    TRAIN_FILE,
    SeedFiles,
    SeedSettings,
    write_conversations,
)


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
    written = _written(seeds, pairs, settings.work_folder)
    companions = worker_companions(pairs, written)
    return WorkerResult(finetune(_with_files(settings, written), say, companions, train), written)


def _written(seeds: list[str], pairs: SeedSettings, work: Path) -> SeedFiles:
    """The conversations in `work/seeds`; those that something was made of already are not replaced by others.

    Raises:
        UserError: the work folder was begun with other seeds, or for another prompt.
    """
    folder, aside = work / "seeds", work / "seeds.partial"
    try:
        new = write_conversations(seeds, aside, pairs)
        refuse_other_settings(work / ASKED, companions_asked(worker_companions(pairs, new)))
        if any((work / "data").glob("*.manifest.json")):
            for name in (TRAIN_FILE, HELDOUT_FILE):
                if (folder / name).is_file() and file_digest(folder / name) != file_digest(aside / name):
                    raise UserError(
                        f"{folder / name} was made of other seeds, or with another prompt, and {work} goes on from it. Put "
                        "them back to go on, choose another output, or delete the folder to begin anew."
                    )
        folder.mkdir(parents=True, exist_ok=True)
        for name in (TRAIN_FILE, HELDOUT_FILE):
            (aside / name).replace(folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    heldout = None if new.heldout is None else folder / HELDOUT_FILE
    return replace(new, train=folder / TRAIN_FILE, heldout=heldout)


def worker_companions(pairs: SeedSettings, written: SeedFiles) -> dict[str, Any]:
    """What goes beside the weights: `worker.json` and, where it is no shipped one, the code of conduct as `NAME.yaml`."""
    description, conduct = worker_description(pairs, written), pairs.conduct
    if conduct.name in conduct_names() and load_conduct(conduct.name).hash == conduct.hash:
        return {PROMPT_FILE: description}
    file = f"{conduct.name}.yaml"
    return {PROMPT_FILE: description | {"conduct": description["conduct"] | {"file": file}}, file: conduct.as_yaml()}


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
