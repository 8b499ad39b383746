"""What a run has consumed: a few lines a change, from which every sample of every step can be worked out.

Samples of a run are numbered, and the number of consumed ones is the only position there is. A *segment* says which data
the samples from a number on are; a new one begins with a phase, a change of blend, sequence length or packing. A *stretch*
says which samples the steps from a number on take; a new one begins when the batch size changes or samples are passed
over. Nothing is written a step or a document, so the ledger of any run is small.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_native.data.blend import Shares
from megatron_native.data.sequence_index import Taken
from megatron_native.errors import UserError
from megatron_native.manifest import write_json

FORMAT = "megatron-native/ledger/1"
LEDGER_FILE = Path("ledger/ledger.json")
"""In a run folder; a checkpoint has a copy as `run/ledger.json`."""


@dataclass(frozen=True)
class DatasetRecord:
    """A dataset that the run has read."""

    prefix: str
    """Where it lay."""
    digest: str
    """xxh3_128 of its `.idx`."""
    documents: int
    tokens: int


@dataclass(frozen=True)
class Segment:
    """Which data the samples from `first_sample` on are, up to the next segment's."""

    first_sample: int
    first_step: int
    """The step that takes the first of them, counted from 1."""
    phase: str
    seq_length: int
    packing: str
    weights: dict[str, float]
    """Dataset → weight, as they were drawn."""
    configured: dict[str, float]
    """Dataset → weight, as the configuration had them; a monitor may have changed what is drawn."""
    taken: dict[str, list[Taken]]
    """What had been read of each dataset before."""

    @cached_property
    def shares(self) -> Shares:
        """The order in which the datasets take turns."""
        return Shares(list(self.weights.values()))


@dataclass(frozen=True)
class Stretch:
    """Steps from `first_step` on take `batch_size` samples each, beginning with `first_sample`."""

    first_step: int
    first_sample: int
    batch_size: int


@dataclass(frozen=True)
class PassedOver:
    """Samples [first_sample, end_sample) that no step of the run's weights was trained on."""

    before_step: int
    first_sample: int
    end_sample: int
    reason: str


@dataclass(frozen=True)
class Elsewhere:
    """What the weights had learned before this project's first step, in an order of samples that it does not know."""

    source: str
    """The checkpoint that was adopted."""
    steps: int
    samples: int
    tokens: int


