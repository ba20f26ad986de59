"""A figure and its panels: layout, title, legends, and notes in empty panels."""

import bisect
import itertools
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from rich.cells import cell_len

from tracer.log.text import shortened
from viewer.draw.axes import SharedX, inches_of
from viewer.draw.curves import Curve, Drawn, Place, csv
from viewer.draw.marks import FLAG, RAW
from viewer.draw.theme import narrow, theme
from viewer.options import ViewOptions, XAxis, zoom_part
from viewer.snapshot import Snapshot
from viewer.words import NO_STEP, finding_words, first_of, notices, title

# More legend entries would squeeze the panel itself.
_LEGEND_ENTRIES, _ABOVE_ENTRIES = 9, 6
_NOTICE_LINES, _NOTICE_LENGTH = 2, 140
_FINDING_LINES, _FINDING_LENGTH = 4, 100
# Letters an inch: of the title, of a legend above a panel at least, and usually.
_TITLE_LETTERS, _LEGEND_LETTERS, _SMALL_LETTERS = 11, 13, 18
# A note's line has room for this many letters, beside a legend of long names.
_NOTE_LETTERS = 60
# The name of the layers' only panel.
ROWS = "rows"
# Letters an inch in the title of a small panel, and the numbers in it.
_CELL_LETTERS, _IN_TITLE = 19, 2
_LABEL_INCHES = 0.5
# A legend's handle is as wide as this many letters.
_HANDLE_LETTERS = 4
# A legend beside a panel takes at most this share of the figure's width, its handles so much of that.
_LEGEND_SHARE, _HANDLE_INCHES = 0.3, 0.6
# The sizes of its letters, of which the first is taken that leaves no entry out, and the inches that a line takes.
_BESIDE = ((9, 0.18), (7, 0.14))


class _Steady(ConstrainedLayoutEngine):
    """Moves the panels only when texts need other room: a layout costs as much as the drawing of all curves."""

    def __init__(self) -> None:
        super().__init__()
        self._made_for: object = None

    def execute(self, fig: Figure) -> None:
        # Once more where the room that a panel got has changed its ticks.
        for _ in range(2):
            made_for = _made_for(fig)
            if made_for == self._made_for:
                return
            super().execute(fig)
            self._made_for = made_for


def _made_for(figure: Figure) -> object:
    """All that a layout depends on."""
    ends = []
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            # This also makes the labels, those of minor ticks too, those of the present limits.
            axis.get_ticklabels()
            low, high = sorted(axis.get_view_interval())
            inside = [tick for tick in axis.get_majorticklocs() if low <= tick <= high]
            # Labels at an axis' ends stick out; a hundredth of its length makes a difference.
            ends.append([round((tick - low) / (high - low) * 100) for tick in (*inside[:1], *inside[-1:])])
    texts = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text) and text.get_visible()]
    # Digits have the same width.
    return *figure.bbox.size, figure.dpi, ends, re.sub(r"\d", "0", "\0".join(texts))


def begin(figure: Figure, options: ViewOptions) -> None:
    """Empty a figure and make it ready."""
    figure.clear()
    figure.set_layout_engine(_Steady())
    figure.set_facecolor(theme(options).ground)


def set_title(figure: Figure, options: ViewOptions, words: str) -> None:
    """Set the title above everything."""
    size = 8 if narrow(figure) else 11
    width = int(_TITLE_LETTERS * figure.get_figwidth() * 11 / size)
    wrapped = [part for line in words.splitlines() for part in textwrap.wrap(line, width)]
    # An old title keeps the height that the layout gave it.
    (text,) = figure.texts or [figure.suptitle("", x=0.01, ha="left", color=theme(options).ink)]
    text.set_fontsize(size)
    text.set_parse_math(False)
    text.set_text("\n".join(wrapped))


