"""`megatron-native config`: a run's resolved configuration, or what can be set."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "Show a run's resolved configuration (checked, every default filled in), or the schema of all settings."
EXAMPLES = """\
  megatron-native config show --config run.yaml training.steps=100
  megatron-native config schema > schema.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("action", choices=("show", "schema"), help="show: the resolved YAML; schema: JSON schema")
    parser.add_argument("--config", type=Path, metavar="FILE", help="the run's YAML file (for show)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file's")


def run(arguments: argparse.Namespace) -> int:
    """Print what was asked for."""
    import json

    from megatron_native.config.load import dump_run_config, load_run_config
    from megatron_native.config.run import RunConfig
    from megatron_native.errors import UserError

    if arguments.action == "schema":
        print(json.dumps(RunConfig.model_json_schema(), indent=2))
        return 0
    if arguments.config is None:
        raise UserError("config show needs --config FILE, the run's YAML file.")
    print(dump_run_config(load_run_config(arguments.config, arguments.overrides)), end="")
    return 0
