"""Plain functions for a notebook, without a run: the numbers that a trace records, of a model as it is now."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl
import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from tracer.encode import Encoder
from tracer.engines import accumulated, remark
from tracer.extremes import local
from tracer.parameters import NamedParameter, flattened, named_parameters
from tracer.rows import Histograms, RowBuffer
from tracer.statistics import Measures, Stats, check_count
from tracer.unregistered import unregistered
from tracer.warn import in_short

_UNREGISTERED = "an optimizer trains it, but the model does not register it: keep layers in an nn.ModuleList, say"


@torch.no_grad()
def model_stats(model: nn.Module, stats: Stats = "extremes", *, bins: int = 64) -> dict[str, dict[str, Any]]:
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
        ValueError: there is no such statistic, or ``bins`` is no positive integer.
    """
    measures = Measures.of(stats)
    check_count("bins", bins)
    parameters = [parameter for parameter in named_parameters(model) if not parameter.lazy]
    buffer, histograms = RowBuffer(parameters, measures), Histograms(bins)
    for index, parameter in enumerate(parameters):
        buffer.record(index, parameter.tensor, accumulated(parameter.tensor))
        if measures.histogram:
            histograms.collect(parameter.name, parameter.tensor, accumulated(parameter.tensor))
    encoder = Encoder(rank=0)
    columns = [f"{of}_{statistic}" for of in ("value", "grad") for statistic in measures.columns]
    if measures.histogram:
        columns += ["value_histogram", "grad_histogram"]
    rows = encoder.extremes([buffer.take(0, 0)]).to_pylist()
    numbers = {row["param"]: {column: row.get(column) for column in columns} for row in rows}
    made = histograms.take(0, 0)
    for row in encoder.histograms([made]).to_pylist() if made.blocks else ():
        numbers[row["param"]][f"{row['of']}_histogram"] = {key: row[key] for key in ("low", "high", "counts")}
    return numbers


def model_extremes(model: nn.Module) -> dict[str, dict[str, float | None]]:
    """The extremes of every parameter of a model and of its gradient, now.

    Args:
        model: Any module; a parameter that is tied appears once, one that is still lazy does not appear.

    Returns:
        For each parameter's qualified name ``value_min``, ``value_max``, ``grad_min`` and ``grad_max``. The gradient's
        are ``None`` without a gradient, all are ``None`` of an empty tensor, and NaN where the tensor holds a NaN.
    """
    return model_stats(model)


@torch.no_grad()
def doctor(model: nn.Module, *optimizers: Optimizer) -> pl.DataFrame:
    """Examine a model before it is trained: which parameters would be recorded, and why others would not.

    Args:
        model: Any module; wrapped, sharded or compiled as it will be when it is attached.
        optimizers: Those that will train it: what they hold and the model does not register has a row, too.

    Returns:
        A row a parameter: ``param``; ``state``: traced, sharded (traced, each rank its own part), frozen, lazy,
        unsupported, or unregistered (only an optimizer holds it); ``shape`` and ``dtype``; ``records``: the recorded
        quantities as things stand; and ``note``: its tied names, the part of it that is here, or the reason why it
        cannot be recorded.
    """
    reason = flattened(model)
    rows = [_diagnosis(parameter, reason) for parameter in named_parameters(model)]
    missing = {place: tensor for optimizer in optimizers for place, tensor in unregistered(model, optimizer).items()}
    rows += [
        (place, "unregistered", _shape(tensor.shape), _dtype(tensor), "", _UNREGISTERED)
        for place, tensor in missing.items()
    ]
    names = ("param", "state", "shape", "dtype", "records", "note")
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")


def _diagnosis(parameter: NamedParameter, reason: str | None) -> tuple[str, ...]:
    tensor = parameter.tensor
    dtype = _dtype(tensor)
    notes = [f"tied to {alias}" for alias in parameter.aliases]
    if parameter.lazy:
        notes.append("from its module's first forward on")
        return parameter.name, "lazy", "", dtype, "value, grad", "; ".join(notes)
    state, records = ("sharded" if parameter.sharded else "traced", "value, grad")
    if not tensor.requires_grad:
        state, records = "frozen", "value"
    if (said := remark(tensor)) is not None:
        notes.append(said)
    if parameter.sharded:
        notes.append(f"this rank holds {_shape(local(tensor).shape)}")
    if not local(tensor).numel():
        notes.append("empty here, so its rows are null")
    if (trouble := reason or _trouble(parameter)) is not None:
        state, records = "unsupported", ""
        notes.append(trouble)
    return parameter.name, state, _shape(parameter.shape), dtype, records, "; ".join(notes)


def _shape(shape: Iterable[int]) -> str:
    return " x ".join(map(str, shape)) or "0-dim"


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _trouble(parameter: NamedParameter) -> str | None:
    """The reason why a parameter cannot be recorded, if there is one: recording it is tried."""
    if parameter.tensor.is_meta:
        return "on the meta device, so it has no numbers yet"
    if not parameter.tensor.is_leaf:
        return "calculated from another tensor, so it gets no gradient of its own"
    try:
        buffer = RowBuffer([parameter])
        buffer.record(0, parameter.tensor, None)
        buffer.take(0, 0)
    except Exception as error:
        return in_short(error)
    return None


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
