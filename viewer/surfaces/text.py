"""The views in characters: a picture of so many lines and columns. No files, no threads, and no loop."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.colors import to_hex
from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from viewer.draw.axes import x_values
from viewer.draw.layers import grouped, row_of
from viewer.draw.marks import flags_of, numbers_of
from viewer.draw.theme import colour_of, theme
from viewer.options import Scale, View, ViewOptions
from viewer.reduce.metrics import ACCURACY, LOSS, panel_names, panels
from viewer.snapshot import Curve, Heatmap, Snapshot
from viewer.surfaces.chart import Line, chart
from viewer.words import finding_words, first_of, noticed, notices, plain, shortened, title

WORDS = {"value": "value", "grad": "gradient", "applied": "applied"}
# Of the curves of one run; several runs have a letter each, small for the first of a chart's curves.
_MARKS = "ox+*#%@"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_BLOCKS = "▁▂▃▄▅▆▇█"
# The darkest colours would not be seen on a dark terminal.
_RAMP = [to_hex(matplotlib.colormaps["cividis"](place)) for place in np.linspace(0.25, 1, len(_BLOCKS))]
_ALARM, _NONFINITE = "bold red", "NaN/inf"
_NOTICES, _FINDINGS = 2, 4
_NAME, _SHORTEST, _NUMBER = 24, 6, 9
# In fewer columns, a table of four numbers would have no room for names.
_NARROW = 42


def picture(snapshots: Sequence[Snapshot], options: ViewOptions, now: float, width: int, height: int) -> Group:
    """Snapshots in so many columns and lines.

    Args:
        snapshots: What is shown: one of each run, at least one.
        options: What of it, and how.
        now: Seconds since 1970.
        width: In characters.
        height: In lines.
    """
    said = first_of(notices(snapshots), _NOTICES, "tracer verify")
    found = first_of(finding_words(snapshots, options), max(2, min(_FINDINGS, height // 10)), "viewer check")
    of = f"{shortened(options.param, width // 2)}  in  " if options.view is View.PARAM else ""
    top = [_words(of + title(snapshots, now, options), "bold"), *(_words(line, "yellow") for line in (*said, *found))]
    draw = {View.OVERVIEW: _overview, View.LAYERS: _layers, View.PARAM: _parameter}[options.view]
    return Group(*top, *draw(snapshots, options, width, max(6, height - len(top))))


def recorded(snapshot: Snapshot, kind: str) -> dict[str, Curve]:
    """What was recorded of the values, of the gradients ("grad") or of the applied ones, by statistic."""
    extremes = snapshot.extremes
    found: dict[str, Curve] = {}
    for column in extremes.statistics if extremes is not None else ():
        of, _, statistic = column.partition("_")
        if extremes is None or of != kind or statistic.endswith("_low"):
            continue
        statistic = statistic.removesuffix("_high")
        high = numbers_of(extremes.statistics[column])
        low = numbers_of(extremes.statistics.get(f"{kind}_{statistic}_low", high))
        name, bad = f"{statistic} {WORDS[kind]}", extremes.nonfinite.get(kind, ())
        found[statistic] = Curve(name, extremes.step, high, low, high, bad, extremes.time)
    return found


def ends(snapshot: Snapshot, kind: str) -> list[Curve]:
    """The minimum and the maximum, where there are any."""
    there = recorded(snapshot, kind)
    return [there[end] for end in ("min", "max") if end in there]


def _magnitude(snapshot: Snapshot, kind: str) -> list[Curve]:
    """The larger magnitude of minimum and maximum."""
    both = ends(snapshot, kind)
    if not both:
        return []
    low, high = both
    each = np.fmax(np.abs(low.mean), np.abs(high.mean)).tolist()
    return [Curve(WORDS[kind], low.step, each, each, each, low.nonfinite, low.time)]


def newest(curve: Curve) -> str:
    """The newest number of a curve."""
    if np.isfinite(curve.last):
        return f"{curve.last:.4g}"
    return _NONFINITE if curve.nonfinite and curve.nonfinite[-1] > [-1, *curve.step][-2] else "–"


def _words(text: str, style: str = "") -> Text:
    return Text(plain(text), style, no_wrap=True, overflow="ellipsis")


def _sign(options: ViewOptions, run: int | None, index: int) -> tuple[str, str]:
    """A colour and a mark, so that colour alone tells nothing apart; of several runs each has its own."""
    palette = theme(options).palette
    if run is None:
        return palette[index % len(palette)], _MARKS[index % len(_MARKS)]
    letter = _LETTERS[run % len(_LETTERS)]
    return palette[run % len(palette)], letter.upper() if index else letter


def _chart(
    name: str,
    shown: Sequence[tuple[Snapshot, Sequence[Curve]]],
    options: ViewOptions,
    auto: Scale,
    size: tuple[int, int],
) -> RenderableType:
    """A chart under its legend."""
    several = len(shown) > 1
    legend: dict[str, tuple[str, str]] = {}
    lines = []
    for run, (snapshot, curves) in enumerate(shown):
        indices: dict[str, int] = {}
        for curve in curves:
            index = indices.setdefault(curve.name, len(indices))
            colour, mark = _sign(options, run if several else None, index)
            legend.setdefault(curve.name, (mark, "" if several else colour))
            x = x_values(options, snapshot, curve.step, curve.time)
            alarms = [x[place] for place in np.searchsorted(curve.step, curve.nonfinite)]
            lines.append(Line(x, curve.low, curve.high, colour, mark, curve.smooth, alarms))
    header = _words(name, "bold")
    for label, (mark, colour) in legend.items() if len(legend) > 1 else ():
        header.append(f"  {mark} {shortened(label, 16)}", f"not bold {colour}")
    width, height = size
    header.truncate(width - 1, overflow="ellipsis")
    hint = f": trace.log({name}=…)" if name in (LOSS, ACCURACY) else ""
    flags = flags_of(options, [snapshot for snapshot, _ in shown])
    below = chart(lines, options, auto, width - 1, height - 1, flags) if lines else _words(f"nothing yet{hint}", "dim")
    return Group(header, below)


def _overview(snapshots: Sequence[Snapshot], options: ViewOptions, width: int, height: int) -> list[RenderableType]:
    half, several = width // 2, len(snapshots) > 1
    names = panel_names(options)
    shown = [(snapshot, panels(snapshot, options)) for snapshot in snapshots]
    rows = min(len(snapshots) + 1, height // 3) if several else 0
    above = (height - rows) // 2
    below = height - rows - above
    metrics = [
        _chart(
            name,
            [(snapshot, curves[name]) for snapshot, curves in shown],
            options,
            Scale.LINEAR,
            (width // len(names), above),
        )
        for name in names
    ]
    if several:
        sizes = [
            _chart(of, [(each, _magnitude(each, kind)) for each in snapshots], options, Scale.LOG, (half, below))
            for kind, of in (("grad", "largest gradient"), ("value", "largest value"))
        ]
        return [_beside(metrics), _beside(sizes), _table_of_runs(shown, options, width, rows)]
    (snapshot,) = snapshots
    room = width * 2 // 3
    table = _table_of_curves([*snapshot.curves, *ends(snapshot, "grad"), *ends(snapshot, "value")], room, below)
    left = width - _fit(table, room)
    both = [(snapshot, [*_magnitude(snapshot, "grad"), *_magnitude(snapshot, "value")])]
    return [_beside(metrics), _beside([_chart("largest", both, options, Scale.LOG, (left, below)), table])]


def _beside(cells: Sequence[RenderableType]) -> Table:
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_row(*cells)
    return grid


def _table(name: str, *columns: str) -> Table:
    table = Table(box=None, padding=(0, 0, 0, 1), pad_edge=False, header_style="bold")
    table.add_column(_words(name), no_wrap=True, overflow="ellipsis", max_width=_NAME)
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right")
    return table


def _fit(table: Table, room: int) -> int:
    """Shorten a table's names, and no number, until it fits into so many characters; how many it takes."""
    console = Console(width=1000)
    names = Measurement.get(console, console.options, Group(*table.columns[0].cells)).maximum
    wide = Measurement.get(console, console.options, table).maximum
    table.columns[0].max_width = max(_SHORTEST, min(names, _NAME) - max(0, wide - room))
    return min(wide, room)


