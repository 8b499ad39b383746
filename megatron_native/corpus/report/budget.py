"""Token budgets: how often a run of so many tokens goes over each dataset of a blend.

Repeating text up to four times is nearly as good as new text; beyond that the gain fades (Muennighoff and others,
"Scaling Data-Constrained Language Models", 2023). So more than `MAX_EPOCHS` is warned about.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_native.corpus.report.figures import Budget, Share
from megatron_native.errors import UserError

MAX_EPOCHS = 4.0
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Stock:
    """Tokens there are under one name: of a dataset, or estimated for the documents of a language."""

    name: str
    dataset: str
    tokens: int
    estimated: bool = False


def parse_tokens(text: str) -> float:
    """A number of tokens: `20e9`, `20000000000`, `20B`.

    Raises:
        UserError: it is none, or not above 0.
    """
    found = re.fullmatch(r"([0-9.,_]+(?:[eE]\+?[0-9]+)?)\s*([kKmMbBgGtT]?)", text.strip())
    try:
        value = float(found[1].replace(",", "").replace("_", "")) * _UNITS[found[2].lower()] if found else 0.0
    except ValueError:
        value = 0.0
    if not math.isfinite(value) or value <= 0:
        raise UserError(f"--budget {text} is no number of tokens above 0; write 20e9, 20B or 20000000000.")
    return value


def parse_blend(text: str) -> dict[str, float]:
    """Weights by name: `ar=0.8,en=0.2`.

    Raises:
        UserError: a part is not NAME=WEIGHT, a name comes twice, or no weight is above 0.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.rpartition("="))
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not equals or not name or not math.isfinite(weight) or weight < 0:
            raise UserError(
                f"--blend {text}: '{part}' is not NAME=WEIGHT with a weight of 0 or more, such as ar=0.8,en=0.2."
            )
        if name in weights:
            raise UserError(f"--blend {text}: {name} comes twice.")
        weights[name] = weight
    if not any(weights.values()):
        raise UserError(f"--blend {text}: at least one weight must be above 0.")
    return weights


def short_name(dataset: str) -> str:
    """What a dataset is called in a blend: `work/tokens/ar_text_document` is `ar`."""
    name = dataset.rsplit("/", 1)[-1]
    return re.sub(r"_[^_]+_(document|sentence)$", "", name)


def plan(stocks: Sequence[Stock], tokens: float | None, blend: Mapping[str, float] | None) -> Budget:
    """Epochs over each part of a blend; without a blend, each dataset weighs what it has.

    Raises:
        UserError: a name of the blend means no dataset, or more than one.
    """
    if blend is None:
        parts = [(stock.name, stock, float(stock.tokens)) for stock in stocks]
    else:
        parts = [(name, _named(name, stocks), weight) for name, weight in blend.items()]
    whole = sum(weight for _, _, weight in parts)
    shares, limits = [], []
    for name, stock, weight in parts:
        weight = weight / whole if whole else 0.0
        wanted = None if tokens is None else tokens * weight
        epochs = wanted / stock.tokens if wanted is not None and stock.tokens else None
        shares.append(Share(name, stock.dataset, stock.tokens, stock.estimated, weight, wanted, epochs))
        if weight:
            limits.append(MAX_EPOCHS * stock.tokens / weight)
    return Budget(tokens, shares, blend is not None, min(limits, default=None))


def _named(name: str, stocks: Sequence[Stock]) -> Stock:
    datasets = [stock for stock in stocks if not stock.estimated]
    for candidates in (
        [stock for stock in datasets if stock.dataset == name],
        [stock for stock in datasets if stock.dataset.rsplit("/", 1)[-1] == name],
        [stock for stock in datasets if stock.name == name],
        [stock for stock in stocks if stock.estimated and stock.name == name],
    ):
        if len(candidates) > 1:
            names = ", ".join(stock.dataset for stock in candidates)
            raise UserError(f"--blend: {name} may be {names}; write the path of the one that is meant.")
        if candidates:
            return candidates[0]
    known = ", ".join(dict.fromkeys(stock.name for stock in stocks))
    raise UserError(
        f"--blend: {name} is none of the datasets given"
        + (
            f" ({known})."
            if known
            else ": there are none; give their prefixes with --input, or a --tokenizer to estimate."
        )
    )
