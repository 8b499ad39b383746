"""Checks of a rewritten passage against its origin; `judging.build_gates` is where to begin."""
