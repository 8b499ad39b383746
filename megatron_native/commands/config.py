"""`megatron-native config`: a run's resolved configuration, what can be set, or the presets there are."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = """Show a run's resolved configuration (checked, its preset and every default filled in), the schema of all settings,
or the presets with their sources."""
EXAMPLES = """\
  megatron-native config show --config run.yaml training.steps=100
  megatron-native config show --config run.yaml preset=continued-strong-shift
  megatron-native config presets
  megatron-native config presets anneal
  megatron-native config presets llama3-70b-64xh100-fp8
  megatron-native config schema > schema.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument(
        "action", choices=("show", "schema", "presets"),
        help="show: the resolved YAML; schema: JSON schema; presets: all of them, or those named, with their settings",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, metavar="FILE", help="the run's YAML file (for show)")
    parser.add_argument("--json", action="store_true", help="presets as JSON, settings and sources included")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value",
        help="settings that override the file's; after presets, names of presets",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Print what was asked for."""
    import json
    import sys

    from megatron_native.config.load import dump_run_config, load_run_config
    from megatron_native.config.presets import replay_remark
    from megatron_native.config.run import RunConfig
    from megatron_native.errors import UserError

    if arguments.action == "schema":
        print(json.dumps(RunConfig.model_json_schema(), indent=2))
        return 0
    if arguments.action == "presets":
        _print_presets(arguments.overrides, arguments.json)
        return 0
    if arguments.config is None:
        raise UserError("config show needs --config FILE, the run's YAML file.")
    configuration = load_run_config(arguments.config, arguments.overrides)
    print(dump_run_config(configuration), end="")
    remark = replay_remark(configuration)
    if remark:
        print(remark, file=sys.stderr)
    return 0


def _print_presets(names: list[str], as_json: bool) -> None:
    import dataclasses
    import json
    import textwrap

    import yaml

    from megatron_native.config.layout_presets import NEVER_RUN, layout_preset_names, layout_presets
    from megatron_native.config.presets import preset_names, read_preset

    if as_json:
        names = names or [*preset_names(), *layout_preset_names()]
    presets = [read_preset(name) for name in names or preset_names()]
    if as_json:
        print(json.dumps([dataclasses.asdict(preset) for preset in presets], ensure_ascii=False, indent=2))
        return
    width = max(len(preset.name) for preset in presets)
    for preset in presets:
        lines = textwrap.wrap(preset.description, 118 - width)
        print("\n".join(f"{name:<{width}}  {line}" for name, line in zip([preset.name] + [""] * len(lines), lines)))
        if names:
            print("\n" + yaml.safe_dump(preset.settings, sort_keys=False, allow_unicode=True))
            for source in preset.sources:
                print(textwrap.fill(f"{', '.join(source['of'])}: {source['source']}", 120, subsequent_indent="  "))
    if not names:
        width = max(map(len, layout_presets()))
        print(f"\nLayouts, to put beside another: [continued-strong-shift, llama3-70b-64xh100-fp8]. {NEVER_RUN}")
        for layout in layout_presets().values():
            print(f"{layout.name:<{width}}  {layout.summary}")
