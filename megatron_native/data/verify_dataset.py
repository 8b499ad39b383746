"""Is an indexed dataset what it says it is? Every fault with its file, its place and what to do about it.

`.bin` is read once, in blocks: checksum, range of ids, and the begin and end of every document come from the same pass.
With `quick`, the index is still checked whole, and of `.bin` only a sample is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from megatron_native.data.dataset_files import (
    TOKENS_AT_A_TIME,
    DatasetFiles,
    DocumentPolicy,
    count_document_ids,
    damaged_file,
    document_policy,
    document_start,
    find_tokenizer,
    masks_in_blocks,
    spread,
    token_blocks,
)
from megatron_native.data.id_checks import DocumentEnds, Places, RangeOfIds
from megatron_native.data.indexed import IndexedTokens, verify_structure
from megatron_native.data.tokenizers import Tokenizer
from megatron_native.errors import UserError
from megatron_native.manifest import file_digest
from megatron_native.progress import Progress, progress

SAMPLED_DOCUMENTS = 2000
"""Documents whose begin and end a quick verification looks at."""
SAMPLED_BLOCKS = 256
"""Blocks of 4,096 ids whose range a quick verification looks at."""
ROUND_TRIPS = 100
"""Documents that are decoded and encoded again."""
ROUND_TRIP_TOKENS = 20_000
"""A longer document takes no part in the round trip."""
COPY_OR_REMAKE = "copy the dataset again, or tokenize it again"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: the file, the place in it (or ""), what it is, and what to do."""

    file: str
    place: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.file}{', ' + self.place if self.place else ''}: {self.what}; {self.advice}"


