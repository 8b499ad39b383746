"""Held-out evaluation: documents cut into windows so that every token of their text is predicted exactly once.

Documents come from shards, ids and the begin or separator token from the tokenizer; out go padded arrays and the
bytes of the text, so that bits per byte = (sum of the losses in nats) / (ln 2 × bytes), whatever the tokenizer. Of
conversations (a masked dataset) what is predicted is the answers, and the bytes are theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_native.data.dataset_files import DatasetFiles, document_policy
from megatron_native.data.indexed import IndexedTokens, verify_structure
from megatron_native.data.tokenizers import Tokenizer
from megatron_native.errors import UserError

ENCODED_AT_ONCE = 256
WINDOW_MULTIPLE = 64
"""Windows of conversations have a multiple of so many tokens, so that any tensor-parallel size divides them."""


@dataclass(frozen=True)
class HeldoutWindows:
    """Windows ready for a model; S is the sequence length and N the number of windows.

    Attributes:
        tokens: int64 [N, S] inputs, padded at the end.
        labels: int64 [N, S] the token that follows each input.
        loss_mask: float32 [N, S] 1 where a label counts, 0 on pads and on labels that an earlier window has predicted.
        text_bytes: UTF-8 bytes of all documents' text; of conversations, of the answers.
        token_count: labels that count, which are the tokens of the text; of conversations, those of the answers and the
            ends of their turns.
        documents: how many documents, or conversations, there are.
    """

    tokens: NDArray[np.int64]
    labels: NDArray[np.int64]
    loss_mask: NDArray[np.float32]
    text_bytes: int
    token_count: int
    documents: int

    def bits_per_byte(self, total_loss: float) -> float:
        """Bits per byte of text, from the sum of the counted labels' negative log-likelihoods in nats."""
        return total_loss / (math.log(2) * self.text_bytes)


def heldout_windows(
    patterns: Sequence[str | Path], tokenizer: Tokenizer, seq_length: int, text_key: str = "text",
    stride: int | None = None, max_documents: int | None = None,
) -> HeldoutWindows:
    """Read the documents of some shards (the first `max_documents` of them) and cut them into windows.

    Raises:
        UserError: a file or record that can't be read (held-out files are curated, so nothing is passed over), or
            what `cut_windows` refuses.
    """
    texts = list(islice(_read_texts(patterns, text_key), max_documents))
    if not texts:
        raise UserError(f"the held-out files {' '.join(map(str, patterns))} hold no text to predict.")
    return cut_windows(texts, tokenizer, seq_length, stride)


def cut_windows(
    texts: Sequence[str], tokenizer: Tokenizer, seq_length: int, stride: int | None = None
) -> HeldoutWindows:
    """Cut each text into windows.

    A text's first window starts from the begin token (the separator, where documents have no begin token), each
    following one from the last token of the one before; no separator is predicted. With a `stride` below
    `seq_length` a window moves on by that many tokens only, and counts only the labels that are new to it, so that
    they have more context.

    Raises:
        UserError: no text that gives tokens, or a stride outside 1 … seq_length.
    """
    stride = seq_length if stride is None else stride
    if not 1 <= stride <= seq_length:
        raise UserError(f"stride is {stride}; it must lie between 1 and the sequence length, {seq_length}.")
    start_id = tokenizer.eod_id if tokenizer.bos_id is None else tokenizer.bos_id
    rows: list[tuple[NDArray[np.int64], int]] = []
    for batch in range(0, len(texts), ENCODED_AT_ONCE):
        for document in tokenizer.encode_batch(texts[batch : batch + ENCODED_AT_ONCE]):
            rows += windows_of(document.astype(np.int64), start_id, seq_length, stride)
    if not rows:
        raise UserError("the held-out texts hold nothing to predict: no token comes out of them.")
    tokens = np.full((len(rows), seq_length), start_id, dtype=np.int64)
    labels = np.full((len(rows), seq_length), start_id, dtype=np.int64)
    mask = np.zeros((len(rows), seq_length), dtype=np.float32)
    for row, (ids, seen) in enumerate(rows):
        tokens[row, : len(ids) - 1] = ids[:-1]
        labels[row, : len(ids) - 1] = ids[1:]
        mask[row, seen : len(ids) - 1] = 1
    return HeldoutWindows(
        tokens, labels, mask, sum(len(text.encode()) for text in texts), int(mask.sum(dtype=np.int64)), len(texts)
    )


