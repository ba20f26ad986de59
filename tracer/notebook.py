"""Plain functions for a notebook, which need no run: the same numbers that a trace records, of a model as it is now."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tracer.encode import Encoder
from tracer.parameters import named_parameters
from tracer.rows import Histograms, RowBuffer
from tracer.statistics import Measures, Stats


@torch.no_grad()
def model_stats(model: nn.Module, stats: Stats = "extremes", *, bins: int = 10) -> dict[str, dict[str, Any]]:
    """The statistics of every parameter of a model and of its gradient, now.

    Args:
        model: Any module; a parameter that is tied appears once, one that is still lazy does not appear.
        stats: As in ``attach``; the extremes are always there.
        bins: How many bins a histogram has.

    Returns:
        For each parameter's qualified name ``value_min``, ``value_max``, ``grad_min`` and so on. A histogram is a
        dictionary of ``low``, ``high`` and ``counts``, as in the log. All are ``None`` of an empty tensor, and the
        gradient's without a gradient.

    Raises:
        ValueError: there is no such statistic.
    """
    measures = Measures.of(stats)
    parameters = [parameter for parameter in named_parameters(model) if not parameter.lazy]
    buffer, histograms = RowBuffer(parameters, measures), Histograms(bins)
    for index, parameter in enumerate(parameters):
        buffer.record(index, parameter.tensor, parameter.tensor.grad)
        if measures.histogram:
            histograms.collect(parameter.name, parameter.tensor, parameter.tensor.grad)
    encoder = Encoder(rank=0, attempt=0)
    columns = [f"{of}_{statistic}" for of in ("value", "grad") for statistic in measures.columns]
    found: dict[str, dict[str, Any]] = {}
    for row in encoder.extremes([buffer.take(0, 0)]).to_pylist():
        found[row["param"]] = {column: row[column] for column in columns}
    if measures.histogram:
        for numbers in found.values():
            numbers |= {"value_histogram": None, "grad_histogram": None}
        rows = histograms.take(0, 0)
        for row in encoder.histograms([rows]).to_pylist() if rows.blocks else ():
            found[row["param"]][f"{row['of']}_histogram"] = {key: row[key] for key in ("low", "high", "counts")}
    return found


def model_extremes(model: nn.Module) -> dict[str, dict[str, float | None]]:
    """The extremes of every parameter of a model and of its gradient, now.

    Args:
        model: Any module; a parameter that is tied appears once, one that is still lazy does not appear.

    Returns:
        For each parameter's qualified name ``value_min``, ``value_max``, ``grad_min`` and ``grad_max``. The gradient's
        are ``None`` without a gradient, all are ``None`` of an empty tensor, and NaN where the tensor holds a NaN.
    """
    return model_stats(model)


def overall_extremes(stats: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """The extremes over all parameters.

    Args:
        stats: What ``model_extremes`` returns.

    Returns:
        ``value_min``, ``value_max``, ``grad_min`` and ``grad_max``: ``None`` where no parameter has one, and NaN where
        any parameter has a NaN.
    """
    return {
        key: _overall([extremes[key] for extremes in stats.values()], smallest=key.endswith("_min"))
        for key in ("value_min", "value_max", "grad_min", "grad_max")
    }


def _overall(values: list[float | None], *, smallest: bool) -> float | None:
    known = [value for value in values if value is not None]
    if any(math.isnan(value) for value in known):
        return math.nan
    return (min if smallest else max)(known, default=None)
