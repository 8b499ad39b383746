"""One tree of settings over another."""

from __future__ import annotations

from megatron_native.config.merge import merged


def test_mappings_are_merged_and_all_else_is_replaced() -> None:
    under = {"a": {"x": 1, "y": {"deep": 1}}, "list": [1, 2, 3], "text": {"ar": "نص"}, "kept": 0}
    over = {"a": {"y": {"new": 2}}, "list": [9], "text": None, "added": {"z": 1}}
    assert merged(under, over) == {
        "a": {"x": 1, "y": {"deep": 1, "new": 2}}, "list": [9], "text": None, "kept": 0, "added": {"z": 1},
    }  # fmt: skip
    assert under["a"] == {"x": 1, "y": {"deep": 1}}, "neither is changed"
    assert merged({"a": 1}, {"a": {"x": 1}}) == {"a": {"x": 1}}
