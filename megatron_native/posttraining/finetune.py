"""Fine-tuning from files of conversations to a Hugging Face folder, on the trainer of `pretrain`.

    OUTPUT/              the Hugging Face folder, with `finetune.json`: what it was made of
    OUTPUT.run/base      the imported base
    OUTPUT.run/data      masked datasets, one a source, and the held-out one
    OUTPUT.run/run.yaml  the run's configuration, complete; OUTPUT.run/run is its folder
    OUTPUT.run/asked.json  what was asked for: the same command with other settings is refused

Each part is there whole or not at all, and the trainer resumes exactly; so the same command goes on where it was.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_native.checkpoint import layout
from megatron_native.config.load import dump_run_config
from megatron_native.config.run import RunConfig
from megatron_native.errors import EXIT_DONE, UserError
from megatron_native.manifest import (
    build_manifest,
    file_digest,
    file_entry,
    parameter_differences,
    parameters_hash,
    read_manifest,
    write_json,
)
from megatron_native.posttraining.finetune_data import CHAT_TEMPLATE, Conversations, prepare_conversations
from megatron_native.posttraining.finetune_run import HELDOUT, Plan, check_run, finetune_run, given_setting
from megatron_native.posttraining.finetune_settings import DEFAULT_SEQ_LENGTH, FinetuneSettings
from megatron_native.training.early_stop import BestCheckpoint, read_best
from megatron_native.training.launch import FINISHED_FILE
from megatron_native.training.line_file import read_json_lines
from megatron_native.training.retention import checkpoint_folder, step_of

STAGE = "finetune"
RECORD = "finetune.json"
ASKED = "asked.json"
RUN_FILE = "run.yaml"
PACKAGES = ("torch", "megatron-core", "transformers", "safetensors")
_MAY_CHANGE = ("run_dir", "platform", "layer_spec", "model", "parallel", "checkpointing", "faults", "logging")
"""Sections that a rerun may change: where and in which layout a run goes on is no part of what it learns."""


@dataclass
class FinetuneResult:
    """How a fine-tuning ended.

    Attributes:
        output: the Hugging Face folder.
        exit_code: 0 done; 75 saved, wants to go on; 1 the trainer gave up.
        plan: how long the run was planned to be.
        account: conversations read, kept, dropped by reason.
        before, after: mean cross entropy per answer token of the held-out conversations, in nats, before the first step
            and of what was exported; None where nothing is held out.
        step: of the exported checkpoint.
        last_step: the step that the run ended after.
        ended_early: whether `evaluation.early_stop` ended it.
        skipped: the folder was there already, made by the same command.
        notes: what a person should know.
    """

    output: Path
    plan: Plan
    account: Mapping[str, Any]
    exit_code: int = EXIT_DONE
    before: float | None = None
    after: float | None = None
    step: int | None = None
    last_step: int | None = None
    ended_early: bool = False
    skipped: bool = False
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**vars(self), "output": str(self.output), "plan": self.plan.as_json(), "account": dict(self.account)}


def plan_finetune(settings: FinetuneSettings, say: Callable[[str], None]) -> FinetuneResult:
    """What a fine-tuning would come to; the conversations are encoded into a temporary folder, nothing else is written."""
    settings.check()
    tokenizer, length = _checked(settings)
    with tempfile.TemporaryDirectory(prefix="megatron-native-") as folder:
        found = prepare_conversations(settings, tokenizer, Path(folder), length, say)
        _, plan = finetune_run(settings, Path("base"), found.data, found.heldout, length)
    return FinetuneResult(settings.output, plan, found.account, notes=found.notes)


def finetune(
    settings: FinetuneSettings,
    say: Callable[[str], None],
    companions: Mapping[str, Any] | None = None,
    train: bool = True,
) -> FinetuneResult:
    """Import, prepare, train, export; what is there already is not done again.

    Args:
        settings: what is asked for.
        say: gets a line for each part.
        companions: files to put into the output, by name: a text, or what a JSON file holds.
        train: without, stop when everything is prepared: the run is in `OUTPUT.run/run.yaml`.

    Raises:
        UserError: something that was given is wrong; the output or its work folder was made with other settings.
    """
    settings.check()
    work = settings.work_folder
    _refuse_foreign_output(settings)
    tokenizer, length = _checked(settings)
    found = prepare_conversations(settings, tokenizer, work / "data", length, say)
    base = _imported(settings, work, say)
    begun = layout.read_json(work / ASKED) or {}
    run, plan = finetune_run(settings, base, found.data, found.heldout, length, begun.get("batch_multiple"))
    asked = _asked(settings, base, found, run, plan, companions or {})
    refuse_other_settings(work / ASKED, asked)
    write_json(work / ASKED, asked)
    result = FinetuneResult(settings.output, plan, found.account, notes=list(found.notes))
    if (settings.output / RECORD).is_file():
        return _as_recorded(result, settings.output)
    (work / RUN_FILE).write_text(dump_run_config(run), encoding="utf-8")
    if not train:
        return result

    from megatron_native.training.launch import launch_local

    say(f"training: {plan.steps} steps of {plan.batch} × {plan.seq_length} tokens; the run is {run.run_dir}")
    result.exit_code = launch_local(work / RUN_FILE, [], settings.processes)
    if result.exit_code != EXIT_DONE:
        return result
    _describe(result, settings, run)
    checkpoint = checkpoint_folder(run.run_dir, result.step or 0)
    _export(checkpoint, settings, found, base, say)
    for name, value in (companions or {}).items():
        if isinstance(value, str):
            (settings.output / name).write_text(value, encoding="utf-8")
        else:
            write_json(settings.output / name, value)
    write_json(settings.output / RECORD, _record(result, asked, checkpoint, settings))
    return result


def _checked(settings: FinetuneSettings) -> tuple[Path, int]:
    """The folder of the base's tokenizer and the tokens of context, when the settings fit the model."""
    base = settings.base
    if (base / layout.MODEL_FILE).is_file():
        layout.check_complete(base)
        tokenizer, model = base / layout.TOKENIZER_FOLDER, layout.read_model_config(base)
    elif (base / "config.json").is_file():
        from megatron_native.models.families import read_hf_config, to_model_config

        tokenizer, model = base, to_model_config(read_hf_config(base))
    else:
        raise UserError(
            f"--base {base} is neither a Hugging Face folder (config.json) nor a checkpoint ({layout.MODEL_FILE}): give one "
            "of them."
        )
    of_run = given_setting(settings, "data", "seq_length")
    if None not in (of_run, settings.seq_length) and of_run != settings.seq_length:
        raise UserError(
            f"--seq-length {settings.seq_length} and data.seq_length {of_run} say different things: give one."
        )
    length = of_run or settings.seq_length or min(DEFAULT_SEQ_LENGTH, model.max_position_embeddings)
    check_run(settings, model, length)
    return tokenizer, length


