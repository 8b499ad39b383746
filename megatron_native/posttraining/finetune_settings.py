"""What a fine-tuning is asked to do: from the command line and a YAML file to checked settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from megatron_native.config.yaml_mapping import read_mapping
from megatron_native.errors import UserError

SECTION = "finetune"
"""Section of the YAML file that holds settings of this module; the others are those of a run."""
DEFAULT_SEQ_LENGTH = 4096


@dataclass(frozen=True)
class DataSource:
    """Files of conversations, and how often each of them is seen in an epoch of the mixture."""

    path: str
    """File, folder or glob."""
    weight: float = 1.0
    """2: twice an epoch; 0.5: half of them."""


@dataclass(frozen=True)
class FinetuneSettings:
    """What decides the result of a fine-tuning, and where it happens.

    Attributes:
        base: Hugging Face folder, or a checkpoint of this project.
        output: the Hugging Face folder to make.
        data: files of conversations.
        heldout: files of conversations to measure; empty: a share of the data.
        heldout_share: share of the data that is held out, by hash, where `heldout` names no files.
        epochs: how often every conversation of weight 1 is seen.
        conversations_per_step: about so many conversations go into an optimizer step.
        seq_length: tokens of context; None: the model's own, at most 4096.
        patience: evaluations without improvement after which the run ends; 0: never early.
        evaluations_per_epoch: how often the held-out conversations are measured.
        template: chat template instead of the base's own: `chatml`, `llama3`, or a file.
        learn: which answers of a conversation are learned: `all`, or the `last`.
        export: the checkpoint that becomes the output: where the held-out loss was lowest, or the last.
        reference_logits: record logits at import, with which the import gate compares.
        config: settings of the run, as in a run's YAML file, over this module's defaults.
        overrides: `section.key=value` over both.
        processes: how many the trainer starts on this machine.
        work: folder of everything in between; None: `OUTPUT.run`.
    """

    base: Path
    output: Path
    data: tuple[DataSource, ...] = ()
    heldout: tuple[str, ...] = ()
    heldout_share: float = 0.02
    epochs: float = 3.0
    conversations_per_step: int = 128
    seq_length: int | None = None
    patience: int = 4
    evaluations_per_epoch: float = 4
    template: str | None = None
    learn: Literal["all", "last"] = "all"
    export: Literal["best", "last"] = "best"
    reference_logits: bool = True
    config: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    processes: int = 1
    work: Path | None = None

    @property
    def work_folder(self) -> Path:
        """Where the imported base, the datasets and the run lie."""
        return self.work or self.output.with_name(f"{self.output.name}.run")

    def check(self) -> None:
        """Raise a `UserError` for values that can't be meant."""
        if not self.data:
            raise UserError("there is nothing to learn from: name files of conversations with --data.")
        for source in self.data:
            if not 0 < source.weight < math.inf:
                raise UserError(
                    f"--data {source.path}={source.weight:g}: a weight is a number above 0; without a file, leave it out."
                )
        for name, value, right in (
            ("--epochs", self.epochs, self.epochs > 0),
            ("--conversations-per-step", self.conversations_per_step, self.conversations_per_step > 0),
            ("--seq-length", self.seq_length, self.seq_length is None or self.seq_length > 0),
            ("--evaluations-per-epoch", self.evaluations_per_epoch, self.evaluations_per_epoch > 0),
            ("--nproc", self.processes, self.processes > 0),
        ):
            if not right or (value is not None and not math.isfinite(value)):
                raise UserError(f"{name} {value}: it must be a number above 0.")
        if self.patience < 0:
            raise UserError(f"--patience {self.patience}: give a number of evaluations, or 0 to never stop early.")
        if not 0 <= self.heldout_share < 1:
            raise UserError(f"--heldout-share {self.heldout_share}: give a share from 0 to below 1, such as 0.02.")
        if self.export not in ("best", "last"):
            raise UserError(f"--export {self.export}: choose best or last.")


def parse_source(text: str) -> DataSource:
    """`FILE` or `FILE=WEIGHT`; a file whose own name has such an ending is taken for what it is."""
    path, separator, weight = text.rpartition("=")
    if separator and not Path(text).exists():
        try:
            return DataSource(path, float(weight))
        except ValueError:
            pass
    return DataSource(text)


def read_settings_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The section `finetune` of a YAML file, as fields of `FinetuneSettings`, and the rest, which is a run's.

    Raises:
        UserError: the file is no YAML mapping, or the section has an unknown key or a value of the wrong kind.
    """
    raw = read_mapping(path, f"{SECTION}: {{epochs: 2}}", "--config")
    if not isinstance(raw.get(SECTION) or {}, dict):
        raise UserError(f"--config {path}: '{SECTION}:' must be a mapping, such as '{SECTION}: {{epochs: 2}}'.")
    section = raw.pop(SECTION, None) or {}
    known = {
        entry.name: str(entry.type) for entry in fields(FinetuneSettings) if entry.name not in ("config", "overrides")
    }
    for key, value in section.items():
        if key not in known:
            raise UserError(f"{path}: unknown key {SECTION}.{key}; known are {', '.join(known)}.")
        section[key] = _typed(f"{path}: {SECTION}.{key}", key, known[key], value)
    return section, raw


def with_overrides(settings: FinetuneSettings, given: Mapping[str, Any]) -> FinetuneSettings:
    """`settings` with those values of `given` that are not None."""
    return replace(settings, **{name: value for name, value in given.items() if value is not None})


def _typed(where: str, key: str, kind: str, value: Any) -> Any:
    if key in ("data", "heldout"):
        entries = value if isinstance(value, list) else [value]
        if key == "data":
            return tuple(_source(where, entry) for entry in entries)
        if not all(isinstance(entry, str) for entry in entries):
            raise UserError(f"{where} = {value!r}: name a file, or a list of files.")
        return tuple(entries)
    try:
        if value is None and "None" in kind:
            return None
        if "Path" in kind:
            return Path(value)
        if isinstance(value, bool) != kind.startswith("bool"):
            raise ValueError
        if kind.startswith(("bool", "Literal", "str")):
            if not isinstance(value, bool | str):
                raise ValueError
            return value
        number = float(value)
        if not math.isfinite(number) or (kind.startswith("int") and number != int(number)):
            raise ValueError
        return int(number) if kind.startswith("int") else number
    except (TypeError, ValueError):
        raise UserError(f"{where} = {value!r}: that is no value of this setting.") from None


def _source(where: str, entry: Any) -> DataSource:
    if isinstance(entry, str):
        return parse_source(entry)
    if isinstance(entry, dict) and isinstance(entry.get("path"), str) and set(entry) <= {"path", "weight"}:
        weight = entry.get("weight", 1.0)
        if isinstance(weight, int | float) and not isinstance(weight, bool):
            return DataSource(entry["path"], float(weight))
    raise UserError(f"{where}: {entry!r} is no file; write FILE, FILE=2.0, or {{path: FILE, weight: 2.0}}.")
