"""The command ``viewer check``: the findings of runs, as a table or as JSON, and as an exit code for scripts.

Exit codes: 0 no errors, 1 warnings, with ``--strict``, 2 errors, 3 a run cannot be read, or the command
line is wrong; 130 ended with Ctrl-C.
"""

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text
from typer.core import TyperCommand

from tracer.log.place import Place
from tracer.log.ranks import STATE_WORDS, ranks_in
from tracer.log.run import LogError, holds_run, open_run, runs_in
from viewer.options import MERGED, ViewOptions
from viewer.read.changes import changes
from viewer.read.monitor import FindingsMonitor
from viewer.read.runs import Runs, named
from viewer.rules.findings import THRESHOLDS, with_limits
from viewer.rules.rule import Limits
from viewer.snapshot import Finding, Severity, Snapshot
from viewer.words import plain

_WARNINGS, _ERRORS, _UNCHECKED = 1, 2, 3
_MEASURED = "measured: between small trainings with and without the illness, far from both"
_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}

_EPILOG = """
Exit codes: 0 no errors, 1 warnings (with --strict), 2 errors, 3 a run cannot be read, or the command line is wrong;
130 ended with Ctrl-C.

What people need:

- `viewer check runs/a`: the worst first

- `viewer check runs/a runs/b --json`: for machines

- `viewer check runs/a --strict`: in CI: warnings, too

- `viewer check runs/a --rule dead.rows=500`: another threshold

- `viewer check --rules`: all thresholds

- `viewer check runs/a --follow || scancel $ID`: until the first error
"""


