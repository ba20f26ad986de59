"""All parameters at a glance: a strip of parameters × steps, the colour a magnitude. No files, and no threads."""

import re

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from viewer.figure import INK, shortened, title
from viewer.history import Layers
from viewer.live import Snapshot

# More rows than this would be thinner than a pixel or two, and one might not be drawn at all.
_ROWS = 300
_LABELS = 70
_OF = {"grad": "gradient", "value": "value"}
_ZERO, _ALARM = "#000000", "#e00000"


class Strip:
    """The largest magnitude of each parameter's gradient, or value, over the run, in a figure that it fills.

    Args:
        figure: An empty figure.
        of: ``"grad"`` or ``"value"``.
    """

    def __init__(self, figure: Figure, of: str = "grad") -> None:
        self.figure = figure
        self._of = of
        figure.set_layout_engine("constrained")
        self._axes = figure.subplots()
        self._title = figure.suptitle("", x=0.01, ha="left", fontsize=12, color=INK)
        self._title.set_parse_math(False)
        self._axes.set_xlabel("step", color=INK)
        self._axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        self._axes.tick_params(colors=INK, labelsize=7)
        self._note = self._axes.text(
            0.5, 0.5, "no step recorded yet", transform=self._axes.transAxes, ha="center", color="#777777"
        )
        colours = matplotlib.colormaps["cividis"].with_extremes(under=_ZERO, bad="#ffffff")
        self._image, self._alarm = (
            self._axes.imshow([[np.nan]], aspect="auto", interpolation="nearest", cmap=cmap)
            for cmap in (colours, ListedColormap([_ALARM]))
        )
        self._bar = figure.colorbar(self._image, ax=self._axes, extend="min", pad=0.01)
        self._bar.set_label(f"largest magnitude of the {_OF[of]}", color=INK)
        figure.legend(
            handles=[
                Patch(facecolor=_ALARM, label="NaN or infinity"),
                Patch(facecolor=_ZERO, label="all zero"),
                Patch(facecolor="#ffffff", edgecolor="#999999", label=f"no {_OF[of]}"),
            ],
            loc="outside lower right",
            ncols=3,
            frameon=False,
            fontsize=8,
        )

    def update(self, snapshot: Snapshot) -> None:
        """Draw a snapshot; a zoomed axis keeps its limits."""
        self._title.set_text(title(snapshot))
        layers = snapshot.layers
        self._note.set_visible(layers is None)
        if layers is None:
            return
        names, magnitudes, alarms = _grouped(layers, self._of)
        columns, rows = magnitudes.shape[1], len(names)
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
        self._axes.set_yticks(range(0, rows, every), [shortened(name) for name in names[::every]], parse_math=False)


def _grouped(layers: Layers, of: str) -> tuple[list[str], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Names, magnitudes and alarms, by module where there are too many parameters for a row each."""
    names = list(layers.params)
    depth = max(name.count(".") for name in names)
    while len(set(names)) > _ROWS and depth > 0:
        names = [re.sub(rf"^((?:[^.]*\.){{{depth}}}).*", r"\1*", name) for name in layers.params]
        depth -= 1
    starts = {name: index for index, name in reversed(list(enumerate(dict.fromkeys(names))))}
    group = np.array([starts[name] for name in names])
    magnitudes = np.full((len(starts), layers.magnitudes[of].shape[1]), np.nan)
    alarms = np.zeros(magnitudes.shape, dtype=np.bool_)
    np.fmax.at(magnitudes, group, layers.magnitudes[of])
    np.logical_or.at(alarms, group, layers.nonfinite[of])
    return list(dict.fromkeys(names)), magnitudes, alarms
