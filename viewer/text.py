"""The views in characters: a picture of so many lines and columns. No files, no threads, and no loop."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tracer.log.run import STATE_WORDS
from viewer.chart import Line, chart
from viewer.history import Curve, smoothed
from viewer.live import Snapshot
from viewer.look import Look, Scale, View
from viewer.marks import FEW_POINTS, along, numbers_of, theme
from viewer.overview import panel
from viewer.status import notices, shortened, title
from viewer.strip import grouped

WORDS = {"grad": "gradient", "value": "value", "applied": "applied gradient"}
_MARKS = "ox+*#%@abcdefghijklmnpqrstuvwyz"
_BLOCKS = "▁▂▃▄▅▆▇█"
_ALARM = "bold red"
_NOTICES = 2
_NAME, _NUMBER = 24, 9


def plain(text: str) -> str:
    """A text on one line, without what a terminal would obey or could not show."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


def picture(snapshots: Sequence[Snapshot], look: Look, now: float, width: int, height: int) -> Group:
    """Snapshots in so many columns and lines.

    Args:
        snapshots: What is shown: one of each run, at least one.
        look: What of it, and how.
        now: Seconds since 1970.
        width: In characters.
        height: In lines.
    """
    said = notices(snapshots)
    if len(said) > _NOTICES:
        said[_NOTICES - 1 :] = [f"… and {len(said) - _NOTICES + 1} more: see `tracer verify`"]
    of = f"{shortened(look.param, width // 2)}  in  " if look.view is View.PARAM else ""
    top = [_words(of + title(snapshots, now), "bold"), *(_words(line, "yellow") for line in said)]
    draw = {View.OVERVIEW: _overview, View.LAYERS: _layers, View.PARAM: _parameter}[look.view]
    return Group(*top, *draw(snapshots, look, width, max(6, height - len(top))))


def ends(snapshot: Snapshot, kind: str) -> list[Curve]:
    """The minimum and the maximum of values, gradients or applied gradients; nothing where there are none."""
    extremes = snapshot.extremes
    if extremes is None or f"{kind}_min" not in extremes.statistics:
        return []
    found = []
    for end in ("min", "max"):
        each = numbers_of(extremes.statistics[f"{kind}_{end}"])
        bad = extremes.nonfinite[kind]
        found.append(Curve(f"{WORDS[kind]} {end}", extremes.step, each, each, each, bad, extremes.time))
    return found


def _magnitude(snapshot: Snapshot, kind: str) -> list[Curve]:
    """The larger magnitude of minimum and maximum."""
    both = ends(snapshot, kind)
    if not both:
        return []
    low, high = both
    each = np.fmax(np.abs(low.mean), np.abs(high.mean)).tolist()
    return [Curve(WORDS[kind], low.step, each, each, each, low.nonfinite, low.time)]


def _metrics(snapshot: Snapshot, name: str, look: Look) -> list[Curve]:
    """The metrics of a panel, by their names."""
    asked = [curve.name for curve in snapshot.curves if curve.name in look.metrics and panel(curve.name) is None]
    return [
        curve
        for curve in snapshot.curves
        if panel(curve.name) == name or (name == "accuracy" and curve.name in asked)
    ]


def newest(curve: Curve) -> str:
    """The newest number of a curve."""
    if not np.isnan(curve.mean[-1]):
        return f"{curve.mean[-1]:.4g}"
    return "NaN/inf" if curve.nonfinite and curve.nonfinite[-1] > ([-1, *curve.step])[-2] else "–"


def _words(text: str, style: str = "") -> Text:
    return Text(plain(text), style, no_wrap=True, overflow="ellipsis")


def _beside(width: int, *cells: RenderableType) -> Table:
    grid = Table.grid()
    for _ in cells:
        grid.add_column(width=width, no_wrap=True)
    grid.add_row(*cells)
    return grid


def _sign(look: Look, index: int) -> tuple[str, str]:
    """A colour and a mark, so that colour alone tells nothing apart."""
    palette = theme(look).palette
    return palette[index % len(palette)], _MARKS[index % len(_MARKS)]


def _chart(
    name: str,
    shown: Sequence[tuple[Snapshot, Sequence[Curve]]],
    look: Look,
    auto: Scale,
    size: tuple[int, int],
    even: bool = False,
) -> RenderableType:
    """A chart under its legend: each curve has a sign, or where there are several runs each run."""
    header = _words(name, "bold")
    lines = []
    for run, (snapshot, curves) in enumerate(shown):
        for index, curve in enumerate(curves):
            colour, mark = _sign(look, run if len(shown) > 1 else index)
            of = shortened(snapshot.name, 12) if len(shown) > 1 else shortened(curve.name, 16)
            header.append(f"  {mark} {plain(of)} {newest(curve)}", f"not bold {colour}")
            x = along(look, snapshot, curve.step, curve.time)
            alarms = [x[index] for index in np.searchsorted(curve.step, curve.nonfinite)]
            middle = smoothed(curve.mean, look.smoothing) if even and len(x) > FEW_POINTS else None
            lines.append(Line(x, curve.low, curve.high, colour, mark, middle, alarms))
    width, height = size
    below = chart(lines, look, auto, width - 1, height - 1) if lines else _words("  nothing yet", "dim")
    return Group(header, below)