class _Command(TyperCommand):
    """A command whose wrong use has an exit code of its own: 2 is for errors in a run."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        try:
            sys.exit(super().main(*arguments, **options | {"standalone_mode": False}))
        except typer.BadParameter.__base__ as error:  # type: ignore[misc]
            error.show()
            sys.exit(_UNCHECKED)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(epilog=_EPILOG, cls=_Command)
def check(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="A run's folder or URI, or several, or a folder of runs. Default: the newest under runs/."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All runs with their findings, as JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with code 1 where there are warnings.")] = False,
    rule: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Another threshold, as dead.rows=500; may be repeated; see --rules."),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="One rank's number: only what it wrote.")] = None,
    rules: Annotated[bool, typer.Option("--rules", help="List every threshold and what it means, and end.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Stay with live runs: until the first error, or until all have ended.")
    ] = False,
) -> None:
    """Say what went wrong in runs, where it began, and since when: NaN, exploding or vanishing gradients, and so on.

    It ends with code 2 where there are errors, so that CI can fail a training.
    """
    if rules:
        _list_thresholds(as_json)
        return
    try:
        limits = with_limits(rule or ())
        options = ViewOptions(rank=MERGED if rank is None else str(rank))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    paths = named(runs or (), "viewer check")
    failed: dict[str, str] = {}
    if follow:
        with contextlib.closing(Runs(paths, options, limits=limits)) as watched:
            checked = _followed(watched, quiet=as_json)
    else:
        checked = _read(paths, limits, rank, failed)
    checked = _with_rank(checked, rank, failed)
    if as_json:
        errors = [{"run": name, "error": reason} for name, reason in failed.items()]
        print(json.dumps([*(_plain(snapshot, rank) for snapshot in checked), *errors], indent=1))
    else:
        _print(_tables(checked, "" if rank is None else f", rank {rank}"))
    severities = {finding.severity for snapshot in checked for finding in snapshot.findings if _counts(finding)}
    if Severity.ERROR in severities:
        raise typer.Exit(_ERRORS)
    if failed:
        raise typer.Exit(_UNCHECKED)
    if strict and Severity.WARNING in severities:
        raise typer.Exit(_WARNINGS)


def _list_thresholds(as_json: bool) -> None:
    if as_json:
        thresholds = [{"name": name} | dataclasses.asdict(threshold) for name, threshold in THRESHOLDS.items()]
        print(json.dumps(thresholds, indent=1))
        return
    table = Table("--rule", "default", "a finding where …", caption=_MEASURED)
    for name, threshold in THRESHOLDS.items():
        meaning = Text(threshold.meaning).append(f"\nwhy: {threshold.source}", "dim")
        table.add_row(name, f"{threshold.default:g}", meaning)
    _print([table])


def _read(given: Sequence[Place], limits: Limits, rank: int | None, failed: dict[str, str]) -> list[Snapshot]:
    """Runs with their findings; ``failed`` gets the reason why one of several cannot be read."""
    paths = [path for folder in given for path in ([] if holds_run(folder) else runs_in(folder)) or [folder]]
    checked = []
    for path in dict.fromkeys(paths):
        monitor = FindingsMonitor(path, limits, rank)
        evidence = None
        try:
            # None where a part was merged away at this moment, or the run was deleted.
            while evidence is None:
                open_run(path)
                evidence = monitor.refresh()
        except (LogError, OSError) as error:
            _fail(str(path), error, len(paths) == 1, failed)
            continue
        last_step = evidence.last_step if evidence.courses or evidence.curves else None
        checked.append(
            Snapshot(
                name=str(path),
                state=evidence.state,
                last_step=last_step,
                complete=evidence.complete,
                ranks=tuple(ranks_in(path)),
                findings=monitor.findings,
            )
        )
    return checked


def _with_rank(checked: Sequence[Snapshot], rank: int | None, failed: dict[str, str]) -> list[Snapshot]:
    """The runs that have the rank; ``failed`` gets the others."""
    for snapshot in checked:
        if not _has_rank(snapshot, rank):
            written = ", ".join(map(str, snapshot.ranks))
            words = f"there are {written}" if written else "none has written yet"
            error = LogError(f"{snapshot.name} has no rank {rank}: {words}")
            _fail(snapshot.name, error, len(checked) + len(failed) == 1, failed)
    return [snapshot for snapshot in checked if snapshot.name not in failed]


def _has_rank(snapshot: Snapshot, rank: int | None) -> bool:
    return rank in (None, *snapshot.ranks)


def _fail(name: str, error: Exception, alone: bool, failed: dict[str, str]) -> None:
    """Raise the error of the only run; print that of one among several, so that the others are still checked."""
    if alone:
        raise error
    failed[name] = str(error)
    print(f"viewer: {plain(str(error))}", file=sys.stderr)


def _followed(runs: Runs, quiet: bool) -> list[Snapshot]:
    """Watch runs until one has an error, or all are over; print findings as they appear unless ``quiet``."""
    for path in runs.listed().values():
        if not holds_run(path):
            print(f"viewer: {plain(str(path))} holds no run yet: waiting for it", file=sys.stderr)
    said = set()
    checked: list[Snapshot] = []
    for snapshots, _ in changes(runs):
        checked = [_checked(snapshot, runs) for snapshot in snapshots]
        for snapshot in checked:
            for finding in snapshot.findings:
                news = snapshot.name, *_news(finding)
                if not quiet and news not in said:
                    print(_line(snapshot.name, finding), flush=True)
                said.add(news)
        over = {str(runs.places.get(name, name)) for name in runs.over}
        for snapshot in checked:
            sure = snapshot.state != "stopped" or snapshot.name in over
            if any(_counts(finding, sure) and finding.severity is Severity.ERROR for finding in snapshot.findings):
                return checked
    return checked


def _checked(snapshot: Snapshot, runs: Runs) -> Snapshot:
    """A run under its path, with the findings of the rank that is asked for."""
    if snapshot.problems and not snapshot.ranks:
        # It could not be read even once: only a disk that was readable is waited for.
        raise LogError(snapshot.problems[0])
    findings = snapshot.findings if _has_rank(snapshot, runs.options.only_rank) else ()
    return replace(snapshot, name=str(runs.places.get(snapshot.name, snapshot.name)), findings=findings)


def _counts(finding: Finding, sure: bool = True) -> bool:
    """Whether a finding decides on the exit code: silence does not while the training lives or may live."""
    return finding.kind != "silent" or (sure and not finding.over)


def _news(finding: Finding) -> tuple[object, ...]:
    """The parts of a finding whose change is worth a line; of its parameters only each doubling is."""
    doubled = len(finding.params).bit_length()
    return finding.kind, finding.severity, finding.numbers.get("metric"), doubled


def _line(name: str, finding: Finding) -> str:
    return plain(f"{name}: {finding.severity} at step {finding.first_step:,}: {finding.sentence}")


def _plain(snapshot: Snapshot, rank: int | None) -> dict[str, Any]:
    """A run's findings in types that JSON knows."""
    findings = []
    for finding in snapshot.findings:
        numbers = {key: _number(number) for key, number in finding.numbers.items()}
        findings.append(dataclasses.asdict(finding) | {"numbers": numbers})
    return {
        "run": snapshot.name,
        **({} if rank is None else {"rank": rank}),
        "state": snapshot.state,
        "last_step": snapshot.last_step or 0,
        "complete": snapshot.complete,
        "findings": findings,
    }


def _number(number: object) -> object:
    return None if isinstance(number, float) and not math.isfinite(number) else number


def _print(tables: Iterable[RenderableType]) -> None:
    # Where the locale has no letter for lines and dots, print question marks.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    console = Console(highlight=False)
    for table in tables:
        console.print(table)


def _tables(checked: Iterable[Snapshot], part: str = "") -> Iterator[RenderableType]:
    for snapshot in checked:
        late = "" if snapshot.complete else "; its last rows are still to arrive"
        where = "without a step" if snapshot.last_step is None else f"at step {snapshot.last_step:,}"
        how = f"{plain(snapshot.name)}{part}: {STATE_WORDS[snapshot.state]} {where}{late}"
        if not snapshot.findings:
            yield Text(f"{how}; nothing found")
            continue
        # In a narrow column a long name goes on in the next line.
        what = Column("what", overflow="fold")
        table = Table(
            "#", "", "finding", "since step", "until", what, title=Text(how), title_justify="left", show_lines=True
        )
        for number, finding in enumerate(snapshot.findings, 1):
            words = Text(plain(finding.sentence)).append(f"\n{finding.advice}" if finding.advice else "", "dim")
            severity = Text(finding.severity, _STYLES[finding.severity])
            steps = f"{finding.first_step:,}", f"{finding.last_step:,}"
            table.add_row(str(number), severity, finding.kind, *steps, words)
        yield table
