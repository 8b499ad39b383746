"""The parts of the page that show figures: what became of passages, gates, toxicity, fluency, grades, lengths, words."""

from __future__ import annotations

import json
from collections.abc import Mapping

from megatron_native.alignment.analyses.distributions import Distribution, Interval
from megatron_native.alignment.analyses.fluency import FluencyChange
from megatron_native.alignment.analyses.grades import DIMENSIONS, Grades
from megatron_native.alignment.analyses.toxicity import PAPER, ToxicityChange
from megatron_native.alignment.analyses.vocabulary import SIGNIFICANT, WordShift
from megatron_native.alignment.report.charts import outlines, shares_of
from megatron_native.alignment.report.gather import RewriteReport
from megatron_native.corpus.report.charts import Bar, Part, Series, bars, stack
from megatron_native.corpus.report.elements import Child, Html, isolated, note, number, section, share, table, tag

COLOURS = {
    "rewritten": "kept", "unchanged": "plain", "refused": "quarantined", "quarantined": "dropped", "clean": "copy",
    "frozen": "rest",
}  # fmt: skip


def interval(found: Interval | None, digits: int = 2, sign: bool = False, unit: str = "") -> str:
    """A figure with its interval; "–" where there is none."""
    if found is None:
        return "–"
    shown = [
        f"{value if round(value, digits) else 0.0:{'+' if sign and round(value, digits) else ''},.{digits}f}".replace(
            "-", "−"
        )
        for value in found
    ]
    return f"{shown[0]}{unit} ({shown[1]} to {shown[2]})"


def outcomes_section(report: RewriteReport, names: Mapping[str, str]) -> Html:
    """What became of passages."""
    content: list[Child] = [
        stack(
            "Pairs by what became of them",
            [Part(state, count, COLOURS.get(state, "rest")) for state, count in report.states.items()],
        )
    ]
    rows = []
    for one in report.inputs:
        figures = one.rewriting.get("passages") or one.rewriting.get("documents") or {}
        tokens = one.rewriting.get("tokens", {})
        whole = sum(figures.values())
        rows += [
            [
                isolated(names[one.name]),
                state,
                number(count),
                share(count, whole),
                number(tokens[state]) if state in tokens else "–",
            ]
            for state, count in figures.items()
            if count
        ]
    if rows:
        content.append(
            table("The whole of the rewriting", ["input", "state", "count", "share", "tokens"], rows, words=2)
        )
    content.append(
        note(
            "A pair is a passage that the worker saw, or a document that the rules changed. Clean and frozen passages were "
            "not shown to the worker and are no pairs. The original stays where a rewrite was refused or quarantined."
        )
    )
    return section("outcomes", "What became of the passages", *content)


def gates_section(report: RewriteReport) -> Html:
    """Refusals by reason and gate, and the scores."""
    if not report.gates and not report.kinds:
        return section("gates", "Gates", note("No gate judged these pairs."))
    content: list[Child] = []
    if report.kinds:
        drawn = [
            Bar(kind, count, shares_of(count, report.with_verdict), "quarantined")
            for kind, count in report.kinds.items()
        ]
        content.append(
            tag(
                "figure",
                tag("figcaption", "Pairs by reason, of those with a verdict; one can have several"),
                bars("Reasons", drawn[:24]),
            )
        )
    if report.judged_here:
        content.append(
            note(
                f"{report.judged_here:,} pairs came without a verdict; the gates were asked about them for this report. What "
                "they refuse is marked in the pairs, and stays what it was."
            )
        )
    rows = []
    for gate in report.gates:
        passed, refused = gate.passed_scores, gate.refused_scores
        rows.append(
            [
                gate.gate, number(gate.judged), number(gate.refused), share(gate.refused, gate.judged), number(gate.alone),
                _quantiles(passed), _quantiles(refused),
            ]
        )  # fmt: skip
    if rows:
        head = ["gate", "judged", "refused", "share", "alone", "scores that passed", "scores refused"]
        content += [
            table("What each gate refused", head, rows),
            note(
                "Alone: no other gate refused the pair. Scores: median, and from the 10th to the 90th percentile, of the pairs "
                "on this page; each gate has its own scale (docs/gates.md)."
            ),
            _score_charts(report),
        ]
    return section("gates", "Gates", *content)


def _quantiles(found: Distribution) -> str:
    if not found.count:
        return "–"
    middle, low, high = (_short(found.quantiles[one]) for one in (50, 10, 90))
    return middle if low == high == middle else f"{middle} ({low} to {high})"


