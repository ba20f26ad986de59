"""The command ``viewer check``: the findings of runs, as a table or as JSON, and as an exit code for scripts.

Exit codes: 0 no errors, 1 warnings, with ``--strict``, 2 errors, 3 a run cannot be read, or the command
line is wrong; 130 ended with Ctrl-C.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from rich.console import RenderableType

    from viewer.read.monitor import FindingsMonitor
    from viewer.read.waker import Waker
    from viewer.rules.evidence import Evidence
    from viewer.rules.rule import Limits
    from viewer.snapshot import Finding

    Checked = Mapping[str, tuple[Evidence, Sequence[Finding]]]

_WARNINGS, _ERRORS, _UNCHECKED = 1, 2, 3
# Covers file systems that give no events, and notices that a run has ended.
_RESCAN_SECONDS = 2.0
# A disk that hangs hides for so long that a training lives: nobody shall cancel it for that.
_SILENT_SECONDS = 60.0
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
    """A command whose wrong use ends with another code than what it finds."""

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
    as_json: Annotated[bool, typer.Option("--json", help="A list of runs with their findings, as JSON.")] = False,
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
    from viewer.read.waker import Waker
    from viewer.rules.findings import with_limits
    from viewer.snapshot import Severity

    if rules:
        _list_thresholds(as_json)
        return
    try:
        limits = with_limits(rule or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    failed: dict[str, str] = {}
    waker = Waker(events=follow)
    monitors = _monitors(runs or (), limits, rank, waker)
    found = _followed(monitors, waker, quiet=as_json) if follow else _checked(monitors, failed)
    found = _with_rank(found, monitors, failed)
    if as_json:
        those: list[object] = [_plain(name, rank, *each) for name, each in found.items()]
        print(json.dumps([*those, *({"run": name, "error": why} for name, why in failed.items())], indent=1))
    else:
        _print(_tables(found, "" if rank is None else f", rank {rank}"))
    severities = {finding.severity for _, those in found.values() for finding in those if _counts(finding)}
    if Severity.ERROR in severities:
        raise typer.Exit(_ERRORS)
    if failed:
        raise typer.Exit(_UNCHECKED)
    if strict and Severity.WARNING in severities:
        raise typer.Exit(_WARNINGS)


def _list_thresholds(as_json: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    from viewer.rules.findings import THRESHOLDS

    if as_json:
        print(json.dumps([{"name": name} | dataclasses.asdict(each) for name, each in THRESHOLDS.items()], indent=1))
        return
    table = Table("--rule", "default", "a finding where …", caption=_MEASURED)
    for name, each in THRESHOLDS.items():
        table.add_row(name, f"{each.default:g}", Text(each.meaning).append(f"\nwhy: {each.source}", "dim"))
    _print([table])


def _monitors(runs: Sequence[str], limits: "Limits", rank: int | None, waker: "Waker") -> dict[str, "FindingsMonitor"]:
    """A monitor of each run that is meant, by its name."""
    from tracer.log.run import LogError, holds_run, newest_run, runs_in
    from tracer.log.store import at
    from viewer.read.monitor import FindingsMonitor

    given = [at(run) for run in runs] or [path for path in [newest_run(at("runs"))] if path is not None]
    if not given:
        raise LogError("there is no run under runs/ yet: name the run's folder, as in `viewer check runs/resnet18`")
    paths = [path for folder in given for path in ([] if holds_run(folder) else runs_in(folder)) or [folder]]
    return {str(path): FindingsMonitor(path, limits, rank, waker) for path in paths}


def _checked(monitors: Mapping[str, "FindingsMonitor"], failed: dict[str, str]) -> "Checked":
    """What is found of runs; ``failed`` gets the reason why one of several cannot be read, which is said, too."""
    from tracer.log.run import LogError, open_run

    found = {}
    for name, monitor in monitors.items():
        evidence = None
        try:
            # None where a part was merged away at this moment, or the run was deleted.
            while evidence is None:
                open_run(monitor.path)
                evidence = monitor.refresh()
        except (LogError, OSError) as error:
            _fail(name, error, monitors, failed)
            continue
        found[name] = evidence, monitor.findings
    return found


def _with_rank(found: "Checked", monitors: Mapping[str, "FindingsMonitor"], failed: dict[str, str]) -> "Checked":
    """What was found of those runs that have the rank that is asked for; ``failed`` as ``_checked`` has it."""
    from tracer.log.ranks import ranks_in
    from tracer.log.run import LogError

    for name in found:
        monitor = monitors[name]
        if not _has_rank(monitor):
            there = ", ".join(map(str, ranks_in(monitor.path)))
            words = f"there are {there}" if there else "none has written yet"
            _fail(name, LogError(f"{monitor.path} has no rank {monitor.rank}: {words}"), monitors, failed)
    return {name: each for name, each in found.items() if name not in failed}


def _has_rank(monitor: "FindingsMonitor") -> bool:
    from tracer.log.ranks import ranks_in

    return monitor.rank is None or monitor.rank in ranks_in(monitor.path)


def _fail(name: str, error: Exception, monitors: Mapping[str, "FindingsMonitor"], failed: dict[str, str]) -> None:
    """Raise where there is nothing but this run; else say what is wrong with it, for the others to go on."""
    from viewer.words import plain

    if len(monitors) == 1:
        raise error
    failed[name] = str(error)
    print(f"viewer: {plain(str(error))}", file=sys.stderr)


def _followed(monitors: Mapping[str, "FindingsMonitor"], waker: "Waker", quiet: bool) -> "Checked":
    """Watch runs until one has an error, or all have ended; new findings are said as they come."""
    import polars as pl

    from tracer.log.run import LogError, holds_run
    from viewer.snapshot import Severity
    from viewer.words import plain

    for name, monitor in monitors.items():
        if not holds_run(monitor.path):
            print(f"viewer: {plain(name)} holds no run yet: waiting for it", file=sys.stderr)
    found: dict[str, tuple[Evidence, Sequence[Finding]]] = {}
    said = set()
    silent: dict[str, float] = {}

    def sure(name: str) -> bool:
        return time.monotonic() >= silent.get(name, -math.inf) + _SILENT_SECONDS

    try:
        while True:
            for name, monitor in monitors.items():
                if name in found and found[name][0].over and sure(name):
                    continue
                try:
                    # In this order: what is new is told once.
                    has_rank = _has_rank(monitor)
                    evidence = monitor.refresh()
                except (LogError, OSError, pl.exceptions.PolarsError):
                    # A disk that was there may come back: a training is not to be cancelled for that.
                    if name not in found:
                        raise
                    if name in silent:
                        silent[name] = time.monotonic()
                    continue
                if evidence is None:
                    continue
                if evidence.state == "stopped":
                    silent.setdefault(name, time.monotonic())
                else:
                    silent.pop(name, None)
                found[name] = evidence, monitor.findings if has_rank else ()
                for finding in found[name][1]:
                    news = name, *_news(finding)
                    if not quiet and news not in said:
                        print(_line(name, finding), flush=True)
                    said.add(news)
            over = all(name in found and found[name][0].over and sure(name) for name in monitors)
            counted = [each for name, (_, those) in found.items() for each in those if _counts(each, sure(name))]
            if over or any(finding.severity is Severity.ERROR for finding in counted):
                return found
            waker.wait(_RESCAN_SECONDS)
    finally:
        waker.close()


def _counts(finding: "Finding", sure: bool = True) -> bool:
    """Whether a finding decides on the exit code: not that a training was silent that lives, or may live."""
    return finding.kind != "silent" or (sure and not finding.over)


def _news(finding: "Finding") -> tuple[object, ...]:
    """What makes a finding worth a line: of a thousand parameters that have it one after the other, ten are."""
    doubled = len(finding.params).bit_length()
    return finding.kind, finding.severity, finding.numbers.get("metric"), doubled


def _line(name: str, finding: "Finding") -> str:
    from viewer.words import plain

    return plain(f"{name}: {finding.severity} at step {finding.first_step:,}: {finding.sentence}")


def _plain(name: str, rank: int | None, evidence: "Evidence", those: Sequence["Finding"]) -> dict[str, Any]:
    """A run's findings in what JSON knows."""
    findings = []
    for finding in those:
        numbers = {key: _number(number) for key, number in finding.numbers.items()}
        findings.append(dataclasses.asdict(finding) | {"numbers": numbers})
    return {
        "run": name,
        **({} if rank is None else {"rank": rank}),
        "state": evidence.state,
        "last_step": evidence.last_step,
        "complete": evidence.complete,
        "findings": findings,
    }


