"""The command ``viewer``: the only place on this side that prints errors and sets exit codes.

Exit codes: 0 done, 1 the run or the file cannot be used, 2 the command line is wrong, 130 ended with Ctrl-C.

Slow modules are imported where they are used, so that ``--help`` and a wrong option are answered at once.
"""

import contextlib
import difflib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracer.log.text import failure, plain, print_anything, say_wrong_use
from viewer.options import MERGED, Histograms, Scale, View, ViewOptions, XAxis, see_that_it_fits

if TYPE_CHECKING:
    from tracer.log.place import Place
    from viewer.read.runs import Runs
    from viewer.snapshot import Snapshot

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown")

# A list of one paragraph an item: every typer since 0.17.5 shows it line by line.
_EPILOG = """
Exit codes: 0 done, 1 the run or the file cannot be used, 2 the command line is wrong, 130 ended with Ctrl-C.

What people need:

- `viewer`: the newest run under runs/

- `viewer runs/a runs/b`: in one figure; runs/ for all

- `viewer runs/a --view layers`: every parameter at a glance; `--view activations`: every module's outputs

- `viewer runs/a --web`: in the browser; over ssh: --text

- `viewer runs/a --save a.png --follow`: into a file: .png, .svg, .pdf or .csv

- `viewer diff runs/a runs/b`: where two runs part; see diff --help

- `viewer check runs/a`: what went wrong; see check --help
"""


@app.command(epilog=_EPILOG)
def watch(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="A run's folder or URI, or several, or a folder of runs. Default: the newest under runs/."),
    ] = None,
    only: Annotated[str, typer.Option("--runs", metavar="REGEX", help="Only runs whose name matches.")] = "",
    view: Annotated[
        View | None,
        typer.Option(help="layers: all parameters at a glance; param: one of them; activations: modules' outputs."),
    ] = None,
    param: Annotated[str, typer.Option(help="Show this parameter.")] = "",
    params: Annotated[str, typer.Option(metavar="REGEX", help="Only parameters whose name matches.")] = "",
    statistic: Annotated[
        str,
        typer.Option(
            help="The layers' statistic: grad_absmax unless given, or any recorded column, as update_ratio; of "
            "activations std unless given, or absmax, min, max, mean, zeros, saturated, dead."
        ),
    ] = "",
    metric: Annotated[str, typer.Option(metavar="REGEX", help="Only metrics whose name matches.")] = "",
    hide: Annotated[str, typer.Option(metavar="REGEX", help="No metric whose name matches.")] = "",
    loss: Annotated[
        str, typer.Option(metavar="REGEX", help="The metrics that are losses; else their names say it.")
    ] = "",
    accuracy: Annotated[str, typer.Option(metavar="REGEX", help="Likewise, accuracies.")] = "",
    smoothing: Annotated[
        float, typer.Option(help="Smooth metrics as TensorBoard does; 0: not at all. Extremes never are.")
    ] = ViewOptions.smoothing,
    x: Annotated[XAxis, typer.Option(help="The x axis.")] = XAxis.STEP,
    scale: Annotated[
        Scale, typer.Option(help="The y axes; auto: linear for metrics and histograms, symlog for extremes.")
    ] = Scale.AUTO,
    rank: Annotated[
        str, typer.Option(help="One rank's number, for curves and findings; spread: how far ranks are apart.")
    ] = MERGED,
    attempt: Annotated[
        int | None,
        typer.Option(min=0, help="A run that was restarted, as it was at the end of this attempt; 0 is the first."),
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="Light on dark.")] = False,
    histograms: Annotated[
        Histograms, typer.Option(help="A parameter's histograms: a heat map, or mountains, the newest in front.")
    ] = Histograms.MAP,
    findings: Annotated[bool, typer.Option(help="List and mark what is wrong with the runs.")] = True,
    rule: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="Another threshold of findings; `viewer check --rules` lists all."),
    ] = None,
    web: Annotated[bool, typer.Option("--web", help="A page for the browser, with every control.")] = False,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The page's port, 0 for any free one; implies --web.")
    ] = None,
    host: Annotated[str, typer.Option(help="Where the page is served, 127.0.0.1 unless given; implies --web.")] = "",
    new_token: Annotated[
        bool,
        typer.Option("--new-token", help="Give the page another address: those of before lead nowhere; implies --web."),
    ] = False,
    save: Annotated[
        Path | None, typer.Option(help="Write the figure to FILE.png, .svg or .pdf, or its numbers to FILE.csv.")
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="In this terminal, redrawn in place; in a pipe, a line at each change.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="With --save: again on every change.")] = False,
    poll: Annotated[
        float | None,
        typer.Option(min=0.1, max=3600, metavar="SECONDS", help="Look this often, where the disk gives no events."),
    ] = None,
) -> None:
    """Watch runs: their loss, accuracy and extremes, redrawn as rows arrive.

    It opens a window where there is a display, and serves a page for the browser where there is none. It may start
    before a run exists, or long after it has ended.
    """
    from viewer.read.runs import Runs, named
    from viewer.rules.findings import with_limits

    paths = named(runs or (), "viewer")
    if follow and save is None:
        raise typer.BadParameter("--follow needs --save FILE")
    web = web or port is not None or bool(host) or new_token
    if web + text + (save is not None) > 1:
        raise typer.BadParameter("--web, --text and --save are three ways to show a figure: give one of them")
    backend = _own_matplotlib()
    if save is not None:
        _check_file(save)
    wanted = view or (View.PARAM if param else View.OVERVIEW)
    if wanted is View.PARAM and not param:
        raise typer.BadParameter("--view param needs --param NAME")
    if wanted is not View.OVERVIEW and len(paths) > 1:
        raise typer.BadParameter(f"--view {wanted} shows one run, and {len(paths)} are given: name one of them")
    try:
        options = ViewOptions(
            wanted,
            "",
            params,
            param,
            statistic or ViewOptions.statistic,
            rank,
            metric,
            hide,
            loss,
            accuracy,
            smoothing,
            x,
            scale,
            dark,
            findings,
            "" if attempt is None else str(attempt),
            histograms=histograms,
        )
        see_that_it_fits(statistic, options)
        ViewOptions(params=only)
        limits = with_limits(rule or ())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    open_runs = partial(Runs, paths, only=only, poll_seconds=poll, monitors={}, limits=limits)
    if save is not None:
        _save(open_runs(options), save, follow)
    elif text:
        _show_text(open_runs(options))
    else:
        _show(open_runs, paths, options, backend, web, host, port, new_token)


