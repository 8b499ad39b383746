"""What is looked at before datasets are merged: each input is whole, and all of them belong together.

Out come the pieces in their order, each with its place in the result, and what the manifests say added up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_native import manifest as manifests
from megatron_native.data.dataset_files import (
    DatasetFiles,
    DocumentPolicy,
    count_document_ids,
    document_policy,
    index_bytes,
)
from megatron_native.data.indexed import BLOCK, IndexedTokens, verify_structure
from megatron_native.errors import UserError
from megatron_native.progress import progress


@dataclass(frozen=True)
class Piece:
    """One input, what its manifest says, and where it goes in the result.

    Attributes:
        files: of the input.
        dtype: of its ids.
        sequences, documents, tokens: how many it has.
        first_sequence, first_document, first_token: where they begin in the result.
        index_digest: xxh3_128 of its `.idx`.
        masked: whether it has a mask.
        recorded: from its manifest: `tokenizer`, `document_policy`, `counts`, `id_range`, `chat`, the digests `bin` and
            `mask`; None without a manifest.
        lineage: the manifest's own entry (path, bytes, xxh3_128, stage), or None.
    """

    files: DatasetFiles
    dtype: np.dtype[Any]
    sequences: int
    documents: int
    tokens: int
    first_sequence: int
    first_document: int
    first_token: int
    index_digest: str
    masked: bool
    recorded: dict[str, Any] | None
    lineage: dict[str, Any] | None

    @property
    def policy(self) -> DocumentPolicy:
        """What its manifest says of its ids."""
        return document_policy(self.recorded)


def survey(prefixes: Sequence[Path], folder: Path) -> list[Piece]:
    """Each input checked, and its place in the result; offsets are Python's integers, which have no largest."""
    pieces: list[Piece] = []
    sequence = document = token = 0
    with progress("looking at the inputs", len(prefixes), "datasets") as bar:
        for prefix in prefixes:
            files = DatasetFiles(prefix)
            dataset = verify_structure(prefix)
            if files.idx.stat().st_size != index_bytes(dataset.sequence_count, dataset.document_count):
                raise UserError(f"{files.idx} has the modes of multimodal data, which are not merged here.")
            recorded, lineage = _recorded(files, dataset, folder)
            if files.ids.exists() and (found := count_document_ids(files.ids)) != dataset.document_count:
                raise UserError(
                    f"{files.ids} has {found:,} ids for {dataset.document_count:,} documents, so it belongs to another "
                    "dataset. Bring back the right one, or move it away to merge without ids."
                )
            pieces.append(Piece(
                files, np.dtype(dataset.dtype.name), dataset.sequence_count, dataset.document_count,
                dataset.token_count, sequence, document, token, dataset.digest(), dataset.masked, recorded, lineage,
            ))  # fmt: skip
            sequence += dataset.sequence_count
            document += dataset.document_count
            token += dataset.token_count
            bar.advance()
    return pieces


