"""All gates over a pair: settings in, `Gates` out; a pair in, a `Verdict` out.

    gates = build_gates(load_settings())
    verdict = gates.judge(origin, rewritten)
    verdict.passed, verdict.judgements

A rewrite that is its origin passes without being looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

from megatron_native.alignment.gates import facts, frame, language, models, shape, words
from megatron_native.alignment.gates.gate import REGISTRY, Gate, Judgement, Pair, Readers
from megatron_native.alignment.gates.settings import default_settings, merged

__all__ = ["Gates", "Verdict", "build_gates", "facts", "frame", "language", "models", "shape", "words"]
_LEXICONS = ("common", "names", "phrases")


class Verdict(NamedTuple):
    """What all gates say of a pair.

    Attributes:
        passed: whether none refused it.
        judgements: one a gate, in the order of `Gates.names`; of a run that stops at the first refusal, up to that.
    """

    passed: bool
    judgements: tuple[Judgement, ...]

    @property
    def refused_by(self) -> tuple[str, ...]:
        """The gates that refused it."""
        return tuple(judgement.gate for judgement in self.judgements if not judgement.passed)

    @property
    def reasons(self) -> tuple[str, ...]:
        """`gate: reason` of each refusal."""
        return tuple(f"{judgement.gate}: {judgement.reason}" for judgement in self.judgements if not judgement.passed)

    @property
    def scores(self) -> dict[str, tuple[float, bool]]:
        """Gate → (score, whether it passed), of every gate that judged."""
        return {judgement.gate: (round(judgement.score, 4), judgement.passed) for judgement in self.judgements}

    def as_json(self) -> dict[str, Any]:
        """`{"passed", "scores": {gate: score}, "refused": {gate: reason}}`."""
        return {
            "passed": self.passed,
            "scores": {judgement.gate: round(judgement.score, 4) for judgement in self.judgements},
            "refused": {judgement.gate: judgement.reason for judgement in self.judgements if not judgement.passed},
        }


class Gates:
    """The gates that are switched on; made by `build_gates`. Not to be shared by threads."""

    def __init__(self, gates: list[Gate], settings: dict[str, dict[str, Any]]) -> None:
        self._gates = gates
        self._settings = settings
        self._readers = Readers()
        self._unchanged = Verdict(
            True, tuple(Judgement(gate.name, _UNCHANGED.get(gate.name, 0.0), True) for gate in gates)
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The gates in the order they are asked."""
        return tuple(gate.name for gate in self._gates)

    @property
    def parameters(self) -> dict[str, Any]:
        """What decides verdicts, for manifests and lineage: every setting of the gates that are on, the lexicons' hash.

        Where the judge is served, and where its key is, is none of it: the same model may be elsewhere tomorrow.
        """
        decisive = {
            name: {key: value for key, value in self._settings[name].items() if key not in ("endpoint", "key_variable")}
            for name in self.names
        }
        return {"gates": decisive, "lexicons": lexicons_hash()}

    def judge(self, origin: str, rewritten: str, before: str = "", after: str = "") -> Verdict:
        """What the gates say.

        Args:
            origin, rewritten: the texts.
            before, after: what stands around the passage in its document and was shown to the writer; a word that the
                rewrite took from there is no invention.
        """
        if origin == rewritten:
            return self._unchanged
        pair = Pair(origin, rewritten, before, after, self._readers)
        judgements = tuple([gate.judge(pair) for gate in self._gates])
        return Verdict(all(judgement.passed for judgement in judgements), judgements)


_UNCHANGED = {"length": 1.0, "similarity": 1.0}
"""Scores of a rewrite that is its origin, where they are not 0."""


def lexicons_hash() -> str:
    """sha256 of the word lists and phrases that gates use."""
    folder = resources.files("megatron_native.alignment.gates")
    digest = hashlib.sha256()
    for name in _LEXICONS:
        digest.update(folder.joinpath(f"lexicons/{name}.yaml").read_bytes())
    return digest.hexdigest()


def build_gates(settings: Mapping[str, Mapping[str, Any]] | None = None, backend: Any = None) -> Gates:
    """Gates with these settings (`settings.load_settings`; what is left out is as shipped).

    Args:
        settings: `{gate: {setting: value}}`.
        backend: what the gate `judge` asks (`backends.backend.Backend`), in place of the endpoint that its settings name.

    Raises:
        UserError: a gate or setting is not known, or a model that a gate needs can't be had.
    """
    complete = merged(default_settings(), settings or {}, "gates")
    made: list[Gate] = []
    for name, values in complete.items():
        if values["enabled"]:
            given = {key: value for key, value in values.items() if key != "enabled"}
            made.append(REGISTRY[name](given | {"backend": backend} if name == "judge" else given))
    made.sort(key=lambda gate: gate.cost)
    return Gates(made, complete)
