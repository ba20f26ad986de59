"""The command ``viewer check``: the findings of runs, as a table or as JSON, and as an exit code for scripts.

Exit codes: 0 nothing to worry about, 1 warnings, with ``--strict``, 2 errors, 3 a run cannot be read, 64 the command
line is wrong, 130 ended with Ctrl-C.
"""

import dataclasses
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from tracer.log.store import Place
    from viewer.evidence import Evidence, Witness
    from viewer.findings import Finding, Limits

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")

WARNINGS, ERRORS, UNREADABLE, MISUSED = 1, 2, 3, 64
_EPILOG = """
What people need:

    viewer check runs/a                              what went wrong, the worst first
    viewer check runs/a runs/b --json                for machines
    viewer check runs/a --strict                     in CI: warnings count, too
    viewer check runs/a --rule vanishing.threshold=1e-8
    viewer check runs/a --follow || scancel $ID      stays with a live run, ends at the first error

Exit codes: 0 no errors, 1 warnings (with --strict), 2 errors, 3 a run cannot be read, 64 the command line is wrong, 130
ended with Ctrl-C.
"""
# Covers file systems that give no events, and notices that a run ended.
_RESCAN_SECONDS = 2.0
# A network disk may show the last rows of a closed run so late.
_LATE_SECONDS = 60.0


@app.command(epilog=_EPILOG)
def check(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="A run's folder or URI, or several, or a folder of runs. Default: the newest under runs/."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of runs with their findings, as JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with code 1 where there are warnings.")] = False,
    rule: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Another threshold, as vanishing.threshold=1e-8; may be repeated."),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Stay with live runs; end at the first error, or once all have closed.")
    ] = False,
) -> None:
    """Say what went wrong in runs, where it began, and since when: exploding or vanishing gradients, NaN, dead layers, …

    It ends with code 2 where there are errors, so that CI can fail a training.
    """
    from viewer.findings import Severity, with_limits

    try:
        limits = with_limits(rule or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    witnesses = _witnesses(runs or ())
    if follow:
        found = _followed(witnesses, limits)
    else:
        found = {}
        for witness in witnesses:
            evidence = _read(witness)
            found[evidence.name] = evidence, _judged(evidence, limits)
    _print_json(found) if as_json else _print_tables(found)
    severities = {finding.severity for _, those in found.values() for finding in those}
    if Severity.ERROR in severities:
        raise typer.Exit(ERRORS)
    if strict and Severity.WARNING in severities:
        raise typer.Exit(WARNINGS)
