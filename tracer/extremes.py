"""Reductions of tensors to their extremes, and the two plain functions for a notebook."""

import math
from collections.abc import Mapping

import torch
from torch import nn

from tracer.parameters import named_parameters

# The dtypes that torch.aminmax reduces and that a buffer of the same dtype holds exactly; the others are converted.
NATIVE = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


def reduced_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that holds the extremes of a tensor of ``dtype`` exactly."""
    if dtype in NATIVE:
        return dtype
    return dtype.to_real() if dtype.is_complex else torch.float32 if dtype.itemsize < 4 else torch.float64


def reduce_into(tensor: torch.Tensor, out: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Write a tensor's minimum and maximum into two 0-dim tensors of its ``reduced_dtype``, without a host sync.

    A NaN anywhere makes both NaN, as in ``torch.aminmax``. Of a complex tensor, real and imaginary parts count alike.

    Args:
        tensor: Any shape with at least one element; call this under ``torch.no_grad``.
        out: Where the minimum and the maximum go, on the tensor's device.
    """
    if tensor.dtype is not out[0].dtype or tensor.layout is not torch.strided:
        tensor = _plain(tensor).to(out[0].dtype)
    torch.aminmax(tensor, out=out)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A real, dense tensor with the same extremes."""
    if tensor.layout is not torch.strided:
        elements = tensor.numel()
        # A sync where the device is not the CPU: the number of distinct indices decides the result's shape.
        tensor = tensor.coalesce().values()
        if tensor.numel() < elements:
            tensor = torch.cat([tensor.flatten(), tensor.new_zeros(1)])
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _extremes(tensor: torch.Tensor | None) -> tuple[float | None, float | None]:
    if tensor is None or tensor.numel() == 0:
        return None, None
    # A pair of its own for the result: this is for notebooks, where the sync of two reads does not matter.
    out = torch.empty(2, dtype=reduced_dtype(tensor.dtype), device=tensor.device)
    reduce_into(tensor, (out[0], out[1]))
    smallest, largest = out.tolist()
    return smallest, largest


@torch.no_grad()
def model_extremes(model: nn.Module) -> dict[str, dict[str, float | None]]:
    """The extremes of every parameter of a model and of its gradient, now.

    Args:
        model: Any module; a parameter that is tied appears once, one that is still lazy does not appear.

    Returns:
        For each parameter's qualified name ``value_min``, ``value_max``, ``grad_min`` and ``grad_max``. The gradient's
        are ``None`` without a gradient, all are ``None`` of an empty tensor, and NaN where the tensor holds a NaN.
    """
    stats = {}
    for parameter in named_parameters(model):
        if not parameter.lazy:
            value, gradient = _extremes(parameter.tensor), _extremes(parameter.tensor.grad)
            stats[parameter.name] = dict(zip(("value_min", "value_max"), value, strict=True)) | dict(
                zip(("grad_min", "grad_max"), gradient, strict=True)
            )
    return stats


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
