"""Presets of layouts: a model on so many GPUs in a precision, from one table a model (`presets/layouts/*.yaml`).

A table has

* `model`, what it is called in sentences, and `parameters`, in billions;
* `common`, settings of all its presets, and `kinds`, settings by the preset's ending (`bf16`, `fp8`, …);
* `gpus`: number of GPUs → ending → settings, the most particular;
* `refused`: number of GPUs → why there is no preset;
* `sources`: for each setting where its value comes from, or that it is a choice; `in` names the presets (`64xh100-fp8`) that it
  speaks of, and without it it speaks of all that no other entry names.

The preset `llama3-70b-64xh100-fp8` is `common` under `kinds.fp8` under `gpus.64.fp8` of `llama3-70b.yaml`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from megatron_native.config.merge import merged

FOLDER = Path(__file__).parent / "presets" / "layouts"
NEVER_RUN = "Never run on GPUs."


@dataclass(frozen=True)
class LayoutPreset:
    """One layout.

    Attributes:
        name: what `preset:` is set to.
        model: the model, as people call it.
        gpus: how many.
        kind: `bf16` or `fp8`, and what else tells it apart.
        settings: a part of a run's configuration.
        sources: `{"of": [settings], "source": citation}`; every setting is in one of them.
    """

    name: str
    model: str
    gpus: int
    kind: str
    settings: dict[str, Any]
    sources: list[dict[str, Any]]

    @property
    def summary(self) -> str:
        """The layout in short: `TP4 PP8 VPP5, 256 × 8192 tokens a step`."""
        parallel, training = self.settings.get("parallel", {}), self.settings["training"]
        sizes = {
            "TP": parallel.get("tensor_model_parallel_size", 1),
            "PP": parallel.get("pipeline_model_parallel_size", 1),
            "VPP": parallel.get("virtual_pipeline_model_parallel_size") or 1,
            "CP": parallel.get("context_parallel_size", 1),
        }
        split = " ".join(f"{short}{size}" for short, size in sizes.items() if size > 1) or "data parallel"
        recompute = training.get("recompute", "none")
        return (
            f"{split}, {training['global_batch_size']} × {self.settings['data']['seq_length']} tokens a step"
            + (f", recompute {recompute}" if recompute != "none" else "")
            + ("" if self.settings["data"].get("document_boundaries", True) else ", attention across documents")
        )


def layout_preset_names() -> list[str]:
    """Every layout there is, by model, number of GPUs and kind."""
    return [preset.name for preset in layout_presets().values()]


@cache
def layout_presets() -> dict[str, LayoutPreset]:
    """Every layout by its name."""
    return {preset.name: preset for path in sorted(FOLDER.glob("*.yaml")) for preset in _presets_of(path)}


@cache
def refused_layouts() -> dict[str, str]:
    """Names that a layout could have, and why there is none."""
    refused = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        table = _read(path)
        for gpus, reason in table.get("refused", {}).items():
            for kind in table["kinds"]:
                refused[f"{path.stem}-{gpus}xh100-{kind}"] = " ".join(reason.split())
    return refused


def _read(path: Path) -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return table


def _presets_of(path: Path) -> Iterator[LayoutPreset]:
    table = _read(path)
    for gpus, kinds in table["gpus"].items():
        for kind, own in kinds.items():
            settings = merged(merged(table["common"], table["kinds"][kind]), own or {})
            part = f"{gpus}xh100-{kind}"
            yield LayoutPreset(
                name=f"{path.stem}-{part}",
                model=table["model"],
                gpus=gpus,
                kind=kind,
                settings=settings,
                sources=list(_sources_of(table["sources"], part, set(setting_names(settings)))),
            )


def setting_names(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The settings of a part of a configuration, with dots; a list is one setting."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from setting_names(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _sources_of(entries: list[dict[str, Any]], part: str, settings: set[str]) -> Iterator[dict[str, Any]]:
    named = {setting for entry in entries if part in entry.get("in", []) for setting in entry["of"]}
    for entry in entries:
        if part in entry.get("in", []):
            of = [setting for setting in entry["of"] if setting in settings]
        elif "in" in entry:
            continue
        else:
            of = [setting for setting in entry["of"] if setting in settings and setting not in named]
        if of:
            yield {"of": of, "source": " ".join(entry["source"].split())}