def heading(options: ViewOptions, snapshots: Sequence[Snapshot], now: float) -> str:
    """The title with the most important notices and findings, as far as a figure has room for them."""
    noted = first_of(notices(snapshots), _NOTICE_LINES, "tracer verify")
    noticed = first_of(finding_words(snapshots, options), _FINDING_LINES, "viewer check")
    lines = [title(snapshots, now, options), *(shortened(line, _NOTICE_LENGTH) for line in noted)]
    return "\n".join([*lines, *(shortened(line, _FINDING_LENGTH) for line in noticed)])


class Drawing:
    """A view of runs in a figure that it fills.

    Args:
        figure: The figure.
        options: What to show.
        titled: Whether the figure's title says how the runs are.

    Attributes:
        curves: The curves that are drawn now, from the top.
    """

    _x: SharedX
    _by_row = False

    def __init__(self, figure: Figure, options: ViewOptions | None = None, titled: bool = True) -> None:
        self.figure = figure
        self.curves: list[Curve] = []
        self._options = options or ViewOptions()
        self._titled = titled

    def _entitle(self, snapshots: Sequence[Snapshot], now: float, lead: str = "") -> None:
        if self._titled:
            set_title(self.figure, self._options, lead + heading(self._options, snapshots, now))

    def drawn(self) -> Drawn:
        """The figure as it was drawn last."""
        width, height = map(float, self.figure.bbox.size)
        places = {name: Place.of(axes) for name, axes in self.panels.items()}
        return Drawn((width, height), self.figure.canvas.device_pixel_ratio, places, list(self.curves), self._by_row)

    def csv(self) -> str:
        """What is shown, in numbers: the points of all curves in the part of the x axis that the user has zoomed to."""
        return csv(self.curves, self._x.zoomed)

    def places(self, run: str, steps: tuple[int, int], x: XAxis) -> tuple[float, float] | None:
        """Where two steps of a run stand on the x axis; None where that is unknown."""
        if x is XAxis.STEP:
            return float(steps[0]), float(steps[1])
        curve = max((curve for curve in self.curves if curve.run == run), key=lambda curve: len(curve.x), default=None)
        if curve is None or len(curve.x) < 2:
            return None
        low, high = np.interp(steps, curve.step, curve.places).tolist()
        return low, high

    @property
    def panels(self) -> dict[str, Axes]:
        """The axes that show something, by their names; a colour bar is none of them."""
        return {str(axes.get_label()): axes for axes in self.figure.axes if axes.get_label() != "<colorbar>"}

    @property
    def zoomed(self) -> tuple[str, ...]:
        """The parts of axes that the user has zoomed to, as ``ViewOptions.zoom``; others of other views stay there."""
        panels = self.panels
        y = [(name, axes.get_ylim()) for name, axes in panels.items() if not axes.get_autoscaley_on()]
        x = [("", self._x.zoomed)] if self._x.zoomed else []
        parts = [_part(name, *ends) for name, ends in (*x, *y)]
        others = (part for part in self._options.zoom if zoom_part(part)[0] not in ("", *panels))
        return (*parts, *others)

    def zoom(self, zoom: Sequence[str]) -> None:
        """Show these parts of axes, as far as these are there, and the parts can be shown."""
        panels, farthest = self.panels, _FARTHEST_DAY if self._options.x is XAxis.WALL else _FARTHEST
        for panel, (low, high) in map(zoom_part, zoom):
            if not panel and max(abs(low), abs(high)) < farthest:
                self._x.zoom(low, high)
            elif panel in panels and not (panels[panel].get_yscale() == "log" and min(low, high) <= 0):
                panels[panel].set_ylim(low, high)


# matplotlib's dates end there, and its ticks at whole steps.
_FARTHEST_DAY, _FARTHEST = 700_000, 1e15


def _part(panel: str, low: float, high: float) -> str:
    """A part of an axis in words, to about a thousandth of a pixel."""
    digits = 6 - math.floor(math.log10(abs(high - low)))
    ends = ",".join(f"{round(end, digits):.15g}" for end in (low, high))
    return f"{panel}:{ends}" if panel else ends


