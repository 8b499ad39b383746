"""The cases written by hand, in two halves by origin: thresholds and gates are made on one, judged on the other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

FOLDER = Path(__file__).with_name("gate_cases")
SEED = "megatron-native gates 1"
Half = Literal["tuning", "test"]


def half_of(origin: str) -> Half:
    """The half that every case of this origin is in."""
    return "tuning" if hashlib.sha256(f"{SEED}\n{origin}".encode()).digest()[0] % 2 == 0 else "test"


def cases_of(half: Half) -> dict[str, list[dict[str, str]]]:
    """`{kind: cases}` of one half, in the order of the files."""
    found: dict[str, list[dict[str, str]]] = {}
    for path in sorted(FOLDER.glob("*.jsonl")):
        cases = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found[path.stem] = [case for case in cases if half_of(case["origin"]) == half]
    return found
