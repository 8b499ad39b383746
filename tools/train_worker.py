"""`python tools/train_worker.py --seeds DIR --base DIR --output DIR` is `megatron-native train-worker`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_native.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("train-worker", sys.argv[1:], "tools/train_worker.py"))
