"""From candidates to the sample: quotas of strata, the smallest keys, the extremes of perplexity."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from megatron_native.alignment.seeds.candidates import LEAST_KEPT, WHOLE, Candidate, candidates_path, read_lines
from megatron_native.alignment.seeds.settings import Allocation, SelectionSettings
from megatron_native.manifest import write_json

_SCORED_AT_ONCE = 512


class NotEnoughError(Exception):
    """Candidates below the limit do not decide the sample: gather them again without a limit."""


class Chosen(msgspec.Struct, omit_defaults=True):
    """A passage of the sample.

    Attributes:
        candidate: the passage.
        perplexity, bits_per_byte: where a model chose it.
    """

    candidate: Candidate
    perplexity: float | None = None
    bits_per_byte: float | None = None


def quotas(sizes: Mapping[str, int], places: int, allocation: Allocation) -> dict[str, int]:
    """How many passages each stratum gives.

    `proportional`: `places · size / total` each, rounded down; the places left go to the largest remainders, of equal
    ones to the stratum whose name comes first. `equal`: the same for each; a stratum that has fewer gives all, and what
    it lacks is shared out among the others again; of the last places each goes to the stratum whose name comes first.
    No stratum gives more than it has; together they give `places`, or all there is.
    """
    total = sum(sizes.values())
    if places >= total:
        return dict(sizes)
    names = sorted(sizes)
    if allocation == "proportional":
        given = {name: places * sizes[name] // total for name in names}
        by_remainder = sorted(names, key=lambda name: (-(places * sizes[name] % total), name))
        for name in by_remainder[: places - sum(given.values())]:
            given[name] += 1
        return given
    given = dict.fromkeys(names, 0)
    left, open_names = places, names
    while left:
        share = left // len(open_names)
        if share == 0:
            for name in open_names[:left]:
                given[name] += 1
            break
        for name in open_names:
            more = min(share, sizes[name] - given[name])
            given[name] += more
            left -= more
        open_names = [name for name in open_names if given[name] < sizes[name]]
    return given


def choose(
    folder: Path, gathered: Sequence[Mapping[str, Any]], selection: SelectionSettings, limit: int
) -> tuple[list[Candidate], dict[str, dict[str, int]]]:
    """The passages with the smallest keys, by key, and the figures of each stratum.

    Args:
        folder: where the candidates of all parts are.
        gathered: what `gather` gave of each part.
        selection: how many are drawn, and by which rule.
        limit: below which candidates were kept.

    Returns:
        The candidates, and stratum → `eligible` (passages of the corpus), `quota`, `chosen`.

    Raises:
        NotEnoughError: the limit was too low.
    """
    eligible: Counter[str] = Counter()
    for part in gathered:
        eligible.update(part["eligible"])
    first = _first_of_equals(folder, gathered)
    of_stratum: dict[str, list[str]] = {stratum: [] for stratum in eligible}
    for key in sorted(first):
        of_stratum[first[key][0]].append(key)
    wanted = quotas(eligible, selection.drawn, selection.allocation)
    if limit < WHOLE:
        bound = f"{limit:032x}"
        for stratum, quota in wanted.items():
            keys = of_stratum[stratum]
            if len(keys) < quota or (quota > LEAST_KEPT and keys[quota - 1] >= bound):
                raise NotEnoughError
    given = _filled(wanted, {stratum: len(keys) for stratum, keys in of_stratum.items()}, selection)
    chosen = {key for stratum, keys in of_stratum.items() for key in keys[: given[stratum]]}
    found: dict[str, Candidate] = {}
    for candidate in _candidates(folder, gathered):
        if candidate.key in chosen and first[candidate.key][1] == candidate.place:
            found[candidate.key] = candidate
    figures = {
        stratum: {"eligible": eligible[stratum], "quota": wanted[stratum], "chosen": given[stratum]}
        for stratum in sorted(eligible)
    }
    return [found[key] for key in sorted(found)], figures


def _filled(wanted: Mapping[str, int], there: Mapping[str, int], selection: SelectionSettings) -> dict[str, int]:
    """Quotas that can be met: places of strata that have fewer distinct passages go to the others, by the same rule."""
    given = {stratum: min(quota, there[stratum]) for stratum, quota in wanted.items()}
    missing = min(selection.drawn, sum(there.values())) - sum(given.values())
    if missing > 0:
        more = quotas({stratum: there[stratum] - given[stratum] for stratum in given}, missing, selection.allocation)
        given = {stratum: given[stratum] + more[stratum] for stratum in given}
    return given


def _first_of_equals(
    folder: Path, gathered: Iterable[Mapping[str, Any]]
) -> dict[str, tuple[str, tuple[str, int, str, int]]]:
    """Key → stratum, and place of the candidate that stands for all of equal texts."""
    first: dict[str, tuple[str, tuple[str, int, str, int]]] = {}
    for candidate in _candidates(folder, gathered):
        there = first.get(candidate.key)
        if there is None or candidate.place < there[1]:
            first[candidate.key] = candidate.stratum, candidate.place
    return first


def _candidates(folder: Path, gathered: Iterable[Mapping[str, Any]]) -> Iterator[Candidate]:
    for part in gathered:
        if part["candidates"]:
            yield from read_lines(candidates_path(folder, part["name"]), Candidate)


def extremes(candidates: Sequence[Candidate], selection: SelectionSettings, folder: Path) -> list[Chosen]:
    """The candidates of the highest or the lowest perplexity, the most extreme first; of equal ones by key.

    Scores are kept in `folder`, so that a killed run goes on. A text without tokens comes last.
    """
    from megatron_native.alignment.perplexity import Perplexity, TextScore
    from megatron_native.progress import progress

    model = None
    scored: list[tuple[Candidate, TextScore]] = []
    with progress("annotate: perplexity", len(candidates), "passages") as bar:
        for start in range(0, len(candidates), _SCORED_AT_ONCE):
            some = candidates[start : start + _SCORED_AT_ONCE]
            place = folder / f"{start // _SCORED_AT_ONCE:05d}.json"
            if not place.exists():
                if model is None:
                    assert selection.perplexity_model is not None
                    model = Perplexity(selection.perplexity_model, context=selection.perplexity_context)
                scores = model.score(candidate.text for candidate in some)
                write_json(place, [[score.nats, score.tokens, score.bytes] for score in scores])
            kept = json.loads(place.read_text(encoding="utf-8"))
            scored += [(candidate, TextScore(*one)) for candidate, one in zip(some, kept, strict=True)]
            bar.advance(len(some))
    sign = -1 if selection.rule == "high-perplexity" else 1

    def order(one: tuple[Candidate, TextScore]) -> tuple[bool, float, str]:
        candidate, score = one
        return not score.tokens, sign * score.nats / max(1, score.tokens), candidate.key

    return [
        Chosen(candidate, _finite(score.perplexity), _finite(score.bits_per_byte))
        for candidate, score in sorted(scored, key=order)[: selection.sample]
    ]


def _finite(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None
