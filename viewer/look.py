"""What a user wants to see of a run, and how: the same for every surface."""

from dataclasses import dataclass
from enum import StrEnum


class View(StrEnum):
    """What is shown of a run."""

    OVERVIEW = "overview"
    LAYERS = "layers"


@dataclass(frozen=True)
class Look:
    """How a run is shown.

    Attributes:
        view: What of it.
        metrics: Further metrics in the overview.
        smoothing: How much a metric's curve is smoothed there, as in ``history.smoothed``; extremes never are.
    """

    view: View = View.OVERVIEW
    metrics: tuple[str, ...] = ()
    smoothing: float = 0.6
