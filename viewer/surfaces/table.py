"""The table of the runs that are shown, for the page and the terminal: one row each, with its findings."""

import dataclasses
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from matplotlib.colors import to_hex

from tracer.log.runs import RunRow, best_of
from tracer.log.table import MEASURED, Column, columns_of
from tracer.log.text import plain
from viewer.draw.theme import run_colour
from viewer.options import MOST_DRAWN, ViewOptions
from viewer.snapshot import Finding, Severity, Snapshot
from viewer.words import counted

# More columns than anybody reads; a run may have thousands of metrics.
_COLUMNS = 40


def columns(snapshots: Sequence[Snapshot]) -> list[Column]:
    """The columns of the table of runs, with the worst findings of each behind its steps."""
    found = columns_of([_row(snapshot) for snapshot in snapshots])
    present = [[finding for finding in snapshot.findings if not finding.resolved] for snapshot in snapshots]
    weights = [-_weight(findings) for findings in present]
    findings = Column("findings", [counted(findings) or "–" for findings in present], weights, MEASURED)
    return [*found[:4], *([findings] if any(present) else []), *found[4:]]


def _row(snapshot: Snapshot) -> RunRow:
    unread = snapshot.last_step is None and snapshot.problems
    best = {curve.name: best_of(curve.name, _end(min, curve.low), _end(max, curve.high)) for curve in snapshot.curves}
    return RunRow(
        name=snapshot.name,
        state=snapshot.state,
        started=datetime.fromtimestamp(snapshot.started, UTC),
        steps=None if unread else 1 + (-1 if snapshot.last_step is None else snapshot.last_step),
        last={curve.name: curve.last for curve in snapshot.curves},
        best={name: number for name, number in best.items() if number is not None},
        config=snapshot.config,
    )


def _end(pick: Any, numbers: Sequence[float]) -> float:
    return float(pick((number for number in numbers if not math.isnan(number)), default=math.nan))


def _weight(findings: Sequence[Finding]) -> int:
    """A number by which runs are sorted: one error is worse than any number of warnings."""
    weights = {kind: 1000**place for place, kind in enumerate(reversed(Severity))}
    return sum(weights[finding.severity] for finding in findings)


def for_page(snapshots: Sequence[Snapshot], options: ViewOptions) -> dict[str, object]:
    """The table as the page takes it: its columns, and of each run its name and the colour of its curves, if drawn."""
    drawn = options.drawn(snapshots)
    places = {id(snapshot): place for place, snapshot in enumerate(drawn)}
    colours = [
        to_hex(run_colour(options, places[id(snapshot)], len(drawn))) if id(snapshot) in places else None
        for snapshot in snapshots
    ]
    return {
        "columns": [
            {"name": plain(column.name), "right": column.right, "cells": column.cells, "sorts": _sorts(column)}
            for column in (columns(snapshots)[:_COLUMNS] if len(snapshots) > 1 else ())
        ],
        "names": [snapshot.name for snapshot in snapshots],
        "colours": colours,
        "most": MOST_DRAWN,
    }


def _sorts(column: Column) -> list[object]:
    """What rows are sorted by; JSON has no NaN."""
    return [None if isinstance(key, float) and not math.isfinite(key) else key for key in column.sorts]


def marked(column: Column, marks: Sequence[str]) -> Column:
    """The column of names with the marks of their curves before them."""
    return dataclasses.replace(column, cells=[f"{mark} {cell}" for mark, cell in zip(marks, column.cells, strict=True)])
