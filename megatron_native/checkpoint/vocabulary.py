"""Vocabulary extension: a Hugging Face folder with new tokens, made of one without, and the record of their rows.

A new row is the mean of the rows of the token's old sub-tokens, in the input and (untied) in the output layer, computed in
FP32 and rounded once to the weights' dtype; no old row changes a bit. The extended folder is temporary: shards that hold
neither layer are linked, the others written anew, and `import-hf` reads the result as it would any other folder, so that
the recorded logits are those of the extended model. What was added travels with every checkpoint as

    run/hf/vocabulary.json    {"format", "base_folder", "old_vocab_size", "vocab_size", "first_id", "noise",
                               "noise_seed", "dtype", "source": digests of the base tokenizer and of the list,
                               "left_out": files, "skipped": {token: reason}, "fertility": or null,
                               "tokens": [{"id", "token", "bpe", "sub_tokens", "part", "rows": {tensor: xxh3_128}}]}
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megatron_native.checkpoint import layout
from megatron_native.checkpoint.conversion import empty_folder, lock
from megatron_native.checkpoint.disk_errors import said_of_disk
from megatron_native.checkpoint.safetensors_files import (
    INDEX,
    HfWeights,
    Shard,
    ShardWriter,
    TensorSpec,
    tensor_bytes,
    tensor_digest,
)
from megatron_native.data.tokenizer_extension import (
    TOKENIZER_JSON,
    NewToken,
    TokenizerExtension,
    extend_tokenizer,
    list_digest,
    read_token_list,
    write_extension,
)
from megatron_native.errors import UserError
from megatron_native.manifest import file_digest, write_json
from megatron_native.models.families import read_hf_config

FORMAT = "megatron-native/vocabulary/1"
FILE_NAME = "vocabulary.json"
VOCABULARY_FILE = f"{layout.HF_FOLDER}/{FILE_NAME}"
EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"
ROW_TENSORS = (EMBEDDING, OUTPUT)
"""The Hugging Face tensors with a row for every token; a tied model has the first alone."""
_MAX_SAMPLE_TEXTS = 100_000
_MAX_SAMPLE_CHARACTERS = 50_000_000


@dataclass(frozen=True)
class ExtensionSettings:
    """What is added, and how its rows begin."""

    tokens: Path
    """The list, as `read_token_list` takes it."""
    noise: float = 0.0
    """Standard deviation of what is added to a row, in those of the row's own values; 0: nothing."""
    noise_seed: int = 0
    fertility_sample: Path | None = None
    """Texts (documents or plain text) whose tokens a word are counted before and after."""


@dataclass(frozen=True)
class Fertility:
    """Tokens a word of a sample, before and after."""

    texts: int
    words: int
    """Parts between white space."""
    tokens_before: int
    tokens_after: int

    def as_json(self) -> dict[str, Any]:
        """With the ratios."""
        words = max(1, self.words)
        return {
            "texts": self.texts, "words": self.words, "tokens_before": self.tokens_before, "tokens_after": self.tokens_after,
            "tokens_a_word_before": self.tokens_before / words, "tokens_a_word_after": self.tokens_after / words,
        }  # fmt: skip


@contextmanager
def extended_folder(hf_folder: Path, settings: ExtensionSettings, beside: Path) -> Iterator[Path]:
    """A temporary Hugging Face folder beside `beside`: `hf_folder` with the new tokens. It is gone at the end.

    The disk holds for that long a copy of the shards that the embedding and the output layer lie in.

    Raises:
        UserError: a list, tokenizer or folder that does not serve (the message says why), or too little disk.
    """
    hf_folder = Path(hf_folder)
    folder = beside.with_name(beside.name + ".extended")
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, f"another import-hf is using {folder} right now")
        empty_folder(folder)  # of what one that was killed left
        try:
            with said_of_disk(f"the extended folder {folder}"):
                make_extended_folder(hf_folder, settings, folder)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


