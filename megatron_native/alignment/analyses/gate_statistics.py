"""What became of all pairs, and what each gate refused, for which reasons, with which scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from megatron_native.alignment.analyses.distributions import Distribution, distribution, edges_of
from megatron_native.alignment.analyses.pairs import RewritePair


@dataclass(frozen=True, slots=True)
class GateShare:
    """One gate over all pairs.

    Attributes:
        gate: its name.
        judged: pairs it gave a score.
        refused: pairs it refused; alone: pairs that no other gate refused.
        passed_scores, refused_scores: in the pairs that were sampled, over the same bins.
    """

    gate: str
    judged: int
    refused: int
    alone: int
    passed_scores: Distribution
    refused_scores: Distribution


@dataclass(slots=True)
class GateCounts:
    """Counts over a stream of pairs.

    Attributes:
        states: pairs by what became of them.
        kinds: refused or quarantined pairs by what their reasons begin with (a gate, or other words); one can have many.
        with_verdict: pairs that gates judged, or that have a reason.
    """

    states: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    with_verdict: int = 0
    judged: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    alone: Counter[str] = field(default_factory=Counter)

    def count(self, pair: RewritePair) -> None:
        """Count one more."""
        self.states[pair.state] += 1
        self.kinds.update(pair.reason_kinds)
        self.with_verdict += bool(pair.gates or pair.reasons)
        self.judged.update(pair.gates.keys())
        refused = pair.refused_by
        self.refused.update(refused)
        if len(refused) == 1:
            self.alone.update(refused)

    def gates(self, sampled: Iterable[RewritePair]) -> list[GateShare]:
        """Every gate that judged, those that refused most first; scores are of `sampled`."""
        scores: dict[str, tuple[list[float], list[float]]] = {gate: ([], []) for gate in self.judged}
        for pair in sampled:
            for gate, (score, passed) in pair.gates.items():
                scores[gate][0 if passed else 1].append(score)
        found = []
        for gate in sorted(self.judged, key=lambda gate: (-self.refused[gate], gate)):
            edges = edges_of(scores[gate], 24)
            passed_scores, refused_scores = (distribution(values, edges) for values in scores[gate])
            found.append(
                GateShare(gate, self.judged[gate], self.refused[gate], self.alone[gate], passed_scores, refused_scores)
            )
        return found
