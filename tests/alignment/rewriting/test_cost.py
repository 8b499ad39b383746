from typing import Any

import pytest

from megatron_native.alignment.rewriting.chunks import STATES
from megatron_native.alignment.rewriting.cost import Prices, figures_of, rows_of, warnings_of


def part(seconds: float, refused: dict[str, int] | None = None, **tokens: int) -> dict[str, Any]:
    """A part's figures: so many tokens by state, ten tokens a passage."""
    return {
        "passages": {state: tokens.get(state, 0) // 10 for state in STATES}, "tokens": {s: tokens.get(s, 0) for s in STATES},
        "refused": refused or {}, "engine_tokens": {"prompt": 1000, "cached": 900, "output": 100},
        "accelerator_seconds": seconds, "engines": [{"backend": "vllm"}],
    }  # fmt: skip


def test_hours_per_billion_accepted_tokens_worked_out_by_hand() -> None:
    # 7,200 s are 2 hours; accepted are 300 + 100 + 600 = 1,000 tokens: 2 h / 1,000 · 10⁹ = 2,000,000.
    figures = figures_of(
        [part(3600, rewritten=300, refused={"numbers": 4}), part(3600, unchanged=100, clean=600, frozen=50)]
    )
    assert figures["accepted_tokens"] == 1000
    assert figures["accelerator_hours"] == 2
    assert figures["accelerator_hours_per_billion_accepted_tokens"] == 2_000_000
    assert figures["engines"] == [{"backend": "vllm"}]
    assert figures["engine_tokens"] == {"prompt": 2000, "cached": 1800, "output": 200}


def test_refused_quarantined_and_frozen_tokens_are_not_accepted() -> None:
    figures = figures_of([part(1, refused=None, quarantined=70, frozen=50)])
    assert figures["accepted_tokens"] == 0
    assert figures["accelerator_hours_per_billion_accepted_tokens"] is None


def test_what_was_paid() -> None:
    assert Prices(hour=2.0, prompt=0.5, written=1.5).of(3, 2_000_000, 1_000_000) == pytest.approx(6 + 1 + 1.5)
    rows = dict(rows_of(figures_of([part(3600, rewritten=300)]), Prices(hour=2.0)))
    assert rows["cost of all answers that came"] == "2"
    assert "cost of all answers that came" not in dict(rows_of(figures_of([part(3600, rewritten=300)])))


def test_many_answers_cut_off_are_told_of() -> None:
    one = part(1, rewritten=900)
    one["passages"]["refused"], one["refused"] = 10, {"cut off": 10}
    (warning,) = warnings_of(figures_of([one]))
    assert "10 of 100 answers reached their limit" in warning
    assert "--answer-ratio" in warning


def test_hardly_an_accepted_answer_is_told_of() -> None:
    one = part(1, rewritten=100)
    one["passages"]["refused"], one["refused"] = 90, {"language": 90}
    (warning,) = warnings_of(figures_of([one]))
    assert "only 10 of 100 answers were accepted" in warning


def test_a_good_run_has_no_warning() -> None:
    assert warnings_of(figures_of([part(1, rewritten=900, unchanged=100)])) == []