def make_extended_folder(hf_folder: Path, settings: ExtensionSettings, folder: Path) -> dict[str, Any]:
    """Make the extended folder (whole shards as links into `hf_folder`) and return its record; see the module."""
    tokens = read_token_list(settings.tokens)
    config = read_hf_config(hf_folder)
    if not (hf_folder / TOKENIZER_JSON).is_file():
        raise UserError(
            f"{hf_folder} has no {TOKENIZER_JSON}, which --add-tokens extends; make one with transformers' "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)."
        )
    if settings.noise < 0:
        raise UserError(f"--token-noise is {settings.noise}; it is 0 or more (of the standard deviation of a row).")
    weights = HfWeights(hf_folder)
    if EMBEDDING not in weights.specs:
        raise UserError(f"{hf_folder} has no tensor '{EMBEDDING}', whose rows --add-tokens needs.")
    old_size = weights.specs[EMBEDDING].shape[0]
    extension = extend_tokenizer(hf_folder / TOKENIZER_JSON, tokens)
    if not extension.tokens:
        raise UserError(f"every token of {settings.tokens} is one of {hf_folder} already; there is nothing to add.")
    if extension.first_id > old_size:
        raise UserError(
            f"{hf_folder}: the tokenizer has ids up to {extension.first_id - 1}, and the embedding only {old_size} rows; the "
            "two don't belong together."
        )
    folder.mkdir(parents=True, exist_ok=True)
    new_size = max(old_size, extension.tokens[-1].id + 1)
    left_out = write_extension(hf_folder, folder, extension)
    _link_rest(hf_folder, folder, weights, {*left_out, "config.json"})
    config["vocab_size"] = new_size
    write_json(folder / "config.json", config)
    rows = _write_weights(weights, folder, extension.tokens, new_size, settings)
    sample = None
    if settings.fertility_sample is not None:
        sample = measure_fertility(
            hf_folder / TOKENIZER_JSON, folder / TOKENIZER_JSON, settings.fertility_sample
        ).as_json()
    record = _record(hf_folder, extension, rows, tokens, settings, (old_size, new_size))
    record |= {"left_out": left_out, "fertility": sample, "dtype": weights.specs[EMBEDDING].dtype}
    write_json(folder / FILE_NAME, record)
    for path in folder.iterdir():  # of the age of what they are made from, so that an import is taken up again
        if not path.is_symlink() and (state := _state(hf_folder / path.name)) is not None:
            os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    return record


def _state(path: Path) -> os.stat_result | None:
    return path.stat() if path.is_file() else None


def _record(
    hf_folder: Path,
    extension: TokenizerExtension,
    rows: Mapping[str, list[str]],
    tokens: Sequence[str],
    settings: ExtensionSettings,
    sizes: tuple[int, int],
) -> dict[str, Any]:
    entries = [
        {
            "id": token.id, "token": token.text, "bpe": token.bpe, "sub_tokens": list(token.sub_tokens), "part": token.part,
            "rows": {name: digests[number] for name, digests in rows.items()},
        }
        for number, token in enumerate(extension.tokens)
    ]  # fmt: skip
    return {
        "format": FORMAT, "base_folder": hf_folder.name,
        "old_vocab_size": sizes[0], "vocab_size": sizes[1], "first_id": extension.first_id,
        "noise": settings.noise, "noise_seed": settings.noise_seed,
        "source": {"tokenizer": file_digest(hf_folder / TOKENIZER_JSON), "list_sha256": list_digest(tokens)},
        "skipped": extension.skipped, "tokens": entries,
    }  # fmt: skip


def _link_rest(hf_folder: Path, folder: Path, weights: HfWeights, without: set[str]) -> None:
    """Link whatever is not written anew: shards without rows of tokens, configuration, templates."""
    written = {path.name for path in folder.iterdir()} | without | _changed_shards(weights)
    for path in hf_folder.iterdir():
        if path.name not in written:
            (folder / path.name).symlink_to(path.absolute(), target_is_directory=path.is_dir())


