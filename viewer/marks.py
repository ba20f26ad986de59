"""What the figures have in common: colours, lines, marks, legends and axes. No files, and no threads."""

import math
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from statistics import median_high, median_low
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, MaxNLocator, SymmetricalLogLocator

from viewer.evidence import is_validation
from viewer.look import Look, Scale, XAxis
from viewer.snapshot import Finding, Severity, Snapshot
from viewer.status import finding_words, first_of, noticed, notices, shortened, title

SIZE_INCHES = (10.0, 8.0)
# A name, or red, green, blue and opacity.
Colour = str | tuple[float, float, float, float]


@dataclass(frozen=True)
class Theme:
    """Colours, as matplotlib takes them; the palettes are told apart by readers with every kind of colour vision.

    ``blank`` is for what was not recorded, beside a black zero; ``rainbow`` is the part of it that the ground lets see.
    """

    ground: str
    blank: str
    ink: str
    pale: str
    faint: str
    alarm: str
    caution: str
    palette: tuple[str, ...]
    rainbow: tuple[float, float]


# Okabe and Ito's palette, and the same hues for a dark ground.
LIGHT = Theme(
    "#ffffff", "#ffffff", "#333333", "#dddddd", "#707070", "#c00000", "#8a5a00",
    ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"), (0.0, 1.0),
)  # fmt: skip
DARK = Theme(
    "#14171c", "#3a3f47", "#dddddd", "#3a3f47", "#9a9a9a", "#ff6060", "#e0a030",
    ("#56B4E9", "#FF9248", "#2BC99B", "#E39AC4", "#F0E442", "#B0B0FF"), (0.1, 0.9),
)  # fmt: skip

# With these, so many more curves can be told apart.
STYLES = ("-", ":", "-.")
# Below 8 decades under the largest number, symlog shows a straight line through zero, unless half of them are there.
_SYMLOG_DECADES, _SYMLOG_SHARE = 8, 1e-2
# The linear part is at least such a share of the decades; and so far from the usual ones a number has exploded.
_LINEAR_SHARE, _EXPLODED = 8, 1e6
_LARGEST = 1e306
# With the margins of an axis of hundreds of decades, numbers beyond this would overflow.
_FAR = 1e200
# Marks what stands in no legend: a curve as logged, behind the smoothed one, and a line at a finding's first step.
RAW, _FLAG = "as logged", "finding"
# Up to so many points, each gets a marker, and none is smoothed.
FEW_POINTS = 30
# More entries than have room would press the panel itself together.
_LEGEND_ENTRIES, _ABOVE_ENTRIES = 9, 6
_NARROW_INCHES = 6.0
_NOTICE_LINES, _NOTICE_LENGTH = 2, 140
_FINDING_LINES, _FINDING_LENGTH = 4, 100
# Flags that would cover each other are one: nearer than such a share of the run.
_FLAG_SHARE, _FLAG_NUMBERS, _FLAG_HEIGHT = 0.04, 3, 0.94
# What happened more often is marked the first time only: so many lines would hide the curves.
_TIMES_MARKED = 10
_DECADES_AN_INCH = 7
# So many letters of the title, and of a legend above a panel, are an inch.
_TITLE_LETTERS, _LEGEND_LETTERS = 11, 13
# Of a note in a panel, beside a legend of long names.
_NOTE_LETTERS = 60
# Usual ones are narrower; and what stands before a legend's words is as wide as so many.
_SMALL_LETTERS, _HANDLE_LETTERS = 18, 4
# From twice a unit on, time since the beginning is in it.
_UNITS = ((86_400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def theme(look: Look) -> Theme:
    """The colours of a look."""
    return DARK if look.dark else LIGHT


def narrow(figure: Figure) -> bool:
    """Whether it is shown on a phone."""
    return bool(figure.get_figwidth() < _NARROW_INCHES)


class _Steady(ConstrainedLayoutEngine):
    """Moves the panels only where texts ask for other room: a layout costs as much as the drawing of all curves."""

    def __init__(self) -> None:
        super().__init__()
        self._made_for: object = None

    def execute(self, fig: Figure) -> None:
        ends = []
        for axes in fig.axes:
            for axis in (axes.xaxis, axes.yaxis):
                # This also makes the labels those of the present limits.
                axis.get_ticklabels(which="both")
                low, high = sorted(axis.get_view_interval())
                inside = [tick for tick in axis.get_majorticklocs() if low <= tick <= high]
                # Labels at an axis' ends stand out, as far as a hundredth of its length.
                ends.append([round((tick - low) / (high - low) * 100) for tick in (*inside[:1], *inside[-1:])])
        texts = [text.get_text() for text in fig.findobj(Text) if isinstance(text, Text) and text.get_visible()]
        # Digits have the same width.
        made_for = *fig.bbox.size, fig.dpi, ends, re.sub(r"\d", "0", "\0".join(texts))
        if made_for != self._made_for:
            super().execute(fig)
            self._made_for = made_for


def begin(figure: Figure, look: Look) -> None:
    """Empty a figure and make it ready."""
    figure.clear()
    figure.set_layout_engine(_Steady())
    figure.set_facecolor(theme(look).ground)


def entitle(figure: Figure, look: Look, words: str) -> None:
    """Put words above everything."""
    size = 8 if narrow(figure) else 11
    width = int(_TITLE_LETTERS * figure.get_figwidth() * 11 / size)
    wrapped = [part for line in words.splitlines() for part in textwrap.wrap(line, width)]
    # The one that is there keeps its height, which the layout gave it.
    (text,) = figure.texts or [figure.suptitle("", x=0.01, ha="left", color=theme(look).ink)]
    text.set_fontsize(size)
    text.set_parse_math(False)
    text.set_text("\n".join(wrapped))


def heading(look: Look, snapshots: Sequence[Snapshot], now: float) -> str:
    """How the runs are, and what has to be known of them, as far as a figure has room for it."""
    said = first_of(notices(snapshots), _NOTICE_LINES, "tracer verify")
    found = first_of(finding_words(snapshots, look), _FINDING_LINES, "viewer check")
    lines = [*(shortened(line, _NOTICE_LENGTH) for line in said), *(shortened(line, _FINDING_LENGTH) for line in found)]
    return "\n".join([title(snapshots, now, look), *lines])


def dress(axes: Axes, look: Look, label: str, note: str = "") -> Text:
    """Style empty axes; the text that they show while they are empty."""
    colours = theme(look)
    axes.set_facecolor(colours.ground)
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


def dress_x(axes: Axes, look: Look) -> None:
    """Label the x axis by what it is."""
    place: Literal["left", "center"] = "center"
    if look.x is XAxis.WALL:
        zone = datetime.now().astimezone().tzinfo
        locator = AutoDateLocator(tz=zone)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=zone))
        # To its right, the day is named.
        label, place = "time", "left"
    elif look.x is XAxis.RELATIVE:
        axes.xaxis.set_major_locator(_Elapsed("auto", steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _elapsed(float(x), axes.get_xlim())))
        label = "time since the run began"
    else:
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
        label = "step"
    axes.set_xlabel(label, color=theme(look).ink, loc=place)


