"""Python as a surface: a figure of runs for a paper, and in a notebook a picture that follows a training.

The kernel that shows a run often trains it, too. So a thread of its own draws, and rests forty times as long as drawing
took. At the end of a cell the picture of a run that is over is waited for, so that a saved notebook holds it.
"""

import contextlib
import dataclasses
import io
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tracer.log.place import Place
from tracer.log.ranks import state
from tracer.log.read import with_rows
from tracer.log.run import LogError, open_run, without_inner_calls
from tracer.log.store import at
from tracer.log.text import in_notebook, plain
from viewer.draw.theme import SIZE_INCHES, own_settings
from viewer.draw.views import Shown, fill
from viewer.options import View, ViewOptions, matching, see_that_it_fits
from viewer.read.changes import changes, no_row_of, nothing_matches, once
from viewer.read.runs import Runs
from viewer.snapshot import Snapshot

if TYPE_CHECKING:
    from IPython.core.events import EventManager
    from IPython.display import DisplayHandle

_Folder = str | os.PathLike[str]

_LEAST_SECONDS = 0.5
# Python runs one thread at a time: with this rest, the training keeps 97 % of the time, however slow drawing is. What
# polars takes in threads of its own is not counted, and is less than half of a percent.
_REST = 40
# How long the end of a cell waits for the last picture of runs that are over.
_LAST_SECONDS = 30.0


class _Canvas(FigureCanvasAgg):
    """A canvas that prints as everywhere: IPython's inline pictures do not ask the figure to save itself."""

    def print_figure(self, *arguments: Any, **options: Any) -> Any:
        """Print the figure under our settings."""
        with own_settings():
            return super().print_figure(*arguments, **options)


class _Picture(Figure):
    """A figure that a notebook shows although pyplot does not know it."""

    def __init__(self) -> None:
        with own_settings():
            super().__init__(figsize=SIZE_INCHES)
            _Canvas(self)

    def draw(self, renderer: RendererBase) -> None:
        """Draw the figure as it looks everywhere, whatever settings the user has made by then."""
        with own_settings():
            super().draw(renderer)

    def savefig(self, *arguments: Any, **options: Any) -> None:
        """Save the figure, likewise."""
        with own_settings():
            super().savefig(*arguments, **options)

    def _repr_png_(self) -> bytes:
        # As ``savefig`` makes it, which draws twice for the layout.
        canvas = self.canvas
        assert isinstance(canvas, FigureCanvasAgg), "each picture has a canvas of that kind"
        with io.BytesIO() as file:
            canvas.print_png(file)
            return file.getvalue()


@without_inner_calls
def figure(run: _Folder | Sequence[_Folder], view: str | None = None, **options: Any) -> Figure:
    """A figure of a run as it is now, or of several side by side: ``viewer.figure("runs/a").savefig("a.pdf")``.

    Args:
        run: A run's folder, or several, or a folder of runs.
        view: ``"overview"``, ``"layers"``, ``"param"`` or ``"activations"``; without it the overview, or ``param``
            where that is given.
        options: How it is shown: the other fields of ``viewer.options.ViewOptions``, such as ``metrics=["lr"]``.

    Returns:
        A figure that pyplot does not know, and which need not be closed.

    Raises:
        LogError: a run does not exist or cannot be read, or no parameter has the name that is asked for.
        TypeError: there is no such field of ``ViewOptions``, or it is of another type.
        ValueError: a field cannot have this value.
    """
    runs = Runs(_paths(run), _options(view, options))
    snapshots = once(runs)
    picture = _Picture()
    with own_settings():
        fill(picture, runs.options).update(snapshots, time.time())
    return picture


@without_inner_calls
def show(run: _Folder | Sequence[_Folder], view: str | None = None, **options: Any) -> "Showing":
    """Show a run, or several, in a notebook: the picture below the cell follows them while cells and trainings run.

    It may begin before the run exists. It ends by itself when all runs have closed, or a minute after they died. It
    takes at most 3 % of a core, so each picture comes some seconds after the one before.
    The kernel reads with polars from then on, and polars hangs in a process that is forked from it: workers of a
    DataLoader that use polars need ``multiprocessing_context="spawn"``.

    Args:
        run: A run's folder, or several, or a folder of runs.
        view: As in ``figure``.
        options: As in ``figure``.

    Returns:
        The picture; ``stop()`` ends it.

    Raises:
        LogError: a run that exists has no such parameter.
        RuntimeError: this is no notebook.
        TypeError: as in ``figure``.
        ValueError: as in ``figure``.
    """
    runs = Runs(_paths(run), _options(view, options))
    _check_params(runs)
    if not in_notebook():
        raise RuntimeError("viewer.show needs a notebook; elsewhere use viewer.figure, or the command `viewer`")
    from IPython.core.getipython import get_ipython
    from IPython.display import display

    verb = "waiting for" if runs.awaited else "reading"
    text = plain(f"viewer: {verb} {', '.join(map(str, runs.paths))}")
    handle, shell = display({"text/plain": text}, raw=True, display_id=True), get_ipython()
    assert handle is not None, "a display with an id has a handle"
    assert shell is not None, "a notebook has a shell"
    return Showing(runs, handle, shell.events)