def _overview(snapshots: Sequence[Snapshot], look: Look, width: int, height: int) -> list[RenderableType]:
    half, several = width // 2, len(snapshots) > 1
    rows = min(len(snapshots) + 1, height // 3) if several else 0
    above = (height - rows) // 2
    size = half, height - rows - above
    metrics = [
        _chart(name, [(each, _metrics(each, name, look)) for each in snapshots], look, Scale.LINEAR, (half, above), True)
        for name in ("loss", "accuracy")
    ]
    if several:
        sizes = [
            _chart(f"largest {WORDS[kind]}", [(each, _magnitude(each, kind)) for each in snapshots], look, Scale.LOG, size)
            for kind in ("grad", "value")
        ]
        return [_beside(half, *metrics), _beside(half, *sizes), _table_of_runs(snapshots, look, rows)]
    (snapshot,) = snapshots
    both = [(snapshot, [*_magnitude(snapshot, "grad"), *_magnitude(snapshot, "value")])]
    table = _table_of_curves([*snapshot.curves, *ends(snapshot, "grad"), *ends(snapshot, "value")], *size)
    return [_beside(half, *metrics), _beside(half, _chart("largest", both, look, Scale.LOG, size), table)]


def _table(name: str, *columns: str, width: int = _NAME) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 1), pad_edge=False, header_style="bold")
    table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=width)
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right")
    return table


def _alarm(steps: Sequence[int]) -> Text:
    return Text(f"step {min(steps):,}" if steps else "", _ALARM)


def _number(curve: Curve) -> Text:
    found = newest(curve)
    return Text(found, _ALARM if found == "NaN/inf" else "")


def _table_of_curves(curves: Sequence[Curve], width: int, height: int) -> Table:
    """A row a curve: its newest, lowest and highest number, and the first step with a NaN or an infinity."""
    alarmed = any(curve.nonfinite for curve in curves)
    narrow = width < _NAME + 3 * _NUMBER - 14
    table = _table("", "last", *(() if narrow else ("lowest", "highest")), *(("! from",) if alarmed else ()))
    if len(curves) >= height:
        # What is not finite must not be among what finds no room.
        curves = sorted(curves, key=lambda curve: not curve.nonfinite)[: height - 1]
    for curve in curves:
        finite = [(min, curve.low), (max, curve.high)]
        found = [f"{pick(there):.4g}" if (there := [n for n in each if not np.isnan(n)]) else "–" for pick, each in finite]
        cells = [_number(curve), *([] if narrow else found), *([_alarm(curve.nonfinite)] if alarmed else [])]
        table.add_row(_words(shortened(curve.name)), *cells)
    return table


def _table_of_runs(snapshots: Sequence[Snapshot], look: Look, height: int) -> Table:
    """A row a run, those begun last where there are too many."""
    table = _table("run", "", "step", "loss", "accuracy", "gradient", "value", "NaN or inf from")
    for run in range(len(snapshots))[-(height - 1) :]:
        snapshot = snapshots[run]
        curves = [_metrics(snapshot, name, look)[:1] for name in ("loss", "accuracy")]
        curves += [_magnitude(snapshot, kind) for kind in ("grad", "value")]
        colour, mark = _sign(look, run)
        step = "–" if snapshot.last_step is None else f"{snapshot.last_step:,}"
        bad = [step for curve in [*snapshot.curves, *curves[2], *curves[3]] for step in curve.nonfinite]
        numbers = [_number(each[0]) if each else Text("–") for each in curves]
        name = _words(f"{mark} {shortened(snapshot.name)}", colour)
        table.add_row(name, STATE_WORDS[snapshot.state], step, *numbers, _alarm(bad))
    return table