class _Elapsed(MaxNLocator):
    """Ticks at round numbers of seconds, minutes, hours or days."""

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        length, _ = _unit((vmin, vmax))
        return [length * tick for tick in super().tick_values(vmin / length, vmax / length)]


def _unit(limits: tuple[float, float]) -> tuple[float, str]:
    longest = max(map(abs, limits))
    return next((unit for unit in _UNITS if longest >= 2 * unit[0]), _UNITS[-1])


def _elapsed(seconds: float, limits: tuple[float, float]) -> str:
    length, name = _unit(limits)
    return f"{seconds / length:.9g} {name}"


def along(look: Look, snapshot: Snapshot, steps: Sequence[int], times: Sequence[float]) -> Sequence[float]:
    """Where on the x axis bins stand: by their last steps, or by their last times."""
    if look.x is XAxis.WALL:
        # matplotlib counts days.
        return [seconds / 86_400 for seconds in times]
    if look.x is XAxis.RELATIVE:
        return [seconds - snapshot.started for seconds in times]
    return steps


def set_scale(axes: Axes, look: Look, numbers: Sequence[float | None], auto: Scale) -> None:
    """Scale the y axis; instead of a log scale, which would hide them, zeros and negative numbers get a symlog one."""
    there = [number for number in numbers if number is not None and math.isfinite(number)]
    scale = chosen(look, there, auto)
    if scale is Scale.LOG and (not there or min(there) <= 0):
        scale = Scale.SYMLOG
    if scale is Scale.SYMLOG:
        sizes = [abs(number) for number in there if number]
        threshold = linear_threshold(sizes)
        # Over many decades the linear part is so high that its own ticks have room.
        height = (math.log10(max(sizes, default=threshold)) - math.log10(threshold)) / _LINEAR_SHARE
        axes.set_yscale("symlog", linthresh=threshold, linscale=max(1.0, height))
        locator = axes.yaxis.get_major_locator()
        assert isinstance(locator, SymmetricalLogLocator), "it comes with the scale"
        locator.set_params(numticks=max(3, int(_DECADES_AN_INCH * _inches(axes)[1])))
    else:
        axes.set_yscale(scale.value)


