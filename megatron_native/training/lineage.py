"""Where a run's weights come from, as every checkpoint carries it: `run/lineage.json`, which the model card is made from.

    {"format", "runs": [{"name", "seed", "began_from", "phases", "steps", "consumed_samples", "consumed_tokens", "passed_over",
                         "not_learned", "datasets": {name: {"documents", "tokens", "digest", "manifests"}},
                         "evaluation": {"step", "sets": {name: bits per byte}} or null,
                         "commit", "modified", "software", "saved"}],
     "made": [{"by": "average" or "adopt", …}]}

One entry a run: a run that begins with another's checkpoint continues that one's list. What `average` and `adopt` made before
it stands under `made`, where there is any. Paths are left out but for a last name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_native.checkpoint import layout
from megatron_native.config.run import RunConfig
from megatron_native.data.ledger import DatasetRecord
from megatron_native.data.trace import lineage
from megatron_native.manifest import file_digest, software_versions, source_commit
from megatron_native.training.course import Course

FORMAT = layout.LINEAGE_FORMAT
PACKAGES = ("torch", "megatron-core", "transformer-engine", "transformers", "numpy")
_KEPT = ("stage", "created", "parameters_hash", "prompt_hash", "worker", "licence", "licences")


class RunLineage:
    """The account of one run, kept by its main process while it goes on.

    Args:
        run: its configuration.
        began_from: the checkpoint that it was restored from, of this run or another, or None.
    """

    def __init__(self, run: RunConfig, began_from: Path | None) -> None:
        self.run = run
        known = layout.read_json(began_from / layout.LINEAGE_FILE) if began_from is not None else None
        self._before: list[dict[str, Any]] = list((known or {}).get("runs", []))
        self._made: list[dict[str, Any]] = list((known or {}).get("made", []))
        origin = run.model.checkpoint or run.model.branch_from
        self._origin = origin.name if origin is not None else None
        self._evaluation: dict[str, Any] | None = None
        if began_from is not None and began_from.is_relative_to(run.run_dir) and self._before:
            self._evaluation = self._before.pop().get("evaluation")
        self._manifests: dict[str, list[dict[str, Any]]] = {}
        self._software = software_versions(PACKAGES)
        commit = source_commit()
        self._commit = {"commit": commit[0] if commit else None, "modified": len(commit) > 1}

    def evaluated(self, step: int, bits_per_byte: Mapping[str, float]) -> None:
        """Take note of the newest held-out figures."""
        if bits_per_byte:
            self._evaluation = {"step": step, "sets": dict(bits_per_byte)}

    def text(self, course: Course) -> str:
        """The file's contents after the last step done."""
        progress, ledger = course.progress, course.ledger
        entered = {segment.phase: segment.first_step for segment in reversed(ledger.segments)}
        phases = [
            {
                "name": phase.name, "first_step": entered[phase.name], "planned_tokens": phase.total_tokens,
                "trainable": phase.trainable, "seq_length": phase.seq_length, "global_batch_size": phase.global_batch_size,
                "lr": (phase.schedule or course.run_schedule).lr, "weights": phase.weights,
            }
            for phase in course.phases if phase.name in entered
        ]  # fmt: skip
        entry = {
            "name": self.run.run_dir.name, "seed": self.run.seed, "began_from": self._origin, "phases": phases,
            "steps": progress.step, "consumed_samples": progress.consumed_samples, "consumed_tokens": progress.consumed_tokens,
            "passed_over": sum(one.end_sample - one.first_sample for one in ledger.passed_over),
            "not_learned": len(ledger.not_learned),
            "datasets": {name: self._dataset(name, record) for name, record in ledger.datasets.items()},
            "evaluation": self._evaluation, **self._commit, "software": self._software,
            "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        }  # fmt: skip
        value: dict[str, Any] = {"format": FORMAT, "runs": [*self._before, entry]}
        if self._made:
            value["made"] = self._made
        return json.dumps(value, ensure_ascii=False, indent=2) + "\n"

    def _dataset(self, name: str, record: DatasetRecord) -> dict[str, Any]:
        if name not in self._manifests:
            self._manifests[name] = _manifests_of(Path(record.prefix))
        return {
            "dataset": Path(record.prefix).name, "documents": record.documents, "tokens": record.tokens,
            "digest": record.digest, "manifests": self._manifests[name],
        }  # fmt: skip


def _manifests_of(prefix: Path) -> list[dict[str, Any]]:
    """The stages behind a dataset, the nearest first, each manifest with its digest; none where none lies there."""
    return [
        {"file": Path(found["manifest"]).name, "xxh3_128": file_digest(Path(found["manifest"]))}
        | {key: found[key] for key in _KEPT if key in found}
        for found in lineage(prefix)
    ]
