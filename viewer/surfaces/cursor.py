"""The cursor in a figure: the pointer, or a place that keys move, and the numbers of every curve there."""

import math
from datetime import datetime

import numpy as np
from matplotlib.colors import to_hex

from tracer.log.text import plain
from viewer.draw.curves import Curve, Drawn, Place, at

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

    def point(self, drawn: Drawn, x: float, y: float, click: bool = False) -> Reading | None:
        """Go to the pointer.

        Args:
            drawn: What is drawn.
            x: The share of the figure's width, from the left.
            y: The share of its height, from the top.
            click: Whether to name the curve that is there.

        Returns:
            What stands there; None outside of all panels.
        """
        self._pointer, self._place = (x, y), None
        width, height = drawn.size
        pixel = x * width, (1 - y) * height
        for panel, place in drawn.panels.items():
            if place.contains(*pixel):
                self._place = panel, *place.at(*pixel)
                if click:
                    curve = at(drawn.curves, place, *pixel, _NEAR_PIXELS * drawn.pixel_ratio)
                    self._named = None if curve is None else (curve.run, curve.name)
        return self._reading(drawn)

    def move(self, drawn: Drawn, points: int, panels: int) -> Reading | None:
        """Go so many points to the right, and so many panels, or rows of the layers, down; from the last point on."""
        with_curves = {name: place for name, place in drawn.panels.items() if place.own(drawn.curves)}
        if not with_curves:
            return None
        names = list(with_curves)
        panel, x, y = self._place or (names[0], math.inf, 0.0)
        if panel not in with_curves:
            panel = names[0]
        if drawn.by_row:
            y = min(max(round(y) + panels, 0), len(drawn.curves) - 1)
        else:
            panel = names[min(max(names.index(panel) + panels, 0), len(names) - 1)]
        place = with_curves[panel]
        low, high = place.ends
        places = np.unique(np.concatenate([curve.places for curve in place.own(drawn.curves_at(place, y))]))
        places = places[(places >= low) & (places <= high)]
        if len(places):
            nearest = int(np.abs(places - min(x, high)).argmin())
            x = float(places[min(max(nearest + points, 0), len(places) - 1)])
        self._pointer, self._place = None, (panel, min(x, high), y)
        return self._reading(drawn)

    @property
    def shown(self) -> bool:
        """Whether it is at a place, or the pointer is where another figure may have one."""
        return self._place is not None or (self._pointer is not None and min(self._pointer) >= 0)

    def again(self, drawn: Drawn) -> Reading | None:
        """What stands at the cursor now, after the figure was drawn anew."""
        return self._reading(drawn) if self._pointer is None else self.point(drawn, *self._pointer)

    def _reading(self, drawn: Drawn) -> Reading | None:
        if self._place is None or self._place[0] not in drawn.panels:
            return None
        panel, x, y = self._place
        place = drawn.panels[panel]
        curves = [curve for curve in drawn.curves_at(place, y) if len(curve.places)]
        own = place.own(curves)
        if not own:
            return None
        nearest = min(own, key=lambda curve: abs(curve.places[curve.nearest(x)] - x))
        point = nearest.nearest(x)
        there, step = nearest.places[point], nearest.step[point]
        several = len({curve.run for curve in curves}) > 1
        rows = [self._row(curve, curve.nearest(there), step, several) for curve in curves]
        title = f"step {step:,}{_time(nearest, point)}{f' ({nearest.run})' if several else ''}"
        said = "; ".join(f"{row['name']} {row['words']}" for row in rows[: len(own)])
        elsewhere = len(rows) - len(own)
        with_curves = [place for place in drawn.panels.values() if place.own(drawn.curves)]
        return {
            "title": plain(title),
            "rows": rows[: len(own) + _ELSEWHERE],
            "own": len(own),
            "more": f"… and {elsewhere - _ELSEWHERE} more in other panels" if elsewhere > _ELSEWHERE else "",
            "lines": [line for place in with_curves if (line := _line(drawn, place, there))],
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


def _line(drawn: Drawn, place: Place, x: float) -> list[float] | None:
    """A line across a panel, in shares of the figure: its place from the left, its top, and its height."""
    low, high = place.ends
    if not low <= x <= high:
        return None
    width, height = drawn.size
    _, lower, _, upper = place.box
    left = float(place.to_pixels.transform((x, 1.0))[0])
    return [left / width, 1 - upper / height, (upper - lower) / height]