def chosen(look: Look, numbers: Sequence[float], auto: Scale) -> Scale:
    """The scale that is asked for, or the one that shows most: a linear one not where it would hide all but a few."""
    if look.scale is not Scale.AUTO:
        return look.scale
    exploded = bool(numbers) and max(map(abs, numbers)) / _EXPLODED > median_high(map(abs, numbers))
    return Scale.LOG if auto is Scale.LINEAR and exploded else auto


def linear_threshold(numbers: Sequence[float]) -> float:
    """Where symlog turns linear: under the smallest number, a power of ten, but not too far below the usual ones."""
    if not numbers:
        return 1e-6
    # The floor is under every float32; symlog overflows where its threshold is hardly more than 0.
    # Beside what has exploded, what was usual before is to be seen, too.
    below = max(numbers) * 10.0**-_SYMLOG_DECADES
    if max(numbers) < _FAR:
        below = min(below, median_low(numbers) * _SYMLOG_SHARE)
    smallest = max(min(numbers), below, 1e-40)
    return float(10.0 ** math.floor(math.log10(smallest)))


def style_of(name: str, index: int) -> str:
    """A metric's line style: dashed for validation, so that colour alone tells nothing apart."""
    return "--" if is_validation(name) else STYLES[index % len(STYLES)]


def draw_line(
    axes: Axes, x: Sequence[float], heights: Sequence[float], label: str, colour: Colour, style: str = "-"
) -> Artist:
    """A line, with a marker for each of a few points, and for those that stand alone between gaps."""
    marked = _marked(heights)
    (line,) = axes.plot(
        x,
        drawable(heights),
        style,
        color=colour,
        label=label,
        linewidth=1.3,
        marker="o" if marked else None,
        markersize=3,
        markevery=marked,
    )
    return line


def draw_band(
    axes: Axes, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: Colour
) -> list[Artist]:
    """What lies between two lines, unless they are the same."""
    if np.array_equal(low, high, equal_nan=True):
        return []
    # The edge keeps a spike of a single bin visible, where the band itself is thinner than a pixel.
    return [axes.fill_between(x, drawable(low), drawable(high), color=colour, alpha=0.3, linewidth=0.8)]


def last(heights: Sequence[float]) -> str:
    """The newest number, for the legend; as it was logged, and not smoothed."""
    return f"  {heights[-1]:.4g}" if heights and math.isfinite(heights[-1]) else ""


def numbers_of(heights: Sequence[float | None]) -> list[float]:
    """Heights of which none is None."""
    return [math.nan if height is None else height for height in heights]


def drawable(heights: Sequence[float]) -> npt.NDArray[np.float64]:
    """Numbers near the end of float64 brought a little nearer: with margins, matplotlib's ticks would overflow."""
    numbers = np.asarray(heights, dtype=np.float64)
    return np.where(np.isfinite(numbers), numbers.clip(-_LARGEST, _LARGEST), numbers)


def _marked(heights: Sequence[float]) -> list[int]:
    """The points that get a marker: all of a few, and of many those that no line reaches, since gaps surround them."""
    if len(heights) <= FEW_POINTS:
        return list(range(len(heights)))
    there = [False, *map(math.isfinite, heights), False]
    return [index for index in range(len(heights)) if there[index : index + 3] == [False, True, False]]


@dataclass(frozen=True)
class NonFinite:
    """A curve's steps with a NaN or an infinity; its bins end with the steps ``ends``, and stand at ``x``."""

    steps: Sequence[int]
    ends: Sequence[int]
    x: Sequence[float]
    of: str
    colour: Colour


def draw_nonfinite(axes: Axes, look: Look, found: NonFinite) -> list[Artist]:
    """Mark the steps with a NaN or an infinity, since no curve can show them, and the first across the panel."""
    if not found.steps:
        return []
    x: Sequence[float] = found.steps
    if look.x is not XAxis.STEP:
        x = [found.x[index] for index in np.searchsorted(found.ends, found.steps)]
    # From the panel's foot up, above one another: several curves may have them at the same step.
    below = sum(line.get_marker() == "X" for line in axes.lines)
    height = 0.04 + 0.08 * (below % 12)
    first, *others = x
    # Of the steps in a bin, only the first one is known.
    least = "" if found.steps[-1] in found.ends else " or later"
    until = f", last at {found.steps[-1]:,}{least}" if others else ""
    return list(
        axes.plot(
            [first, first, *(number for there in others for number in (math.nan, there))],
            [height, 1.0, *(number for _ in others for number in (math.nan, height))],
            ":",
            color=theme(look).alarm,
            linewidth=1.0,
            marker="X",
            markevery=[0, *range(3, 3 + 2 * len(others), 2)],
            markersize=10,
            markerfacecolor=found.colour,
            markeredgecolor=theme(look).alarm,
            transform=axes.get_xaxis_transform(),
            label=f"{found.of}: NaN or inf from step {found.steps[0]:,}{until}",
        )
    )


