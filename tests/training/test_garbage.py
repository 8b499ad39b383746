"""Garbage is collected at the steps of the interval, and at no others."""

from __future__ import annotations

import gc
import weakref

import pytest

from megatron_native.training.garbage import AlignedCollections


class Knot:
    """Refers to itself, so that only a collection frees it."""

    def __init__(self) -> None:
        self.itself = self


def test_cycles_go_at_the_interval() -> None:
    with AlignedCollections(3) as collections:
        assert not gc.isenabled()
        knot = weakref.ref(Knot())
        assert [collections.at(step) for step in (1, 2)] == [False, False]
        assert knot() is not None
        assert collections.at(3)
        assert knot() is None
    assert gc.isenabled()


def test_without_an_interval_python_collects() -> None:
    with AlignedCollections(0) as collections:
        assert gc.isenabled()
        assert not collections.at(0)


def test_it_is_as_before_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), AlignedCollections(1):
        _ = 1 / 0
    assert gc.isenabled()