def style_axes(axes: Axes, options: ViewOptions, label: str, note: str = "") -> Text:
    """Style empty axes, and return the text that they show while they are empty."""
    colours = theme(options)
    axes.set_facecolor(colours.ground)
    axes.set_label(label or ROWS)
    axes.set_ylabel(label, color=colours.ink, parse_math=False)
    axes.grid(True, color=colours.pale, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=colours.ink, labelsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        axes.spines[side].set_color(colours.ink)
    note = _fitting(axes, note)
    text = axes.text(0.5, 0.5, note, transform=axes.transAxes, ha="center", va="center", color=colours.faint)
    # A metric's name is no formula.
    text.set_parse_math(False)
    return text


def _fitting(axes: Axes, note: str) -> str:
    figure = axes.get_figure(root=True)
    letters = _NOTE_LETTERS
    if figure is not None and narrow(figure):
        letters = int(_TITLE_LETTERS * (figure.get_figwidth() - 1))
    return textwrap.fill(note, letters)


def legend(axes: Axes, options: ViewOptions, artists: Sequence[Artist], above: bool = False, inside: str = "") -> None:
    """Make the legend of what was drawn: beside the panel, inside it, or above it, as always on a phone.

    Args:
        axes: The panel.
        options: The colours.
        artists: What was drawn.
        above: Whether it is above.
        inside: The corner inside the panel in which it is instead.
    """
    previous = axes.get_legend()
    if previous is not None:
        previous.remove()
    lines = [artist for artist in artists if isinstance(artist, Line2D) and artist.get_gid() not in (RAW, FLAG)]
    if not lines:
        return
    figure = axes.get_figure(root=True)
    assert figure is not None, "the axes are in a figure"
    small = narrow(figure)
    width, inches = inches_of(axes)
    where: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "fontsize": 9, "frameon": False}
    if inside:
        frame = {"frameon": True, "framealpha": 0.7, "edgecolor": "none", "facecolor": theme(options).ground}
        where = {
            "loc": inside,
            "fontsize": 6 if small else 7,
            "borderaxespad": 0.2,
            "ncols": 1 + (len(lines) > 3),
            **frame,
        }
        room = where["ncols"] * int(inches / 0.18)
    elif above or small:
        where = {
            "loc": "lower left",
            "bbox_to_anchor": (0.0, 1.0),
            "fontsize": 7,
            "borderaxespad": 0.2,
            "frameon": False,
        }
        # Beside another column, a panel is wider than its place in the grid.
        letters = _SMALL_LETTERS if small else _SMALL_LETTERS * 1.1
        longest = max(cell_len(str(line.get_label())) for line in lines)
        where["ncols"] = max(1, min(3, int(letters * width // (longest + _HANDLE_LETTERS))))
        room = min(_ABOVE_ENTRIES, where["ncols"] * int(inches / 0.35))
    # What is not finite comes first: it must find room.
    lines.sort(key=lambda line: line.get_marker() != "X")
    if inside or above or small:
        # Those that surely find no room need not be fitted.
        entries = [(line, str(line.get_label())) for line in lines[: max(1, room) + 1]]
        rows = [1] * len(entries)
        if small:
            letters = int(_LEGEND_LETTERS * width / (where["ncols"] if inside else 1))
            entries = [(line, textwrap.fill(label, letters)) for line, label in entries]
    else:
        most = figure.get_figwidth() * _LEGEND_SHARE - _HANDLE_INCHES
        for size, each in _BESIDE:
            where["fontsize"], room = size, min(_LEGEND_ENTRIES, int(inches / each))
            entries = [(line, _wrapped(str(line.get_label()), most, size)) for line in lines[: max(1, room) + 1]]
            rows = [label.count("\n") + 1 for _, label in entries]
            if sum(rows) <= room:
                break
    if sum(rows) > max(1, room):
        taken = list(itertools.accumulate(rows))
        kept = max(1, bisect.bisect_left(taken, room))
        # Of one parameter, nothing can be chosen.
        more = f"… and {len(lines) - kept} more" + ("" if above else ": --metric, --runs")
        entries[kept:] = [(Line2D([], [], linestyle="none"), more)]
    # Handles and labels are passed explicitly: matplotlib leaves out labels that begin with an underscore.
    made = axes.legend(*zip(*entries, strict=True), labelcolor=theme(options).ink, **where)
    for text in made.get_texts():
        text.set_parse_math(False)


def _wrapped(label: str, inches: float, size: float) -> str:
    """A label in lines that are not longer than so many inches."""
    font, letters = FontProperties(size=size), len(label)
    lines = [label]

    def points(line: str) -> float:
        return float(text_to_path.get_text_width_height_descent(line, font, ismath=False)[0])

    while letters > 1 and max(map(points, lines)) > 72 * inches:
        letters = letters * 9 // 10
        lines = textwrap.wrap(label, letters)
    return "\n".join(lines)


class Panel:
    """Axes whose content is drawn anew at each update; a zoomed axis keeps its limits."""

    def __init__(
        self,
        axes: Axes,
        options: ViewOptions,
        label: str,
        note: str = NO_STEP,
        legend_above: bool = False,
        legend_inside: str = "",
    ) -> None:
        self.axes = axes
        self._options = options
        self._legend = partial(legend, above=legend_above, inside=legend_inside)
        self._note = style_axes(axes, options, label, note)
        self._drawn: list[Artist] = []

    def draw(self, make: Callable[[Axes], list[Artist]], *, empty: bool) -> None:
        """Replace what was drawn, so that limits follow the new content alone; an empty panel shows its note."""
        while self._drawn:
            self._drawn.pop().remove()
        self.axes.relim()
        self.axes.tick_params(left=not empty, labelleft=not empty)
        self._note.set_visible(empty)
        self._drawn = make(self.axes)
        if self._drawn:
            self.axes.autoscale_view()
        self._name()

    def _name(self) -> None:
        """Say what was drawn."""
        self._legend(self.axes, self._options, self._drawn)

    def note(self, note: str) -> None:
        """Change the note of the empty panel."""
        self._note.set_text(_fitting(self.axes, note))

    def add(self, drawn: Sequence[Artist]) -> None:
        """Keep further artists until the panel is drawn again."""
        self._drawn += drawn


class Cell(Panel):
    """A small panel: its title has the newest numbers, and it has no legend and no steps."""

    def __init__(self, axes: Axes, options: ViewOptions, title: str, name: str) -> None:
        group = axes.get_ylabel()
        super().__init__(axes, options, group)
        # Panels of a group have its name, and each a name of its own.
        axes.set_label(name)
        axes.yaxis.label.set_fontsize(8)
        axes.tick_params(labelsize=6, pad=1, length=2)
        # The labels of all groups stand below one another.
        axes.yaxis.set_label_coords(-_LABEL_INCHES / inches_of(axes)[0], 0.5)
        # Its ticks would cost more than its curves.
        axes.xaxis.set_visible(False)
        axes.locator_params(axis="y", nbins=3)
        self._title = title

    def _name(self) -> None:
        colours = theme(self._options)
        lines = [line for line in self._drawn if isinstance(line, Line2D) and line.get_gid() not in (RAW, FLAG)]
        bad = any(line.get_marker() == "X" for line in lines)
        newest = ["NaN"] if bad else [str(line.get_label()).rpartition("  ")[2] for line in lines[:_IN_TITLE]]
        room = int(_CELL_LETTERS * inches_of(self.axes)[0])
        # The name comes first: the axis tells about numbers, too.
        while newest and not bad and cell_len(self._title) + len(" · ".join(newest)) >= room:
            newest.pop()
        numbers = " · ".join(newest)
        name = shortened(self._title, max(4, room - len(numbers) - 1))
        for loc, words, colour in (
            ("left", name, colours.ink),
            ("right", numbers, colours.alarm if bad else colours.faint),
        ):
            self.axes.set_title(words, loc=loc, fontsize=7, pad=2, color=colour, parse_math=False)  # type: ignore[arg-type]
