"""The dedup stage: exact and near copies out, over all inputs at once, with the folders of the inputs kept.

Five phases, each resumable, all but two cut into tasks:
1. *signatures* — every document's digest, bands and sketch, its id and the keys of its lines, on disk;
2. *pairs* — for every band, the pairs of documents that share it and agree on their sketches; equal digests likewise;
3. *clusters* — (one task) who is a copy of whom, and who stays;
4. *lines* — (one task) lines that a site repeats on many of the pages that stay;
5. *parts* — what stays is written, `_duplicates/` says for every other document which it is a copy of.

Memory is a setting: nothing but the clusters themselves (about 30 bytes a document) is held whole.

Held against earlier corpora, the signatures that their dedups left are compared too: what is a copy of one of their
documents leaves, and they are not read again. Same id is the same document in another form, and never a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_native.corpus.account import Account
from megatron_native.corpus.keep_policy import KEEP, RankKeys
from megatron_native.corpus.minhash import MinHashSettings
from megatron_native.corpus.stage import QUARANTINE, Execution, PartResult, StageResult, StageRun, run_stage
from megatron_native.documents.inputs import check_apart, check_line_limit, common_root, expand_inputs
from megatron_native.documents.parts import PART_BYTES, Part, plan_parts
from megatron_native.documents.records import Document, ReadSettings, Refusal, utf8_bytes
from megatron_native.documents.writers import ShardWriter, check_format, document_writer, written
from megatron_native.engine.tasks import OnRead
from megatron_native.errors import UserError

if TYPE_CHECKING:
    from megatron_native.corpus.earlier_corpora import EarlierCorpus

EXACT, NEAR, EMPTY, ONLY_REPEATED_LINES = "exact copy", "near copy", "empty", "only repeated lines"
DUPLICATES = "_duplicates"
MEMORY_BYTES = 4 << 30
PACKAGES = ("numpy", "numba", "xxhash", "orjson", "msgspec", "zstandard", "isal", "pyarrow")


@dataclass(frozen=True)
class DedupSettings:
    """What decides the output of dedup, and so belongs into its manifest.

    Attributes:
        shingle_words, bands, rows, threshold: see `MinHashSettings`.
        keep: which of a cluster stays: `longest` (in words of the matching view), `newest` (by `date_key`), `first`.
        prefer: sources (sites, or folders of the inputs) whose documents stay before all others, best first.
        date_key: key of the metadata with the date.
        repeated_lines: a line that so many documents of one site have is taken out; 0: none is.
        output_format: `jsonl.zst` or `parquet`.
        part_bytes: text that one task takes; decides how the output is cut.
        reading: what of a record is its text and its id.
    """

    shingle_words: int = 5
    bands: int = 14
    rows: int = 8
    threshold: float = 0.8
    keep: str = "longest"
    prefer: tuple[str, ...] = ()
    date_key: str = "date"
    repeated_lines: int = 0
    output_format: str = "jsonl.zst"
    part_bytes: int = PART_BYTES
    reading: ReadSettings = field(default_factory=ReadSettings)

    def minhash(self) -> MinHashSettings:
        """The part that is about signatures."""
        return MinHashSettings(self.shingle_words, self.bands, self.rows, self.threshold)

    def check(self) -> None:
        """Raise a UserError where a setting makes no sense."""
        self.minhash().check()
        check_line_limit(self.reading.max_line_bytes)
        check_format(self.output_format)
        if self.keep not in KEEP:
            raise UserError(f"--keep {self.keep} is not known; it is one of {', '.join(KEEP)}.")
        if self.repeated_lines < 0 or self.repeated_lines == 1:
            raise UserError(f"--repeated-lines {self.repeated_lines}: it must be 2 or more, or 0 for none.")


def dedup(
    inputs: Sequence[str],
    output: Path,
    settings: DedupSettings,
    execution: Execution | None = None,
    memory_bytes: int = MEMORY_BYTES,
    keep_signatures: bool = False,
    against: Sequence[Path] = (),
) -> StageResult:
    """Deduplicate the documents of `inputs` (files, globs, stage folders) into the stage folder `output`.

    Args:
        inputs: several corpora may be given; copies are found across all of them.
        output: new folder.
        settings: what decides the output.
        execution: where the tasks run.
        memory_bytes: what one task may hold, beside the clusters.
        keep_signatures: leave them in `_signatures/`, about 250 bytes a document, for later dedups.
        against: folders of earlier dedups with signatures; what is a copy of a document there leaves.

    Raises:
        UserError: an input, an earlier dedup or the output folder can't be used.
    """
    settings.check()
    if memory_bytes < 64 << 20:
        raise UserError(f"--memory-bytes {memory_bytes}: 64 MiB (67108864) is the least.")
    check_apart(inputs, output)
    files = expand_inputs(inputs)
    root = common_root(inputs, files)
    parts = plan_parts(files, root, settings.reading.text_unit, settings.part_bytes)
    import msgspec

    values: dict[str, Any] = msgspec.to_builtins(settings)
    reading = values.pop("reading")
    reading.pop("metadata")
    parameters = {**reading, **values}
    earlier: list[EarlierCorpus] = []
    if against:
        from megatron_native.corpus.earlier_corpora import open_earlier

        earlier = open_earlier(against, settings.minhash(), output)
        parameters["against"] = [corpus.digest for corpus in earlier]
    work = partial(
        _work,
        parts=parts,
        settings=settings,
        memory_bytes=memory_bytes,
        keep_signatures=keep_signatures,
        earlier=earlier,
    )
    result = run_stage("dedup", files, root, output, parameters, execution or Execution(), work)
    if result.skipped and keep_signatures and not (result.output / "_signatures").exists():
        raise UserError(
            f"{output} is done already, but without --keep-signatures, and its signatures are gone: delete it to make it anew "
            "with them."
        )
    return result


def _work(
    run: StageRun,
    parts: list[Part],
    settings: DedupSettings,
    memory_bytes: int,
    keep_signatures: bool,
    earlier: list[EarlierCorpus],
) -> dict[str, Any]:
    from megatron_native.corpus.clustering import Clustering

    clustering = Clustering(run, settings.minhash(), len(parts), memory_bytes, earlier)
    sizes = [part.bytes for part in parts]
    sign = partial(_sign_part, folder=clustering.signatures, settings=settings)
    documents = [result["documents"] for result in run.do("signatures", parts, sign, sizes)]
    clustering.find(documents, settings.repeated_lines)
    write = partial(
        _write_part, output=run.output, places=clustering.places(), settings=settings, folder=clustering.signatures
    )
    results = run.do("parts", parts, write, sizes)
    summary = clustering.summary()
    if keep_signatures:
        clustering.store()
    if not earlier:
        return run.finish(results, PACKAGES, clusters=summary)
    from megatron_native.corpus.earlier_corpora import manifest_entries

    run.also_made_from += [corpus.folder for corpus in earlier]
    return run.finish(results, PACKAGES, clusters=summary, against=manifest_entries(earlier, run.output))


def _sign_part(part: Part, on_read: OnRead, folder: Path, settings: DedupSettings) -> dict[str, Any]:
    """Phase 1 of one part: signatures, ids and line keys of its documents."""
    from megatron_native.corpus.document_ids import IdsWriter
    from megatron_native.corpus.folding import WordFolder, code_points
    from megatron_native.corpus.minhash import Signer
    from megatron_native.corpus.repeated_lines import LineFile, line_keys, site_of
    from megatron_native.corpus.signatures import SignatureWriter
    from megatron_native.documents.readers import read_part

    signer, word_folder, ranks = (
        Signer(settings.minhash()),
        WordFolder(),
        RankKeys(settings.keep, settings.prefer, settings.date_key),
    )
    documents = 0
    lines = LineFile(folder / f"{part.name}.lines")
    with (
        SignatureWriter(folder / f"{part.name}.signatures", settings.minhash()) as writer,
        IdsWriter(folder / f"{part.name}.ids") as ids,
    ):
        for record in read_part(part, settings.reading, on_read):
            if isinstance(record, Refusal):
                continue
            signed = signer.sign(record.text)
            site = site_of(record.metadata, part.folder)
            writer.add(signed, ranks.key(signed.words, record.metadata, site, part.folder))
            ids.add(record.id)
            if settings.repeated_lines:
                codes = code_points(record.text)
                lines.add(documents, line_keys(codes, word_folder.words_of_codes(codes), site)[0])
            documents += 1
    if settings.repeated_lines:
        lines.write()
    return {"documents": documents}


def _write_part(
    part: Part, on_read: OnRead, output: Path, places: Any, settings: DedupSettings, folder: Path
) -> dict[str, Any]:
    """Phase 5 of one part: what stays, and what the others are copies of."""
    import numpy as np

    from megatron_native.corpus.folding import WordFolder
    from megatron_native.corpus.signatures import write_stays
    from megatron_native.documents.readers import read_part

    account, verdicts, word_folder = Account(), places.verdicts(part.number), WordFolder()
    stays = np.zeros(len(verdicts.codes), dtype=bool)
    kept = document_writer(output / part.folder, part.name, settings.output_format)
    quarantine = ShardWriter(output / QUARANTINE / f"{part.name}.jsonl.zst")
    duplicates = ShardWriter(output / DUPLICATES / f"{part.name}.jsonl.zst")
    with kept, quarantine, duplicates:
        number = -1
        for record in read_part(part, settings.reading, on_read):
            account.note(record)
            if isinstance(record, Refusal):
                quarantine.write(record)
                continue
            number += 1
            size = utf8_bytes(record.text)
            account.bytes_read += size
            verdict = verdicts.of(number)
            if verdict.reason is not None:
                account.dropped[verdict.reason] += 1
                if verdict.reason != EMPTY:
                    duplicates.write({
                        "id": record.id, "source": record.source, "offset": record.offset, "copy_of": verdict.kept_id,
                        "reason": verdict.reason, "similarity": verdict.similarity,
                        **(verdict.earlier._asdict() if verdict.earlier is not None else {}),
                    })  # fmt: skip
                continue
            text = record.text
            if settings.repeated_lines:
                text, taken = places.without_repeated_lines(record, part.folder, word_folder)
                if taken and not text.strip():
                    account.dropped[ONLY_REPEATED_LINES] += 1
                    continue
                if taken:
                    account.edits["repeated lines removed"] += taken
            account.kept += 1
            stays[number] = True
            account.kept_by_language[str(record.metadata.get("lang", "?"))] += 1
            account.bytes_kept += utf8_bytes(text) if text is not record.text else size
            kept.write(_output_record(record, text, verdict.copies))
    write_stays(folder / f"{part.name}.signatures", stays)
    return PartResult(account, written(output, [kept, quarantine, duplicates])).as_json()


def _output_record(document: Document, text: str, copies: int) -> dict[str, Any]:
    metadata = document.metadata
    if copies:
        metadata = {**metadata, "copies": copies + _earlier(metadata)}
    return {"text": text, "id": document.id, "metadata": metadata}


def _earlier(metadata: dict[str, Any]) -> int:
    """Copies that an earlier dedup took out for this document."""
    value = metadata.get("copies")
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