def _imported(settings: FinetuneSettings, work: Path, say: Callable[[str], None]) -> Path:
    """The checkpoint that the run begins with; an import that is there already is used."""
    if (settings.base / layout.MODEL_FILE).is_file():
        return settings.base
    from megatron_native.checkpoint.import_hf import import_hf

    result = import_hf(settings.base, work / "base", reference_logits=settings.reference_logits)
    if not result.skipped:
        say(f"imported {settings.base}: {result.tensors} tensors, {result.bytes / 1e9:.2f} GB")
    return result.checkpoint


def base_hash(checkpoint: Path) -> str:
    """What tells one base from another: the files it was imported from, or for a trained checkpoint its checksums."""
    manifest = read_manifest(checkpoint / layout.MANIFEST_FILE)
    if manifest is None:
        return file_digest(checkpoint / layout.CHECKSUMS_FILE)
    return parameters_hash({"inputs": [[entry["path"], entry["xxh3_128"]] for entry in manifest["inputs"]]})


def _asked(
    settings: FinetuneSettings, base: Path, found: Conversations, run: RunConfig, plan: Plan, companions: Mapping[str, Any]
) -> dict[str, Any]:  # fmt: skip
    """What decides the result, without places and layout; of the layout it began with, what its batch was fitted to."""
    values = run.model_dump(mode="json")
    for section in _MAY_CHANGE:
        values.pop(section)
    values["training"] = {
        key: value for key, value in values["training"].items() if key not in ("micro_batch_size", "stop_after")
    }
    values["evaluation"].pop("micro_batch_size")
    values["data"].pop("blend")
    values["data"].pop("index_cache")
    for heldout in values["evaluation"]["heldout"]:
        heldout.pop("path")
    data = {one.name: {"weight": one.weight, "dataset": found.digests[one.name]} for one in found.data}
    return {
        "base": base_hash(base), "data": data, "heldout": found.digests.get(HELDOUT), "export": settings.export,
        "template": found.template_hash, "batch_multiple": plan.batch_multiple, "run": values, **companions_asked(companions),
    }  # fmt: skip


def companions_asked(companions: Mapping[str, Any]) -> dict[str, Any]:
    """The part of what is asked for that says which companions: of a text, its hash."""
    shown = {
        name: parameters_hash({"text": value}) if isinstance(value, str) else value
        for name, value in companions.items()
    }
    return {"companions": shown}


def refuse_other_settings(path: Path, asked: Mapping[str, Any]) -> None:
    """Raise a `UserError` with what differs between `asked` and the same parts of what a work folder was begun with."""
    there = layout.read_json(path)
    differences = parameter_differences({name: there.get(name) for name in asked}, asked) if there is not None else []
    if differences:
        raise UserError(
            f"{path.parent} was begun with other settings: "
            + "; ".join(differences)
            + ". Put them back to go on, choose another output, or delete the folder to begin anew."
        )


