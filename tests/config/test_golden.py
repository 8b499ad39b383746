"""The presets of LLaMA3-70B against the published recipe: every field is equal, or explained in `golden/`.

The published values are written down, not computed: a new version of megatron-core with another field, or another default,
fails here until somebody has looked.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from megatron_native.config.merge import merged
from tests.config.models import LLAMA3_70B
from tests.config.resolved_fields import resolved_fields
from tests.config.test_layout_presets import resolved

GOLDEN = Path(__file__).parent / "golden" / "llama3_70b_64xh100.yaml"
RECIPES = {"llama3-70b-64xh100-fp8": "fp8", "llama3-70b-64xh100-bf16": "bf16", "llama3-70b-64xh100-bf16-cp": "bf16"}
MISSING = "not set"


@cache
def golden() -> dict[str, Any]:
    return dict(yaml.safe_load(GOLDEN.read_text(encoding="utf-8")))


def published(name: str) -> dict[str, Any]:
    return merged(golden()["published"]["common"], golden()["published"][RECIPES[name]])


def deviations(name: str) -> dict[str, Any]:
    return merged(golden()["deviations"]["common"], golden()["deviations"][name])


def differences(name: str, *over: str) -> dict[tuple[str, str], tuple[Any, Any]]:
    """(section, field) → (published, ours), of the fields in which they differ."""
    ours, theirs = resolved_fields(resolved(name, *over), LLAMA3_70B), published(name)
    assert ours.keys() == theirs.keys()
    return {
        (section, field): (theirs[section].get(field, MISSING), ours[section].get(field, MISSING))
        for section in ours
        for field in ours[section].keys() | theirs[section].keys()
        if theirs[section].get(field, MISSING) != ours[section].get(field, MISSING)
    }


@pytest.mark.parametrize("name", RECIPES)
def test_every_field_is_the_published_recipes_or_explained(name: str) -> None:
    explained = {
        (section, field): entry for section, entries in deviations(name).items() for field, entry in entries.items()
    }
    different = differences(name)
    assert {key: values for key, values in different.items() if key not in explained} == {}
    assert sorted(explained.keys() - different.keys()) == []  # nothing is explained that does not differ
    assert {key: entry["ours"] for key, entry in explained.items()} == {
        key: ours for key, (_, ours) in different.items()
    }
    assert all(len(entry["reason"].split()) >= 2 for entry in explained.values())


@pytest.mark.parametrize("name", RECIPES)
def test_no_field_of_megatron_core_is_left_out_of_the_list(name: str) -> None:
    """Environment variables and buffers of ours that the recipe does not have are in the explanations instead."""
    ours = resolved_fields(resolved(name), LLAMA3_70B)
    for section in ("transformer", "ddp", "optimizer"):
        assert published(name)[section].keys() == ours[section].keys()
    assert len(ours["transformer"]) > 200


@pytest.mark.parametrize("name", RECIPES)
def test_the_benchmark_sets_back_what_it_says(name: str) -> None:
    marked = {
        (section, field)
        for section, entries in deviations(name).items()
        for field, entry in entries.items()
        if entry.get("benchmark")
    }
    assert marked
    assert not marked & differences(name, "benchmark").keys()


def test_a_setting_that_nobody_explained_is_noticed() -> None:
    """The comparison itself: another recomputation, another recipe of FP8 and another variable are each found."""
    name = "llama3-70b-64xh100-fp8"
    run = resolved(name)
    changed = run.model_copy(
        update={
            "training": run.training.model_copy(update={"recompute": "selective"}),
            "fp8": run.fp8.model_copy(update={"recipe": "blockwise"}),
            "environment": {"NCCL_IB_TC": "106"},
        }
    )
    ours, theirs = resolved_fields(changed, LLAMA3_70B), published(name)
    unexplained = [
        ("transformer", "recompute_granularity"), ("transformer", "fp8_recipe"), ("optimizer", "fp8_recipe"),
        ("environment", "NCCL_IB_TC"),
    ]  # fmt: skip
    for section, field in unexplained:
        assert ours[section][field] != theirs[section].get(field, MISSING)
        assert field not in deviations(name).get(section, {})
