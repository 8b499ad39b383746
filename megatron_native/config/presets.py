"""Presets: settings that the literature of continued pre-training suggests, put under those of a run's file.

A preset is a YAML file in `presets/`: `description`, `settings` (a part of a run's configuration), `sources` (for every
setting where its value comes from, or that it is a choice) and, where replay is part of it, `replay_share`. Presets of layouts
come from tables (`config/layout_presets.py`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_native.config.layout_presets import NEVER_RUN, LayoutPreset, layout_presets, refused_layouts
from megatron_native.config.merge import merged
from megatron_native.config.run import BlendEntry, RunConfig
from megatron_native.errors import UserError

FOLDER = Path(__file__).parent / "presets"
REPLAY = "replay"
"""Datasets of a blend whose names begin so are replay: text like that of the model's earlier training."""


@dataclass(frozen=True)
class Preset:
    """One preset.

    Attributes:
        name: what `preset:` is set to.
        description: what it is for, and what it does not decide.
        settings: a part of a run's configuration.
        sources: `{"of": [settings], "source": citation}`; every setting is in one of them.
        replay_share: least and largest share of the sequences that should be replay, or None where it says nothing.
    """

    name: str
    description: str
    settings: dict[str, Any]
    sources: list[dict[str, Any]]
    replay_share: tuple[float, float] | None = None


def preset_names() -> list[str]:
    """The presets there are, but for those of layouts."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_preset(name: Any) -> Preset:
    """The preset `name`, of a layout or another.

    Raises:
        UserError: there is none of that name, and why, where the model does not fit on so many GPUs.
    """
    names = [*preset_names(), *layout_presets()]
    if name not in names:
        if (reason := refused_layouts().get(str(name))) is not None:
            raise UserError(f"preset = {name!r}: there is no such layout. {reason}")
        close = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(preset_names())} and those of layouts"
        raise UserError(f"preset = {name!r}: there is no such preset; {hint} (megatron-native config presets).")
    if name in layout_presets():
        return _of_layout(layout_presets()[name])
    raw = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    share = raw.get("replay_share")
    return Preset(
        name=name, description=" ".join(raw["description"].split()), settings=raw["settings"], sources=raw["sources"],
        replay_share=None if share is None else (float(share[0]), float(share[1])),
    )  # fmt: skip


def _of_layout(layout: LayoutPreset) -> Preset:
    description = f"{layout.model} on {layout.gpus} H100s, {layout.kind}: {layout.summary}. {NEVER_RUN}"
    return Preset(layout.name, description, layout.settings, layout.sources)


def over_preset(name: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    """A raw configuration with the settings of a preset, or of several, where it says nothing; later presets go over earlier
    ones, and lists are taken whole.

    Raises:
        UserError: there is no such preset.
    """
    settings: dict[str, Any] = {}
    for one in name if isinstance(name, list) else [name]:
        settings = merged(settings, read_preset(one).settings)
    return merged(settings, raw)


def replay_share(blend: list[BlendEntry]) -> float:
    """Share of the blend's sequences that come from datasets whose names begin with `replay`; 0 … 1."""
    replayed = sum(entry.weight for entry in blend if (entry.name or entry.prefix.name).startswith(REPLAY))
    return replayed / sum(entry.weight for entry in blend)


def replay_remark(run: RunConfig) -> str | None:
    """A sentence where the blend's replay is not what the run's preset stands for; None where it is, or can't be said."""
    names = [] if run.preset is None else [run.preset] if isinstance(run.preset, str) else run.preset
    preset, expected = "", None
    for name in names:
        if (stated := read_preset(name).replay_share) is not None:
            preset, expected = name, stated
    if expected is None:
        return None
    wanted = f"{expected[0]:.0%} to {expected[1]:.0%}"
    share = replay_share(run.data.blend)
    if not share:
        return (
            f"note: the preset {preset} stands for {wanted} of replay, and no dataset of data.blend is named "
            f"'{REPLAY}…', so its share is not known; name replayed datasets so to have it checked."
        )
    if not expected[0] <= round(share, 6) <= expected[1]:
        return f"note: {share:.1%} of data.blend is replay; the preset {preset} stands for {wanted}."
    return None
