"""Pairs for tests, and a small rewriting by rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_native.alignment.analyses.pairs import RewritePair
from megatron_native.alignment.rewriting.settings import RewriteSettings
from megatron_native.alignment.rewriting.stage import rewrite
from megatron_native.corpus.stage import Execution

CLEAN = "تقع المدينة على ضفاف نهر كبير، وتحيط به البساتين من الجانبين."
WORN = "تقع المدينة على ضفاف نهر كبير ,  وتحيط به البساتين من الجانبين ."


def pair(origin: str, rewritten: str | None, state: str = "rewritten", **others: Any) -> RewritePair:
    """A pair with an id from its texts, where none is given."""
    name = str(others.pop("id", f"{origin[:8]}>{(rewritten or '')[:8]}"))
    return RewritePair(name, origin, rewritten, state, **others)


def rewriting(folder: Path, count: int = 6) -> Path:
    """A finished rewriting by rules: even documents are worn, odd ones need no change."""
    source = folder / "documents"
    source.mkdir(parents=True)
    with open(source / "a.jsonl", "w", encoding="utf-8") as file:
        for number in range(count):
            text = f"الخبر {number}: {CLEAN if number % 2 else WORN}"
            record = {
                "id": f"d{number}",
                "text": text,
                "metadata": {"url": f"https://www.site{number % 3}.example/{number}"},
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    output = folder / "rewritten"
    rewrite([str(source)], output, RewriteSettings(), None, Execution(1))
    return output