def _recorded(
    files: DatasetFiles, dataset: IndexedTokens, folder: Path
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What is kept of an input's manifest, and the entry that names it; it must speak of this very dataset."""
    manifest = files.manifest()
    if manifest is None:
        return None, None
    for what, found in (("documents", dataset.document_count), ("tokens", dataset.token_count)):
        if manifest.get(what) != found:
            raise UserError(
                f"{files.manifest_path} speaks of {manifest.get(what)} {what}, and {files.idx.name} has {found}: they do "
                f"not belong together. Run megatron-native verify {files.prefix}."
            )
    files.refuse_lost_mask(manifest)
    kept = {key: manifest.get(key) for key in ("tokenizer", "document_policy", "counts", "id_range", "chat")}
    for name, path in (("bin", files.bin), ("mask", files.mask)):
        output = files.recorded_output(path, manifest)
        kept[name] = output and output["xxh3_128"]
    return kept, {**manifests.file_entry(files.manifest_path, folder), "stage": manifest["stage"]}


def refuse_mixture(pieces: Sequence[Piece]) -> None:
    """Inputs of one tokenizer, document policy and chat template, as far as their manifests say, and all masked or none;
    else `UserError` names two.
    """
    for piece in pieces[1:]:
        if piece.masked != pieces[0].masked:
            masked, plain = (piece, pieces[0]) if piece.masked else (pieces[0], piece)
            raise UserError(
                f"{masked.files.prefix} has a mask and {plain.files.prefix} has none: in one dataset, nothing would tell what "
                "of the other is learned. Name both in a run's data.blend instead."
            )
    known = [piece for piece in pieces if piece.policy.tokenizer_hash is not None]
    for piece in known[1:]:
        first, other = known[0].policy, piece.policy
        names = f"{known[0].files.manifest_path} and {piece.files.manifest_path}"
        if first.tokenizer_hash != other.tokenizer_hash:
            raise UserError(
                f"{names} name different tokenizers ({first.tokenizer_hash} and {other.tokenizer_hash}): the same id "
                "means different text in them. Tokenize the documents of one of them again."
            )
        if (first.begin_id, first.end_id) != (other.begin_id, other.end_id):
            raise UserError(
                f"{names} differ in what documents begin and end with ({_policy_words(known[0])}; {_policy_words(piece)})."
                " Tokenize the documents of one of them again, with the other's --append-eod, --eod-token and --bos."
            )


def common_chat(pieces: Sequence[Piece]) -> dict[str, Any] | None:
    """What the manifests of conversations say of their chat; `UserError` where they differ, None where one says nothing."""
    chats = [(piece.recorded or {}).get("chat") for piece in pieces]
    if any(chat is None for chat in chats):
        return None
    for piece, chat in zip(pieces, chats):
        if chat != chats[0]:
            raise UserError(
                f"{pieces[0].files.manifest_path} and {piece.files.manifest_path} were prepared with different chat templates "
                f"({chats[0]}, {chat}). Prepare one of them again with the other's --template."
            )
    return chats[0]


def _policy_words(piece: Piece) -> str:
    policy = (piece.recorded or {})["document_policy"]
    return f"{policy.get('begin') or 'their text'} … {policy.get('end') or 'their text'}"


def common_dtype(pieces: Sequence[Piece], chosen: str | None) -> np.dtype[Any]:
    """The dtype of the result: the inputs' own, or the wider one asked for."""
    first = pieces[0]
    if chosen is None:
        for piece in pieces[1:]:
            if piece.dtype != first.dtype:
                wider = np.promote_types(first.dtype, piece.dtype)
                raise UserError(
                    f"{first.files.bin} holds {first.dtype} and {piece.files.bin} holds {piece.dtype}. Add --dtype {wider} "
                    "to widen all of them, if they were made with the same tokenizer."
                )
        return first.dtype
    wanted = np.dtype(chosen)
    for piece in pieces:
        if not np.can_cast(piece.dtype, wanted, "safe"):
            raise UserError(f"--dtype {wanted}: {piece.files.bin} holds {piece.dtype}, whose ids may not fit into it.")
    return wanted


def sum_of_counts(pieces: Sequence[Piece]) -> dict[str, Any]:
    """The inputs' accounts added up; of an input without one, its documents as they are."""
    accounts = [(piece.recorded or {}).get("counts") or _counts_of_index(piece) for piece in pieces]
    total: dict[str, Any] = {"read": 0, "kept": 0, "dropped": Counter(), "quarantined": Counter()}
    for account in accounts:
        total["read"] += account["read"]
        total["kept"] += account["kept"]
        total["dropped"].update(account["dropped"])
        total["quarantined"].update(account["quarantined"])
    numbers = [{key for key, value in account.items() if isinstance(value, int)} for account in accounts]
    for key in sorted(set.intersection(*numbers) - {"read", "kept"}):
        total[key] = sum(account[key] for account in accounts)
    return {**total, "dropped": dict(total["dropped"]), "quarantined": dict(total["quarantined"])}


def _counts_of_index(piece: Piece) -> dict[str, Any]:
    boundaries = IndexedTokens(piece.files.prefix).document_boundaries
    empty = sum(
        int(np.count_nonzero(np.diff(boundaries[start : start + BLOCK + 1]) == 0)) for start in range(0, piece.documents, BLOCK)
    )
    kept = {"read": piece.documents, "kept": piece.documents - empty, "quarantined": {}}
    return {**kept, "dropped": {"empty": empty} if empty else {}}
