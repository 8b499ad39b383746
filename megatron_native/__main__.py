"""`python -m megatron_native` is `megatron-native`."""

import sys

from megatron_native.cli import main

if __name__ == "__main__":
    sys.exit(main())