def conversation_windows(prefix: str | Path, tokenizer: Tokenizer, seq_length: int) -> HeldoutWindows:
    """The conversations of a masked dataset, one window each, of at most `seq_length` tokens.

    S is the length of the longest of them, rounded up to `WINDOW_MULTIPLE`. Bytes are those of the learned tokens' text
    without control tokens, while the loss has the end of every answer's turn in it.

    Raises:
        UserError: no dataset, one without a mask or of another tokenizer, a conversation longer than a window, nothing to
            predict.
    """
    files = DatasetFiles(Path(prefix))
    manifest = files.manifest()
    files.refuse_lost_mask(manifest)
    dataset = IndexedTokens(files.prefix)
    if not dataset.masked:
        raise UserError(
            f"held-out conversations {files.prefix}: there is no {files.mask.name}, which says what of them is predicted. Give "
            "the prefix of a dataset that `prepare` made, or kind: text for a file of documents."
        )
    made_by = document_policy(manifest).tokenizer_hash
    if made_by not in (None, tokenizer.hash):
        raise UserError(
            f"held-out conversations {files.prefix} were prepared with another tokenizer (hash {made_by}) than the model's, "
            f"{tokenizer.path} (hash {tokenizer.hash}). Prepare them again with the model's."
        )
    verify_structure(files.prefix, tokenizer.vocab_size)
    longest = int(dataset.document_lengths().max(initial=0))
    if longest > seq_length:
        raise UserError(
            f"held-out conversations {files.prefix}: one has {longest:,} tokens, and a sequence of the run has {seq_length:,}. "
            "Raise data.seq_length, or prepare them again with a smaller --seq-length."
        )
    width = min(seq_length, -(-longest // WINDOW_MULTIPLE) * WINDOW_MULTIPLE)
    tokens, labels = (np.zeros((dataset.document_count, width), dtype=np.int64) for _ in range(2))
    mask = np.zeros((dataset.document_count, width), dtype=np.float32)
    control = np.array([tokenizer.token_id(token) for token in tokenizer.special_tokens()], dtype=np.int64)
    text_bytes = 0
    for row in range(dataset.document_count):
        start, length = dataset.document_place(row)
        ids, learned = dataset.read(start, length).astype(np.int64), dataset.read_learned(start, length)
        tokens[row, : length - 1], labels[row, : length - 1] = ids[:-1], ids[1:]
        mask[row, : length - 1] = learned[1:]
        spoken = np.where(np.isin(ids, control), 0, learned)
        spoken[:1] = 0
        edges = np.flatnonzero(np.diff(spoken, prepend=0, append=0))  # where answers begin and end
        text_bytes += sum(len(tokenizer.decode(ids[a:b]).encode()) for a, b in zip(edges[::2], edges[1::2]))
    if not text_bytes:
        raise UserError(f"held-out conversations {files.prefix}: the mask names no token of an answer.")
    return HeldoutWindows(tokens, labels, mask, text_bytes, int(mask.sum(dtype=np.int64)), dataset.document_count)


def windows_of(
    ids: NDArray[np.int64], start_id: int, seq_length: int, stride: int
) -> Iterable[tuple[NDArray[np.int64], int]]:
    """A document's windows: up to S + 1 ids each, and how many of its labels an earlier window has predicted."""
    stream = np.concatenate([[start_id], ids])
    predicted = 0  # labels stream[1 : predicted + 1] are done
    while predicted < len(ids):
        # a full window that ends `stride` labels further than the one before; the first one is new throughout
        end = min(predicted + (stride if predicted else seq_length), len(ids))
        begin = max(0, end - seq_length) if stride < seq_length else predicted
        yield stream[begin : end + 1], predicted - begin
        predicted = end


def _read_texts(patterns: Sequence[str | Path], text_key: str) -> Iterator[str]:
    from megatron_native.documents.inputs import expand_inputs
    from megatron_native.documents.readers import read_documents
    from megatron_native.documents.records import Refusal

    for path in expand_inputs([str(pattern) for pattern in patterns]):
        for record in read_documents(path, text_key=text_key):
            if isinstance(record, Refusal):
                raise UserError(
                    f"held-out file {path}, byte {record.offset}: {record.reason}. Held-out text must be whole; repair the "
                    "record or take it out."
                )
            if record.text:
                yield record.text