def colour_of(look: Look, finding: Finding) -> str:
    """A finding's colour."""
    colours = theme(look)
    return {Severity.ERROR: colours.alarm, Severity.WARNING: colours.caution, Severity.NOTE: colours.faint}[
        finding.severity
    ]


@dataclass(frozen=True)
class Flag:
    """The numbers of findings whose marks are at about the same step, and how the worst of them looks."""

    x: float
    numbers: str
    colour: str


def flags(look: Look, found: Sequence[tuple[int, Finding, float]], length: float) -> list[Flag]:
    """Where to put the numbers of findings that begin at these places: those that would cover each other in one.

    Args:
        look: How they are shown.
        found: Their numbers, the findings, and where they began.
        length: From where to where the x axis goes.
    """
    groups: list[list[tuple[int, Finding, float]]] = []
    for each in sorted(found, key=lambda each: each[2]):
        if groups and each[2] - groups[-1][0][2] <= _FLAG_SHARE * length:
            groups[-1].append(each)
        else:
            groups.append([each])
    made = []
    for group in groups:
        group.sort(key=lambda each: each[0])
        numbers = list(dict.fromkeys(str(number) for number, _, _ in group))
        words = ",".join([*numbers[:_FLAG_NUMBERS], *(["…"] if len(numbers) > _FLAG_NUMBERS else [])])
        made.append(Flag(group[0][2], words, colour_of(look, group[0][1])))
    return made


def draw_flag(
    axes: Axes, look: Look, found: Flag, y: float, side: Literal["left", "center", "right"] = "center"
) -> Text:
    """A flag at a height, with this side of it at its place; in a panel it does not take part in the layout."""
    box = {"boxstyle": "round,pad=0.25", "facecolor": found.colour, "edgecolor": "none"}
    colour = theme(look).ground
    text = axes.text(found.x, y, found.numbers, ha=side, va="center", fontsize=7, color=colour, bbox=box, zorder=6)
    text.set_clip_on(True)
    text.set_in_layout(False)
    return text


def _begun(look: Look, snapshots: Sequence[Snapshot]) -> list[tuple[int, Finding, float]]:
    """The number of each finding that is noticed, and where on the x axis it began, or happened each time."""
    found = noticed(snapshots, look)
    steps = [(number, snapshot, each, step) for number, snapshot, each in found for step in _marked_steps(each)]
    places = [(number, each, _place(look, snapshot, step)) for number, snapshot, each, step in steps]
    return [(number, each, x) for number, each, x in places if x is not None]


def _marked_steps(finding: Finding) -> Sequence[int]:
    return finding.steps if 0 < len(finding.steps) <= _TIMES_MARKED else (finding.first_step,)


def flags_of(look: Look, snapshots: Sequence[Snapshot]) -> list[Flag]:
    """The flags over curves."""
    steps = ((snapshot, step) for snapshot in snapshots for step in (0, snapshot.last_step or 0))
    ends = [x for snapshot, step in steps if (x := _place(look, snapshot, step)) is not None]
    return flags(look, _begun(look, snapshots), max(ends, default=0) - min(ends, default=0))


def draw_findings(axes: Axes, look: Look, snapshots: Sequence[Snapshot], numbered: bool) -> list[Artist]:
    """A line across the panel where each finding began or happened, and on it, if it is asked for, its number."""
    artists: list[Artist] = []
    # The worst comes first, and is to be in front.
    for x, finding in {x: finding for _, finding, x in reversed(_begun(look, snapshots))}.items():
        line = axes.axvline(x, color=colour_of(look, finding), linewidth=0.9, linestyle=(0, (1, 2)), zorder=1.5)
        line.set_gid(_FLAG)
        artists.append(line)
    for each in flags_of(look, snapshots) if numbered else ():
        text = draw_flag(axes, look, each, _FLAG_HEIGHT)
        text.set_transform(axes.get_xaxis_transform())
        artists.append(text)
    return artists


