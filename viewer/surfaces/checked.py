"""Findings in Python: a table that a notebook shows, and that polars takes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape

import polars as pl

from tracer.log.ranks import STATE_WORDS
from tracer.log.run import without_inner_calls
from tracer.log.store import at, from_here
from tracer.log.text import plain
from viewer.options import ViewOptions
from viewer.rules.findings import LIMITS
from viewer.snapshot import Snapshot
from viewer.surfaces.report import read

_COLOURS = {"error": "#b00020", "warning": "#8a5a00", "note": "#00608a"}
_COLUMNS = ("severity", "finding", "since step", "until", "what, and what people usually try")
_SCHEMA: dict[str, pl.DataType | pl.datatypes.DataTypeClass] = {
    "run": pl.String,
    "severity": pl.String,
    "kind": pl.String,
    "param": pl.String,
    "first_step": pl.Int64,
    "last_step": pl.Int64,
    "resolved": pl.Boolean,
    "sentence": pl.String,
    "advice": pl.String,
    "params": pl.List(pl.String),
    "batches": pl.List(pl.Struct({"name": pl.String, "step": pl.Int64, "rank": pl.Int64, "value": pl.Int64})),
}


@without_inner_calls
def check(run: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> "Checked":
    """The findings of a run as it is now, or of several: what went wrong, where it began, and what people usually try.

    Args:
        run: A run's folder or URI, or several, or a folder of runs; or a CSV or ``trainer_state.json`` of another tool.

    Returns:
        What a notebook shows as a table and ``print`` as text; its ``frame`` is a polars DataFrame.

    Raises:
        LogError: the only run does not exist, or cannot be read. Of several, it is told what is wrong with it.
        ValueError: no run is named.
    """
    paths = [at(run)] if isinstance(run, (str, os.PathLike)) else list(map(at, run))
    if not paths:
        raise ValueError("no run is named: give a run's folder, as in 'runs/resnet18'")
    failed: dict[str, str] = {}
    checked = read(paths, LIMITS, ViewOptions(), failed)
    return Checked(tuple(replace(each, name=plain(from_here(at(each.name)))) for each in checked), failed)


@dataclass(frozen=True, repr=False)
class Checked:
    """Runs with their findings.

    Attributes:
        runs: The runs, each with its state and its ``findings``, the worst first.
        unread: Those of several that could not be read: their folders, and the reasons.
    """

    runs: tuple[Snapshot, ...]
    unread: Mapping[str, str]

    @property
    def frame(self) -> pl.DataFrame:
        """The findings of all runs, a row each."""
        names = [name for name in _SCHEMA if name != "run"]
        rows = [
            {"run": run.name, **{name: value for name, value in asdict(finding).items() if name in names}}
            for run in self.runs
            for finding in run.findings
        ]
        return pl.DataFrame(rows, schema=_SCHEMA)

    def __repr__(self) -> str:
        lines = []
        for run in self.runs:
            lines.append(_heading(run))
            for finding in run.findings:
                lines.append(f"  {finding.severity} at step {finding.first_step:,}: {plain(finding.sentence)}")
                lines += [f"    {finding.advice}"] if finding.advice else []
        return "\n".join([*lines, *self._problems()])

    def _repr_html_(self) -> str:
        tables = [_table(run) if run.findings else _paragraph(_heading(run)) for run in self.runs]
        return "".join([*tables, *map(_paragraph, self._problems())])

    def _problems(self) -> Iterator[str]:
        return (plain(reason) for reason in self.unread.values())


def _heading(run: Snapshot) -> str:
    where = "without a step" if run.last_step is None else f"at step {run.last_step:,}"
    late = "" if run.complete else "; its last rows are still to arrive"
    return f"{run.name}: {STATE_WORDS[run.state]} {where}{late}{'' if run.findings else '; nothing found'}"


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _table(run: Snapshot) -> str:
    rows = []
    for finding in run.findings:
        severity = f'<b style="color:{_COLOURS[finding.severity]}">{finding.severity}</b>'
        what = f"{escape(plain(finding.sentence))}<br><i>{escape(finding.advice)}</i>"
        cells = severity, escape(finding.kind), f"{finding.first_step:,}", f"{finding.last_step:,}", what
        rows.append("".join(f'<td style="text-align:left;vertical-align:top">{cell}</td>' for cell in cells))
    head = "".join(f'<th style="text-align:left">{column}</th>' for column in _COLUMNS)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    caption = f'<caption style="text-align:left">{escape(_heading(run))}</caption>'
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
