"""The parts of the page that show figures of the kept documents: languages, lengths, writing, tokens, sources, copies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

from megatron_native.corpus.report.budget import MAX_EPOCHS
from megatron_native.corpus.report.charts import Bar, Part, Series, bars, decades, histogram, legend, stack
from megatron_native.corpus.report.elements import (
    NOT_RECORDED,
    Html,
    amount,
    isolated,
    note,
    number,
    section,
    share,
    size,
    table,
    tag,
)
from megatron_native.corpus.report.figures import Duplicates, Fertility, Lengths, Report
from megatron_native.corpus.report.measures import DIGITS, VOCALISATION
from megatron_native.corpus.report.texts import language_name, pair_texts, passage

_COLOURS = 6


def _colours(report: Report) -> dict[str, str]:
    return {code: f"c{min(n, _COLOURS - 1)}" for n, code in enumerate(report.languages)}


def languages_section(report: Report) -> Html:
    """Kept documents by language and dialect, and how many of each were kept."""
    if not report.languages:
        return section(
            "languages", "Languages and dialects", note("No documents of a stage were given, or none were kept.")
        )
    colours = _colours(report)
    parts = [Part(language_name(code), count, colours[code]) for code, count in report.languages.items()]
    read: dict[str, int] = {}
    kept: dict[str, int] = {}
    for stage in report.stages:
        if stage.read_by_language:
            for code in stage.read_by_language:
                read[code] = read.get(code, 0) + stage.read_by_language[code]
                kept[code] = kept.get(code, 0) + stage.kept_by_language.get(code, 0)
    rows = []
    for code in [*report.languages, *sorted(set(read) - set(report.languages), key=lambda code: (-read[code], code))]:
        count = report.languages.get(code, 0)
        rows.append(
            [
                isolated(language_name(code)),
                number(read[code]) if code in read else NOT_RECORDED,
                share(kept[code], read[code]) if code in read else NOT_RECORDED,
                number(count),
                share(count, sum(report.languages.values())),
                size(report.language_bytes.get(code, 0)),
            ]
        )
    head = ["language", "told at cleaning", "keep rate of cleaning", "kept at the end", "share", "text"]
    if report.dialects:
        most = sum(report.dialects.values())
        dialects: list[Html] = [
            tag("h3", "Dialects"),
            bars(
                "Kept documents by dialect",
                [
                    Bar(name, count, f"{count:,} · {share(count, most)}", "c1")
                    for name, count in report.dialects.items()
                ],
            ),
            note("The dialect of a document is the one it has most marker words of."),
        ]
    else:
        dialects = [note("Dialects: not recorded for any kept document.")]
    return section(
        "languages",
        "Languages and dialects",
        stack("Kept documents by language", parts),
        table("Documents by language", head, rows),
        *dialects,
    )


def lengths_section(report: Report) -> Html:
    """Histograms and quantiles of words and bytes."""
    if not report.words:
        return Html("")
    colours = _colours(report)
    charts = []
    for unit, found in (("words", report.words), ("bytes", report.bytes)):
        series = [Series(language_name(code), colours[code], lengths.bins) for code, lengths in found.items()]
        least = min((low for one in series for low, _, _ in one.bins), default=1.0)
        most = max((high for one in series for _, high, _ in one.bins), default=1.0)
        drawing = histogram(
            f"Kept documents by {unit}",
            series,
            decades(least, most),
            partial(_range, unit),
            lambda value: math.log10(max(value, 10**-0.125)),
            width=500,
            height=200,
        )
        charts.append(tag("figure", tag("figcaption", f"Documents by {unit}, on a logarithmic axis"), drawing))
    rows = [
        [isolated(language_name(code)), unit, *_quantiles(lengths)]
        for code in report.words
        for unit, lengths in (("words", report.words[code]), ("bytes", report.bytes[code]))
    ]
    head = ["language", "in", "documents", "in all", "least", "10 %", "median", "90 %", "most"]
    key = legend([(language_name(code), colours[code], "") for code in report.words]) if len(report.words) > 1 else None
    return section(
        "lengths",
        "Lengths",
        tag("div", charts, class_="columns"),
        key,
        table("Lengths of kept documents", head, rows, words=2),
        note(
            "A word is what stands between spaces; bytes are of UTF-8, where an Arabic letter takes two. All kept documents "
            "are counted; quantiles are to within 2 %."
        ),
    )


def _range(unit: str, low: float, high: float) -> str:
    first, last = math.ceil(low - 1e-9), math.ceil(high - 1e-9) - 1
    return f"{first:,} {unit}" if first >= last else f"{first:,} to {last:,} {unit}"


def _quantiles(found: Lengths) -> list[str]:
    return [
        number(value)
        for value in (found.documents, found.total, found.least, found.p10, found.median, found.p90, found.most)
    ]


def _sampled(report: Report) -> str:
    return (
        f"Measured on up to {report.sample:,} kept documents of each language, those with the least hashes of their ids, and "
        f"of each on its first {report.sample_characters:,} characters."
    )


def script_section(report: Report) -> Html:
    """Vocalisation, tatweel, presentation forms and digits in documents with Arabic letters."""
    found = {code: script for code, script in report.script.items() if script.letters}
    if not found:
        return section("script", "Arabic writing", note("No Arabic letters in the sample, or no sample was taken."))
    content: list[Html] = []
    for code, script in found.items():
        parts = [
            Part(VOCALISATION[band], script.vocalisation.get(band, 0), f"v{n}") for n, band in enumerate(VOCALISATION)
        ]
        systems = [
            Part(f"{system} ({DIGITS[system]})", count, f"c{n}")
            for n, (system, count) in enumerate(script.digits.items())
        ]
        content += [tag("h3", language_name(code), tag("span", f" · {script.documents:,} sampled", class_="muted"))]
        content += [
            tag("figure", tag("figcaption", caption), drawing)
            for caption, drawing in (
                ("Documents by diacritics", stack("Documents by diacritics", parts)),
                ("Digits by system", stack("Digits", systems)),
            )
            if drawing
        ]
    rows = [
        [
            isolated(language_name(code)),
            number(script.documents),
            number(script.letters),
            share(script.marks, script.letters),
            number(script.tatweel),
            share(script.tatweel_documents, script.documents),
            number(script.presentation_forms),
            share(script.presentation_documents, script.documents),
        ]
        for code, script in found.items()
    ]
    head = [
        "language",
        "sampled",
        "Arabic letters",
        "marks a letter",
        "tatweel",
        "documents with it",
        "presentation forms",
        "documents with them",
    ]
    mixed = [
        [isolated(language_name(code)), users, number(count), share(count, script.documents)]
        for code, script in found.items()
        for users, count in script.digit_documents.items()
    ]
    return section(
        "script",
        "Arabic writing",
        *content,
        table("Letters and marks", head, rows),
        tag(
            "div",
            table("Digits that a document uses", ["language", "systems", "documents", "share"], mixed, words=2),
            class_="narrow",
        ),
        note(
            _sampled(report),
            " Marks are tanwin, short vowels, shadda, sukun and the dagger alef. Ligatures that are words, "
            "such as the blessing, are no presentation forms.",
        ),
    )


def _fertility_row(name: str, found: Fertility) -> list[Html | str]:
    return [
        isolated(name),
        number(found.documents),
        number(found.words),
        number(found.bytes),
        number(found.tokens),
        number(found.tokens / found.words, 2) if found.words else "–",
        number(found.bytes / found.tokens, 2) if found.tokens else "–",
    ]


def fertility_section(report: Report, names: Mapping[str, str]) -> Html:
    """Tokens a word, bytes a token, and the datasets."""
    datasets = [stage for stage in report.stages if stage.tokens is not None]
    content: list[Html] = []
    if report.fertility:
        tokenizer = report.tokenizer or {}
        rows = [
            Bar(
                language_name(code),
                found.tokens / max(1, found.words),
                f"{found.tokens / max(1, found.words):.2f}",
                "plain",
            )
            for code, found in report.fertility.items()
        ]
        rows += [
            Bar(
                f"Arabic, {VOCALISATION[band]}",
                found.tokens / max(1, found.words),
                f"{found.tokens / max(1, found.words):.2f}",
                "soft",
            )
            for band in VOCALISATION
            if (found := report.fertility_by_vocalisation.get(band))
        ]
        head = ["text", "documents", "words", "bytes", "tokens", "tokens a word", "bytes a token"]
        whole = [_fertility_row(language_name(code), found) for code, found in report.fertility.items()]
        whole += [
            _fertility_row(f"Arabic, {VOCALISATION[band]}", found)
            for band in VOCALISATION
            if (found := report.fertility_by_vocalisation.get(band))
        ]
        content += [
            tag("figure", tag("figcaption", "Tokens a word"), bars("Tokens a word", rows)),
            table("Fertility", head, whole),
            note(
                _sampled(report),
                " Begin and end tokens are not counted. Tokenizer: ",
                tag("code", str(tokenizer.get("model"))),
                f", {number(tokenizer.get('vocab_size'))} tokens, hash ",
                tag("code", str(tokenizer.get("hash", ""))[:16]),
                ".",
            ),
        ]
    else:
        content.append(note("Tokens a word: not recorded; give the tokenizer with --tokenizer to measure them."))
    if datasets:
        rows_of_datasets = [
            [
                tag("bdi", names[stage.name], title=stage.name),
                number(stage.kept),
                number(stage.tokens),
                size(stage.bytes_kept),
                number(stage.bytes_kept / stage.tokens, 2)
                if stage.bytes_kept is not None and stage.tokens
                else NOT_RECORDED,
                tag("code", str((stage.tokenizer or {}).get("hash", NOT_RECORDED))[:16]),
            ]
            for stage in datasets
        ]
        content.append(
            table(
                "Datasets",
                ["dataset", "documents", "tokens", "text", "bytes a token", "tokenizer"],
                rows_of_datasets,
            )
        )
    return section("tokens", "Tokens and fertility", *content)


def budget_section(report: Report, names: Mapping[str, str]) -> Html:
    """Epochs over each dataset of a blend."""
    plan = report.budget
    if plan is None:
        return Html("")
    how = "the blend given" if plan.blend_given else "each dataset weighed by its tokens, as no blend was given"
    rows = []
    for one in plan.shares:
        too_many = one.epochs is not None and one.epochs > MAX_EPOCHS
        epochs = "–" if one.epochs is None else f"{one.epochs:,.2f}" + (" ⚠" if too_many else "")
        dataset = isolated(names.get(one.dataset, one.dataset))
        rows.append(
            [
                isolated(one.name),
                dataset,
                share(one.weight, 1.0),
                number(one.available) + (" (estimated)" if one.estimated else ""),
                "–" if one.wanted is None else number(one.wanted),
                tag("strong", epochs) if too_many else epochs,
            ]
        )
    drawn = [
        Bar(one.name, one.epochs, f"{one.epochs:,.2f} epochs", "quarantined" if one.epochs > MAX_EPOCHS else "kept")
        for one in plan.shares
        if one.epochs is not None
    ]
    return section(
        "budget",
        "Token budget",
        tag("p", f"A training of {amount(plan.tokens)} tokens, with {how}:" if plan.tokens else f"With {how}:"),
        bars("Epochs of each dataset", drawn, (MAX_EPOCHS, f"{MAX_EPOCHS:g} epochs")) if drawn else None,
        table(
            "Tokens and epochs",
            ["name", "dataset", "weight", "tokens there are", "tokens wanted", "epochs"],
            rows,
            words=2,
        ),
        tag(
            "p",
            f"No dataset is gone over more than {MAX_EPOCHS:g} times by a budget of up to ",
            tag("strong", f"{amount(plan.within_limit)} tokens"),
            ".",
        )
        if plan.within_limit
        else None,
        note(
            "Weights are made to sum to 100 %. Repeating text up to about four times is nearly as good as new text; beyond "
            "that the gain fades. Tokens of datasets are counted with their begin and end tokens."
            + (
                " Estimated: bytes kept times the tokens a byte of the sample."
                if any(s.estimated for s in plan.shares)
                else ""
            )
        ),
    )


def sources_section(report: Report, names: Mapping[str, str]) -> Html:
    """Sites after every stage, and the files of the raw input."""
    content: list[Html] = []
    if report.sources:
        head: list[Html | str] = ["source"]
        for place, stage in enumerate(report.document_stages):
            if any(source.dropped[place] is not None for source in report.sources):
                head.append(f"taken out by {names[stage]}")
            head.append(f"kept by {names[stage]}")
        head += ["share", "text kept"]
        last = [place for place, stage in enumerate(report.document_stages) if stage in report.final_stages]
        whole = sum(report.languages.values())
        rows: list[list[Html | str]] = []
        for source in report.sources:
            row: list[Html | str] = [isolated(source.name)]
            for place in range(len(report.document_stages)):
                if any(one.dropped[place] is not None for one in report.sources):
                    row.append(number(source.dropped[place]))
                row.append(number(source.kept[place]))
            row += [share(sum(source.kept[place] for place in last), whole), size(source.bytes)]
            rows.append(row)
        unknown = [
            names[stage]
            for place, stage in enumerate(report.document_stages)
            if all(source.dropped[place] is None for source in report.sources)
        ]
        content += [
            table(f"Sources with most documents ({len(rows):,} of {report.source_count:,})", head, rows),
            note(
                "A source is the host of a document's url, or its source, or its file.",
                f" Not recorded: of which sources {', '.join(unknown)} dropped its documents." if unknown else None,
                " There are so many that rare ones are counted together." if report.sources_counted_together else None,
            ),
        ]
    if report.files:
        rows = [
            [
                isolated(file.name),
                number(file.read),
                number(file.dropped),
                number(file.quarantined),
                number(file.kept_at_end),
                share(file.kept_at_end, file.read),
            ]
            for file in report.files
        ]
        head = ["file", "read", "dropped", "quarantined", "kept at the end", "of those read"]
        content.append(table(f"Input files with most records ({len(rows):,} of {report.file_count:,})", head, rows))
    return section("sources", "Sources", *content) if content else Html("")


def duplicates_section(report: Report, names: Mapping[str, str]) -> Html:
    """Clusters, similarities, the most copied documents and pairs."""
    if not report.duplicates:
        return Html("")
    return section(
        "duplicates", "Duplicates", *(part for found in report.duplicates for part in _duplicates(found, names))
    )


def _duplicates(found: Duplicates, names: Mapping[str, str]) -> list[Html]:
    if found.clusters is None:
        return [tag("p", isolated(names[found.stage]), ": clusters not recorded.")]
    content = [
        tag(
            "p",
            tag("strong", f"{found.clusters:,}"),
            " groups of copies, the largest of ",
            tag("strong", number(found.largest)),
            " documents; one of each group stays. ",
            ", ".join(f"{count:,} × {reason}" for reason, count in found.listed.items()) + "."
            if found.listed
            else None,
        ),
    ]
    charts = []
    if found.sizes:
        charts.append(
            tag(
                "figure",
                tag("figcaption", "Groups by size, in documents"),
                bars(
                    "Groups by size",
                    [Bar(name, count, f"{count:,}", "copy") for name, count in _size_classes(found.sizes)],
                    width=460,
                ),
            )
        )
    if found.similarity:
        drawing = histogram(
            "Near copies by similarity",
            [Series("near copies", "copy", found.similarity)],
            [(n / 10, f"{n / 10:.1f}") for n in range(11)],
            lambda low, high: f"{low:.2f} to {high:.2f}",
            float,
            width=460,
            height=210,
        )
        charts.append(tag("figure", tag("figcaption", "Near copies by similarity to the one that stays"), drawing))
    content.append(tag("div", charts, class_="columns"))
    if found.most_copied:
        rows = [
            [
                isolated(one.id),
                one.note,
                isolated(one.source),
                passage(" ".join(one.text.split()), one.language, one.cut),
            ]
            for one in found.most_copied
        ]
        content.append(table("Documents with most copies", ["id", "documents", "source", "it begins"], rows, words=4))
    if found.pairs:
        content += [tag("h3", "Pairs, the least similar ones first"), *map(pair_texts, found.pairs)]
        content.append(
            note(
                "Words that only one of the two has are marked. Similarity is estimated from signatures, over "
                "shingles of words in the matching view, so that marks and letter variants don't count."
            )
        )
    return content


def _size_classes(sizes: Mapping[int, int]) -> list[tuple[str, int]]:
    """Sizes up to 5 by themselves, larger ones doubled."""
    classes = [(n, n) for n in range(2, 6)]
    while classes[-1][1] < max(sizes):
        classes.append((classes[-1][1] + 1, 2 * classes[-1][1]))
    counted = [
        (
            f"{low:,}" if low == high else f"{low:,} to {high:,}",
            sum(n for size, n in sizes.items() if low <= size <= high),
        )
        for low, high in classes
    ]
    while counted and not counted[-1][1]:
        counted.pop()
    return counted
