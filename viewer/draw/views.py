"""Which figure shows which view."""

from matplotlib.figure import Figure

from viewer.draw.layers import Layers
from viewer.draw.overview import Overview
from viewer.draw.parameter import Parameter
from viewer.options import View, ViewOptions

Shown = Overview | Layers | Parameter
_OF: dict[View, type[Shown]] = {
    View.OVERVIEW: Overview,
    View.LAYERS: Layers,
    View.PARAM: Parameter,
    View.ACTIVATIONS: Layers,
}


def fill(figure: Figure, options: ViewOptions, titled: bool = True) -> Shown:
    """Fill a figure with a view; its ``update`` draws snapshots."""
    return _OF[options.view](figure, options, titled)
