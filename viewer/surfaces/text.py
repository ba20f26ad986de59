"""The views in characters, as large as the terminal."""

import itertools
from collections.abc import Callable, Iterable, Sequence
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

from tracer.log.table import MEASURED, Column, table_of
from tracer.log.text import plain, shortened
from viewer.draw.axes import x_values
from viewer.draw.layers import cells_of, column_edges, grouped, in_cells, row_of
from viewer.draw.marks import flags_of, numbers_of
from viewer.draw.theme import colour_of, theme
from viewer.options import Scale, View, ViewOptions, XAxis
from viewer.reduce.depth import DEPTH
from viewer.reduce.metrics import ACCURACY, LOSS, MetricPanel, only_chosen, panels
from viewer.snapshot import Curve, Heatmap, Snapshot
from viewer.surfaces import table as runs_table
from viewer.surfaces.chart import Line, chart, moment
from viewer.words import (
    KINDS,
    NO_RATIO,
    RATIO_WORDS,
    USUAL_RATIO,
    USUAL_WORDS,
    duration,
    finding_words,
    first_of,
    largest,
    missing,
    no_rows,
    noticed,
    notices,
    row_with,
    title,
)

# Marks for the curves of one run. Several runs have a letter each, small for the first of a chart's curves.
_MARKS = "ox+*#%@"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_BLOCKS = "▁▂▃▄▅▆▇█"
# The darkest colours cannot be seen on a dark terminal.
_RAMP = [to_hex(matplotlib.colormaps["cividis"](place)) for place in np.linspace(0.25, 1, len(_BLOCKS))]
_ALARM, _NONFINITE = "bold red", "NaN/inf"
_NOTICES, _FINDINGS = 2, 4
_NAME, _SHORTEST, _NUMBER = 24, 6, 9
# Of magnitudes beyond these, which no training has, sums and powers would overflow.
_SMALLEST, _LARGEST = 1e-300, 1e300
# In fewer columns a table of four numbers leaves no room for names.
_NARROW, _NARROWEST = 42, 20
# Loss and accuracy always have a chart each. Others have this size at least, and tables of many curves this width.
_MAIN, _CHART_WIDTH, _CHART_HEIGHT, _TABLE_WIDTH = 2, 40, 10, 26
# A terminal may say that it is larger, and a chart of its size would end the process.
_LARGEST_SIDE = 1000


