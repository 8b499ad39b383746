"""Launcher: the same as `megatron-native export-hf`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from megatron_native.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("export-hf", sys.argv[1:], program=Path(sys.argv[0]).name))
