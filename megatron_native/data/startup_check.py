"""Before a run touches a device: are its datasets whole, and made for its model?

Every dataset of `data.blend` and of the phases' blends is looked at, several at a time. What was found is kept in
`data_check.json` of the run folder, so that the other processes of a run, and its restarts, only compare sizes and times.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from megatron_native.checkpoint.layout import TOKENIZER_FOLDER
from megatron_native.config.model import ModelConfig
from megatron_native.config.phases import resolve_phases
from megatron_native.config.run import RunConfig
from megatron_native.data.dataset_files import DatasetFiles
from megatron_native.data.indexed import IndexedTokens, verify_structure
from megatron_native.data.tokenizers import Tokenizer, load_tokenizer
from megatron_native.data.verify_dataset import Expectations, verify_dataset
from megatron_native.errors import UserError
from megatron_native.manifest import file_digest
from megatron_native.progress import Progress, progress

STAMP_FILE = "data_check.json"
STAMP_FORMAT = "megatron-native/data-check/1"
SAMPLED_BLOCKS = 4096
"""Blocks of `.bin` whose ids are looked at: wrong ids in one piece of more than a 4,095th of the file are always found."""
_THOROUGHNESS = ("off", "sampled", "full")
_REMAKE = "copy the dataset again, or tokenize it again"


def check_datasets(
    run: RunConfig, model: ModelConfig, say: Callable[[str], None] = print, anew: bool = False
) -> dict[Path, dict[str, Any]]:
    """Check every dataset of a run as `data.verify` asks for; call it before any device is touched.

    * `sampled`: the whole `.idx`, the size of `.bin` and the ids of `SAMPLED_BLOCKS` blocks of it, the manifest's counts,
      dtype, sizes and its checksum of `.idx`, and the tokenizer;
    * `full`: every byte of `.bin` too, against the manifest's checksum and the vocabulary;
    * `off`: the files open.

    A masked dataset has its mask (with the manifest's checksum, unless `off`), and no phase cuts its conversations.

    Args:
        run: the configuration; `run.run_dir` gets `data_check.json`, by which an equal or lesser check of unchanged files
            is skipped.
        model: the model's shape; ids must lie in its vocabulary.
        say: takes one line a dataset.
        anew: check also what was checked before.

    Returns:
        Dataset prefix → `documents`, `sequences`, `tokens`, `dtype`, `longest` (of a masked dataset; else None), `mode`,
        `manifest` (whether there is one), `tokenizer` (its hash or None), `idx_xxh3_128` (None with `off`), `bin`, `idx`,
        `mask` (bytes, mtime_ns), `seconds`, `remembered` (whether the result is that of an earlier check).

    Raises:
        UserError: every dataset that is damaged or of another tokenizer, with its file, what is wrong and what to do.
    """
    prefixes = dataset_prefixes(run)
    if run.data.verify == "off":
        opened = {prefix: _opened(prefix) for prefix in prefixes}
        _refuse_cut_conversations(run, opened)
        return opened
    with _only_check(run.run_dir):
        tokenizers = _ModelTokenizers(run)
        about_model = {"vocab_size": model.vocab_size, "tokenizer": tokenizers.identity()}
        stamp = {} if anew else _read_stamp(run.run_dir / STAMP_FILE, about_model)
        found: dict[Path, dict[str, Any]] = {}
        for prefix in prefixes:
            if _still_valid(stamp.get(str(prefix.resolve())), prefix, run.data.verify):
                found[prefix] = {**stamp[str(prefix.resolve())], "remembered": True, "seconds": 0.0}
        missing = [prefix for prefix in prefixes if prefix not in found]
        if missing:
            found.update(_check_all(missing, run, model, tokenizers))
        _refuse_mixed_tokenizers(found)
        _refuse_cut_conversations(run, found)
        if missing:
            facts = {str(prefix.resolve()): fact for prefix, fact in found.items()}
            _write_stamp(run.run_dir / STAMP_FILE, about_model, {**stamp, **facts})
    for prefix in prefixes:
        say(describe(prefix, found[prefix]))
    return {prefix: found[prefix] for prefix in prefixes}


def dataset_prefixes(run: RunConfig) -> list[Path]:
    """The distinct datasets of `data.blend` and of the phases' blends, in the order in which they are named."""
    entries = [*run.data.blend, *(entry for phase in run.phases for entry in phase.blend or [])]
    return list({entry.prefix.resolve(): entry.prefix for entry in reversed(entries)}.values())[::-1]


def checked_digests(run_dir: Path, prefixes: Iterable[Path]) -> dict[Path, str]:
    """Digests of `.idx` files, as a run's last check found them; none for a file that has changed since or is not there."""
    stamp = _read_stamp(run_dir / STAMP_FILE)
    found = {}
    for prefix in prefixes:
        fact = stamp.get(str(prefix.resolve()))
        if fact is not None and fact["idx"] == _times(DatasetFiles(prefix))["idx"]:
            found[prefix] = fact["idx_xxh3_128"]
    return found


def describe(prefix: Path, fact: Mapping[str, Any]) -> str:
    """One line on what was found of a dataset."""
    counts = f"{fact['documents']:,} documents, {fact['tokens']:,} tokens ({fact['dtype']})"
    if fact["mode"] == "off":
        return f"data {prefix}: {counts}, not checked"
    how = "as checked before" if fact["remembered"] else f"checked in {fact['seconds']:.1f} s"
    looked = "every byte" if fact["mode"] == "full" else "index whole, ids sampled"
    manifest = "manifest agrees" if fact["manifest"] else "no manifest: tokenizer, counts and checksums are not known"
    return f"data {prefix}: {counts}, {looked}, {manifest}; {how}"


def _check_all(
    prefixes: list[Path], run: RunConfig, model: ModelConfig, tokenizers: _ModelTokenizers
) -> dict[Path, dict[str, Any]]:
    """Check datasets side by side, as many as there are cores; one error for all that is wrong."""
    full = run.data.verify == "full"
    bytes_to_read = sum(files.bin.stat().st_size for files in map(DatasetFiles, prefixes) if files.bin.is_file())
    shown = progress(f"check {len(prefixes)} dataset(s)", bytes_to_read, "B") if full else nullcontext(None)
    with shown as bar, ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        together = None if bar is None else _FromManyThreads(bar)
        checks = [pool.submit(_check_one, prefix, model, tokenizers, together) for prefix in prefixes]
        found, errors = {}, []
        for prefix, check in zip(prefixes, checks):
            try:
                found[prefix] = check.result()
            except UserError as error:
                errors.append(str(error))
            except OSError as error:
                errors.append(f"{prefix} can't be read: {error}. Look at the disk and at the permissions.")
    if errors:
        raise UserError(" ".join(errors))
    return found


def _check_one(
    prefix: Path, model: ModelConfig, tokenizers: _ModelTokenizers, bar: Progress | None
) -> dict[str, Any]:
    """Everything about one dataset; every byte of it where there is a `bar` to report to."""
    started, files = time.monotonic(), DatasetFiles(prefix)
    before = _times(files)
    manifest = files.manifest()
    files.refuse_lost_mask(manifest)
    tokenizers.refuse_other(files, manifest, model)
    dataset = verify_structure(prefix, model.vocab_size, SAMPLED_BLOCKS)
    digest = file_digest(files.idx)
    _compare_with_manifest(files, manifest, dataset, digest)
    if bar is not None:
        # the text of a dataset without a manifest is not asked for: nobody says how its documents begin and end
        mine = None if manifest is None else tokenizers.like_that_of(manifest)
        verification = verify_dataset(prefix, Expectations(None if mine is None else mine.path, model.vocab_size), bar=bar)
        if not verification.passed:
            raise UserError(" ".join(f"{fault}." for fault in verification.faults))
    if _times(files) != before:
        raise UserError(f"{prefix} was written to while it was checked; start again when it is finished.")
    return {
        **_counts(dataset), "mode": "sampled" if bar is None else "full", "manifest": manifest is not None,
        "tokenizer": ((manifest or {}).get("tokenizer") or {}).get("hash"), "idx_xxh3_128": digest, **before,
        "longest": _longest(dataset), "seconds": round(time.monotonic() - started, 3), "remembered": False,
    }  # fmt: skip


def _opened(prefix: Path) -> dict[str, Any]:
    files = DatasetFiles(prefix)
    files.refuse_lost_mask(files.manifest())
    dataset = IndexedTokens(prefix)
    return {
        **_counts(dataset), "mode": "off", "manifest": files.manifest_path.is_file(), "tokenizer": None,
        "idx_xxh3_128": None, **_times(files), "seconds": 0.0, "remembered": False,
        "longest": _longest(dataset),
    }  # fmt: skip


def _counts(dataset: IndexedTokens) -> dict[str, Any]:
    return {
        "documents": dataset.document_count, "sequences": dataset.sequence_count, "tokens": dataset.token_count,
        "dtype": dataset.dtype.name,
    }  # fmt: skip


def _longest(dataset: IndexedTokens) -> int | None:
    """Tokens of the longest conversation of a masked dataset."""
    return int(dataset.document_lengths().max(initial=0)) if dataset.masked else None


def _refuse_cut_conversations(run: RunConfig, found: Mapping[Path, Mapping[str, Any]]) -> None:
    """No phase may cut a conversation: an answer without its question would be learned from nothing."""
    for phase in resolve_phases(run):
        for prefix in phase.datasets.values():
            longest = found[prefix].get("longest") if prefix in found else None
            if longest is None:
                continue
            if phase.packing == "concatenate":
                raise UserError(
                    f"data.packing is 'concatenate' in the phase {phase.name}, which cuts the conversations of {prefix} (a "
                    "masked dataset) anywhere. Set data.packing=best_fit, or single for no packing."
                )
            if longest > phase.seq_length:
                raise UserError(
                    f"{prefix} has conversations of up to {longest:,} tokens, and data.seq_length is {phase.seq_length:,} in "
                    f"the phase {phase.name}: they would be cut. Raise data.seq_length, or prepare the dataset again with "
                    f"--seq-length {phase.seq_length}."
                )


def _compare_with_manifest(
    files: DatasetFiles, manifest: dict[str, Any] | None, dataset: IndexedTokens, digest: str
) -> None:
    """Counts, dtype, sizes and the checksum of `.idx`, against those that the manifest records."""
    if manifest is None:
        return
    differing = [
        f"{name} {manifest[name]:,} there, {value:,} here" if isinstance(value, int) else
        f"{name} {manifest[name]} there, {value} here"
        for name, value in _counts(dataset).items() if manifest.get(name, value) != value
    ]  # fmt: skip
    for path in (files.bin, files.idx, files.mask):
        recorded = files.recorded_output(path, manifest)
        if recorded is not None and recorded["bytes"] != path.stat().st_size:
            differing.append(f"{recorded['bytes']:,} bytes of {path.suffix} there, {path.stat().st_size:,} here")
    if differing:
        raise UserError(
            f"{files.manifest_path} is the manifest of another dataset: {'; '.join(differing)}. Bring back the one that "
            "was written with the dataset, or " + _REMAKE + "."
        )
    for path in (files.idx, files.mask):
        recorded = files.recorded_output(path, manifest)
        there = digest if path == files.idx or recorded is None else file_digest(path)
        if recorded is not None and recorded["xxh3_128"] != there:
            raise UserError(
                f"{path} has another content than when it was made (xxh3_128 {there}, {recorded['xxh3_128']} in "
                f"{files.manifest_path.name}): {_REMAKE}."
            )


class _ModelTokenizers:
    """The tokenizer that travels with the model's checkpoint, read once whatever the number of datasets."""

    def __init__(self, run: RunConfig) -> None:
        checkpoint = run.model.checkpoint or run.model.branch_from
        folder = None if checkpoint is None else checkpoint / TOKENIZER_FOLDER
        self.folder = folder if folder is not None and _is_tokenizer(folder) else None
        self._read: dict[str, Tokenizer] = {}
        self._reading = threading.Lock()

    def identity(self) -> list[str] | None:
        """What tells this tokenizer from another, without reading the vocabulary as such; for the stamp."""
        if self.folder is None:
            return None
        files = [self.folder / name for name in ("tokenizer.json", "tokenizer.model")]
        return [file_digest(file) for file in files if file.is_file()]

    def refuse_other(self, files: DatasetFiles, manifest: dict[str, Any] | None, model: ModelConfig) -> None:
        """Refuse a dataset that was made with another tokenizer than the model's, or for more ids than it has."""
        recorded = (manifest or {}).get("tokenizer")
        if not recorded:
            return
        mine = self.like_that_of(manifest or {})
        if mine is not None and mine.hash != recorded["hash"]:
            raise UserError(
                f"{files.manifest_path}: the dataset was made with the tokenizer {recorded['model']} "
                f"({_described(recorded)}), and {mine.path} ({_described(mine.description())}) travels with the model's "
                "checkpoint: the same ids mean other text to the model. Tokenize the documents again with --tokenizer-model "
                f"{self.folder}, or start from the checkpoint that this dataset was made for."
            )
        if recorded["vocab_size"] > model.vocab_size:
            raise UserError(
                f"{files.manifest_path}: the dataset was made with the tokenizer {recorded['model']} "
                f"({_described(recorded)}), and the model has an embedding of {model.vocab_size:,} ids. Tokenize the "
                "documents again with the model's tokenizer, or start from the model that this dataset was made for."
            )

    def like_that_of(self, manifest: Mapping[str, Any]) -> Tokenizer | None:
        """The model's tokenizer in the form of a dataset's, so that hashes can be compared; None if it has no such form."""
        kind = (manifest.get("tokenizer") or {}).get("type", "HuggingFaceTokenizer")
        name = "tokenizer.model" if kind == "SentencePieceTokenizer" else "tokenizer.json"
        if self.folder is None or not (self.folder / name).is_file():
            return None
        with self._reading:
            if kind not in self._read:
                self._read[kind] = load_tokenizer(kind, self.folder)
            return self._read[kind]


def _is_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))


