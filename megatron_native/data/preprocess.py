"""The tokenize stage: shards of documents in, a Megatron indexed dataset with its manifest out.

Tasks tokenize one part of the inputs each into a part of its own (`encode_part.py`); the parts are joined in the order
of the inputs, so that the bytes do not depend on the engine or its workers. Killed at any moment, the same command goes
on from the parts that are finished; a finished dataset is skipped; other parameters are refused.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from megatron_native import manifest as manifests
from megatron_native.data.dataset_files import document_id_lines
from megatron_native.data.encode_part import (
    PartAccount,
    TokenizeSettings,
    encode_task,
    part_file,
    read_account,
)
from megatron_native.data.indexed import bin_path, idx_path, merge, token_dtype
from megatron_native.data.tokenizers import Tokenizer
from megatron_native.documents.inputs import common_root, expand_inputs
from megatron_native.documents.parts import Part, plan_parts
from megatron_native.engine.tasks import Engine, Share, make_engine
from megatron_native.errors import UserError
from megatron_native.progress import progress

STAGE = "tokenize"
LOCK = "lock"
PACKAGES = ("tokenizers", "fastokens", "sentencepiece", "numpy", "orjson", "zstandard", "pyarrow")


@dataclass(frozen=True)
class TokenizedDataset:
    """One finished dataset: its prefix (without `.bin`), its manifest, and whether it was there already."""

    prefix: Path
    manifest: dict[str, Any]
    skipped: bool
    missing: int = 0
    """Parts that other tasks of a job array have still to do; then there is no dataset yet."""

    def summary(self) -> str:
        """The account, readable."""
        if self.missing:
            return f"{self.prefix}: this task's share is done; {self.missing} parts are left to other tasks of the job array"
        manifest, counts = self.manifest, self.manifest["counts"]
        size = counts["text_bytes"]
        lines = [
            f"{self.prefix}.bin: {counts['kept']:,} documents, {manifest['tokens']:,} tokens ({manifest['dtype']}) of "
            f"{size / 1e6:,.1f} MB of text, {size / manifest['tokens']:.2f} bytes a token",
            f"  documents begin with {manifest['document_policy']['begin'] or 'their text'}"
            f" and end with {manifest['document_policy']['end'] or 'their text'}",
        ]
        certificate = manifest.get("engine_certificate")
        if certificate and not certificate["equal"]:
            lines.append(
                f"  encoded by {manifest['engine']}, slowly: {certificate['engine']} is not used, {certificate['reason']}"
            )
        for what, reasons in (("dropped", counts["dropped"]), ("quarantined", counts["quarantined"])):
            lines += [f"  {what}: {number:,} {reason}" for reason, number in sorted(reasons.items())]
        if counts["special_tokens_in_text"]:
            lines.append(f"  {counts['special_tokens_in_text']:,} special tokens spelled in the text, encoded as text")
        if counts["separators_from_text"]:
            lines.append(
                f"  WARNING: {counts['separators_from_text']:,} separators come from the text itself: this tokenizer "
                f"can't tell the spelling {manifest['document_policy']['end']} from the token"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Execution:
    """How the stage runs; nothing of it changes the dataset."""

    workers: int = 1
    engine: str = "local"
    address: str | None = None
    share: Share = field(default_factory=Share)

    def make_engine(self) -> Engine:
        """The engine, started; one engine thread a process, since there is a process a core."""
        os.environ.setdefault("RAYON_NUM_THREADS", "1")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return make_engine(self.engine, self.workers, self.address)


def tokenize(
    inputs: Sequence[str],
    output_prefix: str | Path,
    settings: TokenizeSettings,
    json_keys: Sequence[str] = ("text",),
    execution: Execution = Execution(),
    say: Callable[[str], None] = print,
) -> list[TokenizedDataset]:
    """Tokenize the files that `inputs` (paths, globs, stage folders) name into one dataset a key.

    `PREFIX_KEY_document.bin/.idx` with `.ids.jsonl.zst` (the documents' ids, one JSON string a line, in the order of
    the dataset), `.manifest.json`, and `PREFIX_quarantine.jsonl.zst` where records were refused.

    Raises:
        UserError: an input, tokenizer or output that can't be used, a dataset made with other parameters, no tokens.
    """
    files = expand_inputs(list(inputs))
    engine = execution.make_engine()
    parts = plan_parts(files, common_root(list(inputs), files), settings.text_unit, settings.part_bytes)
    tokenizer = settings.load_tokenizer()
    certificate = tokenizer.certificate
    if certificate is not None and not certificate.equal and settings.engine != "auto":
        raise UserError(f"--tokenizer-engine {settings.engine} can't be used: {certificate.reason}. Leave it out.")
    output_prefix = Path(output_prefix)
    results = []
    for key in json_keys:
        prefix = output_prefix.with_name(
            f"{output_prefix.name}_{key}_{'sentence' if settings.split_sentences else 'document'}"
        )
        infix = "" if len(json_keys) == 1 else f"_{key}"
        quarantine = output_prefix.with_name(f"{output_prefix.name}{infix}_quarantine.jsonl.zst")
        keyed = replace(settings, json_key=key)
        results.append(
            _TokenizeStage(files, parts, prefix, quarantine, keyed, tokenizer, engine, execution.share, say).run()
        )
    return results


def read_document_ids(prefix: str | Path) -> Iterator[str]:
    """The documents' ids of a dataset, in the order of its document boundaries."""
    import orjson

    path = part_file(Path(prefix), "ids.jsonl.zst")
    if not path.exists():
        raise UserError(f"{path} is not there: the dataset was made without a table of document ids.")
    for line in document_id_lines(path):
        yield orjson.loads(line)


