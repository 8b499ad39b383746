"""Which document of a cluster stays: a number for each, the highest wins, and of equal ones the first in the inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

KEEP = ("longest", "newest", "first")
_PREFERENCE_SHIFT = 48
"""Preferred sources count before everything else: they fill the bits from here on."""
_DATE = re.compile(r"(\d{4})(?:-?(\d{2})(?:-?(\d{2})(?:[T ]?(\d{2})(?::?(\d{2}))?)?)?)?")


class RankKeys:
    """Rank keys, int64 each, under one policy.

    Args:
        keep: `longest`, `newest` or `first`.
        prefer: sites or folders, best first.
        date_key: key of the metadata with a date that begins as ISO 8601 has it (2015-07-21 …); none ranks lowest.
    """

    def __init__(self, keep: str, prefer: Sequence[str], date_key: str) -> None:
        self._keep, self._date_key = keep, date_key
        self._preference = {source: len(prefer) - place for place, source in enumerate(prefer)}

    def key(self, words: int, metadata: Mapping[str, Any], site: str, folder: str) -> int:
        """The rank key of a document of `words` words, from a site and a folder of the inputs."""
        preference = max(self._preference.get(site, 0), self._preference.get(folder, 0))
        return (preference << _PREFERENCE_SHIFT) + self._own(words, metadata)

    def _own(self, words: int, metadata: Mapping[str, Any]) -> int:
        if self._keep == "longest":
            return min(words, (1 << _PREFERENCE_SHIFT) - 1)
        if self._keep == "newest":
            found = _DATE.match(str(metadata.get(self._date_key, "")))
            return int("".join(part or "00" for part in found.groups())) if found else 0
        return 0
