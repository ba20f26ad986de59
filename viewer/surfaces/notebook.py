"""Python as a surface: a figure of runs for a paper, and in a notebook a picture that follows a training.

The kernel that shows a run often trains it, too. So a thread of its own draws, and rests nine times as long as drawing
took.
"""

import contextlib
import dataclasses
import io
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tracer.log.place import Place
from tracer.log.store import at
from tracer.log.text import plain
from viewer.draw.theme import SIZE_INCHES, own_settings
from viewer.draw.views import fill
from viewer.options import View, ViewOptions
from viewer.read.changes import changes, once
from viewer.read.runs import Runs

if TYPE_CHECKING:
    from IPython.display import DisplayHandle

_Folder = str | os.PathLike[str]

_LEAST_SECONDS = 0.5
# Python runs one thread at a time: with this rest, the training keeps nine tenths of the time, however slow drawing is.
_REST = 9


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
        with io.BytesIO() as file:
            self.savefig(file, format="png")
            return file.getvalue()


def figure(run: _Folder | Sequence[_Folder], view: str | None = None, **options: Any) -> Figure:
    """A figure of a run as it is now, or of several side by side: ``viewer.figure("runs/a").savefig("a.pdf")``.

    Args:
        run: A run's folder, or several, or a folder of runs.
        view: ``"overview"``, ``"layers"`` or ``"param"``; without it the overview, or ``param`` where that is given.
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


def show(run: _Folder | Sequence[_Folder], view: str | None = None, **options: Any) -> "Showing":
    """Show a run, or several, in a notebook: the picture below the cell follows them while cells and trainings run.

    It may begin before the run exists. It ends by itself when all runs have closed, or a minute after they died.
    The kernel reads with polars from then on, and polars hangs in a process that is forked from it: workers of a
    DataLoader that use polars need ``multiprocessing_context="spawn"``.

    Args:
        run: A run's folder, or several, or a folder of runs.
        view: As in ``figure``.
        options: As in ``figure``.

    Returns:
        The picture; ``stop()`` ends it.

    Raises:
        RuntimeError: this is no notebook.
        TypeError: as in ``figure``.
        ValueError: as in ``figure``.
    """
    runs = Runs(_paths(run), _options(view, options))
    if not _in_notebook():
        raise RuntimeError("viewer.show needs a notebook; elsewhere use viewer.figure, or the command `viewer`")
    from IPython.display import display

    verb = "waiting for" if runs.awaited else "reading"
    text = plain(f"viewer: {verb} {', '.join(map(str, runs.paths))}")
    handle = display({"text/plain": text}, raw=True, display_id=True)
    assert handle is not None, "a display with an id has a handle"
    return Showing(runs, handle)


class Showing:
    """A picture in a notebook that follows runs until they are over or it is stopped; ``show`` returns it."""

    def __init__(self, runs: Runs, handle: "DisplayHandle") -> None:
        self._runs = runs
        self._handle = handle
        self._thread = threading.Thread(target=self._run, name="viewer-notebook", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it now; the last picture stays."""
        self._runs.stop()
        self._thread.join()

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
            if fresh:
                with own_settings():
                    view.update(snapshots, time.time())
                    self._put(picture)
            self._runs.stopping.wait(max(_LEAST_SECONDS, _REST * (time.thread_time() - before)))
            before = time.thread_time()

    def _put(self, picture: _Picture) -> None:
        from IPython.display import Image

        self._handle.update(Image(data=picture._repr_png_(), format="png"))

    def _ipython_display_(self) -> None:
        """Display nothing as the last value of a cell: the picture is shown already."""


def _in_notebook() -> bool:
    """Whether this runs in a notebook, and not in a script or in IPython's terminal."""
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return False
    return getattr(get_ipython(), "kernel", None) is not None


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
    options = ViewOptions(view or ("param" if given.get("param") else "overview"), **given)  # type: ignore[arg-type]
    if options.view is View.PARAM and not options.param:
        raise ValueError("view='param' needs param, a parameter's name")
    return options