class _TokenizeStage:
    """One dataset's way from input files to a finished manifest."""

    def __init__(
        self,
        paths: list[Path],
        parts: list[Part],
        prefix: Path,
        quarantine: Path,
        settings: TokenizeSettings,
        tokenizer: Tokenizer,
        engine: Engine,
        share: Share,
        say: Callable[[str], None],
    ) -> None:
        self.paths, self.prefix, self.quarantine = paths, prefix, quarantine
        self.settings, self.tokenizer, self.say = settings, tokenizer, say
        self.engine, self.share, self.tasks = engine, share, parts
        self.folder = prefix.parent
        self.parts_folder = part_file(prefix, "parts")
        self.manifest_path = part_file(prefix, "manifest.json")
        self.parts = [self.parts_folder / f"{part.number:05d}" for part in parts]

    def run(self) -> TokenizedDataset:
        """Skip, or go on, or begin; then join and write the manifest."""
        self.folder.mkdir(parents=True, exist_ok=True)
        entries = [manifests.file_entry(path, self.folder) for path in self.paths]
        if self._is_done(entries):
            manifest = manifests.read_manifest(self.manifest_path)
            assert manifest is not None
            shutil.rmtree(self.parts_folder, ignore_errors=True)
            self.say(f"{self.prefix}: already done, skipped ({manifest['tokens']:,} tokens)")
            return TokenizedDataset(self.prefix, manifest, skipped=True)
        self._refuse_foreign_output()
        self.parts_folder.mkdir(exist_ok=True)
        with only_run(self.parts_folder, self.share):
            self._write_or_check_plan(entries)
            self._encode_missing_parts()
            if missing := sum(1 for part in self.parts if not part_file(part, "json").exists()):
                return TokenizedDataset(self.prefix, {}, skipped=False, missing=missing)
            manifest = self._join(entries)
        shutil.rmtree(self.parts_folder)
        return TokenizedDataset(self.prefix, manifest, skipped=False)

    def parameters(self) -> dict[str, Any]:
        """All that the bytes of the dataset depend on, besides the inputs."""
        settings, tokenizer = self.settings, self.tokenizer
        return {
            "tokenizer_type": settings.tokenizer_type,
            "tokenizer_hash": tokenizer.hash,
            "json_key": settings.json_key,
            "id_key": settings.id_key,
            "text_unit": settings.text_unit,
            "max_line_bytes": settings.max_line_bytes,
            "part_bytes": settings.part_bytes,
            "split_sentences": settings.split_sentences,
            "keep_newlines": settings.keep_newlines,
            "append_eod": settings.append_eod,
            "eod_token": tokenizer.eod_token if settings.append_eod else None,
            "bos_token": tokenizer.bos_token,
        }

    def _is_done(self, entries: list[dict[str, Any]]) -> bool:
        if not manifests.already_done(self.manifest_path, STAGE, self.parameters(), entries):
            return False
        manifest = manifests.read_manifest(self.manifest_path) or {}
        self._refuse_other_order(manifest, entries)
        for output in manifest["outputs"]:
            path = self.folder / output["path"]
            if not path.is_file() or path.stat().st_size != output["bytes"]:
                raise UserError(
                    f"{self.manifest_path} says that {path.name} has {output['bytes']:,} bytes, and it "
                    f"{'has another size' if path.is_file() else 'is gone'}. Delete the manifest to make it again."
                )
        return True

    def _refuse_other_order(self, manifest: dict[str, Any], entries: list[dict[str, Any]]) -> None:
        if [entry["xxh3_128"] for entry in manifest["inputs"]] != [entry["xxh3_128"] for entry in entries]:
            raise UserError(
                f"{self.manifest_path} was made of the same inputs in another order, which is another dataset. Choose "
                "another --output-prefix, or delete that manifest to make it anew."
            )

    def _refuse_foreign_output(self) -> None:
        """Never write over a dataset that this stage did not make."""
        for path in (bin_path(self.prefix), idx_path(self.prefix)):
            if path.exists() and not self.parts_folder.exists():
                raise UserError(
                    f"{path} is there without {self.manifest_path.name}, so it was made by something else. Choose "
                    "another --output-prefix, or move it away."
                )

    def _write_or_check_plan(self, entries: list[dict[str, Any]]) -> None:
        """A work folder belongs to the parameters and inputs of its first run."""
        plan = self.parts_folder / "plan.json"
        if manifests.already_done(plan, STAGE, self.parameters(), entries):
            self._refuse_other_order(manifests.read_manifest(plan) or {}, entries)
            return
        for path in self.parts_folder.iterdir():  # parts without a plan may be anything's
            if path.name != LOCK:
                path.unlink()
        nothing = {"read": 0, "kept": 0, "dropped": {}, "quarantined": {}}
        manifests.write_json(plan, manifests.build_manifest(STAGE, self.parameters(), entries, [], nothing))

    def _encode_missing_parts(self) -> None:
        finished = {path.name for path in self.parts_folder.glob("*.json")}
        missing = [n for n, part in enumerate(self.parts) if f"{part.name}.json" not in finished and self.share.has(n)]
        if len(missing) < len(self.parts) and self.share.whole:
            self.say(f"{self.prefix}: {len(self.parts) - len(missing)} of {len(self.parts)} parts are done already")
        if not missing:
            return
        resolved = replace(self.settings, tokenizer_model=str(Path(self.settings.tokenizer_model).absolute()))
        if self.tokenizer.certificate is not None or self.settings.engine == "auto":
            # Workers take the engine that the certificate was made for, and make none of their own.
            resolved = replace(resolved, engine="fastokens" if self.tokenizer.engine == "fastokens" else "tokenizers")
        work = partial(encode_task, folder=self.parts_folder.absolute(), settings=resolved)
        tasks = [self.tasks[number] for number in missing]
        started, size = time.monotonic(), sum(task.bytes for task in tasks)
        with progress(self.prefix.name, size, "B") as bar:
            for _ in self.engine.run(work, tasks, bar):
                pass
        seconds = max(time.monotonic() - started, 1e-9)
        accounts = [account for n in missing if (account := read_account(self.parts[n])) is not None]
        text, tokens = (sum(getattr(account, name) for account in accounts) for name in ("text_bytes", "tokens"))
        self.say(
            f"tokenized {text / 1e6:,.1f} MB of text in {seconds:,.1f} s: {text / 1e6 / seconds:,.1f} MB/s, "
            f"{tokens / seconds:,.0f} tokens/s, engine {self.tokenizer.engine}"
        )

    def _join(self, entries: list[dict[str, Any]]) -> dict[str, Any]:
        total, lineage = PartAccount(), input_manifests(self.paths, self.folder)
        for part in self.parts:
            account = read_account(part)
            assert account is not None
            total.add(account)
        _count_by_input(entries, self.paths, self.tasks, total)
        refused = concatenate_files([part_file(part, "quarantine.jsonl.zst") for part in self.parts], self.quarantine)
        if not total.tokens:
            shutil.rmtree(self.parts_folder)
            raise UserError(
                f"the inputs hold no text to tokenize: {total.read} records read, {sum(total.dropped.values())} empty, "
                f"{sum(total.quarantined.values())} refused {dict(total.quarantined)}"
                + (f" ({self.quarantine})" if refused else "")
                + f". Is --json-keys {self.settings.json_key} right?"
            )
        dtype = token_dtype(self.tokenizer.vocab_size)
        merge(self.parts, self.prefix, dtype)
        identifiers = part_file(self.prefix, "ids.jsonl.zst")
        concatenate_files([part_file(part, "ids.jsonl.zst") for part in self.parts], identifiers)
        outputs = [bin_path(self.prefix), idx_path(self.prefix), identifiers] + ([self.quarantine] if refused else [])
        documents = total.kept + sum(total.dropped.values())
        manifest = manifests.build_manifest(
            STAGE,
            self.parameters(),
            entries,
            [manifests.file_entry(path, self.folder) for path in outputs],
            {
                "read": total.read,
                "kept": total.kept,
                "dropped": dict(total.dropped),
                "quarantined": dict(total.quarantined),
                "text_bytes": total.text_bytes,
                "special_tokens_in_text": total.special_tokens_in_text,
                "separators_from_text": total.separators_from_text,
            },
            PACKAGES,
            tokenizer=self.tokenizer.description(),
            document_policy={
                "begin": self.tokenizer.bos_token,
                "end": self.tokenizer.eod_token if self.settings.append_eod else None,
            },
            dtype=dtype.__name__,
            id_range=[total.lowest_id, total.highest_id],
            tokens=total.tokens,
            documents=documents,
            lineage=lineage,
            engine=self.tokenizer.engine,
            engine_certificate=None if self.tokenizer.certificate is None else self.tokenizer.certificate.as_json(),
        )
        manifests.write_json(self.manifest_path, manifest)
        return manifest


