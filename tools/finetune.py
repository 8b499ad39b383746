"""`python tools/finetune.py --base DIR --data FILE --output DIR` is `megatron-native finetune`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_native.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command("finetune", sys.argv[1:], "tools/finetune.py"))
