"""The figures of a report on rewritten text, and the pairs that the page shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from megatron_native.alignment.analyses.fluency import FluencyChange, Scorer, fluency_change
from megatron_native.alignment.analyses.gate_statistics import GateCounts, GateShare
from megatron_native.alignment.analyses.grades import Grades, grade_pairs
from megatron_native.alignment.analyses.lengths import LengthShift, length_shift
from megatron_native.alignment.analyses.pairs import ACCEPTED, RewritePair, Sample, read_pairs, with_sources
from megatron_native.alignment.analyses.toxicity import ToxicityChange, ToxicityClassifier, toxicity_change
from megatron_native.alignment.analyses.vocabulary import VocabularyShift, vocabulary_shift
from megatron_native.alignment.backends.backend import Backend, BackendDownError
from megatron_native.alignment.gates.pairs import PairSettings
from megatron_native.alignment.rewriting.chunks import REWRITTEN
from megatron_native.errors import UserError
from megatron_native.manifest import read_manifest
from megatron_native.progress import progress

FORMAT = "megatron-native/rewrite-report/1"


@dataclass(frozen=True)
class RewriteReportSettings:
    """What is asked of the pairs.

    Attributes:
        sample: accepted pairs that toxicity, lengths, vocabulary and perplexity are measured on.
        max_pairs: pairs of all states on the page.
        seed: of the samples and of intervals.
        pairs: the keys of origin and rewrite in files of pairs.
        judge_pairs: whether gates are asked about pairs on the page that come without a verdict.
        gates: settings of these gates; as shipped by default.
        graded: accepted pairs that the judge is asked about.

    Raises:
        UserError: a number is negative.
    """

    sample: int = 8000
    max_pairs: int = 20_000
    seed: int = 0
    pairs: PairSettings = field(default_factory=PairSettings)
    judge_pairs: bool = True
    gates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    graded: int = 100

    def __post_init__(self) -> None:
        for name in ("sample", "max_pairs", "graded"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: it must be 0 or more.")


@dataclass(frozen=True)
class Models:
    """What texts are measured with besides counting; all made by the caller, who closes them."""

    toxicity: Sequence[ToxicityClassifier] = ()
    perplexity: Sequence[Scorer] = ()
    judge: Backend | None = None


@dataclass(frozen=True)
class Input:
    """One input and what its manifest says: kind of stage, day, parameters, and figures of the whole rewriting."""

    name: str
    stage: str | None = None
    created: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    parameters_hash: str | None = None
    software: Mapping[str, str] = field(default_factory=dict)
    rewriting: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RewriteReport:
    """All of it.

    Attributes:
        total: pairs there are; accepted: those whose rewrite is in the output.
        passed_over: records that are no pairs, by reason.
        states, kinds: pairs by state, and by what their reasons begin with; with_verdict: pairs that gates judged or that
            have a reason, of which `kinds` are.
        measured: accepted pairs that figures are of; judged_here: pairs on the page that the gates were asked about now.
        seed: of the samples.
        pairs: those on the page; places: theirs in the stream of all pairs.
    """

    inputs: list[Input]
    total: int
    accepted: int
    passed_over: dict[str, int]
    states: dict[str, int]
    kinds: dict[str, int]
    with_verdict: int
    gates: list[GateShare]
    measured: int
    judged_here: int
    seed: int
    lengths: list[LengthShift]
    vocabulary: VocabularyShift | None
    toxicity: list[ToxicityChange]
    fluency: list[FluencyChange]
    grades: Grades | None
    pairs: list[RewritePair]
    places: list[int]

    def as_json(self) -> dict[str, Any]:
        """The figures, without the pairs' texts."""
        found = {
            one.name: _plain(getattr(self, one.name)) for one in fields(self) if one.name not in ("pairs", "places")
        }
        return {"format": FORMAT, "shown": len(self.pairs), **found}