def _refuse_foreign_output(settings: FinetuneSettings) -> None:
    """An output that this command did not make is left alone, before any work is done."""
    output, work = settings.output, settings.work_folder
    if (output / RECORD).is_file() and not (work / ASKED).is_file():
        raise UserError(f"{output} is finished, and {work}, which says of what, is gone: choose another output.")
    if output.is_dir() and any(output.iterdir()) and not (work / ASKED).is_file():
        raise UserError(f"{output} exists and was not made by finetune; choose another output, or delete it.")


def _as_recorded(result: FinetuneResult, output: Path) -> FinetuneResult:
    """What the output's own record says: everything is done."""
    record = layout.read_json(output / RECORD) or {}
    training = record.get("training", {})
    result.skipped, result.before, result.after = True, training.get("heldout_before"), training.get("heldout_after")
    result.step, result.last_step = training.get("step"), training.get("last_step")
    result.ended_early = bool(training.get("ended_early"))
    return result


def _describe(result: FinetuneResult, settings: FinetuneSettings, run: RunConfig) -> None:
    """Take from the run folder how the training went."""
    losses = {
        int(record["step"]): float(record["heldout"][HELDOUT]["loss"])
        for record in read_json_lines(run.run_dir / "metrics.jsonl")
        if HELDOUT in record.get("heldout", {})
    }
    finished = json.loads((run.run_dir / FINISHED_FILE).read_text(encoding="utf-8"))
    result.last_step, result.ended_early = int(finished["step"]), bool(finished.get("early_stop"))
    best: BestCheckpoint | None = read_best(run.run_dir) if settings.export == "best" else None
    result.step = best.step if best is not None else result.last_step
    if best is None and settings.export == "best" and run.evaluation.heldout:
        result.notes.append(
            f"{run.run_dir} has no best checkpoint (incidents.jsonl says whether a save failed): the last one is exported."
        )
    result.before, result.after = losses.get(0), losses.get(result.step)
    if result.before is not None and result.after is not None and not result.after < result.before:
        result.notes.append(
            f"the held-out loss did not fall ({result.before:.4f} before, {result.after:.4f} after): the base was no worse."
        )


def _export(
    checkpoint: Path, settings: FinetuneSettings, found: Conversations, base: Path, say: Callable[[str], None]
) -> None:
    from megatron_native.checkpoint.export_hf import MANIFEST, export_hf

    exported = export_hf(checkpoint, settings.output)
    say(f"exported step {step_of(checkpoint)} to {exported.folder}: {exported.bytes / 1e9:.2f} GB")
    found.template_into(settings.output)
    _end_answers(settings.output, found.end_of_turn)
    _amend_manifest(settings.output / MANIFEST, (CHAT_TEMPLATE, layout.GENERATION_CONFIG))


def _end_answers(folder: Path, end_of_turn: int) -> None:
    """Have generation end where answers do: `generation_config.json` names the token that ends a turn too."""
    path = folder / layout.GENERATION_CONFIG
    generation = layout.read_json(path) or {}
    config = layout.read_json(folder / "config.json") or {}
    named = generation.get("eos_token_id", config.get("eos_token_id"))
    there = named if isinstance(named, list) else [] if named is None else [named]
    if end_of_turn not in there:
        write_json(path, {**generation, "eos_token_id": [*there, end_of_turn] if there else end_of_turn})


def _amend_manifest(path: Path, names: tuple[str, ...]) -> None:
    """Have the export's manifest list these files as they are now."""
    manifest, folder = read_manifest(path), path.parent
    assert manifest is not None, "the export writes it"
    entries = {entry["path"]: entry for entry in manifest["outputs"]}
    entries.update({name: file_entry(folder / name, folder) for name in names if (folder / name).is_file()})
    write_json(path, {**manifest, "outputs": [entries[path] for path in sorted(entries)]})


def _record(
    result: FinetuneResult, asked: Mapping[str, Any], checkpoint: Path, settings: FinetuneSettings
) -> dict[str, Any]:
    """The lineage of the output."""
    output = settings.output
    outputs = [file_entry(path, output) for path in sorted(output.iterdir()) if path.is_file() and path.name != RECORD]
    counts = {key: result.account[key] for key in ("read", "kept", "dropped", "quarantined")}
    inputs = list(result.account["inputs"])
    how = {
        "plan": result.plan.as_json(), "step": result.step, "last_step": result.last_step, "ended_early": result.ended_early,
        "heldout_before": _number(result.before), "heldout_after": _number(result.after),
        "checkpoint": file_digest(checkpoint / layout.CHECKSUMS_FILE),
    }  # fmt: skip
    base = {"name": settings.base.resolve().name, "hash": asked["base"]}
    heldout = list(result.account["heldout_inputs"])
    return build_manifest(STAGE, asked, inputs, outputs, counts, PACKAGES, base=base, heldout=heldout, training=how)


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
