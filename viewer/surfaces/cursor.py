"""The cursor in a figure: the pointer, or a place that keys move, and the numbers of every curve there."""

import math
from collections.abc import Sequence
from datetime import datetime

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from tracer.log.text import plain
from viewer.draw.curves import Curve, at
from viewer.draw.layers import Layers
from viewer.draw.panels import Drawing

# A click so many pixels beside a curve means it.
_NEAR_PIXELS = 10
# Curves of other panels that are listed beside those of the cursor's own.
_ELSEWHERE = 24
_DASHES = {"-": "solid", "--": "dashed", "-.": "dashed", ":": "dotted"}

Reading = dict[str, object]


class Cursor:
    """A place in a figure, and what stands there. It is none until it is pointed or moved to one."""

    def __init__(self) -> None:
        # The pointer in shares of the figure; None while keys move the cursor.
        self._pointer: tuple[float, float] | None = None
        # The panel, and the place on its axes.
        self._place: tuple[str, float, float] | None = None
        # The run and the name of the curve that was clicked on.
        self._named: tuple[str, str] | None = None

    def point(self, drawing: Drawing, x: float, y: float, click: bool = False) -> Reading | None:
        """Go to the pointer.

        Args:
            drawing: What is drawn.
            x: The share of the figure's width, from the left.
            y: The share of its height, from the top.
            click: Whether to name the curve that is there.

        Returns:
            What stands there; None outside of all panels.
        """
        self._pointer, self._place = (x, y), None
        box = drawing.figure.bbox
        pixel = x * box.width, (1 - y) * box.height
        for panel, axes in drawing.panels.items():
            if axes.bbox.contains(*pixel):
                place = axes.transData.inverted().transform(pixel)
                self._place = panel, float(place[0]), float(place[1])
                if click:
                    curve = at(drawing.curves, axes, *pixel, _NEAR_PIXELS * drawing.figure.canvas.device_pixel_ratio)
                    self._named = None if curve is None else (curve.run, curve.name)
        return self._reading(drawing)

    def move(self, drawing: Drawing, points: int, panels: int) -> Reading | None:
        """Go so many points to the right, and so many panels, or rows of the layers, down; from the last point on."""
        with_curves = {name: axes for name, axes in drawing.panels.items() if _own(drawing.curves, axes)}
        if not with_curves:
            return None
        names = list(with_curves)
        panel, x, y = self._place or (names[0], math.inf, 0.0)
        if panel not in with_curves:
            panel = names[0]
        if isinstance(drawing, Layers):
            y = min(max(round(y) + panels, 0), len(drawing.curves) - 1)
        else:
            panel = names[min(max(names.index(panel) + panels, 0), len(names) - 1)]
        axes = with_curves[panel]
        low, high = sorted(axes.get_xlim())
        places = np.unique(np.concatenate([curve.places for curve in _own(drawing.curves_at(axes, y), axes)]))
        places = places[(places >= low) & (places <= high)]
        if len(places):
            nearest = int(np.abs(places - min(x, high)).argmin())
            x = float(places[min(max(nearest + points, 0), len(places) - 1)])
        self._pointer, self._place = None, (panel, min(x, high), y)
        return self._reading(drawing)

    @property
    def shown(self) -> bool:
        """Whether it is at a place."""
        return self._place is not None

    def again(self, drawing: Drawing) -> Reading | None:
        """What stands at the cursor now, after the figure was drawn anew."""
        return self._reading(drawing) if self._pointer is None else self.point(drawing, *self._pointer)

    def _reading(self, drawing: Drawing) -> Reading | None:
        if self._place is None or self._place[0] not in drawing.panels:
            return None
        panel, x, y = self._place
        axes = drawing.panels[panel]
        curves = [curve for curve in drawing.curves_at(axes, y) if len(curve.places)]
        own = _own(curves, axes)
        if not own:
            return None
        nearest = min(own, key=lambda curve: abs(curve.places[curve.nearest(x)] - x))
        point = nearest.nearest(x)
        place, step = nearest.places[point], nearest.step[point]
        several = len({curve.run for curve in curves}) > 1
        rows = [self._row(curve, curve.nearest(place), step, several) for curve in curves]
        title = f"step {step:,}{_time(nearest, point)}{f' ({nearest.run})' if several else ''}"
        said = "; ".join(f"{row['name']} {row['words']}" for row in rows[: len(own)])
        elsewhere = len(rows) - len(own)
        return {
            "title": plain(title),
            "rows": rows[: len(own) + _ELSEWHERE],
            "own": len(own),
            "more": f"… and {elsewhere - _ELSEWHERE} more in other panels" if elsewhere > _ELSEWHERE else "",
            "lines": [line for axes in {curve.axes for curve in drawing.curves} if (line := _line(axes, place))],
            "said": plain(f"{panel}, {title}: {said}"),
            "keys": self._pointer is None,
        }

    def _row(self, curve: Curve, point: int, step: int, several: bool) -> dict[str, object]:
        words = _number(curve, point)
        if curve.smooth is not None and not math.isnan(curve.value[point]):
            words = f"{words}, smoothed {curve.smooth[point]:.5g}"
        if curve.step[point] != step:
            words = f"{words}, at step {curve.step[point]:,}"
        return {
            "name": plain(f"{curve.run} {curve.name}" if several else curve.name),
            "words": words,
            "colour": to_hex(curve.colour),
            "dash": _DASHES.get(curve.style, "solid"),
            "named": self._named == (curve.run, curve.name),
        }


def _own(curves: Sequence[Curve], axes: Axes) -> list[Curve]:
    return [curve for curve in curves if curve.axes is axes and len(curve.places)]


def _number(curve: Curve, point: int) -> str:
    value = curve.value[point]
    if point in curve.bad:
        words = f"NaN or inf at step {curve.bad[point]:,}"
        return words if math.isnan(value) else f"{value:.5g}, {words}"
    if math.isnan(value):
        return "not recorded"
    low, high = (value if ends is None else ends[point] for ends in (curve.low, curve.high))
    return f"{value:.5g}" if low == high else f"{value:.5g} ({low:.4g} to {high:.4g})"


def _time(curve: Curve, point: int) -> str:
    seconds = curve.time[point] if len(curve.time) else math.nan
    return "" if math.isnan(seconds) else f" · {datetime.fromtimestamp(seconds).astimezone():%Y-%m-%d %H:%M:%S}"


def _line(axes: Axes, x: float) -> list[float] | None:
    """A line across a panel, in shares of the figure: its place from the left, its top, and its height."""
    low, high = sorted(axes.get_xlim())
    if not low <= x <= high:
        return None
    figure, panel = axes.get_figure(root=True).bbox, axes.bbox  # type: ignore[union-attr]
    left = float(axes.transData.transform((x, 1.0))[0])
    return [left / figure.width, 1 - panel.y1 / figure.height, panel.height / figure.height]
