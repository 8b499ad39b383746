"""The pairs inside the page: columns that filters need, and texts in compressed chunks that are read when they are shown.

Every chunk is JSON, gzip, base64, in a script element of type application/json, which no browser runs. base64 has no
letter that could end the element, so nothing inside a text reaches the page's markup.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from megatron_native.alignment.analyses.pairs import RewritePair
from megatron_native.alignment.rewriting.chunks import STATES
from megatron_native.corpus.report.elements import Html, tag

CHUNK = 250
"""Pairs of a chunk: what a page of pairs has to unpack at least."""
_CHUNK_ID = re.compile(r'<script type="application/json" id="chunk-\d+">"([A-Za-z0-9+/=]*)"</script>')
_INDEX_ID = re.compile(r'<script type="application/json" id="index">"([A-Za-z0-9+/=]*)"</script>')


def embedded(pairs: Sequence[RewritePair], grades: Mapping[int, Sequence[int]]) -> list[Html]:
    """The script elements: the index, then the chunks.

    Args:
        pairs: in the order of the page.
        grades: place in `pairs` → grades, of those that were graded.
    """
    gates = list(dict.fromkeys(name for pair in pairs for name in pair.gates))
    index = _index(pairs, gates)
    elements = [_element("index", index)]
    for number, start in enumerate(range(0, len(pairs), CHUNK)):
        rows = [_row(pair, gates, grades.get(place)) for place, pair in enumerate(pairs[start : start + CHUNK], start)]
        elements.append(_element(f"chunk-{number}", rows))
    return elements


def _index(pairs: Sequence[RewritePair], gates: Sequence[str]) -> dict[str, Any]:
    states = [state for state in STATES if any(pair.state == state for pair in pairs)]
    kinds = [kind for kind, _ in Counter(kind for pair in pairs for kind in pair.reason_kinds).most_common()]
    sources = [name for name, _ in Counter(pair.source for pair in pairs).most_common()]
    places = [{name: place for place, name in enumerate(names)} for names in (states, kinds, sources)]
    return {
        "chunk": CHUNK, "states": states, "kinds": kinds, "sources": sources, "gates": list(gates),
        "state": [places[0][pair.state] for pair in pairs],
        "kind": [[places[1][kind] for kind in pair.reason_kinds] for pair in pairs],
        "source": [places[2][pair.source] for pair in pairs],
        "before": [len(pair.origin) for pair in pairs],
        "after": [len(pair.rewritten or "") for pair in pairs],
    }  # fmt: skip


def _row(pair: RewritePair, gates: Sequence[str], grades: Sequence[int] | None) -> list[Any]:
    """[id, origin, rewrite (0: as the origin, null: none), reasons, scores by gate (null: not judged), grades]."""
    rewritten: Any = 0 if pair.rewritten == pair.origin else pair.rewritten
    scores = [
        None if name not in pair.gates else [round(pair.gates[name][0], 4), int(pair.gates[name][1])] for name in gates
    ]
    return [pair.id, pair.origin, rewritten, pair.reasons, scores, grades]


def _element(name: str, content: Any) -> Html:
    raw = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    packed = base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode()
    return tag("script", Html(f'"{packed}"'), type="application/json", id=name)


def read_back(page: str) -> tuple[dict[str, Any], Iterator[list[Any]]]:
    """The index and the rows of all pairs of a page, as its own script reads them."""
    index = _INDEX_ID.search(page)
    if index is None:
        raise ValueError("the page holds no pairs")
    return _unpacked(index[1]), (row for found in _CHUNK_ID.finditer(page) for row in _unpacked(found[1]))


def _unpacked(packed: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(packed)).decode("utf-8", "surrogatepass"))