def _count_by_input(entries: list[dict[str, Any]], paths: list[Path], parts: list[Part], total: PartAccount) -> None:
    """Say of every input how many records and documents came of it."""
    sources = {piece.path: piece.source for part in parts for piece in part.pieces}
    for entry, path in zip(entries, paths):
        source = sources.get(str(path.absolute()), "")
        for key, counts in (("records", total.read_by_source), ("documents", total.documents_by_source)):
            entry[key] = counts[source] + sum(n for name, n in counts.items() if name.startswith(f"{source}!"))


def input_manifests(paths: Sequence[Path], folder: Path) -> list[dict[str, Any]]:
    """The manifests of the stage folders that the inputs lie in: the dataset's lineage."""
    found: dict[Path, dict[str, Any]] = {}
    for path in paths:
        candidate = manifests.stage_manifest_of(path)
        if candidate is not None and candidate not in found and (manifest := manifests.read_manifest(candidate)):
            found[candidate] = {**manifests.file_entry(candidate, folder), "stage": manifest["stage"]}
    return list(found.values())


def concatenate_files(pieces: Sequence[Path], target: Path) -> bool:
    """Join zstd files, frame after frame, beside the target and rename; False, and no file, where there are none."""
    present = [piece for piece in pieces if piece.exists()]
    if not present:
        return False
    temporary = target.with_name(target.name + ".partial")
    with open(temporary, "wb") as out:
        for piece in present:
            with open(piece, "rb") as source:
                shutil.copyfileobj(source, out, 1 << 22)
    os.replace(temporary, target)
    return True


@contextmanager
def only_run(folder: Path, share: Share) -> Iterator[None]:
    """Hold the work folder's lock: nothing else writes there but other tasks of the same job array."""
    with open(folder / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_EX if share.whole else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another run is writing {folder.with_suffix('')}; wait for it, or stop it.") from error
        yield