def _described(tokenizer: Mapping[str, Any]) -> str:
    return (
        f"hash {tokenizer['hash'][:16]}…, {tokenizer['vocab_size']:,} ids, documents end with {tokenizer['eod_token']} = "
        f"{tokenizer['eod_id']}"
    )


def _refuse_mixed_tokenizers(found: Mapping[Path, Mapping[str, Any]]) -> None:
    """Where the model brings no tokenizer to compare with, the datasets must at least agree among themselves."""
    named = {prefix: fact["tokenizer"] for prefix, fact in found.items() if fact["tokenizer"]}
    if len(set(named.values())) > 1:
        each = ", ".join(f"{prefix} (hash {value[:16]}…)" for prefix, value in named.items())
        raise UserError(
            f"the datasets of this run were made with different tokenizers: {each}. Tokenize them again with one, the model's."
        )


class _FromManyThreads(Progress):
    """One bar that several checks report to."""

    def __init__(self, bar: Progress) -> None:
        super().__init__(bar.label, bar.total, bar.unit)
        self._bar, self._telling = bar, threading.Lock()

    def advance(self, amount: float = 1.0) -> None:
        with self._telling:
            self._bar.advance(amount)


def _times(files: DatasetFiles) -> dict[str, Any]:
    """Size and time of each file, by which a later start sees that nothing changed; None for a file that isn't there."""
    result: dict[str, Any] = {}
    named = (("bin", files.bin), ("idx", files.idx), ("mask", files.mask), ("manifest_file", files.manifest_path))
    for name, path in named:
        try:
            status = path.stat()
            result[name] = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
        except OSError:
            result[name] = None
    return result


