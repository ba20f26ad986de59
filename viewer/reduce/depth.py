"""The first and the last trained layer of a model, by the order in which gradients arrive."""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import polars as pl

# Columns of the largest gradient magnitude, and the layer of each in words.
DEPTH = {"first_max": "first layer", "last_max": "last layer"}


def listed(text: str) -> list[str]:
    """The names in a JSON list, as the details of some events are; none where a log holds something else."""
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def trained_weights(params: Sequence[Mapping[str, Any]]) -> list[str]:
    """The weights that are trained, of a list as in ``run.json``: they have two dimensions at least."""
    shapes = [(param["name"], param.get("shape")) for param in params if param.get("trainable", True)]
    return [name for name, shape in shapes if isinstance(shape, list) and len(shape) > 1]


class Depth:
    """Knows the two layers at the ends of a model.

    Gradients arrive at the last layer first. Until their order is known, it is that of the model turned round.

    Args:
        weights: The trained weights in model order.
    """

    def __init__(self, weights: Collection[str]) -> None:
        self._arrived: Sequence[str] = list(weights)[::-1]
        self._weights = frozenset(weights)

    def note(self, events: pl.LazyFrame) -> bool:
        """Take in rows of the table ``events``; whether they have changed which layers these are."""
        rows = events.filter(pl.col("kind") == "order").select("detail").head(1).collect()
        arrived = [name for name in listed(rows["detail"][0] or "") if name in self._weights] if rows.height else []
        before, self._arrived = self._ends(), arrived or self._arrived
        return self._ends() != before

    def _ends(self) -> tuple[str, str]:
        names = self._arrived or ("",)
        return names[-1], names[0]

    def columns(self) -> list[pl.Expr]:
        """The columns of ``DEPTH``, of rows of the table ``extremes``: null in other layers, and in a single layer."""
        first, last = map(_layer, self._ends())
        size = pl.max_horizontal(pl.col("grad_min", "grad_max").abs())
        if first == last:
            return [pl.lit(None, pl.Float64).alias(name) for name in DEPTH]
        layers = zip(DEPTH, (first, last), strict=True)
        return [pl.when(_within(layer)).then(size).alias(name) for name, layer in layers]


def _within(layer: str) -> pl.Expr:
    param = pl.col("param").cast(pl.String)
    return param.str.starts_with(layer) if layer.endswith(".") else param == layer


def _layer(name: str) -> str:
    """The module of a parameter, as its parameters' names begin; or the name of a parameter that is in none."""
    return name[: name.rfind(".") + 1] or name
