"""One tree of settings over another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`under` where `over` says nothing: mappings are merged key by key, all else (lists too) is taken whole from `over`.

    Neither is changed; what both leave alone is shared with the result, not copied.
    """
    result = dict(under)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(under.get(key), Mapping)
        result[key] = merged(under[key], value) if both else value
    return result