def gather(inputs: Sequence[str], settings: RewriteReportSettings, models: Models | None = None) -> RewriteReport:
    """Read the inputs and measure.

    Raises:
        UserError: an input can't be read, or holds no pair.
    """
    models = models or Models()
    counts = GateCounts()
    shown, measured = Sample(settings.max_pairs, settings.seed), Sample(settings.sample, settings.seed)
    graded = Sample(settings.graded if models.judge else 0, settings.seed)
    total, passed_over = 0, Counter[str]()
    with progress("rewrite-report: reading", unit="pairs") as bar:
        for place, pair in enumerate(read_pairs(inputs, settings.pairs, _counting(passed_over))):
            counts.count(pair)
            shown.offer(pair, place)
            if pair.state in ACCEPTED:
                measured.offer(pair, place)
                graded.offer(pair, place)
            total += 1
            bar.advance(1)
    if not total:
        why = "".join(f" {count:,} records: {reason}." for reason, count in passed_over.most_common())
        raise UserError(
            f"{' '.join(inputs)}: there are no pairs in it.{why} Give what rewrite wrote, or files of pairs."
        )
    with progress("rewrite-report: sources", unit="B") as bar:
        pairs = with_sources(shown.pairs(), inputs, bar)
    judged_here = 0
    if settings.judge_pairs:
        pairs, judged_here = _judged(pairs, settings, counts)
    accepted = measured.pairs()
    return RewriteReport(
        [_input(name) for name in inputs], total, measured.seen, dict(passed_over.most_common()),
        dict(counts.states.most_common()), dict(counts.kinds.most_common()), counts.with_verdict,
        counts.gates(pairs), len(accepted), judged_here, settings.seed,
        _lengths(accepted, settings.seed), vocabulary_shift(accepted) if accepted else None,
        _toxicity(accepted, models, settings.seed), _fluency(accepted, models, settings.seed),
        _grades(graded, models, settings.seed), pairs, shown.places(),
    )  # fmt: skip


def _counting(counter: Counter[str]) -> Callable[[str], None]:
    return lambda reason: counter.update([reason])


def _judged(
    pairs: list[RewritePair], settings: RewriteReportSettings, counts: GateCounts
) -> tuple[list[RewritePair], int]:
    """The pairs, those without a verdict judged now; their state stays, since somebody accepted them."""
    waiting = [pair for pair in pairs if not pair.gates and pair.state == REWRITTEN]
    if not waiting:
        return pairs, 0
    from megatron_native.alignment.gates.judging import build_gates

    gates = build_gates(settings.gates)
    done: dict[int, RewritePair] = {}
    with progress("rewrite-report: gates", len(waiting), "pairs") as bar:
        for pair in waiting:
            verdict = gates.judge(pair.origin, pair.rewritten or "")
            scores = {one.gate: (round(one.score, 4), one.passed) for one in verdict.judgements}
            done[id(pair)] = judged = replace(pair, gates=scores, reasons=verdict.reasons)
            counts.count(judged)
            counts.states[judged.state] -= 1
            bar.advance(1)
    return [done.get(id(pair), pair) for pair in pairs], len(waiting)


def _lengths(pairs: Sequence[RewritePair], seed: int) -> list[LengthShift]:
    if not pairs:
        return []
    with progress("rewrite-report: lengths", len(pairs), "pairs") as bar:
        return length_shift(_counted(pairs, bar), seed)


def _counted(pairs: Sequence[RewritePair], bar: Any) -> Iterator[RewritePair]:
    for pair in pairs:
        yield pair
        bar.advance(1)


@contextmanager
def _texts(label: str, pairs: Sequence[RewritePair]) -> Iterator[Any]:
    texts = {text for pair in pairs for text in (pair.origin, pair.rewritten or "")}
    with progress(f"rewrite-report: {label}", len(texts), "texts") as bar:
        yield bar.advance


def _toxicity(pairs: Sequence[RewritePair], models: Models, seed: int) -> list[ToxicityChange]:
    found = []
    for classifier in models.toxicity if pairs else ():
        with _texts("toxicity", pairs) as on_scored:
            found.append(toxicity_change(pairs, classifier, seed, on_scored))
    return found


def _fluency(pairs: Sequence[RewritePair], models: Models, seed: int) -> list[FluencyChange]:
    found = []
    for scorer in models.perplexity if pairs else ():
        with _texts("perplexity", pairs) as on_scored:
            found.append(fluency_change(pairs, scorer, seed, on_scored))
    return found


def _grades(sample: Sample, models: Models, seed: int) -> Grades | None:
    pairs = sample.pairs()
    if models.judge is None or not pairs:
        return None
    with progress("rewrite-report: grades", len(pairs), "pairs") as bar:
        try:
            return grade_pairs(pairs, models.judge, seed, bar.advance, sample.places())
        except BackendDownError as error:
            raise UserError(f"the judge: {error}; what it answered is in the journal.") from None


def _input(name: str) -> Input:
    manifest = read_manifest(Path(name) / "manifest.json") if Path(name).is_dir() else None
    if manifest is None:
        return Input(name)
    return Input(
        name, manifest["stage"], manifest.get("created"), manifest.get("parameters", {}), manifest.get("parameters_hash"),
        manifest.get("software", {}), manifest.get("rewriting") or manifest.get("annotation") or {},
    )  # fmt: skip


def _plain(value: Any) -> Any:
    """Dataclasses and named tuples as objects."""
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: _plain(one) for key, one in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value
