"""Gathering a report's figures: the manifests read and linked, then one pass over every file that the stages left.

Memory does not grow with the corpus: documents are counted as they pass, and a fixed number of them, chosen by the hash of
their ids, is kept to look at. The same folders give the same report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_native.corpus.report import budget
from megatron_native.corpus.report.copies import DUPLICATES, CopyFinder
from megatron_native.corpus.report.figures import Check, Duplicates, Report, Sample, SampleGroup
from megatron_native.corpus.report.measures import (
    LengthHistogram,
    Reservoir,
    count_tokens,
    measure_fertility,
    measure_script,
)
from megatron_native.corpus.report.reading import Damage, OnRead, Refusal, documents_in, records_in, side_files
from megatron_native.corpus.report.sources import NOT_RECORDED, FileTable, SourceTable, name_of
from megatron_native.corpus.report.stages import Place, check_account, find_stages, link
from megatron_native.errors import UserError
from megatron_native.progress import progress

DROPPED, QUARANTINE = "_dropped", "_quarantine"
SAMPLE_CHARACTERS = 8000
"""Of each sampled document so many characters are measured, to the last whole word."""
_SHOWN_CHARACTERS = 700
_KEPT_SAMPLES, _LEFT_SAMPLES = 5, 4
_MOST_LANGUAGES = 16
_MOST_REASONS = 200
OTHER_LANGUAGES = "other languages"


@dataclass(frozen=True)
class ReportSettings:
    """What a report is to look at.

    Attributes:
        sample: documents of each language whose writing is measured.
        tokenizer: a folder, `tokenizer.json` or SentencePiece `.model`, or None.
        budget: tokens of the planned training, or None.
        blend: weights by name of dataset, or None.
    """

    sample: int = 2000
    tokenizer: Path | None = None
    budget: float | None = None
    blend: Mapping[str, float] | None = None


def gather(inputs: Sequence[str], settings: ReportSettings) -> Report:
    """The figures of the stages that `inputs` name.

    Raises:
        UserError: an input is no stage, the tokenizer can't be used, the blend names what is not there.
    """
    if settings.sample < 0:
        raise UserError(f"--sample {settings.sample}: it must be 0 or more documents.")
    tokenizer = None if settings.tokenizer is None else _load_tokenizer(settings.tokenizer)
    report = Report(list(inputs), sample=settings.sample, sample_characters=SAMPLE_CHARACTERS)
    places = find_stages(inputs)
    report.links = link(places, report.checks)
    report.totals = check_account(places, report.links, report.checks)
    report.stages = [place.figures for place in places]
    with progress("report", _bytes_to_read(places), "B") as bar:
        _Pass(places, report, settings.sample).run(bar.advance, tokenizer)
    if report.totals is not None and not report.totals.balances:
        report.checks.insert(
            0, Check("the whole run", False, "what came in is not what is kept and what was taken out")
        )
    if tokenizer is not None:
        report.tokenizer = tokenizer.description()
    _plan_budget(report, settings)
    _warn(report)
    return report


def _load_tokenizer(path: Path) -> Any:
    from megatron_native.data.tokenizers import load_tokenizer

    kind = "SentencePieceTokenizer" if path.suffix == ".model" else "HuggingFaceTokenizer"
    return load_tokenizer(kind, path, engine="auto" if kind == "HuggingFaceTokenizer" else "tokenizers")


def _bytes_to_read(places: Sequence[Place]) -> int:
    files = [place.folder / entry["path"] for place in places for entry in place.document_files()]
    for place in places:
        if not place.is_dataset:
            files += [file for name in (DROPPED, QUARANTINE, DUPLICATES) for file in side_files(place.folder, name)]
    return sum(file.stat().st_size for file in files if file.is_file())


class _Pass:
    """One pass over the documents of all stages and what they took out."""

    def __init__(self, places: Sequence[Place], report: Report, sample: int) -> None:
        self._report, self._sample = report, sample
        self._places = [place for place in places if not place.is_dataset]
        of_place = {id(place): number for number, place in enumerate(places)}
        numbers = {of_place[id(place)] for place in self._places}
        giving: dict[int, set[int]] = {}
        for one in report.links:
            giving.setdefault(one.giver, set()).add(one.taker)
        self._final = [not giving.get(of_place[id(place)], set()) & numbers for place in self._places]
        self._takers = [giving.get(of_place[id(place)], set()) for place in self._places]
        self._number = [of_place[id(place)] for place in self._places]
        self._sources = SourceTable(len(self._places))
        self._files = FileTable(self._places)
        self._words: dict[str, LengthHistogram] = {}
        self._bytes: dict[str, LengthHistogram] = {}
        self._samples: dict[str, Reservoir[Sample]] = {}
        self._dialects: Counter[str] = Counter()

    def run(self, on_read: OnRead, tokenizer: Any) -> None:
        """Read everything and fill the report."""
        report = self._report
        finders = {
            self._number[n]: CopyFinder(place, report.checks, on_read)
            for n, place in enumerate(self._places)
            if place.figures.kind == "dedup"
        }
        left: list[SampleGroup] = []
        for n, place in enumerate(self._places):
            left += self._read_left(n, place, on_read)
            self._read_documents(n, place, finders, on_read)
        report.final_stages = [place.name for n, place in enumerate(self._places) if self._final[n]]
        report.document_stages = [place.name for place in self._places]
        report.languages = {language: found.offered for language, found in self._samples.items()}
        report.languages = dict(sorted(report.languages.items(), key=lambda item: (-item[1], item[0])))
        report.words = {language: self._words[language].lengths() for language in report.languages}
        report.bytes = {language: self._bytes[language].lengths() for language in report.languages}
        report.language_bytes = {language: found.total for language, found in report.bytes.items()}
        report.dialects = dict(self._dialects.most_common())
        report.sources, report.source_count = self._sources.top(self._whole_givers()), self._sources.count()
        report.sources_counted_together = self._sources.counted_together
        report.files, report.file_count = self._files.top()
        report.duplicates = [self._duplicates(finder) for finder in finders.values()]
        report.samples = [*self._measure_samples(tokenizer), *left]

    def _whole_givers(self) -> dict[int, list[int]]:
        """The stages that gave everything they kept to one stage of documents, which read nothing else."""
        place_of = {number: n for n, number in enumerate(self._number)}
        found: dict[int, list[int]] = {}
        for n, number in enumerate(self._number):
            taken = [one for one in self._report.links if one.taker == number]
            givers = [place_of[one.giver] for one in taken if one.giver in place_of]
            whole = all(
                self._places[giver].figures.unread == 0 and set(self._places[giver].takers.values()) == {1}
                for giver in givers
            )
            if givers and whole and sum(one.records for one in taken) == self._places[n].figures.read:
                found[n] = givers
        return found

    def _duplicates(self, finder: CopyFinder) -> Duplicates:
        return finder.figures(self._report.checks)

    def _read_documents(self, n: int, place: Place, finders: Mapping[int, CopyFinder], on_read: OnRead) -> None:
        own = finders.get(self._number[n])
        readers = [finders[taker] for taker in sorted(self._takers[n]) if taker in finders]
        found = 0
        for entry in place.document_files():
            file = place.folder / entry["path"]
            if not file.is_file():
                continue  # a check says so
            folder = entry["path"].split("/")[0] if "/" in entry["path"] else ""
            for document in documents_in(file, on_read):
                if isinstance(document, Refusal):
                    detail = f"{file}, at {document.offset:,}: {document.reason} {document.detail}".rstrip()
                    self._report.checks.append(Check("documents", False, detail))
                    continue
                found += 1
                metadata = document.metadata
                site = name_of(metadata)
                for reader in readers:
                    reader.see_read(document)
                if own is not None:
                    own.see_kept(document, site)
                if not self._final[n]:
                    self._sources.keep(site, n, 0)
                    continue
                size = len(document.text.encode())
                self._sources.keep(site, n, size)
                self._files.keep(metadata)
                language = self._language(metadata.get("lang"), folder)
                if language not in self._samples:
                    self._samples[language] = Reservoir(self._sample)
                    self._words[language], self._bytes[language] = LengthHistogram(), LengthHistogram()
                self._words[language].add(len(document.text.split()))
                self._bytes[language].add(size)
                dialect = metadata.get("dialect")
                if isinstance(dialect, str) and dialect:
                    self._dialects[dialect] += 1
                self._samples[language].offer(document.id, _sample, document.id, document.text, language, site)
        kept = place.figures.kept
        if kept is not None:
            detail = f"{place.name}: {found:,} documents counted in the files, {kept:,} kept by the manifest"
            self._report.checks.append(Check("documents", found == kept, detail))

    def _language(self, lang: Any, folder: str) -> str:
        language = lang if isinstance(lang, str) and lang else folder or NOT_RECORDED
        if language not in self._samples and len(self._samples) >= _MOST_LANGUAGES:
            return OTHER_LANGUAGES
        return language

    def _read_left(self, n: int, place: Place, on_read: OnRead) -> list[SampleGroup]:
        """Count and sample what a stage took out, by reason."""
        groups = []
        for kind, name in (("dropped", DROPPED), ("quarantined", QUARANTINE)):
            files = side_files(place.folder, name)
            said: dict[str, int] = getattr(place.figures, kind)
            if kind == "dropped" and place.figures.kind == "dedup":
                continue  # its list of duplicates is looked at on its own
            reservoirs: dict[str, Reservoir[Sample]] = {}
            found: Counter[str] = Counter()
            for file in files:
                for record in records_in(file, on_read):
                    if isinstance(record, Damage):
                        self._report.checks.append(Check(name, False, f"{record.file}: {record.reason}"))
                        continue
                    reason = str(record.get("reason", "?"))
                    found[reason] += 1
                    self._files.leave(place, kind, record.get("source"))
                    if kind == "dropped" and isinstance(record.get("metadata"), dict):
                        self._sources.drop(name_of(record["metadata"]), n)
                    if reason not in reservoirs and len(reservoirs) < _MOST_REASONS:
                        reservoirs[reason] = Reservoir(_LEFT_SAMPLES)
                    if reason in reservoirs:
                        sample = _dropped_sample if kind == "dropped" else _quarantined_sample
                        key = str(record.get("id") or f"{record.get('source')}:{record.get('offset')}")
                        reservoirs[reason].offer(key, sample, record)
            if files:
                detail = (
                    f"{place.name}: {found.total():,} records in {name}/, {sum(said.values()):,} {kind} by the manifest"
                )
                self._report.checks.append(Check(name, dict(found) == said, detail))
            elif said:
                self._report.checks.append(Check(name, None, f"{place.name}: what was {kind} is not there to look at"))
            for reason in sorted({*said, *reservoirs}, key=lambda reason: (-said.get(reason, found[reason]), reason)):
                samples = list(reservoirs.get(reason, ()))
                groups.append(SampleGroup(kind, place.name, reason, said.get(reason, found[reason]), samples))
        return groups

    def _measure_samples(self, tokenizer: Any) -> list[SampleGroup]:
        """Measure the sampled documents of every language; some of them to look at."""
        report, groups = self._report, []
        by_band: dict[str, list[tuple[str, int]]] = {}
        for language in report.languages:
            samples = list(self._samples[language])
            texts = [sample.text for sample in samples]
            report.script[language], bands = measure_script(texts)
            if tokenizer is not None and texts:
                tokens = count_tokens(tokenizer, texts)
                report.fertility[language] = measure_fertility(texts, tokens)
                if report.script[language].letters and language.startswith("ar") and language != "ar-latn":
                    for band, text, count in zip(bands, texts, tokens):
                        by_band.setdefault(band, []).append((text, count))
            shown = [_shortened(sample) for sample in samples[:_KEPT_SAMPLES]]
            groups.append(
                SampleGroup("kept", ", ".join(report.final_stages), language, report.languages[language], shown)
            )
        for band, found in by_band.items():
            report.fertility_by_vocalisation[band] = measure_fertility(
                [text for text, _ in found], [tokens for _, tokens in found]
            )
        return groups


def _sample(identifier: str, text: str, language: str, source: str) -> Sample:
    cut = len(text) > SAMPLE_CHARACTERS
    if cut:
        text = text[:SAMPLE_CHARACTERS]
        whole_words = text.rstrip().rsplit(None, 1)[0]
        text = whole_words if len(whole_words) > SAMPLE_CHARACTERS // 2 else text
    return Sample(identifier, text, language, source, cut=cut)


def _shortened(sample: Sample) -> Sample:
    cut = sample.cut or len(sample.text) > _SHOWN_CHARACTERS
    return Sample(sample.id, sample.text[:_SHOWN_CHARACTERS], sample.language, sample.source, sample.note, cut)


def _dropped_sample(record: Mapping[str, Any]) -> Sample:
    text = str(record.get("text", ""))
    return Sample(
        str(record.get("id", "")),
        text[:_SHOWN_CHARACTERS],
        str(record.get("language", "")),
        str(record.get("source", "")),
    )


def _quarantined_sample(record: Mapping[str, Any]) -> Sample:
    raw = str(record.get("raw", ""))
    return Sample(
        f"{record.get('source', '?')}, byte {record.get('offset', '?')}",
        raw[:_SHOWN_CHARACTERS],
        note=str(record.get("detail", "")),
        cut=len(raw) > _SHOWN_CHARACTERS,
    )


def _plan_budget(report: Report, settings: ReportSettings) -> None:
    stocks = [
        budget.Stock(budget.short_name(stage.name), stage.name, stage.tokens)
        for stage in report.stages
        if stage.tokens is not None
    ]
    estimates = []
    for language, found in report.fertility.items():
        tokens = round(report.language_bytes[language] * found.tokens / max(1, found.bytes))
        estimates.append(budget.Stock(language, f"{language}, estimated", tokens, estimated=True))
    if settings.blend is not None:
        report.budget = budget.plan([*stocks, *estimates], settings.budget, settings.blend)
    elif stocks or estimates:
        report.budget = budget.plan(stocks or estimates, settings.budget, None)


def _warn(report: Report) -> None:
    if not report.balances:
        report.warnings.append("the account does not balance: see the checks that failed")
    if report.budget is not None:
        for share in report.budget.shares:
            if share.epochs is not None and share.epochs > budget.MAX_EPOCHS:
                report.warnings.append(
                    f"the budget goes over {share.name} {share.epochs:,.1f} times; beyond {budget.MAX_EPOCHS:g} times "
                    "repeated text teaches little"
                )
            elif share.weight and not share.available:
                report.warnings.append(f"the blend gives {share.name} a weight, but it holds no tokens")
    hashes = {stage.name: (stage.tokenizer or {}).get("hash") for stage in report.stages if stage.tokenizer}
    if len(set(hashes.values())) > 1:
        report.warnings.append(f"the datasets were made with different tokenizers: {', '.join(hashes)}")
    elif report.tokenizer is not None and hashes and report.tokenizer["hash"] not in hashes.values():
        report.warnings.append("the tokenizer that fertility was measured with is not the one of the datasets")
    if report.totals is not None and report.totals.read and not report.totals.kept:
        report.warnings.append("no document was kept")
