#!/usr/bin/env python
"""Many Megatron .bin/.idx → one; see `--help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works from a clone that is not installed

from megatron_native.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("merge", sys.argv[1:], "tools/merge_datasets.py"))