def _layers(snapshots: Sequence[Snapshot], look: Look, width: int, height: int) -> list[RenderableType]:
    """A row a parameter, or a module: blocks as high and as bright as its magnitude was."""
    layers = snapshots[0].layers
    if layers is None:
        return [_words("no step recorded yet" + " with such a parameter" * bool(look.params), "dim")]
    names, sizes, alarms = grouped(layers, height - 2)
    room = max(8, width - min(_NAME, max(map(len, names))) - _NUMBER - 2)
    every = -(-len(names) // (height - 2))
    sizes, alarms = _folded(sizes, alarms, every, room)
    found = sizes[sizes > 0]
    low, high = (float(found.min()), float(found.max())) if found.size else (1.0, 1.0)
    table = _table("", "", f"{'newest':>{_NUMBER}}")
    for row, first in enumerate(range(0, len(names), every)):
        others = f" … +{every - 1}" if every > 1 else ""
        there = np.flatnonzero(~np.isnan(sizes[row]) | alarms[row])
        last = there[-1] if len(there) else 0
        text = "NaN/inf" if alarms[row, last] else "–" if not len(there) else f"{sizes[row, last]:.4g}"
        cells = _blocks(sizes[row], alarms[row], low, high), Text(text, _ALARM if alarms[row, last] else "")
        table.add_row(_words(shortened(names[first], _NAME - len(others)) + others), *cells)
    steps = f"steps {layers.first_step:,} to {layers.first_step + layers.width * layers.magnitudes.shape[1] - 1:,}"
    legend = _words(f"{steps} · largest {look.statistic}: ")
    legend.append_text(_blocks(np.geomspace(low, high, 8), np.zeros(8, dtype=np.bool_), low, high))
    legend.append(f" {low:.2g} to {high:.2g} · 0 zero · ! NaN or inf")
    return [table, legend]


def _folded(
    sizes: npt.NDArray[np.float64], alarms: npt.NDArray[np.bool_], rows: int, columns: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """The largest magnitude and any alarm of each so many rows, in so many columns."""
    there = sizes.shape[1]
    starts = np.arange(0, len(sizes), rows)
    sizes, alarms = np.fmax.reduceat(sizes, starts), np.logical_or.reduceat(alarms, starts)
    # Fewer columns than there is room for are repeated: a slice that would be empty is the column where it begins.
    starts = np.arange(columns) * there // columns
    return np.fmax.reduceat(sizes, starts, axis=1), np.logical_or.reduceat(alarms, starts, axis=1)


def _blocks(
    sizes: npt.NDArray[np.float64], alarms: npt.NDArray[np.bool_], low: float, high: float
) -> Text:
    """A character a column; the height and the colour say the same."""
    text = Text(no_wrap=True, overflow="crop")
    for size, alarm in zip(sizes.tolist(), alarms.tolist(), strict=True):
        if alarm:
            text.append("!", "bold white on red")
        elif np.isnan(size):
            text.append(" ")
        elif size == 0:
            text.append("0", "white on black")
        else:
            place = float(np.log(size / low) / np.log(high / low)) if high > low else 1.0
            red, green, blue, _ = matplotlib.colormaps["cividis"](0.25 + 0.75 * place, bytes=True)
            text.append(_BLOCKS[min(int(place * len(_BLOCKS)), len(_BLOCKS) - 1)], f"rgb({red},{green},{blue})")
    return text


def _parameter(snapshots: Sequence[Snapshot], look: Look, width: int, height: int) -> list[RenderableType]:
    """Values and gradients over the run, and a table of the newest of all that was recorded."""
    (snapshot,) = snapshots
    if snapshot.extremes is None:
        return [_words("no row of this parameter yet", "dim")]
    table = _table_of_statistics(snapshot)
    half = width // 2
    size = half, max(5, height - len(table.rows) - 1)
    charts = [
        _chart(name, [(snapshot, [curve for kind in kinds for curve in ends(snapshot, kind)])], look, Scale.SYMLOG, size)
        for name, kinds in (("value", ("value",)), ("gradient", ("grad", "applied")))
    ]
    return [_beside(half, *charts), table]


def _table_of_statistics(snapshot: Snapshot) -> Table:
    """The newest number of each statistic, a column each for value, gradient and applied gradient."""
    extremes = snapshot.extremes
    assert extremes is not None, "the parameter has rows"
    there = {name.removesuffix("_high"): each for name, each in extremes.statistics.items() if not name.endswith("_low")}
    kinds = [kind for kind in WORDS if kind in extremes.nonfinite]
    table = _table("newest", *(WORDS[kind] for kind in kinds))
    for statistic in dict.fromkeys(name.partition("_")[2] for name in there):
        each = [numbers_of(there.get(f"{kind}_{statistic}", [None]))[-1] for kind in kinds]
        table.add_row(_words(statistic), *("–" if np.isnan(number) else f"{number:.4g}" for number in each))
    if any(extremes.nonfinite.values()):
        table.add_row(Text("NaN or inf from", _ALARM), *(_alarm(extremes.nonfinite[kind]) for kind in kinds))
    return table