@dataclass
class Ledger:
    """The account of one run, as JSON in the run folder and in every checkpoint."""

    seed: int
    datasets: dict[str, DatasetRecord] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    stretches: list[Stretch] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)
    not_learned: list[int] = field(default_factory=list)
    """Steps whose update was skipped: their samples are consumed and left no trace in the weights."""
    elsewhere: Elsewhere | None = None
    """What was consumed before the first segment, where the run goes on from a checkpoint made elsewhere."""

    def record_dataset(self, name: str, record: DatasetRecord) -> None:
        """Note a dataset that the run reads from now on.

        Raises:
            UserError: the run has read another dataset under this name.
        """
        before = self.datasets.get(name)
        if before is not None and before.digest != record.digest:
            raise UserError(
                f"the dataset '{name}' is another one than the run has read so far: {record.prefix}.idx has "
                f"{record.documents:,} documents and the digest {record.digest[:12]}…, {before.prefix}.idx had "
                f"{before.documents:,} and {before.digest[:12]}…. Put that one back, or give the new one a name of its own "
                "in the blend."
            )
        self.datasets[name] = record

    def begin_segment(
        self, sample: int, step: int, phase: str, seq_length: int, packing: str,
        weights: Mapping[str, float], configured: Mapping[str, float],
    ) -> None:  # fmt: skip
        """From `sample`, the first of `step`, the data is this; what was read before carries over."""
        taken = self.taken_at(sample) if self.segments else {}
        if self.segments and self.segments[-1].first_sample == sample:
            taken = self.segments.pop().taken
        self.segments.append(
            Segment(sample, step, phase, seq_length, packing, dict(weights), dict(configured), taken)
        )

    def begin_stretch(self, step: int, sample: int, batch_size: int) -> None:
        """From `step` on, steps take `batch_size` samples, the first of them `sample`."""
        if self.stretches and self.stretches[-1].first_step == step:
            self.stretches.pop()
        self.stretches.append(Stretch(step, sample, batch_size))

    def pass_over(self, step: int, first_sample: int, end_sample: int, reason: str) -> None:
        """Note samples that are left out before `step`."""
        self.passed_over.append(PassedOver(step, first_sample, end_sample, reason))

    def segment_of(self, sample: int) -> int:
        """The number of the segment that a sample belongs to."""
        return bisect_right([segment.first_sample for segment in self.segments], sample) - 1

    def samples_of(self, step: int) -> range:
        """The numbers of the samples that a step takes.

        Raises:
            UserError: steps are counted from 1, or the ledger has none yet.
        """
        at = bisect_right([stretch.first_step for stretch in self.stretches], step) - 1
        if at < 0 or step < 1:
            first = self.stretches[0].first_step if self.stretches else 1
            before = f"; those before were taken elsewhere, up to {self.elsewhere.source}" if self.elsewhere else ""
            raise UserError(f"step {step}: steps are counted from {first}{before}.")
        stretch = self.stretches[at]
        first = stretch.first_sample + (step - stretch.first_step) * stretch.batch_size
        return range(first, first + stretch.batch_size)

    def step_of(self, sample: int) -> int | None:
        """The step that takes a sample; None for one that was passed over or comes before the first step."""
        at = bisect_right([stretch.first_sample for stretch in self.stretches], sample) - 1
        if at < 0:
            return None
        stretch = self.stretches[at]
        step = stretch.first_step + (sample - stretch.first_sample) // stretch.batch_size
        if at + 1 < len(self.stretches) and step >= self.stretches[at + 1].first_step:
            return None
        return step

    def taken_at(self, sample: int) -> dict[str, list[Taken]]:
        """What has been read of every dataset when the samples before `sample` are consumed."""
        segment = self.segments[self.segment_of(sample)]
        taken = {name: list(kinds) for name, kinds in segment.taken.items()}
        counts = segment.shares.counts(sample - segment.first_sample)
        for name, count in zip(segment.weights, counts):
            kinds = taken.setdefault(name, [])
            if kinds and (kinds[-1].packing, kinds[-1].seq_length) == (segment.packing, segment.seq_length):
                count += kinds.pop().sequences
            if count:
                kinds.append(Taken(segment.packing, segment.seq_length, count))
        return {name: kinds for name, kinds in taken.items() if kinds}

    def dumps(self) -> str:
        """The ledger as JSON text."""
        return json.dumps(self._content(), ensure_ascii=False, indent=1) + "\n"

    def save(self, run_dir: Path) -> None:
        """Write `ledger/ledger.json` whole."""
        write_json(run_dir / LEDGER_FILE, self._content())

    def _content(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def loads(cls, text: str, source: str) -> Ledger:
        """Read JSON text; `source` names it in errors.

        Raises:
            UserError: it is no ledger.
        """
        try:
            content = json.loads(text)
            if content.pop("format") != FORMAT:
                raise ValueError(f"it is not {FORMAT}")
            return cls(
                seed=content["seed"],
                datasets={name: DatasetRecord(**record) for name, record in content["datasets"].items()},
                segments=[
                    Segment(**{**entry, "taken": {n: [Taken(*kind) for kind in kinds] for n, kinds in entry["taken"].items()}})
                    for entry in content["segments"]
                ],
                stretches=[Stretch(**entry) for entry in content["stretches"]],
                passed_over=[PassedOver(**entry) for entry in content["passed_over"]],
                not_learned=content["not_learned"],
                elsewhere=Elsewhere(**content["elsewhere"]) if content.get("elsewhere") else None,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{source} is not a ledger of a run ({error}).") from error


def read_ledger(run_dir: Path) -> Ledger:
    """The ledger of a run folder, or of a checkpoint.

    Raises:
        UserError: there is none, or it can't be read.
    """
    for path in (run_dir / LEDGER_FILE, run_dir / "run" / "ledger.json"):
        if path.is_file():
            return Ledger.loads(path.read_text(encoding="utf-8"), str(path))
    raise UserError(f"{run_dir} has no ledger ({LEDGER_FILE}): give the folder of a run, or one of its checkpoints.")