def picture(snapshots: Sequence[Snapshot], options: ViewOptions, now: float, width: int, height: int) -> Group:
    """A picture of snapshots.

    Args:
        snapshots: One of each run, at least one.
        options: The view, and how it is shown.
        now: Seconds since 1970.
        width: In characters.
        height: In lines.
    """
    # The terminal cuts what it has no room for.
    width, height = min(max(width, _NARROWEST), _LARGEST_SIDE), min(height, _LARGEST_SIDE)
    snapshots = only_chosen(snapshots, options)
    noted = first_of(notices(snapshots), _NOTICES, "tracer verify")
    findings = first_of(finding_words(snapshots, options), max(2, min(_FINDINGS, height // 10)), "viewer check")
    param = f"{shortened(options.param, width // 2)}  in  " if options.view is View.PARAM else ""
    top = [_words(param + title(snapshots, now, options), "bold")]
    top += [_words(line, "yellow") for line in (*noted, *findings)]
    draw = {View.OVERVIEW: _overview, View.PARAM: _parameter}.get(options.view, _layers)
    return Group(*top, *draw(snapshots, options, width, max(6, height - len(top))))


def recorded(snapshot: Snapshot, kind: str) -> dict[str, Curve]:
    """The curves of values, of gradients ("grad") or of applied gradients, by statistic."""
    extremes = snapshot.extremes
    curves: dict[str, Curve] = {}
    if extremes is None:
        return curves
    for column, numbers in extremes.statistics.items():
        of, _, statistic = column.partition("_")
        if of == kind and not statistic.endswith("_low"):
            statistic = statistic.removesuffix("_high")
            high = numbers_of(numbers)
            low = numbers_of(extremes.statistics.get(f"{kind}_{statistic}_low", high))
            name, bad = f"{statistic} {KINDS[kind]}", extremes.nonfinite.get(kind, ())
            curves[statistic] = Curve(name, extremes.step, high, low, high, bad, extremes.time)
    return curves


def ends(snapshot: Snapshot, kind: str) -> list[Curve]:
    """The curves of the minimum and the maximum, where there are any."""
    curves = recorded(snapshot, kind)
    return [curves[end] for end in ("min", "max") if end in curves]


def _magnitude(snapshot: Snapshot, kind: str) -> list[Curve]:
    """The curve of the larger magnitude of minimum and maximum, where there is one."""
    both = ends(snapshot, kind)
    if not both:
        return []
    low, high = both
    larger = np.fmax(np.abs(low.mean), np.abs(high.mean)).tolist()
    return [Curve(KINDS[kind], low.step, larger, larger, larger, low.nonfinite, low.time)]


def _depth(snapshot: Snapshot) -> list[Curve]:
    """The curves of the largest gradients of the first and of the last layer, where there are any."""
    extremes = snapshot.extremes
    if extremes is None:
        return []
    sizes = {layer: numbers_of(extremes.depth.get(name, ())) for name, layer in DEPTH.items()}
    return [
        Curve(layer, extremes.step, numbers, numbers, numbers, (), extremes.time)
        for layer, numbers in sizes.items()
        if np.isfinite(numbers).any()
    ]


def newest(curve: Curve) -> str:
    """The newest number of a curve."""
    if np.isfinite(curve.last):
        return f"{curve.last:.4g}"
    return _NONFINITE if curve.nonfinite and curve.nonfinite[-1] > [-1, *curve.step][-2] else "–"


def _words(text: str, style: str = "") -> Text:
    return Text(plain(text), style, no_wrap=True, overflow="ellipsis")


def _sign(options: ViewOptions, run: int | None, index: int) -> tuple[str, str]:
    """The colour and the mark of a curve, or of one of several runs."""
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
    snapshots = [snapshot for snapshot, _ in shown]
    hint = f": trace.log({name}=…)" if name in (LOSS, ACCURACY) else ""
    nothing = missing(snapshots, f"nothing yet{hint}")
    flags = flags_of(options, snapshots)
    below = chart(lines, options, auto, width - 1, height - 1, flags) if lines else _words(nothing, "dim")
    return Group(header, below)


def _overview(snapshots: Sequence[Snapshot], options: ViewOptions, width: int, height: int) -> list[RenderableType]:
    half, several = width // 2, len(snapshots) > 1
    main, further = panels(snapshots, options)
    rows = min(len(snapshots) + 1, height // 2) if several else 0
    above = (height - rows) // 2
    below = height - rows - above
    metrics = _charts(snapshots, [*main, *further], options, width, above)
    if several:
        sizes = [
            _chart(name, [(run, _magnitude(run, kind)) for run in snapshots], options, Scale.LOG, (half, below))
            for kind, name in (("grad", "largest gradient"), ("value", "largest value"))
        ]
        return [*metrics, _beside(sizes), _table_of_runs(snapshots, options, width, rows)]
    (snapshot,) = snapshots
    room = width * 2 // 3
    tables = _tables_of_curves([*snapshot.curves, *ends(snapshot, "grad"), *ends(snapshot, "value")], room, below)
    left = width - sum(_fit(table, room // len(tables)) + 1 for table in tables) + 1
    both = [(snapshot, [*_magnitude(snapshot, "grad"), *_magnitude(snapshot, "value"), *_depth(snapshot)])]
    return [*metrics, _beside([_chart("largest", both, options, Scale.LOG, (left, below)), *tables])]


def _charts(
    snapshots: Sequence[Snapshot], shown: Sequence[MetricPanel], options: ViewOptions, width: int, height: int
) -> list[RenderableType]:
    """Charts of the first panels of metrics, as many as there is room for; the table names the others."""
    shown = [panel for panel in shown if not panel.empty] if len(shown) > _MAIN else shown
    beside = max(1, min(len(shown), max(_MAIN, width // _CHART_WIDTH)))
    lines = min(-(-len(shown) // beside), max(1, height // _CHART_HEIGHT))
    return [
        _beside(
            [
                _chart(
                    panel.title,
                    list(zip(snapshots, panel.curves, strict=True)),
                    options,
                    Scale.LINEAR,
                    (width // beside, height // lines),
                )
                for panel in shown[line * beside : (line + 1) * beside]
            ]
        )
        for line in range(lines)
    ]


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
    """Shorten a table's names, but no number, until it fits into the room; its width then, in characters."""
    console = Console(width=1000)
    names = Measurement.get(console, console.options, Group(*table.columns[0].cells)).maximum
    wide = Measurement.get(console, console.options, table).maximum
    table.columns[0].max_width = max(_SHORTEST, min(names, _NAME) - max(0, wide - room))
    return min(wide, room)


def _alarm(steps: Sequence[int]) -> Text:
    return Text(f"step {min(steps):,}" if steps else "", _ALARM)


def _number(curve: Curve) -> Text:
    number = newest(curve)
    return Text(number, _ALARM if number == _NONFINITE else "")


def _end(pick: Callable[[Iterable[float]], float], numbers: Sequence[float]) -> str:
    known = [number for number in numbers if not np.isnan(number)]
    return f"{pick(known):.4g}" if known else "–"


def _tables_of_curves(curves: Sequence[Curve], width: int, height: int) -> list[Table]:
    """A row for each curve: its newest number, the first step with a NaN or an infinity, and its ends if there is room.

    Many curves stand in several tables beside each other.
    """
    wide = _TABLE_WIDTH + any(curve.nonfinite for curve in curves) * _NUMBER
    beside = 1 if len(curves) < height else max(1, width // wide)
    both = ["lowest", "highest"] if width >= _NARROW and beside == 1 else []
    each = max(1, height - 1)
    left_out = max(0, len(curves) - beside * each)
    if left_out:
        # Curves with a NaN or an infinity must find room.
        curves = sorted(curves, key=lambda curve: not curve.nonfinite)[: beside * each - 1]
    tables = []
    for begin in range(0, max(1, len(curves)), each):
        shown = curves[begin : begin + each]
        alarmed = any(curve.nonfinite for curve in shown)
        table = _table("", "last", *both, *(["NaN/inf at"] if alarmed else []))
        for curve in shown:
            cells = [_end(min, curve.low), _end(max, curve.high)] if both else []
            bad = [_alarm(curve.nonfinite)] if alarmed else []
            table.add_row(_words(shortened(curve.name)), _number(curve), *cells, *bad)
        tables.append(table)
    if left_out:
        tables[-1].add_row(_words("--metric", "dim"), Text(f"+{left_out + 1:,} more", "dim"))
    return tables


def _table_of_runs(snapshots: Sequence[Snapshot], options: ViewOptions, width: int, height: int) -> Table:
    """A row for each run, as many columns as find room; the runs begun last, where there are too many."""
    signs = [_sign(options, run, 0) for run in range(len(snapshots))][-(height - 1) :]
    shown = snapshots[-(height - 1) :]
    names, *others = runs_table.columns(shown)
    bad = [first_nonfinite(snapshot) for snapshot in shown]
    if any(step is not None for step in bad):
        cells = ["" if step is None else f"step {step:,}" for step in bad]
        others.insert(0, Column("NaN/inf at", cells, place=MEASURED, style=_ALARM))
    marked = runs_table.marked(names, [mark for _, mark in signs])
    return table_of([marked, *others], width, [colour for colour, _ in signs])[0]


def first_nonfinite(snapshot: Snapshot) -> int | None:
    """The first step with a NaN or an infinity in a metric or an extreme; None if there is none."""
    curves = [*snapshot.curves, *ends(snapshot, "grad"), *ends(snapshot, "value")]
    return min((step for curve in curves for step in curve.nonfinite), default=None)


def _layers(snapshots: Sequence[Snapshot], options: ViewOptions, width: int, height: int) -> list[RenderableType]:
    """A row for each parameter or module, of blocks that are as high and as bright as its magnitudes."""
    layers = snapshots[0].layers
    if layers is None:
        return [_words(no_rows(snapshots, options), "dim")]
    rows, sizes, alarms = grouped(layers, limit=height - 2)
    others = f" … +{len(rows[0]) - 1}" if len(rows[0]) > 1 else ""
    # Modules with which all names begin would take the room of what tells names apart.
    modules = zip(*(name.split(".")[:-1] for row in rows for name in row), strict=False)
    common = "".join(f"{same[0]}." for same in itertools.takewhile(lambda names: len(set(names)) == 1, modules))
    longest = max(_NAME, width // 3)
    names = [shortened(row[0].removeprefix(common), longest - len(others)) + others for row in rows]
    positive = sizes[sizes > 0].clip(_SMALLEST, _LARGEST)
    scale = (float(positive.min()), float(positive.max())) if positive.size else (1.0, 1.0)
    wide = max(map(cell_len, names))
    room = max(8, width - wide - _NUMBER - 2)
    marks, newest_of = _marks_of_rows(snapshots, options, layers, rows), [*map(_newest, sizes, alarms)]
    first, last = f"step {layers.first_step:,}", f"{snapshots[0].last_step:,}"
    if options.x is not XAxis.STEP:
        edges = column_edges(options, snapshots[0], layers)
        sizes, alarms = in_cells(edges, sizes, alarms, room)
        cells, _ = cells_of(edges, room)
        # Of several findings in a cell, the worst, which comes first, is marked.
        marks = {row: {int(cells[c]): mark for c, mark in reversed(of_row.items())} for row, of_row in marks.items()}
        first, last = (_time(options, float(end)) for end in (edges[0], edges[-1]))
    table = _table(common.strip("."), first + last.rjust(room - len(first)), f"{'newest':>{_NUMBER}}")
    table.columns[0].max_width = wide
    for row, (name, size, alarm, text) in enumerate(zip(names, sizes, alarms, newest_of, strict=True)):
        blocks = _blocks(size, alarm, room, scale, marks.get(row, {}))
        table.add_row(Text(name), blocks, Text(text, _ALARM if text == _NONFINITE else ""))
    said = largest(options) if options.view is View.ACTIVATIONS else options.statistic
    legend = _words(f"{said}: {scale[0]:.2g} ")
    ramp = np.geomspace(*scale, len(_BLOCKS))
    legend.append_text(_blocks(ramp, np.zeros(len(ramp), dtype=np.bool_), len(ramp), scale, {}))
    legend.append(f" {scale[1]:.2g} · 0 zero · ! NaN or inf")
    return [table, legend]


def _newest(sizes: npt.NDArray[np.float64], alarms: npt.NDArray[np.bool_]) -> str:
    """The newest magnitude of a row."""
    last_cell = np.flatnonzero(~np.isnan(sizes) | alarms)[-1:].tolist()
    return "–" if not last_cell else _NONFINITE if alarms[last_cell[0]] else f"{sizes[last_cell[0]]:.3g}"


def _time(options: ViewOptions, x: float) -> str:
    """A time of the x axis in words."""
    return moment(x, "%m-%d %H:%M") if options.x is XAxis.WALL else duration(max(0.0, x))


def _marks_of_rows(
    snapshots: Sequence[Snapshot], options: ViewOptions, layers: Heatmap, rows: Sequence[Sequence[str]]
) -> dict[int, dict[int, tuple[str, str]]]:
    """By row and column, the number of the worst finding that began there, and its style."""
    marks: dict[int, dict[int, tuple[str, str]]] = {}
    for number, _, finding in noticed(snapshots, options):
        row = row_of(rows, row_with(finding, options))
        column = (finding.first_step - layers.first_step) // layers.width
        # A single rank may have fewer steps.
        if row is not None and number < 10 and 0 <= column < layers.magnitudes.shape[1]:
            marks.setdefault(row, {}).setdefault(column, (str(number), f"bold reverse {colour_of(options, finding)}"))
    return marks


def _blocks(
    sizes: npt.NDArray[np.float64],
    alarms: npt.NDArray[np.bool_],
    room: int,
    scale: tuple[float, float],
    marks: dict[int, tuple[str, str]],
) -> Text:
    """A character for each of ``room`` columns: the largest magnitude in it as height and colour, or an alarm.

    Args:
        sizes: The magnitudes.
        alarms: The cells with a NaN or an infinity.
        room: The width, in characters.
        scale: The smallest and the largest magnitude.
        marks: Characters, with their styles, that stand in columns instead.
    """
    # A column that is wider than a character is repeated.
    starts = np.arange(room) * len(sizes) // room
    sizes, alarms = np.fmax.reduceat(sizes, starts), np.logical_or.reduceat(alarms, starts)
    low, high = np.log(scale)
    cells = []
    for size, alarm in zip(sizes.tolist(), alarms.tolist(), strict=True):
        if alarm or np.isnan(size) or size == 0:
            cells.append(("!", "bold white on red") if alarm else ("0", "dim") if size == 0 else (" ", ""))
            continue
        place = (np.log(np.clip(size, *scale)) - low) / (high - low) if high > low else 1.0
        level = min(int(place * len(_BLOCKS)), len(_BLOCKS) - 1)
        cells.append((_BLOCKS[level], _RAMP[level]))
    for column, mark in reversed(marks.items()):
        start = starts[np.searchsorted(starts, column, side="right") - 1]
        cells[int(np.searchsorted(starts, start))] = mark
    return Text.assemble(
        *[("".join(c for c, _ in same), style) for style, same in itertools.groupby(cells, itemgetter(1))]
    )


def _parameter(snapshots: Sequence[Snapshot], options: ViewOptions, width: int, height: int) -> list[RenderableType]:
    """Values, gradients and the size of updates over the run, and a table of the newest numbers of all statistics."""
    (snapshot,) = snapshots
    if snapshot.extremes is None:
        return [_words(missing(snapshots, "no row of this parameter yet"), "dim")]
    table = _table_of_statistics(snapshot)
    ratio = snapshot.extremes.ratio
    size = width // (2 if ratio is None else 3), max(5, height - len(table.rows) - 1)
    bands = {kind: [replace(curve, name=word) for curve in ends(snapshot, kind)] for kind, word in KINDS.items()}
    charts = [
        _chart(name, [(snapshot, curves)], options, Scale.SYMLOG, size)
        for name, curves in (("value", bands["value"]), ("gradient", bands["grad"] + bands["applied"]))
    ]
    return [_beside(charts if ratio is None else [*charts, _ratio(ratio, snapshot, options, size)]), table]


def _ratio(ratio: Curve, snapshot: Snapshot, options: ViewOptions, size: tuple[int, int]) -> RenderableType:
    """The size of updates against the value, beside what is usual."""
    if not ratio.step:
        return Group(_words(RATIO_WORDS, "bold"), _words(NO_RATIO, "dim"))
    usual = [USUAL_RATIO] * len(ratio.step)
    curves = [replace(ratio, name=""), Curve(USUAL_WORDS, ratio.step, usual, usual, usual, (), ratio.time)]
    return _chart(RATIO_WORDS, [(snapshot, curves)], options, Scale.LOG, size)


def _table_of_statistics(snapshot: Snapshot) -> Table:
    """The newest number of each statistic, with a column each for values, gradients and applied gradients."""
    kinds = {word: curves for kind, word in KINDS.items() if (curves := recorded(snapshot, kind))}
    table = _table("newest", *kinds)
    for statistic in dict.fromkeys(statistic for curves in kinds.values() for statistic in curves):
        cells = [_number(curves[statistic]) if statistic in curves else Text("–") for curves in kinds.values()]
        table.add_row(_words(statistic), *cells)
    ratio = snapshot.extremes.ratio if snapshot.extremes is not None else None
    if ratio is not None and ratio.step:
        table.add_row(_words(RATIO_WORDS), _number(ratio))
    bad = [next(iter(curves.values())).nonfinite for curves in kinds.values()]
    if any(bad):
        table.add_row(Text("NaN/inf at", _ALARM), *map(_alarm, bad))
    return table