def _changed_shards(weights: HfWeights) -> set[str]:
    return {weights.places[name].path.name for name in ROW_TENSORS if name in weights.places} | {INDEX}


def _write_weights(
    weights: HfWeights, folder: Path, tokens: Sequence[NewToken], size: int, settings: ExtensionSettings
) -> dict[str, list[str]]:
    """Write the shards that hold rows of tokens; for each of those tensors, the digests of the new rows."""
    file_of, rows = {name: place.path.name for name, place in weights.places.items()}, {}
    changed = _changed_shards(weights)
    specs = {
        name: TensorSpec(name, spec.dtype, (size, *spec.shape[1:])) if name in ROW_TENSORS else spec
        for name, spec in weights.specs.items()
    }
    needed = sum(spec.bytes for name, spec in specs.items() if file_of[name] in changed)
    layout.check_free_space(folder, needed, "the shards with the new rows")
    for path in weights.files:
        if path.name not in changed:
            continue
        names = [name for name in specs if file_of[name] == path.name]
        writer = ShardWriter(folder, Shard(path.name, tuple(specs[name] for name in names)))
        for name in names:
            tensor = weights.read(name)
            if name in ROW_TENSORS:
                tensor = with_new_rows(
                    tensor, tokens, size, settings.noise, (settings.noise_seed, ROW_TENSORS.index(name))
                )
                rows[name] = [tensor_digest(tensor[token.id]) for token in tokens]
            writer.begin(specs[name])
            writer.write(tensor_bytes(tensor))
        writer.finish()
    if (weights.folder / INDEX).is_file():
        index = json.loads((weights.folder / INDEX).read_text(encoding="utf-8"))
        index["metadata"] = {"total_size": sum(spec.bytes for spec in specs.values())}
        write_json(folder / INDEX, index)
    return rows


def with_new_rows(
    tensor: Tensor, tokens: Sequence[NewToken], size: int, noise: float = 0.0, seed: tuple[int, int] = (0, 0)
) -> Tensor:
    """`tensor` [old vocabulary, hidden] as [size, hidden], the row of each new token the mean of its old sub-tokens' rows.

    The sum goes over the sub-tokens in their order, in FP32. With `noise` each row gets normal noise of so many of its own
    standard deviations, drawn from (seed, id): the same whatever else is added.
    """
    result = torch.zeros(size, *tensor.shape[1:], dtype=tensor.dtype)
    result[: tensor.shape[0]] = tensor[:size]
    for token in tokens:
        row = torch.zeros(tensor.shape[1], dtype=torch.float32)
        for index in token.sub_tokens:
            row += tensor[index].float()
        row /= len(token.sub_tokens)
        if noise:
            drawn = np.random.default_rng((*seed, token.id)).standard_normal(tensor.shape[1], dtype=np.float32)
            row += noise * row.std() * torch.from_numpy(drawn)
        result[token.id] = row.to(tensor.dtype)
    return result


def read_sample(sample: Path) -> list[str]:
    """The texts of a sample (documents or plain text), at most 100,000 of them and 50 million characters."""
    from megatron_native.documents.readers import read_documents
    from megatron_native.documents.records import Refusal

    if not Path(sample).is_file():
        raise UserError(f"the sample {sample} is not there; give a .jsonl, .txt or .parquet of Arabic text.")
    texts: list[str] = []
    characters = 0
    for record in islice(read_documents(Path(sample)), _MAX_SAMPLE_TEXTS):
        if isinstance(record, Refusal):
            continue
        texts.append(record.text)
        characters += len(record.text)
        if characters >= _MAX_SAMPLE_CHARACTERS:
            break
    return texts


