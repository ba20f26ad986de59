"""What a metric is by its name, and how its curve is smoothed."""

import math
import re
from collections.abc import Sequence

# A word of its own, as in "val_loss" and "loss/test", but not in "value_loss" and "latest_loss".
_VALIDATION = re.compile(r"(?<![A-Za-z])(?i:val|valid|validation|test|eval)(?![a-z])")


def is_validation(name: str) -> bool:
    """Whether a metric's name says that it is of validation."""
    return _VALIDATION.search(name) is not None


def panel(name: str) -> str | None:
    """The panel to which a metric belongs by its name: ``"loss"``, ``"accuracy"``, or none."""
    lowered = name.lower()
    return "loss" if "loss" in lowered else "accuracy" if "acc" in lowered else None


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
    found = []
    for value in values:
        if not math.isfinite(value):
            found.append(value)
            continue
        average = average * weight + (1 - weight) * value
        counted += 1
        found.append(average / (1 - weight**counted))
    return found