@dataclass
class Verification:
    """What was found of one dataset.

    Attributes:
        prefix: the dataset.
        faults: what is wrong; nothing where it is fine.
        checked: what was looked at and found right, one phrase each.
        remarks: what could not be looked at and why, and what is unusual but not wrong.
        quick: whether `.bin` was sampled.
    """

    prefix: str
    quick: bool
    faults: list[Fault] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Nothing is wrong."""
        return not self.faults

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "passed": self.passed}

    def summary(self) -> str:
        """The findings, readable."""
        verdict = "fine" if self.passed else f"FAULTY ({len(self.faults)})"
        lines = [f"{self.prefix}: {verdict}{', sampled' if self.quick else ''}"]
        lines += [f"  FAULT  {fault}" for fault in self.faults]
        lines += [f"  ok     {what}" for what in self.checked]
        return "\n".join(lines + [f"  note   {remark}" for remark in self.remarks])


@dataclass(frozen=True)
class Expectations:
    """What the user says of a dataset, over what its manifest says; None where nothing is said."""

    tokenizer: Path | None = None
    vocab_size: int | None = None
    eod_id: int | None = None


def verify_dataset(
    prefix: str | Path, expected: Expectations | None = None, quick: bool = False, bar: Progress | None = None
) -> Verification:
    """Check everything about the dataset `prefix` that its files, its manifest and `expected` allow to check.

    The bytes of `.bin` that were read are reported to `bar`, or to a bar of its own.

    Raises:
        UserError: neither `.bin` nor `.idx` is there, or the tokenizer given can't be opened.
    """
    files = DatasetFiles(Path(prefix))
    if not files.bin.exists() and not files.idx.exists():
        raise UserError(f"{files.prefix} is no indexed dataset: neither {files.bin.name} nor {files.idx.name} is there.")
    return _Verifier(files, expected or Expectations(), quick, bar).run()


class _Verifier:
    def __init__(self, files: DatasetFiles, expected: Expectations, quick: bool, bar: Progress | None) -> None:
        self.files, self.quick, self.bar = files, quick, bar
        self.found = Verification(str(files.prefix), quick)
        try:
            self.manifest = files.manifest()
        except UserError as error:
            self.manifest = None
            self._fault(files.manifest_path, "", str(error), "bring back the manifest that was written with the dataset")
        if self.manifest is None and self.found.passed:
            self.found.remarks.append(f"there is no {files.manifest_path.name}: checksums and tokenizer are not known")
        self.tokenizer, remark = find_tokenizer(self.manifest, expected.tokenizer)
        self.tokenizer_remark = remark
        self.policy = self._policy(expected)

    def run(self) -> Verification:
        dataset = self._structure()
        if dataset is not None:
            self._manifest_facts(dataset)
            self._dtype(dataset)
        if self.quick:
            self._sizes()
            if dataset is not None:
                self._sampled_ids(dataset)
                self._sampled_documents(dataset)
        else:
            self._checksums_besides_bin()
            if self.files.bin.is_file():
                self._whole_bin(dataset)
            self._document_ids(dataset)
        if dataset is not None and dataset.masked:
            self._mask(dataset)
        elif dataset is not None:
            self._round_trip(dataset)
        return self.found

    def _policy(self, expected: Expectations) -> DocumentPolicy:
        """The manifest's word, filled up by the tokenizer's, under the user's."""
        known = document_policy(self.manifest)
        tokenizer = self.tokenizer
        if tokenizer is not None and known.tokenizer_hash not in (None, tokenizer.hash):
            self._fault(
                self.files.manifest_path, "", f"the dataset was made with another tokenizer than {tokenizer.path} "
                f"(hash {known.tokenizer_hash}, {tokenizer.hash} here)", "give the one it was made with",
            )
            self.tokenizer = tokenizer = None
        if self.files.mask.is_file():  # turns may end with the separator, and begin with the begin token
            return replace(known, separator_id=None, vocab_size=expected.vocab_size or known.vocab_size)
        separator = known.separator_id
        if separator is None and tokenizer is not None and tokenizer.eod_token is not None:
            separator = tokenizer.eod_id
        return DocumentPolicy(
            tokenizer_hash=known.tokenizer_hash,
            vocab_size=expected.vocab_size or known.vocab_size or (tokenizer.vocab_size if tokenizer else None),
            begin_id=known.begin_id,
            end_id=known.end_id if expected.eod_id is None else expected.eod_id,
            separator_id=separator if expected.eod_id is None else expected.eod_id,
        )

    def _structure(self) -> IndexedTokens | None:
        try:
            dataset = verify_structure(self.files.prefix)
        except UserError as error:
            place = damaged_file(error, self.files)
            self._fault(place, "", _without_name(str(error), place), f"or try megatron-native repair {self.files.prefix}")
            self.found.remarks.append("documents could not be looked at one by one, as the structure is damaged")
            return None
        self._good(
            f"structure: {dataset.document_count:,} documents in {dataset.sequence_count:,} sequences, "
            f"{dataset.token_count:,} tokens ({dataset.dtype.name}); every length, pointer and boundary"
        )
        return dataset

    def _manifest_facts(self, dataset: IndexedTokens) -> None:
        manifest = self.manifest or {}
        facts = {
            "documents": dataset.document_count, "tokens": dataset.token_count, "dtype": dataset.dtype.name,
        }  # fmt: skip
        for name, value in facts.items():
            if manifest.get(name, value) != value:
                self._fault(
                    self.files.manifest_path, name, f"{_number(manifest[name])} there, {_number(value)} in the dataset",
                    "dataset and manifest do not belong together: bring back the right one",
                )

    def _dtype(self, dataset: IndexedTokens) -> None:
        size = self.policy.vocab_size
        if size is None:
            self.found.remarks.append("the vocabulary's size is not known (give --tokenizer or --vocab-size): "
                                      "ids are only checked not to be negative")
            return
        largest = int(np.iinfo(dataset.dtype).max)
        if size - 1 > largest:
            self._fault(self.files.idx, "header", f"{dataset.dtype.name} holds ids up to {largest:,}, and the vocabulary has "
                        f"{size:,}: larger ids were cut off", "tokenize the documents again")
        else:
            self._good(f"dtype: {dataset.dtype.name} holds all ids of a vocabulary of {size:,}")

    def _sizes(self) -> None:
        for path in (self.files.bin, self.files.idx, self.files.ids, self.files.mask):
            self._recorded_size(path)
        self.found.remarks.append("checksums and the number of document ids are not checked with --quick")

    def _recorded_size(self, path: Path) -> dict[str, Any] | None:
        """The manifest's entry of a file that is there in the recorded size; a fault, and None, else."""
        recorded = self.files.recorded_output(path, self.manifest)
        if recorded is None:
            return None
        if not path.is_file():
            self._fault(path, "", "is gone, and the manifest lists it", "copy it again from where the dataset was made")
            return None
        if path.stat().st_size != recorded["bytes"]:
            self._fault(path, "", f"has {path.stat().st_size:,} bytes, {recorded['bytes']:,} in the manifest", COPY_OR_REMAKE)
            return None
        return recorded

    def _checksums_besides_bin(self) -> None:
        for path in (self.files.idx, self.files.ids, self.files.mask):
            recorded = self._recorded_size(path)
            if recorded is not None:
                self._compare_digest(path, file_digest(path), recorded)

    def _compare_digest(self, path: Path, digest: str, recorded: dict[str, Any]) -> None:
        if digest == recorded["xxh3_128"]:
            self._good(f"checksum: {path.name}")
        else:
            self._fault(path, "", f"has another content than when it was made (xxh3_128 {digest}, {recorded['xxh3_128']} in "
                        "the manifest)", COPY_OR_REMAKE)

    def _whole_bin(self, dataset: IndexedTokens | None) -> None:
        """The one pass over `.bin`; without a sound index only its checksum."""
        path, recorded = self.files.bin, self._recorded_size(self.files.bin)
        digest = xxhash.xxh3_128()
        own = progress(f"verify {path.name}", path.stat().st_size, "B")
        with own if self.bar is None else nullcontext(self.bar) as bar:
            if dataset is None:
                with open(path, "rb") as file:
                    for raw in iter(lambda: file.read(1 << 23), b""):
                        digest.update(raw)
                        bar.advance(len(raw))
            else:
                range_of_ids = RangeOfIds(self.policy.vocab_size)
                ends = DocumentEnds(self.policy)
                for first, starts, at, ids in token_blocks(dataset):
                    digest.update(ids.tobytes())
                    range_of_ids.look(at, ids)
                    ends.look(first, starts, at, ids)
                    bar.advance(ids.nbytes)
                self._report_range(range_of_ids, "all ids")
                self._report_ends(ends, "every document")
        if recorded is not None:
            self._compare_digest(path, digest.hexdigest(), recorded)

    def _sampled_ids(self, dataset: IndexedTokens) -> None:
        range_of_ids, block = RangeOfIds(self.policy.vocab_size), 4096
        last = max(dataset.token_count - block, 0)
        for at in np.unique(np.linspace(0, last, num=SAMPLED_BLOCKS, dtype=np.int64)).tolist():
            range_of_ids.look(at, dataset.read(at, min(block, dataset.token_count)))
        self._report_range(range_of_ids, f"{range_of_ids.seen:,} sampled ids")

    def _sampled_documents(self, dataset: IndexedTokens) -> None:
        ends, looked = DocumentEnds(self.policy), 0
        for number in spread(dataset.document_count, SAMPLED_DOCUMENTS):
            starts = np.array([document_start(dataset, number), document_start(dataset, number + 1)])
            at, size = int(starts[0]), int(starts[1] - starts[0])
            ends.look(number, starts, at, dataset.read(at, min(size, TOKENS_AT_A_TIME)))
            if size > TOKENS_AT_A_TIME:  # of a very long one the beginning, and its last id
                ends.look(number, starts, at + size - 1, dataset.read(at + size - 1, 1))
            looked += 1
        self._report_ends(ends, f"{looked:,} sampled documents")

    def _report_range(self, found: RangeOfIds, which: str) -> None:
        path, size = self.files.bin, self.policy.vocab_size
        if found.wrong:
            self._fault(
                path, f"token {found.first_at:,}", f"the id {found.first_id:,} is outside the vocabulary"
                f"{f' of {size:,} ids' if size else ''} ({found.wrong:,} such ids among {which})",
                "it is damaged, or was made with another tokenizer: " + COPY_OR_REMAKE,
            )
            return
        recorded = (self.manifest or {}).get("id_range")
        if recorded and found.seen and not (recorded[0] <= found.lowest and found.highest <= recorded[1]):
            self._fault(path, "", f"ids go from {found.lowest:,} to {found.highest:,}, from {recorded[0]:,} to "
                        f"{recorded[1]:,} in the manifest", COPY_OR_REMAKE)
        elif found.seen:
            self._good(f"range: {which} lie in {found.lowest:,} … {found.highest:,}")

    def _report_ends(self, found: DocumentEnds, which: str) -> None:
        policy, path = self.policy, self.files.bin
        both = (("end", policy.end_id, found.without_end), ("begin", policy.begin_id, found.without_begin))
        for name, expected, places in both:
            if expected is None:
                continue
            if places.count:
                self._fault(
                    path, f"document {places.first_document:,}", f"does not {name} with the id {expected} "
                    f"({places.count:,} among {which})", "it was cut, or its index is another dataset's: " + COPY_OR_REMAKE,
                )
            else:
                self._good(f"documents {name} with the id {expected} ({which})")
        for what, places in (("separator", found.inner_end), ("begin token", found.inner_begin)):
            if places.count:
                self._report_inner(what, places, which)
        if policy.end_id is None and policy.separator_id is not None and found.ended:
            self.found.remarks.append(f"{found.ended:,} documents end with the separator {policy.separator_id}, though nothing "
                                      "says that they do")
        if policy.end_id is None and policy.separator_id is None and not self.files.mask.is_file():
            self.found.remarks.append("the document separator is not known (give --tokenizer or --eod-id): ends of documents "
                                      "are not checked")

    def _report_inner(self, what: str, places: Places, which: str) -> None:
        """A separator inside a document: accounted for where the manifest counted as many from the text."""
        counts = (self.manifest or {}).get("counts", {})
        where = f"document {places.first_document:,}, token {places.first_token:,}"
        sentence = f"the {what} stands inside a document ({places.count:,} times among {which})"
        if what == "separator" and not self.quick and counts.get("separators_from_text") == places.count:
            self.found.remarks.append(f"{where}: {sentence}; the manifest counts as many that came from the text")
            return
        self._fault(self.files.bin, where, sentence, "two documents were joined, or a text spelled it out: tokenize them again "
                    "with a tokenizer that tells text from special tokens")

    def _document_ids(self, dataset: IndexedTokens | None) -> None:
        path = self.files.ids
        if not path.is_file():
            if self.files.recorded_output(path, self.manifest) is None:
                self.found.remarks.append(f"there is no {path.name}: documents have no ids")
            return
        try:
            count = count_document_ids(path)
        except UserError as error:
            self._fault(path, "", _without_name(str(error), path), "copy it again")
            return
        if dataset is not None and count != dataset.document_count:
            self._fault(path, "", f"has {count:,} ids for {dataset.document_count:,} documents",
                        "it belongs to another dataset: bring back the right one")
        elif dataset is not None:
            self._good(f"document ids: one for each of the {count:,} documents")

    def _mask(self, dataset: IndexedTokens) -> None:
        """Ones and zeros, and something to learn in every document; of a quick verification in sampled blocks."""
        path, learned, looked = self.files.mask, 0, 0
        for at, block in masks_in_blocks(dataset) if not self.quick else self._sampled_masks(dataset):
            if int(block.max(initial=0)) > 1:
                place = int(np.flatnonzero(block > 1)[0])
                self._fault(path, f"token {at + place:,}", f"holds {block[place]} where 0 or 1 is expected", COPY_OR_REMAKE)
                return
            learned, looked = learned + int(block.sum(dtype=np.int64)), looked + len(block)
        recorded = (self.manifest or {}).get("counts", {}).get("learned_tokens")
        if not self.quick and recorded not in (None, learned):
            self._fault(path, "", f"has {learned:,} tokens to learn, {recorded:,} in the manifest", COPY_OR_REMAKE)
        elif looked and not learned:
            self._fault(path, "", "names no token that is learned", "prepare the dataset again")
        else:
            self._good(f"mask: {learned:,} of {looked:,} {'sampled ' if self.quick else ''}tokens are learned")

    @staticmethod
    def _sampled_masks(dataset: IndexedTokens) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        size = min(4096, dataset.token_count)
        for at in np.unique(np.linspace(0, dataset.token_count - size, num=SAMPLED_BLOCKS, dtype=np.int64)).tolist():
            yield at, dataset.read_learned(at, size)

    def _round_trip(self, dataset: IndexedTokens) -> None:
        if self.tokenizer is None:
            self.found.remarks.append(f"text was not compared: {self.tokenizer_remark}")
            return
        tried, same, first_other = _round_trips(dataset, self.tokenizer, self.policy)
        if not tried:
            return
        sentence = f"{same} of {tried} sampled documents give the same ids again when decoded and encoded"
        if same < tried / 2:
            self._fault(self.files.bin, f"document {first_other:,}", f"only {sentence}",
                        "it was made with another tokenizer, or is damaged: " + COPY_OR_REMAKE)
        else:
            self._good(f"text: {sentence}")

    def _fault(self, file: Path, place: str, what: str, advice: str) -> None:
        self.found.faults.append(Fault(str(file), place, what, advice))

    def _good(self, what: str) -> None:
        self.found.checked.append(what)


def _round_trips(dataset: IndexedTokens, tokenizer: Tokenizer, policy: DocumentPolicy) -> tuple[int, int, int]:
    """Documents decoded and encoded again: tried, those that gave the same ids, the first that did not."""
    tried, same, first_other = 0, 0, -1
    for number in spread(dataset.document_count, ROUND_TRIPS):
        start, stop = document_start(dataset, number), document_start(dataset, number + 1)
        if stop - start > ROUND_TRIP_TOKENS:
            continue
        ids = dataset.read(start, stop - start)
        if policy.begin_id is not None and len(ids) and ids[0] == policy.begin_id:
            ids = ids[1:]
        if policy.separator_id is not None and len(ids) and ids[-1] == policy.separator_id:
            ids = ids[:-1]
        if not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= tokenizer.vocab_size:
            continue
        tried += 1
        if np.array_equal(tokenizer.encode(tokenizer.decode(ids)), ids):
            same += 1
        elif first_other < 0:
            first_other = number
    return tried, same, first_other


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _without_name(sentence: str, path: Path) -> str:
    return sentence.removeprefix(f"{path} ").rstrip(".")