def _own_matplotlib() -> str:
    """Let matplotlib draw by its defaults, whatever the user has set; returns the backend that was asked for."""
    # An unknown one would end the import of matplotlib, and only a window needs one.
    backend = os.environ.pop("MPLBACKEND", "")
    # It speaks of the user's matplotlibrc.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        import matplotlib
    except (OSError, UnicodeError):
        # A matplotlibrc that cannot be read. One in the current folder comes before that of the environment.
        os.environ["MATPLOTLIBRC"] = os.devnull
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]
        with contextlib.chdir(os.sep):
            import matplotlib  # noqa: F401
    from viewer.draw.theme import use_own_settings

    use_own_settings()
    return backend


def _show(
    open_runs: Callable[[ViewOptions], "Runs"],
    paths: Sequence["Place"],
    options: ViewOptions,
    backend: str,
    web: bool,
    host: str,
    port: int | None,
    new_token: bool,
) -> None:
    _say_which(paths)
    if not web:
        from viewer.surfaces import window

        if window.backend(backend) is not None:
            window.show(open_runs, options, ", ".join(map(str, paths)))
            return
        _say("no window can be opened here, so the figure is in a page instead")
    from viewer.surfaces.web import serve

    serve(open_runs, options, host, port, new_token, _say)


def _show_text(runs: "Runs") -> None:
    from viewer.read.changes import check_names
    from viewer.surfaces import terminal

    _say_which(runs.paths)
    with contextlib.closing(runs):
        check_names(runs.options, terminal.show(runs))