class Showing:
    """A picture in a notebook that follows runs until they are over or it is stopped; ``show`` returns it."""

    def __init__(self, runs: Runs, handle: "DisplayHandle", events: "EventManager") -> None:
        self._runs = runs
        self._handle = handle
        self._events = events
        self._drawn = False
        # Set once there is no time to rest.
        self._hurry = threading.Event()
        self._thread = threading.Thread(target=self._run, name="viewer-notebook", daemon=True)
        self._thread.start()
        events.register("post_run_cell", self._end_cell)

    def stop(self) -> None:
        """End it now, with a last picture of the runs as they are."""
        self._runs.stop()
        self._hurry.set()
        self._thread.join()

    def _end_cell(self, _: object) -> None:
        """At the end of a cell, wait for the last picture of runs that have closed: the notebook may be saved then."""
        with contextlib.suppress(OSError):
            if self._thread.is_alive() and {state(path) for path in self._runs.listed().values()} == {"closed"}:
                self._hurry.set()
                self._runs.wake()
                self._thread.join(_LAST_SECONDS)
        if not self._thread.is_alive():
            self._events.unregister("post_run_cell", self._end_cell)

    def _run(self) -> None:
        with contextlib.closing(self._runs):
            try:
                self._follow()
            except Exception as error:
                self._handle.update({"text/plain": plain(f"viewer: {error}")}, raw=True)

    def _follow(self) -> None:
        picture = _Picture()
        with own_settings():
            view = fill(picture, self._runs.options)
        before = time.thread_time()
        for snapshots, fresh in changes(self._runs):
            opened = not self._drawn
            if fresh:
                self._draw(picture, view, snapshots)
            # To open a long run takes its time, once.
            taken = 0.0 if opened else time.thread_time() - before
            self._hurry.wait(max(_LEAST_SECONDS, _REST * taken))
            before = time.thread_time()
        if self._runs.stopping.is_set() and self._drawn:
            last = self._runs.refresh()
            if (last := self._runs.examine() or last) is not None:
                self._draw(picture, view, last)

    def _draw(self, picture: _Picture, view: Shown, snapshots: Sequence[Snapshot]) -> None:
        if not self._drawn:
            _check_params(self._runs)
        with own_settings():
            view.update(snapshots, time.time())
            self._put(picture)
        self._drawn = True

    def _put(self, picture: _Picture) -> None:
        from IPython.display import Image

        self._handle.update(Image(data=picture._repr_png_(), format="png"))

    def _ipython_display_(self) -> None:
        """Display nothing as the last value of a cell: the picture is shown already."""


def _check_params(runs: Runs) -> None:
    """Raise ``LogError`` for a parameter, or a pattern of parameters, that no run has, once all runs have begun."""
    options = runs.options
    if runs.awaited or not (options.param or options.params):
        return
    names: dict[str, None] = {}
    for path in runs.listed().values():
        # What is wrong with a run that cannot be read is said in the place of the picture.
        with contextlib.suppress(LogError, OSError):
            names |= dict.fromkeys(param["name"] for param in open_run(path).info["params"])
            if not _holds(names, options):
                # Those that have joined the model later.
                names |= dict.fromkeys(with_rows(path, "extremes", _params_of))
    if names and not _holds(names, options):
        first = ", ".join(runs.listed())
        found = list(names)
        raise no_row_of(options.param, first, found) if options.param else nothing_matches(options.params, found)


def _holds(names: Iterable[str], options: ViewOptions) -> bool:
    """Whether the parameters that are asked for are among these names."""
    return options.param in ("", *names) and bool(matching(list(names), options.params))


def _params_of(rows: pl.LazyFrame) -> list[str]:
    return rows.select(pl.col("param").cast(pl.String).unique()).collect()["param"].to_list()


def _paths(run: _Folder | Sequence[_Folder]) -> list[Place]:
    paths = [at(run)] if isinstance(run, (str, os.PathLike)) else list(map(at, run))
    if not paths:
        raise ValueError("no run is named: give a run's folder, as in 'runs/resnet18'")
    return paths


def _options(view: str | None, given: Mapping[str, Any]) -> ViewOptions:
    names = [field.name for field in dataclasses.fields(ViewOptions) if field.name not in ("run", "view", "zoom")]
    for name in given:
        if name not in names:
            raise TypeError(f"there is no {name!r}: there are view, {', '.join(names)}")
    try:
        options = ViewOptions(view or ("param" if given.get("param") else "overview"), **given)  # type: ignore[arg-type]
        see_that_it_fits(given.get("statistic", ""), options)
    except (TypeError, ValueError) as error:
        raise error.with_traceback(None) from None
    if options.view is View.PARAM and not options.param:
        raise ValueError("view='param' needs param, a parameter's name")
    return options
