"""The command ``viewer check``: the findings of runs, in paragraphs or as JSON, and as an exit code for scripts.

Exit codes: 0 no errors, 1 warnings, with ``--strict``, 2 errors, 3 a run cannot be read, or the command
line is wrong; 130 ended with Ctrl-C.
"""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from tracer.log.text import say_wrong_use
from viewer.options import MERGED, ViewOptions
from viewer.snapshot import Severity

_WARNINGS, _ERRORS, _UNCHECKED = 1, 2, 3

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

- `viewer check runs/a --on-finding 'notify-send "$GRADWATCH_TEXT"'`: a command for each finding
"""


class _Command(TyperCommand):
    """A command whose wrong use has an exit code of its own: 2 is for errors in a run."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        try:
            code = super().main(*arguments, **options | {"standalone_mode": False})
        except SystemExit:
            # Nobody reads what it prints, as in `| head -1`: typer and rich would end with the code of warnings.
            code = _UNCHECKED
        except typer.BadParameter.__base__ as error:  # type: ignore[misc]
            say_wrong_use(error)
            code = _UNCHECKED
        sys.exit(code)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")


@app.command(epilog=_EPILOG, cls=_Command)
def check(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="A run's folder or URI, or several, or a folder of runs; or a CSV or trainer_state.json of another "
            "tool. Default: the newest under runs/."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All runs with their findings, as JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with code 1 where there are warnings.")] = False,
    rule: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Another threshold, as dead.rows=500; may be repeated; see --rules."),
    ] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="One rank's number: only what it wrote.")] = None,
    loss: Annotated[
        str, typer.Option(metavar="REGEX", help="The metrics that are losses; else their names say it.")
    ] = "",
    accuracy: Annotated[str, typer.Option(metavar="REGEX", help="Likewise, accuracies.")] = "",
    rules: Annotated[bool, typer.Option("--rules", help="List every threshold and what it means, and end.")] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Stay with live runs: until the first error, or until all have ended.")
    ] = False,
    on_finding: Annotated[
        str,
        typer.Option(
            metavar="COMMAND", help="Run this once for each new finding, which is in GRADWATCH_TEXT and others."
        ),
    ] = "",
    on_severity: Annotated[
        Severity, typer.Option(help="How bad a finding has to be for the command.")
    ] = Severity.ERROR,
) -> None:
    """Say what went wrong in runs, where it began, and since when: NaN, exploding or vanishing gradients, and so on.

    It ends with code 2 where there are errors, so that CI can fail a training.
    """
    # Slow to import: --help is answered at once.
    from viewer.rules.findings import with_limits
    from viewer.surfaces import report
    from viewer.surfaces.actions import Actions

    if rules:
        report.list_thresholds(as_json)
        return
    try:
        limits = with_limits(rule or ())
        options = ViewOptions(rank=MERGED if rank is None else str(rank), loss=loss, accuracy=accuracy)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    actions = Actions(on_finding, on_severity) if on_finding else None
    severities, unread = report.check(runs or (), options, limits, follow, as_json, actions)
    if "error" in severities:
        raise typer.Exit(_ERRORS)
    if unread:
        raise typer.Exit(_UNCHECKED)
    if strict and "warning" in severities:
        raise typer.Exit(_WARNINGS)