def measure_fertility(before: Path, after: Path, sample: Path) -> Fertility:
    """Tokens a word of a sample under two tokenizer.json, special tokens in it read as text.

    Of the sample is read what `read_sample` reads. Raises `UserError` where it has no words.
    """
    from megatron_native.data.tokenizers import load_tokenizer

    texts = read_sample(sample)
    words = sum(len(text.split()) for text in texts)
    if not words:
        raise UserError(
            f"--fertility-sample {sample} has no text to count in; give a .jsonl, .txt or .parquet of Arabic text."
        )
    counts = [
        sum(
            len(ids)
            for start in range(0, len(texts), 200)
            for ids in tokenizer.encode_batch(texts[start : start + 200])
        )
        for tokenizer in (load_tokenizer("HuggingFaceTokenizer", path) for path in (before, after))
    ]
    return Fertility(len(texts), words, counts[0], counts[1])


@dataclass(frozen=True)
class AddedVocabulary:
    """What a checkpoint says of its new tokens."""

    old_size: int
    size: int
    ids: tuple[int, ...]
    """Ids of the new rows; the first of them may take rows that the old model had and its tokenizer had no token for."""

    first_spelling: str
    """The first new token as the BPE spells it."""

    def is_base(self, hf_folder: Path, vocab_size: int) -> bool:
        """Whether a folder of so many rows is the model before its new tokens."""
        if vocab_size != self.old_size or self.size != self.old_size:
            return vocab_size == self.old_size
        tokenizer = layout.read_json(hf_folder / TOKENIZER_JSON) or {}  # all new tokens took rows that were unused
        return self.first_spelling not in tokenizer.get("model", {}).get("vocab", {})

    @property
    def described(self) -> str:
        """In words."""
        return f"{len(self.ids)} rows, ids {self.ids[0]} to {self.ids[-1]}"

    def old_rows(self, tensor: Tensor) -> Tensor:
        """The rows of `tensor` [old or new vocabulary, hidden] that were there before the extension and had no new token."""
        return tensor[: min(self.ids[0], self.old_size)]


def carried_record(hf_folder: Path) -> dict[str, Any] | None:
    """The record of new tokens in a Hugging Face folder; None for a file of that name that is something else."""
    try:
        record = json.loads((hf_folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def read_added_vocabulary(checkpoint: Path) -> AddedVocabulary | None:
    """The extension of a checkpoint's vocabulary, or None where there was none; `UserError` for an unreadable record."""
    record = layout.read_json(Path(checkpoint) / VOCABULARY_FILE)
    if record is None:
        return None
    try:
        if record["format"] != FORMAT:
            raise ValueError(f"its format is {record['format']}")
        ids = tuple(sorted(int(token["id"]) for token in record["tokens"]))
        first = min(record["tokens"], key=lambda token: token["id"])["bpe"]
        return AddedVocabulary(int(record["old_vocab_size"]), int(record["vocab_size"]), ids, str(first))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{checkpoint / VOCABULARY_FILE} is no record of new tokens ({error}); restore it.") from error


def summary(record: Mapping[str, Any]) -> list[str]:
    """What to say on the console of an extension."""
    parts = sum(token["part"] for token in record["tokens"])
    added = len(record["tokens"]) - parts
    lines = [
        f"vocabulary: {record['old_vocab_size']} → {record['vocab_size']} rows; {added} new tokens"
        + (f" and {parts} parts that they are joined from" if parts else "")
        + (f"; {len(record['skipped'])} were tokens already" if record["skipped"] else "")
    ]
    if (found := record["fertility"]) is not None:
        before, after = found["tokens_a_word_before"], found["tokens_a_word_after"]
        lines.append(
            f"fertility: {before:.3f} → {after:.3f} tokens a word ({1 - after / before:.1%} fewer), over "
            f"{found['words']} words in {found['texts']} texts"
        )
    if record["left_out"]:
        lines.append(f"not carried along, since they hold the old vocabulary: {', '.join(record['left_out'])}")
    return lines