def _alarm(steps: Sequence[int]) -> Text:
    return Text(f"step {min(steps):,}" if steps else "", _ALARM)


def _number(curve: Curve) -> Text:
    found = newest(curve)
    return Text(found, _ALARM if found == _NONFINITE else "")


def _end(pick: Callable[[Iterable[float]], float], numbers: Sequence[float]) -> str:
    there = [number for number in numbers if not np.isnan(number)]
    return f"{pick(there):.4g}" if there else "–"


def _table_of_curves(curves: Sequence[Curve], width: int, height: int) -> Table:
    """A row a curve: its newest, lowest and highest number, and the first step with a NaN or an infinity."""
    alarmed = any(curve.nonfinite for curve in curves)
    both = ["lowest", "highest"] if width >= _NARROW else []
    table = _table("", "last", *both, *(["NaN/inf at"] if alarmed else []))
    if len(curves) >= height:
        # What is not finite must not be among what finds no room.
        curves = sorted(curves, key=lambda curve: not curve.nonfinite)[: height - 1]
    for curve in curves:
        cells = [_end(min, curve.low), _end(max, curve.high)] if both else []
        bad = [_alarm(curve.nonfinite)] if alarmed else []
        table.add_row(_words(shortened(curve.name)), _number(curve), *cells, *bad)
    return table