def _check_file(file: Path) -> None:
    from viewer.surfaces.files import FORMATS

    if file.suffix[1:].lower() not in FORMATS:
        raise typer.BadParameter(f"--save {file}: the name must end in one of .{', .'.join(FORMATS)}")
    if not file.parent.is_dir():
        raise typer.BadParameter(f"--save {file}: there is no folder {file.parent}")


def _save(runs: "Runs", save: Path, follow: bool) -> None:
    from tracer.log.ranks import STATE_WORDS
    from viewer.surfaces.files import FigureFile
    from viewer.surfaces.files import follow as follow_runs

    if follow:
        _say_which(runs.paths)
        _say(f"drawing into {save} on every change; Ctrl-C ends it")
        with contextlib.closing(runs):
            snapshots = follow_runs(runs, FigureFile(save, runs.options))
    else:
        snapshots = _read(runs)
        FigureFile(save, runs.options).write(snapshots)
    for snapshot in snapshots:
        step = "without a step" if snapshot.last_step is None else f"at step {snapshot.last_step}"
        _say(f"{snapshot.name} is {STATE_WORDS[snapshot.state]} {step}: {save}")


def _read(runs: "Runs") -> "Sequence[Snapshot]":
    """Runs as they are now, read under a progress bar."""
    from rich.console import Console
    from rich.progress import Progress

    from viewer.read.changes import once

    console = Console(stderr=True)
    # A bar that is only disabled ends with an empty line in rich 13.
    console.quiet = not console.is_terminal
    with Progress(console=console, transient=True, auto_refresh=console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)
        return once(runs, lambda done, total: bar.update(task, completed=done, total=total))


def _say_which(paths: Sequence["Place"]) -> None:
    """Say of each run whether it is still to come, going on, or over."""
    from tracer.log.ranks import STATE_WORDS, state, sure
    from tracer.log.run import holds_run, open_run, runs_in
    from tracer.log.store import at, from_here

    for path in paths:
        inside = len(runs_in(path))
        if not holds_run(path):
            word = path.name if path == at(path.name) else ""
            near = difflib.get_close_matches(word, _COMMANDS, n=1) if not inside else []
            meant = f"; the command is `viewer {near[0]}`" if near else ""
            where = from_here(path)
            _say(f"{where} holds {inside} runs" if inside else f"{where} holds no run yet: waiting for it{meant}")
            continue
        open_run(path)
        _say(f"{from_here(path)} is {STATE_WORDS[state(path)] if sure(path) else 'there'}")


def _say(words: str) -> None:
    print(f"viewer: {plain(words)}", flush=True)


# The modules of the commands that the first argument may name. A folder of that name is ./check.
_COMMANDS = {"check": "viewer.surfaces.check", "diff": "viewer.diff.report"}


# What typer raises for a wrong command line; it does not export the name.
_WrongUseError: Any = typer.BadParameter.__base__


def main(arguments: Sequence[str] | None = None, name: str = "viewer") -> None:
    """Run the command; every error becomes one line and an exit code.

    Args:
        arguments: The words after the command's name; by default those that this process was started with.
        name: What the user called.

    Raises:
        SystemExit: always, with the exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words[0] if words and words[0] in _COMMANDS else None
    # A name in a script that matplotlib's font lacks is drawn as boxes; nobody can do anything about it here.
    warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
    print_anything()
    try:
        if command is None:
            sys.exit(app(words, prog_name=name, standalone_mode=False))
        called = importlib.import_module(_COMMANDS[command]).app
        sys.exit(called(words[1:], prog_name=f"{name} {command}", standalone_mode=False))
    except _WrongUseError as error:
        say_wrong_use(error)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        print(f"viewer: {_in_a_line(error)}", file=sys.stderr)
        # Codes 1 and 2 of these commands tell what they found.
        sys.exit(1 if command is None else 3)


def _in_a_line(error: Exception) -> str:
    """The message of an error whose cause is outside; an error of the viewer's own is raised again."""
    import polars as pl

    from tracer.log.run import LogError

    if isinstance(error, LogError):
        return str(error)
    if isinstance(error, (OSError, pl.exceptions.PolarsError)):
        return failure(error)
    raise error
