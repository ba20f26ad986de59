"""The command ``viewer``: the only place on this side that prints errors and sets exit codes.

Exit codes: 0 done, 1 the run or the file cannot be used, 2 the command line is wrong, 130 ended with Ctrl-C.
"""

import sys
import warnings
from pathlib import Path
from typing import Annotated

import polars as pl
import typer

from tracer.log.run import STATE_WORDS, LogError, holds_run, newest_run, open_run, state
from viewer.live import Live, Snapshot
from viewer.look import Look, View

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def watch(
    run: Annotated[Path | None, typer.Argument(help="The run's folder. Default: the newest under runs/.")] = None,
    save: Annotated[Path | None, typer.Option(help="Write the figure to FILE.png, .svg or .pdf.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="With --save: again on every change.")] = False,
    metric: Annotated[list[str] | None, typer.Option(help="Draw this metric too; may be repeated.")] = None,
    view: Annotated[View, typer.Option(help="layers: the gradients of all parameters at a glance.")] = View.OVERVIEW,
    smoothing: Annotated[
        float, typer.Option(min=0.0, max=0.999, help="Of metrics, as TensorBoard's; 0 for none. Extremes never are.")
    ] = 0.6,
) -> None:
    """Watch a run: its loss, accuracy and extremes, redrawn as rows arrive.

    It opens a window where there is a display. It may start before the run exists, or long after it has ended.
    """
    path = run or newest_run(Path("runs"))
    if path is None:
        raise LogError("there is no run under runs/ yet: name the run's folder, as in `viewer runs/resnet18`")
    if follow and save is None:
        raise typer.BadParameter("--follow needs --save FILE")
    if save is not None:
        _check_file(save)
    look = Look(view, tuple(metric or ()), smoothing)
    live = Live(path, view)
    try:
        if save is not None and not follow:
            _write_once(live, save, look)
        elif save is not None:
            _write_always(live, save, look)
        else:
            _show(live, look)
    finally:
        live.close()


def _check_file(file: Path) -> None:
    from viewer.files import FORMATS

    if file.suffix[1:].lower() not in FORMATS:
        raise typer.BadParameter(f"--save {file}: the name must end in one of .{', .'.join(FORMATS)}")
    if not file.parent.is_dir():
        raise typer.BadParameter(f"--save {file}: there is no folder {file.parent}")


def _write_once(live: Live, save: Path, look: Look) -> None:
    from viewer.files import FigureFile

    open_run(live.path)
    while (snapshot := live.refresh()) is None:
        live.wait()
    FigureFile(save, look).write(snapshot)
    _say(f"{_words(snapshot)}: {save}")


def _write_always(live: Live, save: Path, look: Look) -> None:
    from viewer.files import FigureFile
    from viewer.files import follow as follow_run

    _say_which(live.path)
    _say(f"drawing into {save} on every change; Ctrl-C ends it")
    snapshot = follow_run(live, FigureFile(save, look))
    _say(f"{_words(snapshot)}: {save}")


def _show(live: Live, look: Look) -> None:
    from viewer import window

    if window.backend() is None:
        save = Path(f"{live.path.resolve().name}.png")
        _say(f"no window can be opened here, so the figure goes into a file instead: {save}")
        _write_always(live, save, look)
        return
    _say_which(live.path)
    window.show(live, look)


def _say_which(path: Path) -> None:
    """Whether the run is yet to come, going on, or over."""
    if not holds_run(path):
        _say(f"{path} holds no run yet: waiting for it")
        return
    open_run(path)
    _say(f"{path} is {STATE_WORDS[state(path)]}")


def _words(snapshot: Snapshot) -> str:
    step = "without a step" if snapshot.last_step is None else f"at step {snapshot.last_step}"
    return f"{snapshot.name} is {STATE_WORDS[snapshot.state]} {step}"


def _say(words: str) -> None:
    print(f"viewer: {words}", flush=True)


def main() -> None:
    """Run the command; every error becomes one line and an exit code."""
    # A name in a script that matplotlib's font lacks is drawn as boxes; nobody can do anything about it here.
    warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
    try:
        app(prog_name="viewer")
    except KeyboardInterrupt:
        sys.exit(130)
    except LogError as error:
        print(f"viewer: {error}", file=sys.stderr)
        sys.exit(1)
    except (OSError, pl.exceptions.PolarsError) as error:
        print(f"viewer: {type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
