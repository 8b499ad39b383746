"""Indexed datasets written document by document, with the files that the tokenize stage puts beside them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import zstandard

from megatron_native.data.dataset_files import DatasetFiles
from megatron_native.data.indexed import IndexedWriter
from megatron_native.manifest import build_manifest, file_entry, write_json

EOD, BOS, VOCABULARY = 2, 1, 600
TOKENIZER = {
    "type": "HuggingFaceTokenizer", "model": "/nowhere/tokenizer.json", "hash": "a" * 64, "vocab_size": VOCABULARY,
    "eod_token": "<|endoftext|>", "eod_id": EOD, "bos_token": None, "bos_id": None,
}  # fmt: skip


def documents(*lengths, seed=0):
    """Documents of so many ids, random ones from 10 on, the last of each the separator; of none where the length is 0."""
    rng = np.random.default_rng(seed)
    nothing = np.array([], dtype=np.int64)
    return [np.append(rng.integers(10, VOCABULARY, size - 1), EOD) if size else nothing for size in lengths]


def write_dataset(prefix, texts, dtype=np.uint16, ids=None, sequences=None):
    """`PREFIX.bin/.idx` with these documents (each an array of ids) and, where `ids` are given, `PREFIX.ids.jsonl.zst`."""
    with IndexedWriter(prefix, dtype) as writer:
        for at, text in enumerate(texts):
            writer.add_document(text, None if sequences is None else sequences[at])
    if ids is not None:
        write_ids(prefix, ids)
    return prefix


def write_ids(prefix, ids):
    lines = "".join(json.dumps(name, ensure_ascii=False) + "\n" for name in ids)
    DatasetFiles(prefix).ids.write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))


def read_ids(path):
    with open(path, "rb") as file:
        content = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    return [json.loads(line) for line in content.splitlines()]


def write_manifest(prefix, texts, dtype=np.uint16, refused=0, counts=None, **changes):
    """A manifest as the tokenize stage writes it, for a dataset that lies there as it should."""
    files, full = DatasetFiles(prefix), [text for text in texts if len(text)]
    empty = len(texts) - len(full)
    tokenizer = {**TOKENIZER, **changes.pop("tokenizer", {})}
    policy = {"begin": tokenizer["bos_token"], "end": tokenizer["eod_token"], **changes.pop("policy", {})}
    outputs = [file_entry(path, prefix.parent) for path in (files.bin, files.idx, files.ids) if path.exists()]
    everything = np.concatenate(full) if full else np.array([0])
    manifest = build_manifest(
        "tokenize", {}, [], outputs,
        {
            "read": len(texts) + refused, "kept": len(full), "dropped": Counter({"empty": empty} if empty else {}),
            "quarantined": {"invalid JSON": refused} if refused else {}, "text_bytes": 3 * sum(map(len, full)),
            "separators_from_text": 0, **(counts or {}),
        },
        tokenizer=tokenizer, document_policy=policy, dtype=np.dtype(dtype).name,
        id_range=[int(everything.min()), int(everything.max())], tokens=sum(map(len, full)), documents=len(texts), lineage=[],
    )  # fmt: skip
    write_json(files.manifest_path, {**manifest, **changes})


def complete_dataset(prefix: Path, texts, dtype=np.uint16, name="d", **changes):
    """Tokens, index, ids (`name` and a number) and manifest."""
    write_dataset(prefix, texts, dtype, ids=[f"{name}{number}" for number in range(len(texts))])
    write_manifest(prefix, texts, dtype, **changes)
    return prefix


def contents(prefix):
    return DatasetFiles(prefix).bin.read_bytes(), DatasetFiles(prefix).idx.read_bytes()
