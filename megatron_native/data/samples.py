"""A training sample: ids, labels, which of them count, and where its documents end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megatron_native.data.document_stream import Span
from megatron_native.data.indexed import IndexedTokens


@dataclass(frozen=True)
class LossPolicy:
    """Which labels count; of a masked dataset those that its mask names, whatever `on_separator` says."""

    on_first: bool = True
    """A document's first token, predicted at the end of the document before it in the sequence."""
    on_separator: bool = True
    """The separator that ends a document."""
    separator: int | None = None
    """Its id; needed only where it does not count."""


@dataclass(frozen=True)
class Sample:
    """One sequence of S tokens."""

    tokens: NDArray[np.int64]
    """[S]; pads at the end are 0."""
    labels: NDArray[np.int64]
    """[S] what follows each token in its document."""
    loss_mask: NDArray[np.float32]
    """[S] 1 where the label counts."""
    document_lengths: NDArray[np.int32]
    """[documents] lengths of the pieces that attend only to themselves, pads among them as the last; their sum is S."""


def make_sample(
    dataset: IndexedTokens, spans: Sequence[Span], following: Span | None, seq_length: int, policy: LossPolicy
) -> Sample:
    """Read the sample that is made of `spans`, at most S tokens together.

    The label of a span's last token is the next token of its document; where the document ends there, it is the first
    token of the span after it (for the last one that of `following`, if given) and counts as `policy` says. A span that
    begins inside its document begins with what nothing here predicts. Of a masked dataset, a label counts only where the
    mask has a 1.
    """
    tokens = np.zeros(seq_length, dtype=np.int64)
    labels = np.zeros(seq_length, dtype=np.int64)
    mask = np.zeros(seq_length, dtype=np.float32)
    lengths, at = [], 0
    for place, span in enumerate(spans):
        start, length = dataset.document_place(span.document)
        count = span.stop - span.start
        continues = span.stop < length
        ids = dataset.read(start + span.start, count + continues)
        tokens[at : at + count] = ids[:count]
        labels[at : at + len(ids) - 1] = ids[1:]
        mask[at : at + len(ids) - 1] = dataset.read_learned(start + span.start, count + continues)[1:]
        if not continues:
            after = spans[place + 1] if place + 1 < len(spans) else following
            if after is not None and after.start == 0 and policy.on_first:
                first = dataset.document_place(after.document)[0]
                labels[at + count - 1] = dataset.read(first, 1)[0]
                mask[at + count - 1] = dataset.read_learned(first, 1)[0]
        at += count
        lengths.append(count)
    if at < seq_length:
        lengths.append(seq_length - at)
    if not policy.on_separator and not dataset.masked:
        mask[labels == policy.separator] = 0
    return Sample(tokens, labels, mask, np.array(lengths, dtype=np.int32))
