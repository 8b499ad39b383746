"""What is wrong with a run: a sentence each of what, why, and the way out."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    what: str
    why: str
    way_out: str
    kind: Literal["error", "note"] = "error"
    """An `error` would end the run, or spoil it; a `note` is to be looked at."""

    def __str__(self) -> str:
        parts = [
            part.rstrip(".") for part in (f"{self.what}: {self.why}" if self.why else self.what, self.way_out) if part
        ]
        return ". ".join(part[0].upper() + part[1:] if index else part for index, part in enumerate(parts)) + "."

    def as_json(self) -> dict[str, str]:
        """Its fields."""
        return asdict(self)
