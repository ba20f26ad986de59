"""All parameters at a glance: a strip of parameters × steps, the colour a magnitude. No files, and no threads."""

import dataclasses
import re
from collections.abc import Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from viewer.history import Layers
from viewer.live import Snapshot
from viewer.look import Look, View
from viewer.marks import begin, dress, entitle, theme
from viewer.status import shortened

# More rows than this would be thinner than a pixel or two, and one might not be drawn at all.
_ROWS = 300
_LABELS = 70
_ZERO, _ALARM = "#000000", "#e00000"


class Strip:
    """The largest magnitude of a statistic of each parameter over the run, in a figure that it fills.

    Args:
        figure: The figure.
        look: What to show.
        titled: Whether the title says how the run is.
    """

    def __init__(self, figure: Figure, look: Look, titled: bool = True) -> None:
        self.figure = figure
        self._look = look
        self._rows: list[str] = []
        colours = theme(look)
        self._title = begin(figure, look, titled)
        self._axes = figure.subplots()
        self._note = dress(self._axes, look, "", f"no step recorded yet{' with such a parameter' * bool(look.params)}")
        self._axes.grid(visible=False)
        self._axes.tick_params(labelsize=7)
        self._axes.set_xlabel("step", color=colours.ink)
        self._axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        scale = matplotlib.colormaps["cividis"].with_extremes(under=_ZERO, bad=colours.ground)
        self._image, self._alarm = (
            self._axes.imshow([[np.nan]], aspect="auto", interpolation="nearest", cmap=cmap)
            for cmap in (scale, ListedColormap([_ALARM]))
        )
        bar = figure.colorbar(self._image, ax=self._axes, extend="min", pad=0.01)
        bar.set_label(f"largest magnitude: {look.statistic}", color=colours.ink)
        bar.ax.tick_params(colors=colours.ink)
        self._note.set_zorder(5)
        figure.legend(
            handles=[
                Patch(facecolor=_ALARM, label="NaN or infinity"),
                Patch(facecolor=_ZERO, edgecolor=colours.faint, label="zero"),
                Patch(facecolor=colours.ground, edgecolor=colours.faint, label="not recorded"),
            ],
            loc="outside lower right",
            ncols=3,
            frameon=False,
            fontsize=8,
            labelcolor=colours.ink,
        )

    def update(self, snapshots: Sequence[Snapshot], now: float) -> None:
        """Draw the only snapshot; a zoomed axis keeps its limits."""
        entitle(self._title, snapshots, now)
        layers = snapshots[0].layers
        self._note.set_visible(layers is None)
        if layers is None:
            return
        self._rows, magnitudes, alarms = grouped(layers)
        columns, rows = magnitudes.shape[1], len(self._rows)
        extent = (layers.first_step - 0.5, layers.first_step + columns * layers.width - 0.5, rows - 0.5, -0.5)
        positive = magnitudes[magnitudes > 0]
        low, high = (float(positive.min()), float(positive.max())) if positive.size else (0.1, 1.0)
        # A zero has no logarithm: below the scale, it gets the colour for what is under it.
        self._image.set_data(np.where(magnitudes == 0, low / 10, magnitudes))
        self._image.set_norm(LogNorm(low, max(high, low * 1.001)))
        self._alarm.set_data(np.where(alarms, 1.0, np.nan))
        for image in (self._image, self._alarm):
            image.set_extent(extent)
        every = -(-rows // _LABELS)
        names = [shortened(name) for name in self._rows[::every]]
        self._axes.set_yticks(range(0, rows, every), names, parse_math=False)

    def picked(self, axes: Axes | None, y: float | None) -> Look | None:
        """What a click on a row leads to: its parameter, or the parameters of its module."""
        if axes is not self._axes or y is None or not 0 <= round(y) < len(self._rows):
            return None
        name = self._rows[round(y)]
        if name.endswith(".*"):
            return dataclasses.replace(self._look, params=f"^{re.escape(name[:-1])}")
        return dataclasses.replace(self._look, view=View.PARAM, param=name)


def grouped(layers: Layers, rows: int = _ROWS) -> tuple[list[str], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Names, magnitudes and alarms, by module where there are too many parameters for a row each."""
    names = list(layers.params)
    depth = max(name.count(".") for name in names)
    while len(set(names)) > rows and depth > 0:
        names = [re.sub(rf"^((?:[^.]*\.){{{depth}}}).*", r"\1*", name) for name in layers.params]
        depth -= 1
    starts = {name: index for index, name in reversed(list(enumerate(dict.fromkeys(names))))}
    group = np.array([starts[name] for name in names])
    magnitudes = np.full((len(starts), layers.magnitudes.shape[1]), np.nan)
    alarms = np.zeros(magnitudes.shape, dtype=np.bool_)
    np.fmax.at(magnitudes, group, layers.magnitudes)
    np.logical_or.at(alarms, group, layers.nonfinite)
    return list(dict.fromkeys(names)), magnitudes, alarms
