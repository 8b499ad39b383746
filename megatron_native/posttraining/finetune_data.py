"""The sources of a fine-tuning as masked datasets of one run, and one held-out dataset of them all."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_native.data.dataset_files import DatasetFiles
from megatron_native.data.merge_datasets import merge_datasets
from megatron_native.data.preprocess import Execution
from megatron_native.documents.inputs import common_root, expand_inputs
from megatron_native.documents.parts import plan_parts
from megatron_native.documents.readers import read_part
from megatron_native.documents.records import ReadSettings, Refusal
from megatron_native.errors import UserError
from megatron_native.manifest import parameters_hash
from megatron_native.posttraining.chat_encoding import ChatEncoder
from megatron_native.posttraining.encode_conversations import HELD_OUT, HELDOUT_SUFFIX, PrepareSettings, is_held_out
from megatron_native.posttraining.finetune_run import HELDOUT, PreparedData
from megatron_native.posttraining.finetune_settings import FinetuneSettings
from megatron_native.posttraining.prepare import prepare

CHAT_TEMPLATE = "chat_template.jinja"
_ALL_HELDOUT = f"all_{HELDOUT}"
_LEAST_TO_HOLD_OUT = 10
_LARGEST_SHARE = 0.5
_BYTES_A_WORKER = 8 << 20


@dataclass(frozen=True)
class Conversations:
    """What there is to learn from and to measure by.

    Attributes:
        data: the datasets of the mixture.
        heldout: prefix of the held-out dataset, or None.
        digests: dataset name (`HELDOUT` for the held-out one) → hash of its files.
        account: `read` = `kept` + `dropped` + `quarantined`, by reason; `held_out` conversations; `inputs` and
            `heldout_inputs`, the files.
        encoder: tokenizer and template.
        own_template: whether the template is not the base's own.
        notes: what a person should know.
    """

    data: list[PreparedData]
    heldout: Path | None
    digests: dict[str, str]
    account: dict[str, Any]
    encoder: ChatEncoder
    own_template: bool
    notes: list[str] = field(default_factory=list)

    @property
    def template_hash(self) -> str:
        """sha256 of the chat template."""
        return self.encoder.template_hash

    @property
    def end_of_turn(self) -> int:
        """Id of the token that ends an answer."""
        return self.encoder.end_of_turn[0]

    def template_into(self, folder: Path) -> None:
        """Have a Hugging Face folder carry the template that was trained with."""
        if self.own_template:
            (folder / CHAT_TEMPLATE).write_text(self.encoder.template, encoding="utf-8")


def prepare_conversations(
    settings: FinetuneSettings, tokenizer: Path, folder: Path, seq_length: int, say: Callable[[str], None]
) -> Conversations:
    """Encode every source of the mixture into `folder`, and what is held out; what is there already is used.

    Args:
        settings: sources, template and what is held out.
        tokenizer: folder with the base's tokenizer.
        folder: where the datasets go.
        seq_length: a longer conversation is dropped.
        say: gets a line for each dataset.

    Raises:
        UserError: an input, the tokenizer or its template can't be used; a dataset was made with other parameters.
    """
    encoder = ChatEncoder(tokenizer, settings.template, settings.learn)
    share, notes = (0.0, []) if settings.heldout else _share(settings)
    counts, data, digests, heldout = Counter[str](), [], {}, []
    dropped, quarantined, inputs, heldout_inputs = Counter[str](), Counter[str](), [], []
    for source, name in zip(settings.data, _names(settings), strict=True):
        how = PrepareSettings(tokenizer, seq_length, settings.template, settings.learn, held_out=share)
        made = prepare([source.path], folder / name, how, _execution([source.path]), say)
        account = made.manifest["counts"]
        data.append(
            PreparedData(
                name, made.prefix, source.weight, account["kept"], made.manifest["tokens"], account["learned_tokens"]
            )
        )
        digests[name] = _digest(made.manifest)
        counts.update(read=account["read"], kept=account["kept"], held_out=account["dropped"].get(HELD_OUT, 0))
        dropped.update(account["dropped"])
        quarantined.update(account["quarantined"])
        inputs += made.manifest["inputs"]
        if made.heldout_prefix is not None:
            heldout.append(str(made.heldout_prefix))
    if settings.heldout:
        how = PrepareSettings(tokenizer, seq_length, settings.template, settings.learn)
        made = prepare(settings.heldout, folder / HELDOUT, how, _execution(settings.heldout), say)
        heldout.append(str(made.prefix))
        counts["held_out"], heldout_inputs = made.manifest["counts"]["kept"], made.manifest["inputs"]
    prefix = _joined(heldout, folder / _ALL_HELDOUT, say)
    if prefix is not None:
        manifest = DatasetFiles(prefix).manifest()
        assert manifest is not None
        digests[HELDOUT] = _digest(manifest)
    figures = {
        **{name: counts[name] for name in ("read", "kept", "held_out")}, "dropped": dict(dropped),
        "quarantined": dict(quarantined), "inputs": inputs, "heldout_inputs": heldout_inputs,
    }  # fmt: skip
    return Conversations(data, prefix, digests, figures, encoder, settings.template is not None, notes)


def _joined(prefixes: list[str], output: Path, say: Callable[[str], None]) -> Path | None:
    """One held-out dataset of those of all sources."""
    if len(prefixes) < 2:
        return Path(prefixes[0]) if prefixes else None
    return merge_datasets(prefixes, output, say=say).prefix


def _names(settings: FinetuneSettings) -> list[str]:
    """A name for each source, from its path; the order of a dataset's conversations is seeded by it."""
    names: list[str] = []
    for source in settings.data:
        stem = Path(source.path).name.split(".")[0]
        name = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in stem) or "data"
        others = [*names, HELDOUT, _ALL_HELDOUT]
        taken, number = {*others, *(f"{other}{HELDOUT_SUFFIX}" for other in others)}, 2
        chosen = name
        while {chosen, f"{chosen}{HELDOUT_SUFFIX}"} & taken:
            chosen, number = f"{name}-{number}", number + 1
        names.append(chosen)
    return names