def _number(number: object) -> object:
    return None if isinstance(number, float) and not math.isfinite(number) else number


def _print(tables: Iterable["RenderableType"]) -> None:
    from rich.console import Console

    # Where the locale knows no lines and dots, question marks are better than an end.
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    console = Console(highlight=False)
    for each in tables:
        console.print(each)


def _tables(found: "Checked", part: str = "") -> Iterator["RenderableType"]:
    from rich.table import Column, Table
    from rich.text import Text

    from tracer.log.ranks import STATE_WORDS
    from viewer.words import plain

    for name, (evidence, those) in found.items():
        late = "" if evidence.complete else "; its last rows are still to arrive"
        where = f"at step {evidence.last_step:,}" if evidence.courses or evidence.curves else "without a step"
        how = f"{plain(name)}{part}: {STATE_WORDS[evidence.state]} {where}{late}"
        if not those:
            yield Text(f"{how}; nothing found")
            continue
        # In a narrow column a long name goes on in the next line.
        what = Column("what", overflow="fold")
        table = Table(
            "#", "", "finding", "since step", "until", what, title=Text(how), title_justify="left", show_lines=True
        )
        for number, finding in enumerate(those, 1):
            style = _STYLES[finding.severity]
            words = Text(plain(finding.sentence)).append(f"\n{finding.advice}" if finding.advice else "", "dim")
            steps = f"{finding.first_step:,}", f"{finding.last_step:,}"
            table.add_row(str(number), Text(finding.severity, style), finding.kind, *steps, words)
        yield table
