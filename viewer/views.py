"""Which figure shows which view."""

from matplotlib.figure import Figure

from viewer.look import Look, View
from viewer.overview import Overview
from viewer.parameter import Parameter
from viewer.strip import Strip

Shown = Overview | Strip | Parameter
_OF: dict[View, type[Shown]] = {View.OVERVIEW: Overview, View.LAYERS: Strip, View.PARAM: Parameter}


def fill(figure: Figure, look: Look, titled: bool = True) -> Shown:
    """Fill a figure with a view; ``update`` of what is returned draws snapshots."""
    return _OF[look.view](figure, look, titled)
