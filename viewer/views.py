"""Which figure shows which view."""

from matplotlib.figure import Figure

from viewer.figure import Overview
from viewer.look import Look, View
from viewer.strip import Strip


def fill(figure: Figure, look: Look) -> Overview | Strip:
    """Fill an empty figure with a view; ``update`` of what is returned draws a snapshot."""
    return Overview(figure, look.metrics, look.smoothing) if look.view is View.OVERVIEW else Strip(figure)