def _still_valid(fact: Mapping[str, Any] | None, prefix: Path, mode: str) -> bool:
    if fact is None or _THOROUGHNESS.index(fact["mode"]) < _THOROUGHNESS.index(mode):
        return False
    return all(fact.get(name) == value for name, value in _times(DatasetFiles(prefix)).items())


def _read_stamp(path: Path, about_model: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """What earlier checks found (for this vocabulary and tokenizer, if given); nothing where the file can't be used."""
    try:
        stamp = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(stamp, dict) or stamp.get("format") != STAMP_FORMAT:
        return {}
    if about_model is not None and stamp.get("model") != about_model:
        return {}
    return dict(stamp["datasets"])


def _write_stamp(path: Path, about_model: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]]) -> None:
    content = json.dumps({"format": STAMP_FORMAT, "model": about_model, "datasets": facts}, ensure_ascii=False, indent=2)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".partial", encoding="utf-8", delete=False) as file:
        file.write(content + "\n")  # under a name of its own, since nodes may write at the same time
    os.replace(file.name, path)


@contextmanager
def _only_check(folder: Path) -> Iterator[None]:
    """One check at a time in a run folder: who comes second finds the result. Without locks, all check."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{STAMP_FILE}.lock", "w") as lock:
        with suppress(OSError):  # a file system that has none
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