def _place(look: Look, snapshot: Snapshot, step: float) -> float | None:
    """Where on the x axis a step of a run stands; None where none is known."""
    if look.x is XAxis.STEP:
        return step
    curve = snapshot.extremes or next(iter(snapshot.curves), None)
    if curve is None:
        return None
    index = min(int(np.searchsorted(curve.step, step)), len(curve.step) - 1)
    return along(look, snapshot, curve.step, curve.time)[index]


def legend(axes: Axes, look: Look, artists: Sequence[Artist], above: bool = False) -> None:
    """The legend of what was drawn, beside the panel; above it where it is asked for, or a phone has no room."""
    previous = axes.get_legend()
    if previous is not None:
        previous.remove()
    lines = [artist for artist in artists if isinstance(artist, Line2D) and artist.get_gid() not in (RAW, _FLAG)]
    if not lines:
        return
    figure = axes.get_figure(root=True)
    assert figure is not None, "the axes are in a figure"
    small = narrow(figure)
    width, inches = _inches(axes)
    where: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "fontsize": 9}
    # Beside the panel an entry takes a fifth of an inch, above it less; there, the panel keeps most of the room.
    room = min(_LEGEND_ENTRIES, int(inches / 0.18))
    if above or small:
        where = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "fontsize": 7, "borderaxespad": 0.2}
        longest = max(len(str(line.get_label())) for line in lines)
        where["ncols"] = max(1, min(3, int(_SMALL_LETTERS * width // (longest + _HANDLE_LETTERS))))
        room = min(_ABOVE_ENTRIES, where["ncols"] * int(inches / 0.35))
    # What is not finite comes first: it must not be among what finds no room.
    handles = sorted(lines, key=lambda line: line.get_marker() != "X")
    if len(handles) > max(1, room):
        rest = len(handles) - max(1, room - 1)
        handles[-rest:] = [Line2D([], [], linestyle="none", label=f"… and {rest} more")]
    # Handles and labels are passed explicitly: matplotlib leaves out labels that begin with an underscore.
    labels = [str(line.get_label()) for line in handles]
    if small:
        labels = [textwrap.fill(label, int(_LEGEND_LETTERS * width)) for label in labels]
    for text in axes.legend(handles, labels, frameon=False, labelcolor=theme(look).ink, **where).get_texts():
        text.set_parse_math(False)


def _inches(axes: Axes) -> tuple[float, float]:
    """About how wide a panel is without its labels, and how high."""
    figure, place = axes.get_figure(root=True), axes.get_subplotspec()
    assert figure is not None, "the axes are in a figure"
    assert place is not None, "they are in its grid"
    share, (wide, high) = place.get_position(figure), figure.get_size_inches()
    return float(share.width * wide), float(share.height * high)


class SharedX:
    """The x axis that panels share: it follows new steps, unless the user has zoomed it."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._followed: tuple[float, float] | None = None

    @contextmanager
    def updating(self) -> Iterator[None]:
        """While panels are drawn anew."""
        # Autoscaling cannot tell: a toolbar's zoom stops that of one panel, and its home button that of all but one.
        follows = self._followed in (None, self._axes.get_xlim())
        for axes in self._axes.get_shared_x_axes().get_siblings(self._axes):
            axes.set_autoscalex_on(follows)
        yield
        if follows:
            self._followed = self._axes.get_xlim()


class Panel:
    """One pair of axes whose content is drawn anew on each update; a zoomed axis keeps its limits."""

    def __init__(
        self, axes: Axes, look: Look, label: str, note: str = "no step recorded yet", legend_above: bool = False
    ) -> None:
        self.axes = axes
        self._look = look
        self._legend_above = legend_above
        self._note = dress(axes, look, label, note)
        self._drawn: list[Artist] = []

    def draw(self, make: Callable[[Axes], list[Artist]], *, empty: bool) -> None:
        """Replace what was drawn, so that limits follow what comes next alone; say so where nothing comes."""
        while self._drawn:
            self._drawn.pop().remove()
        self.axes.relim()
        self.axes.tick_params(left=not empty, labelleft=not empty)
        self._note.set_visible(empty)
        self._drawn = make(self.axes)
        legend(self.axes, self._look, self._drawn, self._legend_above)

    def note(self, note: str) -> None:
        """Say something else where nothing comes."""
        self._note.set_text(_fitting(self.axes, note))

    def add(self, drawn: Sequence[Artist]) -> None:
        """Keep what was drawn besides until the panel is drawn again."""
        self._drawn += drawn
