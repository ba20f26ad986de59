"""Metrics as every surface shows them: in which panel, of training or validation, and how smoothed."""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import replace

from viewer.options import ViewOptions
from viewer.snapshot import Curve, Snapshot

LOSS, ACCURACY, FURTHER = "loss", "accuracy", "metrics"
# A curve of so few points is not smoothed, and each of them gets a marker.
FEW_POINTS = 30
# A word of its own, as in "val_loss" and "loss/test", but not in "value_loss" and "latest_loss".
_VALIDATION = re.compile(r"(?<![A-Za-z])(?i:val|valid|validation|test|eval)(?![a-z])")


def is_validation(name: str) -> bool:
    """Whether a metric's name says that it is of validation."""
    return _VALIDATION.search(name) is not None


def panel_of(name: str, asked: Collection[str] = ()) -> str | None:
    """The panel of a metric, by its name; that of further metrics has those that were asked for, and none the rest."""
    lowered = name.lower()
    return LOSS if "loss" in lowered else ACCURACY if "acc" in lowered else FURTHER if name in asked else None


def panel_names(options: ViewOptions) -> list[str]:
    """The panels of the overview, from the top; one of further metrics only where it is needed."""
    further = any(panel_of(name) is None for name in options.metrics)
    return [LOSS, ACCURACY, *([FURTHER] if further else [])]


def panels(snapshot: Snapshot, options: ViewOptions) -> dict[str, list[Curve]]:
    """The curves of each panel of ``panel_names``, smoothed as the options ask."""
    curves: dict[str, list[Curve]] = {name: [] for name in panel_names(options)}
    for curve in snapshot.curves:
        panel = panel_of(curve.name, options.metrics)
        if panel is not None:
            long = options.smoothing and len(curve.mean) > FEW_POINTS
            curves[panel].append(replace(curve, smooth=smoothed(curve.mean, options.smoothing) if long else None))
    return curves


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """An exponential moving average without the bias of its beginning, as TensorBoard draws it.

    What is not finite stands in its place and is not averaged, and a constant is left as it is; the formula is that of
    ``classicSmoothing`` in TensorBoard's ``line_chart_v2/data_transformer.ts``.

    Args:
        values: The numbers, in order.
        weight: How much of the average each number inherits: 0 for none, less than 1.
    """
    if len(set(values)) <= 1:
        return list(values)
    average, counted = 0.0, 0
    averages = []
    for value in values:
        if not math.isfinite(value):
            averages.append(value)
            continue
        average = average * weight + (1 - weight) * value
        counted += 1
        averages.append(average / (1 - weight**counted))
    return averages