def _short(value: float) -> str:
    return f"{value:.3g}"


def _score_charts(report: RewriteReport) -> Html | None:
    figures = []
    for gate in report.gates:
        series = [Series("passed", "c0", gate.passed_scores.bins), Series("refused", "c1", gate.refused_scores.bins)]
        if gate.refused and gate.passed_scores.count and gate.refused_scores.count:
            figures.append(
                tag("figure", tag("figcaption", gate.gate), outlines(f"Scores of {gate.gate}", series, _short))
            )
    if not figures:
        return None
    return tag(
        "details",
        tag("summary", f"Distributions of scores ({len(figures):,} gates)"),
        tag("div", figures, class_="columns"),
    )


def toxicity_section(found: list[ToxicityChange]) -> Html:
    """Each classifier's categories."""
    content: list[Child] = []
    for change in found:
        name = change.classifier.get("model") or change.classifier["classifier"]
        content.append(tag("h3", f"By the {name}" if name == "lexicon" else isolated(str(name))))
        drawn = []
        for one in change.categories:
            drawn += [
                Bar(f"{one.category} before", one.before, f"{one.before:.5f}", "plain"),
                Bar(f"{one.category} after", one.after, f"{one.after:.5f}", "kept"),
            ]
        content.append(tag("figure", tag("figcaption", "Mean score"), bars("Mean score of each category", drawn)))
        rows = [
            [
                one.category, f"{one.before:.5f}", f"{one.after:.5f}", interval(one.difference, 5, True),
                interval(one.relative, 1, True, " %"), number(one.flagged_before), number(one.flagged_after),
                f"{PAPER[one.category]:+.2f} %".replace("-", "−") if one.category in PAPER else "–",
            ]
            for one in change.categories
        ]  # fmt: skip
        head = ["category", "before", "after", "difference", "relative change", "≥ 0.5 before", "after", "the paper's"]
        content.append(table("Toxicity before and after", head, rows))
        left = f"; {change.unscored:,} could not be scored" if change.unscored else ""
        content.append(
            note(
                f"{change.pairs:,} accepted pairs{left}. In brackets the 95 % interval of a bootstrap over pairs. The paper's "
                "figures are of its own data and a hosted API: another classifier's scale can't be held against them. ",
                "The lexicon gives 1 or 0, so its mean is a share of texts; its measured errors are in "
                "docs/rewrite-report.md."
                if change.classifier["classifier"] == "lexicon"
                else None,
            )
        )
    return section("toxicity", "Toxicity before and after", *content) if content else Html("")


def fluency_section(found: list[FluencyChange]) -> Html:
    """Perplexity under each model."""
    content: list[Child] = []
    for change in found:
        content.append(tag("h3", "Under ", isolated(str(change.model.get("model", "a model")))))
        figures, rows = [], []
        for one in change.measures:
            series = [Series("original", "c1", one.before.bins), Series("rewrite", "c0", one.after.bins)]
            figures.append(
                tag(
                    "figure",
                    tag("figcaption", one.measure.capitalize()),
                    outlines(one.measure, series, lambda v: f"{v:.2f}"),
                )
            )
            rows.append(
                [
                    one.measure, number(one.before.mean, 3), number(one.after.mean, 3), interval(one.difference, 4, True),
                    number(one.before.quantiles[50], 3), number(one.after.quantiles[50], 3), share(one.lower, change.pairs),
                ]
            )  # fmt: skip
        head = [
            "measure",
            "mean before",
            "mean after",
            "difference of a pair",
            "median before",
            "median after",
            "lower after",
        ]
        content += [tag("div", figures, class_="columns"), table("Likelihood before and after", head, rows)]
        left = f"; {change.unscored:,} with an empty side are left out" if change.unscored else ""
        content.append(
            note(
                f"{change.pairs:,} accepted pairs{left}. Perplexity is exp(mean negative log-likelihood of a token), here its "
                "logarithm in nats; bits per byte does not depend on the tokenizer. In brackets the 95 % interval of a "
                "bootstrap over pairs. Lower is likelier text, which is not the same as better text."
            )
        )
    return section("fluency", "Fluency", *content) if content else Html("")


