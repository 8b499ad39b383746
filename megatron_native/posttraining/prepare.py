"""The prepare stage: files of conversations in, a masked dataset with its manifest out, and one that is held out.

Tasks encode one part of the inputs each (`encode_conversations.py`); the parts are joined in the order of the inputs, so
that the bytes do not depend on the engine or its workers. Killed at any moment, the same command goes on from the parts
that are finished; a finished dataset is skipped; other parameters are refused.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from megatron_native import manifest as manifests
from megatron_native.data.dataset_files import DatasetFiles
from megatron_native.data.encode_part import part_file
from megatron_native.data.indexed import merge, token_dtype
from megatron_native.data.preprocess import LOCK, Execution, concatenate_files, input_manifests, only_run
from megatron_native.data.tokenizers import load_tokenizer
from megatron_native.documents.inputs import check_line_limit, common_root, expand_inputs
from megatron_native.documents.parts import plan_parts
from megatron_native.engine.tasks import Share
from megatron_native.errors import UserError
from megatron_native.posttraining.chat_encoding import ChatEncoder
from megatron_native.posttraining.encode_conversations import (
    HELD_OUT,
    HELDOUT_SUFFIX,
    TOO_LONG,
    ConversationAccount,
    PrepareSettings,
    SideAccount,
    encode_task,
    read_account,
)
from megatron_native.progress import progress

STAGE = "prepare"
PACKAGES = ("transformers", "tokenizers", "jinja2", "numpy", "orjson", "zstandard", "pyarrow")


@dataclass(frozen=True)
class PreparedDataset:
    """What the stage made, or found made.

    Attributes:
        prefix: of the masked dataset to train on.
        manifest: its manifest.
        heldout_prefix: of the masked dataset that is held out, or None.
        heldout_manifest: its manifest, or None.
        skipped: whether it was there already.
    """

    prefix: Path
    manifest: dict[str, Any]
    heldout_prefix: Path | None
    heldout_manifest: dict[str, Any] | None
    skipped: bool

    def summary(self) -> str:
        """The account, readable."""
        lines = []
        for prefix, manifest in ((self.prefix, self.manifest), (self.heldout_prefix, self.heldout_manifest)):
            if manifest is not None:
                counts = manifest["counts"]
                lines.append(
                    f"{prefix}.bin: {counts['kept']:,} conversations with {counts['answers']:,} answers, "
                    f"{manifest['tokens']:,} tokens, of which {counts['learned_tokens']:,} "
                    f"({counts['learned_tokens'] / manifest['tokens']:.0%}) are learned; the longest has "
                    f"{manifest['longest']:,}"
                )
        counts = self.manifest["counts"]
        for what, reasons in (("dropped", counts["dropped"]), ("quarantined", counts["quarantined"])):
            lines += [f"  {what}: {number:,} {reason}" for reason, number in sorted(reasons.items())]
        return "\n".join(lines)


def prepare(
    inputs: Sequence[str],
    output_prefix: str | Path,
    settings: PrepareSettings,
    execution: Execution | None = None,
    say: Callable[[str], None] = print,
) -> PreparedDataset:
    """Make of the conversations in the files that `inputs` (paths, globs, folders) name one masked dataset.

    `PREFIX.bin/.idx/.mask` with `.ids.jsonl.zst` and `.manifest.json`; the same under `PREFIX_heldout` with
    `settings.held_out`; `PREFIX_quarantine.jsonl.zst` where records were refused. The manifest's account: `read` =
    `kept` + `dropped` (too long, held out) + `quarantined`, each by reason.

    Raises:
        UserError: an input, tokenizer, template or output that can't be used, a dataset made with other parameters, no
            conversation left.
    """
    settings.check()
    check_line_limit(settings.max_line_bytes)
    return _PrepareStage(list(inputs), Path(output_prefix), settings, execution or Execution(), say).run()


class _PrepareStage:
    """One dataset's way from input files to finished manifests."""

    def __init__(
        self,
        inputs: list[str],
        prefix: Path,
        settings: PrepareSettings,
        execution: Execution,
        say: Callable[[str], None],
    ) -> None:
        self.files = expand_inputs(inputs)
        self.tasks = plan_parts(self.files, common_root(inputs, self.files), "line", settings.part_bytes)
        self.settings, self.execution, self.say = settings, execution, say
        self.target = DatasetFiles(prefix)
        self.heldout = DatasetFiles(prefix.with_name(f"{prefix.name}{HELDOUT_SUFFIX}"))
        self.quarantine = prefix.with_name(f"{prefix.name}_quarantine.jsonl.zst")
        self.folder = prefix.parent
        self.parts_folder = part_file(prefix, "parts")
        self.parts = [self.parts_folder / f"{task.number:05d}" for task in self.tasks]
        self.encoder = ChatEncoder(settings.tokenizer, settings.template, settings.learn)
        self.tokenizer = load_tokenizer("HuggingFaceTokenizer", settings.tokenizer)
        self.parameters = {
            "tokenizer_hash": self.tokenizer.hash, "template_hash": self.encoder.template_hash, "learn": settings.learn,
            "shape": settings.shape, "seq_length": settings.seq_length, "held_out": settings.held_out,
            "id_key": settings.id_key, "max_line_bytes": settings.max_line_bytes, "part_bytes": settings.part_bytes,
        }  # fmt: skip

    def run(self) -> PreparedDataset:
        """Skip, or go on, or begin; then join and write the manifests."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entries = [manifests.file_entry(path, self.folder) for path in self.files]
        if manifests.already_done(self.target.manifest_path, STAGE, self.parameters, entries):
            return self._found(entries)
        self._refuse_foreign_output()
        self.parts_folder.mkdir(exist_ok=True)
        with only_run(self.parts_folder, Share()):
            self._write_or_check_plan(entries)
            self._encode_missing_parts()
            manifest, heldout = self._join(entries)
        shutil.rmtree(self.parts_folder)
        return self._result(manifest, heldout, skipped=False)

    def _result(self, manifest: dict[str, Any], heldout: dict[str, Any] | None, skipped: bool) -> PreparedDataset:
        return PreparedDataset(
            self.target.prefix, manifest, None if heldout is None else self.heldout.prefix, heldout, skipped
        )

    def _found(self, entries: list[dict[str, Any]]) -> PreparedDataset:
        """The finished dataset, if it is still whole."""
        shutil.rmtree(self.parts_folder, ignore_errors=True)  # killed after its very last step
        manifest, heldout = self.target.manifest(), self.heldout.manifest() if self.settings.held_out else None
        assert manifest is not None
        if [entry["xxh3_128"] for entry in manifest["inputs"]] != [entry["xxh3_128"] for entry in entries]:
            raise UserError(
                f"{self.target.manifest_path} was made of the same inputs in another order, which is another dataset. Choose "
                "another output prefix, or delete that manifest to make it anew."
            )
        for output in [*manifest["outputs"], *(heldout or {"outputs": []})["outputs"]]:
            path = self.folder / output["path"]
            if not path.is_file() or path.stat().st_size != output["bytes"]:
                raise UserError(
                    f"{self.target.manifest_path} says that {path.name} has {output['bytes']:,} bytes, and it "
                    f"{'has another size' if path.is_file() else 'is gone'}. Delete the manifest to make it again."
                )
        self.say(f"{self.target.prefix}: already done, skipped ({manifest['tokens']:,} tokens)")
        return self._result(manifest, heldout, skipped=True)

    def _refuse_foreign_output(self) -> None:
        """Never write over a dataset that this stage did not make."""
        for files in (self.target, self.heldout):
            for path in (files.bin, files.idx):
                if path.exists() and not self.parts_folder.exists():
                    raise UserError(
                        f"{path} is there without {self.target.manifest_path.name}, so it was made by something else. Choose "
                        "another output prefix, or move it away."
                    )

    def _write_or_check_plan(self, entries: list[dict[str, Any]]) -> None:
        """A work folder belongs to the parameters and inputs of its first run."""
        plan = self.parts_folder / "plan.json"
        if manifests.already_done(plan, STAGE, self.parameters, entries):
            before = manifests.read_manifest(plan) or {"inputs": []}
            if [entry["xxh3_128"] for entry in before["inputs"]] == [entry["xxh3_128"] for entry in entries]:
                return
        for path in self.parts_folder.iterdir():  # parts without a plan, or of another order, may be anything's
            if path.name != LOCK:
                path.unlink()
        nothing = {"read": 0, "kept": 0, "dropped": {}, "quarantined": {}}
        manifests.write_json(plan, manifests.build_manifest(STAGE, self.parameters, entries, [], nothing))

    def _encode_missing_parts(self) -> None:
        missing = [number for number, part in enumerate(self.parts) if not part_file(part, "json").exists()]
        if len(missing) < len(self.parts):
            self.say(
                f"{self.target.prefix}: {len(self.parts) - len(missing)} of {len(self.parts)} parts are done already"
            )
        if not missing:
            return
        work = partial(encode_task, folder=self.parts_folder.absolute(), settings=self.settings.absolute())
        tasks = [self.tasks[number] for number in missing]
        started = time.monotonic()
        with progress(self.target.prefix.name, sum(task.bytes for task in tasks), "B") as bar:
            for _ in self.execution.make_engine().run(work, tasks, bar):
                pass
        seconds = max(time.monotonic() - started, 1e-9)
        read = sum(read_account(self.parts[number]).read for number in missing)
        self.say(f"prepared {read:,} conversations in {seconds:,.1f} s: {read / seconds:,.0f} a second")

    def _join(self, entries: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any] | None]:
        total = ConversationAccount()
        for part in self.parts:
            total.add(read_account(part))
        for entry, path in zip(entries, self.files):
            sources = {
                piece.source for task in self.tasks for piece in task.pieces if piece.path == str(path.absolute())
            }
            entry["records"] = sum(
                number for name, number in total.read_by_source.items() if name.split("!", 1)[0] in sources
            )
        refused = concatenate_files([part_file(part, "quarantine.jsonl.zst") for part in self.parts], self.quarantine)
        self._refuse_nothing(total, refused)
        lineage = input_manifests(self.files, self.folder)
        held, heldout = total.heldout, None
        if self.settings.held_out:
            parts = [part.with_name(f"{part.name}{HELDOUT_SUFFIX}") for part in self.parts]
            counts = {"read": held.kept, "kept": held.kept, "dropped": {}, "quarantined": {}}
            heldout = self._publish(self.heldout, parts, held, counts, [], entries, lineage)
        dropped = {reason: n for reason, n in ((TOO_LONG, total.too_long), (HELD_OUT, held.kept)) if n}
        counts = {
            "read": total.read,
            "kept": total.train.kept,
            "dropped": dropped,
            "quarantined": dict(total.quarantined),
        }
        more = [self.quarantine] if refused else []
        return self._publish(self.target, self.parts, total.train, counts, more, entries, lineage), heldout

    def _publish(
        self,
        files: DatasetFiles,
        parts: list[Path],
        side: SideAccount,
        counts: dict[str, Any],
        more: list[Path],
        entries: list[dict[str, Any]],
        lineage: list[dict[str, Any]],
    ) -> dict[str, Any]:
        """Join the parts of one dataset; its manifest comes last."""
        dtype = token_dtype(self.tokenizer.vocab_size)
        merge(parts, files.prefix, dtype, masked=True)
        concatenate_files([part_file(part, "ids.jsonl.zst") for part in parts], files.ids)
        manifest = manifests.build_manifest(
            STAGE,
            self.parameters,
            entries,
            [manifests.file_entry(path, self.folder) for path in (files.bin, files.idx, files.mask, files.ids, *more)],
            {**counts, "answers": side.answers, "learned_tokens": side.learned_tokens},
            PACKAGES,
            tokenizer=self.tokenizer.description(),
            document_policy={"begin": None, "end": None},
            chat=self.encoder.description(),
            dtype=dtype.__name__,
            id_range=[side.lowest_id, side.highest_id],
            tokens=side.tokens,
            documents=side.kept,
            longest=side.longest,
            lineage=lineage,
        )
        manifests.write_json(files.manifest_path, manifest)
        return manifest

    def _refuse_nothing(self, total: ConversationAccount, refused: bool) -> None:
        """There must be something to learn, and something held out where that is wanted."""
        if total.train.kept and (total.heldout.kept or not self.settings.held_out):
            return
        shutil.rmtree(self.parts_folder)
        if total.train.kept:
            raise UserError(
                f"held_out is {self.settings.held_out}, and of {total.train.kept:,} conversations that is none: raise it, or "
                "give a held-out dataset of its own."
            )
        raise UserError(
            f"the inputs hold no conversation to learn from: {total.read:,} records read, {total.too_long:,} longer than "
            f"{self.settings.seq_length:,} tokens, {total.heldout.kept:,} held out, refused {dict(total.quarantined)}"
            + (f" ({self.quarantine})" if refused else "") + "."
        )  # fmt: skip
