"""Options that conversions share: sizes of files as people write them, and how many threads work."""

from __future__ import annotations

import argparse

from megatron_native.errors import UserError

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "B": 1}


def parse_size(text: str) -> int:
    """Bytes of "5GB", "512MiB" or "1000000"; `UserError` for anything else."""
    stripped = text.strip().upper()
    for unit, factor in _UNITS.items():
        number = stripped.removesuffix(unit)
        if number != stripped or unit == "B":
            try:
                return int(float(number) * factor)
            except (ValueError, OverflowError):
                continue
    raise UserError(f"'{text}' is no size; write a number and a unit, such as 5GB or 512MiB.")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """`--workers`."""
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="threads, each with a file of its own (default: one a processor, at most 8)",
    )