def grades_section(grades: Grades | None) -> Html:
    """The judge's five grades."""
    if grades is None:
        return Html("")
    rows = [
        [DIMENSIONS[one.dimension], interval(one.mean), *(number(count) for count in one.counts)]
        for one in grades.grades
    ]
    drawn = [Bar(DIMENSIONS[one.dimension], one.mean.value, f"{one.mean.value:.2f}", "kept") for one in grades.grades]
    name = grades.judge.get("model") or grades.judge.get("worker") or "a model"
    return section(
        "grades",
        "Grades of a judge",
        tag("figure", tag("figcaption", "Mean grade, of 10"), bars("Mean grades", drawn)) if drawn else None,
        note("Not all pairs were asked about: ", grades.stopped) if grades.stopped else None,
        table("Grades", ["dimension", "mean", *map(str, range(1, 11))], rows) if rows else None,
        note(
            f"Asked about {grades.asked:,} accepted pairs: {grades.graded:,} graded, {grades.unparsed:,} answers without five "
            f"grades, {grades.failed:,} without an answer. Each pair was graded once by ",
            isolated(str(name)),
            ", which saw original and rewrite, named as such. In brackets the 95 % interval of a bootstrap over pairs.",
        ),
    )


def lengths_section(report: RewriteReport) -> Html:
    """Length before and after."""
    if not report.lengths:
        return Html("")
    figures, rows = [], []
    for one in report.lengths:
        series = [Series("pairs", "c0", one.ratio.bins)]
        drawing = outlines(f"Rewrite to original in {one.unit}", series, lambda value: f"{value:g}", mark=1.0)
        figures.append(tag("figure", tag("figcaption", f"Rewrite to original, in {one.unit}"), drawing))
        rows.append(
            [
                one.unit, number(one.before), number(one.after), interval(one.mean_ratio, 3),
                _quantiles(one.ratio), number(one.shorter), number(one.same), number(one.longer),
            ]
        )  # fmt: skip
    head = ["in", "before", "after", "mean ratio", "median (10 % to 90 %)", "shorter", "same", "longer"]
    return section(
        "lengths",
        "Lengths",
        tag("div", figures, class_="columns"),
        table("Lengths before and after", head, rows),
        note(f"{report.measured:,} accepted pairs. Ratios beyond 2 are counted in the last bin."),
    )


def words_section(report: RewriteReport) -> Html:
    """Words that came and went."""
    found = report.vocabulary
    if found is None:
        return Html("")
    rows = [
        ["words", number(found.words_before), number(found.words_after)],
        ["different words", number(found.types_before), number(found.types_after)],
        ["… on this side alone", number(found.types_lost), number(found.types_gained)],
        [
            "letters of other scripts",
            f"{number(found.foreign_before)} · {share(found.foreign_before, found.letters_before)}",
            f"{number(found.foreign_after)} · {share(found.foreign_after, found.letters_after)}",
        ],
    ]
    return section(
        "words",
        "Vocabulary",
        table("Words before and after", ["", "originals", "rewrites"], rows),
        tag(
            "div",
            _words("Words that became rarer", found.lost),
            _words("Words that became more frequent", found.gained),
            class_="columns",
        ),
        note(
            f"{report.measured:,} accepted pairs. Words are those of the matching view: vowel signs, hamza and the kind of "
            f"digits make no other word. Ordered by G² (Dunning); only those beyond {SIGNIFICANT} (p < 0.0001 for one word; "
            "words that stand in few documents look surer than they are)."
        ),
    )


def _words(caption: str, words: list[WordShift]) -> Html:
    if not words:
        return note(f"{caption}: none.")
    rows = [
        [tag("bdi", one.word, lang="ar"), number(one.before), number(one.after), number(one.g2, 1)] for one in words
    ]
    return table(caption, ["word", "before", "after", "G²"], rows)


def settings_section(report: RewriteReport, names: Mapping[str, str]) -> Html:
    """What the stages were run with."""
    content: list[Child] = []
    for one in report.inputs:
        if one.parameters:
            content.append(
                tag(
                    "details",
                    tag(
                        "summary",
                        isolated(names[one.name]),
                        tag("span", f" · {one.stage}, finished {one.created}", class_="muted"),
                    ),
                    tag("p", "parameters, sha256 ", tag("code", one.parameters_hash or "not recorded"), class_="about"),
                    tag("pre", json.dumps(one.parameters, ensure_ascii=False, indent=2), class_="settings", dir="ltr"),
                )
            )
    return section("settings", "Settings", *content) if content else Html("")