def _share(settings: FinetuneSettings) -> tuple[float, list[str]]:
    """The share that is held out: the one asked for, more where so few conversations would leave none of a source.

    Which conversation is held out depends on its id; a look at the first ids says whether the share has any.
    """
    share, notes = settings.heldout_share, []
    if not share:
        return 0.0, []
    for source in settings.data:
        while (found := _any_held_out(source.path, share)) is False and share < _LARGEST_SHARE:
            share = min(2 * share, _LARGEST_SHARE)
        if not found:
            return 0.0, [
                f"nothing is held out: {source.path} has too few conversations for that; --heldout FILE names others."
            ]
    if share != settings.heldout_share:
        notes.append(
            f"{share:.0%} is held out and not {settings.heldout_share:.0%}, which would be no conversation at all."
        )
    return share, notes


def _any_held_out(path: str, share: float) -> bool | None:
    """Whether any conversation of a source is held out; None where there are too few to hold out any."""
    files = expand_inputs([path])
    reading, count, found = ReadSettings("", metadata=False), 0, False
    for part in plan_parts(files, common_root([path], files), "line", 1 << 40):
        for record in read_part(part, reading):
            if isinstance(record, Refusal):
                continue
            count, found = count + 1, found or is_held_out(record.id, share)
            if found and count >= _LEAST_TO_HOLD_OUT:
                return True
    return found if count >= _LEAST_TO_HOLD_OUT else None


def _execution(paths: tuple[str, ...] | list[str]) -> Execution:
    """As many processes as the inputs are worth."""
    size = sum(path.stat().st_size for path in expand_inputs(list(paths)))
    return Execution(workers=max(1, min(len(os.sched_getaffinity(0)), size // _BYTES_A_WORKER)))


def _digest(manifest: Mapping[str, Any]) -> str:
    """What tells a dataset from another: its tokens, documents and mask."""
    kinds = (".bin", ".idx", ".mask")
    outputs = [entry["xxh3_128"] for entry in manifest["outputs"] if entry["path"].endswith(kinds)]
    if len(outputs) != len(kinds):
        raise UserError(
            f"a manifest names {len(outputs)} files of a masked dataset, not {len(kinds)}: prepare it again."
        )
    return parameters_hash({"files": outputs})
