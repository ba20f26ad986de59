"""Which figure shows which view."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from viewer.figure import Overview
from viewer.live import View
from viewer.strip import Strip


def fill(figure: Figure, view: View, metrics: Sequence[str]) -> Overview | Strip:
    """Fill an empty figure with a view; ``update`` of what is returned draws a snapshot.

    Args:
        figure: The figure.
        view: The view.
        metrics: Further metrics to draw in the overview.
    """
    return Overview(figure, metrics) if view is View.OVERVIEW else Strip(figure)
