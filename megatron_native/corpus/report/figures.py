"""The figures of a report: what is gathered, what the page shows and what the JSON holds, in one place.

None means that it was not recorded.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

FORMAT = "megatron-native/report/1"


@dataclass
class Check:
    """One thing that must hold of the account, and whether it does (None: nothing was recorded to tell)."""

    what: str
    holds: bool | None
    detail: str


@dataclass
class Stage:
    """One stage, as its manifest has it.

    Attributes:
        name: its folder or dataset, as it was given.
        kind: `clean`, `dedup`, `tokenize` or another stage's name; "dataset" for one without a manifest.
        column: how many of the given stages come before it, at most.
        read, kept: records; None where nothing was recorded.
        dropped, quarantined: records by reason.
        read_by_language, kept_by_language: documents by bucket.
        edits: what was mended in kept documents, by kind.
        bytes_read, bytes_kept: UTF-8 bytes of text.
        tokens: of a dataset.
        unread: kept records that no stage given here has read; None for a stage that no other one follows.
        parameters, software, created, parameters_hash: of the manifest.
        tokenizer: of a dataset, as its manifest has it.
    """

    name: str
    kind: str
    column: int = 0
    read: int | None = None
    kept: int | None = None
    dropped: dict[str, int] = field(default_factory=dict)
    quarantined: dict[str, int] = field(default_factory=dict)
    read_by_language: dict[str, int] = field(default_factory=dict)
    kept_by_language: dict[str, int] = field(default_factory=dict)
    edits: dict[str, int] = field(default_factory=dict)
    bytes_read: int | None = None
    bytes_kept: int | None = None
    tokens: int | None = None
    unread: int | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=dict)
    created: str | None = None
    parameters_hash: str | None = None
    tokenizer: dict[str, Any] | None = None


@dataclass
class Link:
    """`records` that one stage (a place in the list of stages) handed to another."""

    giver: int
    taker: int
    records: int


@dataclass
class Totals:
    """The whole run: what came in from outside, and where all of it is now."""

    read: int = 0
    read_again: int = 0
    """Records that more than one stage read, counted once for each stage after the first."""
    kept: int = 0
    dropped: int = 0
    duplicates: int = 0
    quarantined: int = 0
    tokens: int | None = None

    @property
    def balances(self) -> bool:
        """Whether every record that came in is somewhere."""
        return self.read + self.read_again == self.kept + self.dropped + self.duplicates + self.quarantined


@dataclass
class Lengths:
    """Lengths of the kept documents of one language, in one unit; quantiles are to within 2 %."""

    documents: int
    total: int
    least: int
    median: float
    p10: float
    p90: float
    most: int
    bins: list[tuple[float, float, int]]
    """[from, below, documents] each."""


@dataclass
class Script:
    """What the writing of a sample of one language's documents is like."""

    documents: int
    letters: int = 0
    """Arabic letters, without marks and tatweel."""
    marks: int = 0
    vocalisation: dict[str, int] = field(default_factory=dict)
    """Documents by how much of their letters carry marks."""
    tatweel: int = 0
    tatweel_documents: int = 0
    presentation_forms: int = 0
    presentation_documents: int = 0
    digits: dict[str, int] = field(default_factory=dict)
    """Digits by system."""
    digit_documents: dict[str, int] = field(default_factory=dict)
    """Documents by the systems they use."""


@dataclass
class Fertility:
    """What a tokenizer makes of a sample; begin and end tokens are not counted."""

    documents: int = 0
    words: int = 0
    bytes: int = 0
    tokens: int = 0


@dataclass
class Source:
    """Documents of one site (or file): `kept` after each stage of documents, in the order of the stages given."""

    name: str
    kept: list[int]
    dropped: list[int | None]
    """Taken out by each stage, copies among them; None where it did not record the sites of what it dropped."""
    bytes: int


@dataclass
class InputFile:
    """One file of the raw input: records read of it and what the first stage did with them."""

    name: str
    read: int | None
    dropped: int | None
    quarantined: int | None
    kept_at_end: int


@dataclass
class Sample:
    """A piece of a document to look at."""

    id: str
    text: str
    language: str = ""
    source: str = ""
    note: str = ""
    cut: bool = False


@dataclass
class SampleGroup:
    """Samples of one kind: kept documents of a language, or what one stage took out for one reason."""

    kind: str
    """`kept`, `dropped` or `quarantined`."""
    stage: str
    label: str
    count: int | None
    samples: list[Sample]


@dataclass
class Pair:
    """A document that left and the one that stayed for it; a text is None where it was not found."""

    id: str
    copy_of: str
    reason: str
    similarity: float | None
    gone: str | None = None
    stays: str | None = None


@dataclass
class Duplicates:
    """The copies that one dedup stage found."""

    stage: str
    clusters: int | None = None
    largest: int | None = None
    sizes: dict[int, int] = field(default_factory=dict)
    """Clusters by how many documents they had, the one that stayed among them."""
    listed: dict[str, int] = field(default_factory=dict)
    """Copies by reason, counted in the list of duplicates."""
    similarity: list[tuple[float, float, int]] = field(default_factory=list)
    """[from, below, near copies] each; exact copies are not among them."""
    most_copied: list[Sample] = field(default_factory=list)
    pairs: list[Pair] = field(default_factory=list)


@dataclass
class Share:
    """One dataset's part in a token budget."""

    name: str
    dataset: str
    available: int | None
    estimated: bool
    weight: float
    wanted: float | None
    epochs: float | None


@dataclass
class Budget:
    """How often a budget of tokens goes over each dataset of a blend."""

    tokens: float | None
    shares: list[Share]
    blend_given: bool
    within_limit: float | None
    """The largest budget that goes over no dataset more than `MAX_EPOCHS` times."""


@dataclass
class Report:
    """Everything the page shows."""

    inputs: list[str]
    stages: list[Stage] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    totals: Totals | None = None
    checks: list[Check] = field(default_factory=list)
    sample: int = 0
    sample_characters: int = 0
    final_stages: list[str] = field(default_factory=list)
    """The stages of documents that no other given one follows: their documents are the kept ones."""
    languages: dict[str, int] = field(default_factory=dict)
    """Kept documents by bucket."""
    language_bytes: dict[str, int] = field(default_factory=dict)
    dialects: dict[str, int] = field(default_factory=dict)
    words: dict[str, Lengths] = field(default_factory=dict)
    """By language."""
    bytes: dict[str, Lengths] = field(default_factory=dict)
    script: dict[str, Script] = field(default_factory=dict)
    tokenizer: dict[str, Any] | None = None
    fertility: dict[str, Fertility] = field(default_factory=dict)
    fertility_by_vocalisation: dict[str, Fertility] = field(default_factory=dict)
    """Of Arabic in Arabic letters."""
    document_stages: list[str] = field(default_factory=list)
    """What the columns of `sources` are."""
    sources: list[Source] = field(default_factory=list)
    source_count: int = 0
    sources_counted_together: bool = False
    """There were so many that the rare ones were counted as one."""
    files: list[InputFile] = field(default_factory=list)
    file_count: int = 0
    samples: list[SampleGroup] = field(default_factory=list)
    duplicates: list[Duplicates] = field(default_factory=list)
    budget: Budget | None = None
    warnings: list[str] = field(default_factory=list)

    @property
    def balances(self) -> bool:
        """Whether the totals balance and no check failed."""
        return (self.totals is None or self.totals.balances) and all(check.holds is not False for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {"format": FORMAT, "balances": self.balances, **asdict(self)}