def _table_of_runs(
    shown: Sequence[tuple[Snapshot, Mapping[str, Sequence[Curve]]]], options: ViewOptions, width: int, height: int
) -> Table:
    """A row a run, with the first metric of each panel; those begun last where there are too many."""
    curves = [[*snapshot.curves, *ends(snapshot, "grad"), *ends(snapshot, "value")] for snapshot, _ in shown]
    bad = [sorted(step for curve in of_run for step in curve.nonfinite) for of_run in curves]
    table = _table("run", "", "step", "loss", "accuracy", "gradient", "value", *(["NaN/inf at"] if any(bad) else []))
    for run in range(len(shown))[-(height - 1) :]:
        snapshot, metrics = shown[run]
        first = [metrics[name][:1] for name in (LOSS, ACCURACY)]
        numbers = [*first, _magnitude(snapshot, "grad"), _magnitude(snapshot, "value")]
        colour, mark = _sign(options, run, 0)
        table.add_row(
            _words(f"{mark} {shortened(snapshot.name)}", colour),
            snapshot.state,
            "–" if snapshot.last_step is None else f"{snapshot.last_step:,}",
            *(_number(each[0]) if each else Text("–") for each in numbers),
            *([_alarm(bad[run])] if any(bad) else []),
        )
    _fit(table, width)
    return table


def _layers(snapshots: Sequence[Snapshot], options: ViewOptions, width: int, height: int) -> list[RenderableType]:
    """A row a parameter, or a module: blocks as high and as bright as its magnitude was."""
    layers = snapshots[0].layers
    if layers is None:
        return [_words("no step recorded yet" + " with such a parameter" * bool(options.params), "dim")]
    rows, sizes, alarms = grouped(layers, limit=height - 2)
    others = f" … +{len(rows[0]) - 1}" if len(rows[0]) > 1 else ""
    # Where all names begin with the same modules, what tells them apart would find no room.
    modules = zip(*(name.split(".")[:-1] for row in rows for name in row), strict=False)
    common = "".join(f"{same[0]}." for same in itertools.takewhile(lambda each: len(set(each)) == 1, modules))
    longest = max(_NAME, width // 3)
    names = [shortened(row[0].removeprefix(common), longest - len(others)) + others for row in rows]
    found = sizes[sizes > 0]
    scale = (float(found.min()), float(found.max())) if found.size else (1.0, 1.0)
    wide = max(map(cell_len, names))
    room = max(8, width - wide - _NUMBER - 2)
    first, last = f"step {layers.first_step:,}", f"{snapshots[0].last_step:,}"
    table = _table(common.strip("."), first + last.rjust(room - len(first)), f"{'newest':>{_NUMBER}}")
    table.columns[0].max_width = wide
    marks = _marks_of_rows(snapshots, options, layers, rows)
    for row, (name, size, alarm) in enumerate(zip(names, sizes, alarms, strict=True)):
        there = np.flatnonzero(~np.isnan(size) | alarm)[-1:].tolist()
        text = "–" if not there else _NONFINITE if alarm[there[0]] else f"{size[there[0]]:.3g}"
        blocks = _blocks(size, alarm, room, scale, marks.get(row, {}))
        table.add_row(Text(name), blocks, Text(text, _ALARM if text == _NONFINITE else ""))
    legend = _words(f"{options.statistic}: {scale[0]:.2g} ")
    legend.append_text(
        _blocks(np.geomspace(*scale, len(_BLOCKS)), np.zeros(len(_BLOCKS), dtype=np.bool_), len(_BLOCKS), scale, {})
    )
    legend.append(f" {scale[1]:.2g} · 0 zero · ! NaN or inf")
    return [table, legend]


def _marks_of_rows(
    snapshots: Sequence[Snapshot], options: ViewOptions, layers: Heatmap, rows: Sequence[Sequence[str]]
) -> dict[int, dict[int, tuple[str, str]]]:
    """Of each row the columns in which findings began, with the number of the worst and how it looks."""
    found: dict[int, dict[int, tuple[str, str]]] = {}
    for number, _, finding in noticed(snapshots, options):
        row = row_of(rows, finding.param)
        column = (finding.first_step - layers.first_step) // layers.width
        # Of one rank there may be fewer steps.
        if row is not None and number < 10 and 0 <= column < layers.magnitudes.shape[1]:
            found.setdefault(row, {}).setdefault(column, (str(number), f"bold reverse {colour_of(options, finding)}"))
    return found


def _blocks(
    sizes: npt.NDArray[np.float64],
    alarms: npt.NDArray[np.bool_],
    room: int,
    scale: tuple[float, float],
    marks: dict[int, tuple[str, str]],
) -> Text:
    """A character a column, for the largest magnitude and any alarm in it; height and colour say the same.

    Args:
        sizes: The magnitudes.
        alarms: Where there is a NaN or an infinity.
        room: How many characters there may be.
        scale: The smallest and the largest magnitude.
        marks: What stands in columns instead: a character and its style.
    """
    # Where a column of the strip is wider than a character, it is repeated.
    starts = np.arange(room) * len(sizes) // room
    sizes, alarms = np.fmax.reduceat(sizes, starts), np.logical_or.reduceat(alarms, starts)
    low, length = np.log(scale[0]), np.log(scale[1] / scale[0])
    cells = []
    for size, alarm in zip(sizes.tolist(), alarms.tolist(), strict=True):
        if alarm or np.isnan(size) or size == 0:
            cells.append(("!", "bold white on red") if alarm else ("0", "dim") if size == 0 else (" ", ""))
            continue
        place = (np.log(size) - low) / length if length else 1.0
        level = min(int(place * len(_BLOCKS)), len(_BLOCKS) - 1)
        cells.append((_BLOCKS[level], _RAMP[level]))
    for column, mark in reversed(marks.items()):
        start = starts[np.searchsorted(starts, column, side="right") - 1]
        cells[int(np.searchsorted(starts, start))] = mark
    return Text.assemble(
        *[("".join(c for c, _ in same), style) for style, same in itertools.groupby(cells, itemgetter(1))]
    )


def _parameter(snapshots: Sequence[Snapshot], options: ViewOptions, width: int, height: int) -> list[RenderableType]:
    """Values and gradients over the run, and a table of the newest of all that was recorded."""
    (snapshot,) = snapshots
    if snapshot.extremes is None:
        return [_words("no row of this parameter yet", "dim")]
    table = _table_of_statistics(snapshot)
    size = width // 2, max(5, height - len(table.rows) - 1)
    bands = {kind: [replace(curve, name=word) for curve in ends(snapshot, kind)] for kind, word in WORDS.items()}
    charts = [
        _chart(name, [(snapshot, curves)], options, Scale.SYMLOG, size)
        for name, curves in (("value", bands["value"]), ("gradient", bands["grad"] + bands["applied"]))
    ]
    return [_beside(charts), table]


def _table_of_statistics(snapshot: Snapshot) -> Table:
    """The newest number of each statistic, a column each for values, gradients and applied gradients."""
    there = {word: found for kind, word in WORDS.items() if (found := recorded(snapshot, kind))}
    table = _table("newest", *there)
    for statistic in dict.fromkeys(statistic for found in there.values() for statistic in found):
        cells = [_number(found[statistic]) if statistic in found else Text("–") for found in there.values()]
        table.add_row(_words(statistic), *cells)
    bad = [next(iter(found.values())).nonfinite for found in there.values()]
    if any(bad):
        table.add_row(Text("NaN/inf at", _ALARM), *map(_alarm, bad))
    return table
