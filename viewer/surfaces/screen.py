"""A figure that a user looks at, on a surface that draws and answers him: window or page."""

import dataclasses
import time
from collections.abc import Callable, Sequence

from matplotlib.backend_bases import Event, KeyEvent, MouseEvent
from matplotlib.figure import Figure

from viewer.draw.layers import Layers
from viewer.draw.panels import set_title
from viewer.draw.views import fill
from viewer.options import View, ViewOptions, XAxis
from viewer.read.reader import Reader
from viewer.read.runs import Runs
from viewer.snapshot import Snapshot
from viewer.words import notices, title

_VIEW_KEYS = {"1": View.OVERVIEW, "2": View.LAYERS, "3": View.PARAM}


class Screen:
    """Shows runs in a figure, and follows the user where he looks.

    Keys 1, 2 and 3 choose the view, x the x axis; a click on a row of the layers opens it. Everything here belongs to
    the one thread that owns the figure.

    Args:
        figure: The figure, with its canvas.
        open_runs: Opens the runs that options ask for.
        options: What is shown first.
        titled: Whether the figure's title says how the runs are.

    Attributes:
        options: What is shown now.
        snapshots: How the runs are; none before they have been read.
    """

    def __init__(
        self, figure: Figure, open_runs: Callable[[ViewOptions], Runs], options: ViewOptions, titled: bool = True
    ) -> None:
        self.figure = figure
        self.options = options
        self.snapshots: Sequence[Snapshot] = ()
        self._open_runs = open_runs
        self._titled = titled
        self._reader: Reader | None = None
        self._failed: Exception | None = None
        self._said = ""
        self.look_at(options)
        canvas = figure.canvas
        self._connected = [
            canvas.mpl_connect("button_press_event", self._click),
            canvas.mpl_connect("key_press_event", self._key),
        ]

    def look_at(self, options: ViewOptions) -> None:
        """Show something else, or in another way; what is read already is not read again."""
        if self._reader is None or _opens(options) != _opens(self.options):
            self._stop()
            self._reader = Reader(self._open_runs(options))
            self._reader.start()
        self.options = options
        self._shown = fill(self.figure, options, self._titled)
        self._said = ""
        self.snapshots = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The runs that there are."""
        return () if self._reader is None else self._reader.runs.names

    def said(self) -> str:
        """How the runs are, in a line, and what has to be known of them, in further ones."""
        if self.snapshots:
            return "\n".join([title(self.snapshots, time.time(), self.options), *notices(self.snapshots)])
        done, there = (0, 0) if self._reader is None else self._reader.read
        return f"reading: {done / 1e6:,.0f} of {there / 1e6:,.0f} MB" if there else "no run yet: waiting for it"

    def tick(self) -> bool:
        """Take in what is new; whether the figure has to be drawn.

        Raises:
            LogError: the run cannot be read.
        """
        failed = self._failed or (self._reader.error if self._reader is not None else None)
        if failed is not None:
            raise failed
        if self._reader is None:
            return False
        newest = self._reader.latest
        fresh = newest is not self.snapshots and bool(newest)
        self.snapshots = newest
        said = self.said()
        # The title speaks of the time since the last row, too, where the figure has one.
        if not fresh and (said == self._said or not self._titled):
            return False
        self._said = said
        self.redraw()
        return True

    def redraw(self) -> None:
        """Put what is known into the figure again, as after a change of its size."""
        if self.snapshots:
            self._shown.update(self.snapshots, time.time())
        elif self._titled:
            set_title(self.figure, self.options, self.said())

    def _click(self, event: Event) -> None:
        if not isinstance(event, MouseEvent) or event.button != 1 or self._zooming():
            return
        found = self._shown.picked(event.inaxes, event.ydata) if isinstance(self._shown, Layers) else None
        if found is not None:
            self._go(found)

    def _key(self, event: Event) -> None:
        key = event.key if isinstance(event, KeyEvent) else None
        if key in _VIEW_KEYS:
            view = _VIEW_KEYS[key]
            params = [name for snapshot in self.snapshots for name in snapshot.params]
            param = self.options.param or next(iter(params), "")
            if param or view is not View.PARAM:
                self._go(dataclasses.replace(self.options, view=view, param=param))
        elif key == "x" and not self._zooming():
            axes = list(XAxis)
            after = axes[(axes.index(self.options.x) + 1) % len(axes)]
            self._go(dataclasses.replace(self.options, x=after))

    def _zooming(self) -> bool:
        """Whether the toolbar zooms or moves the figure: then a click is its own, and x, which keeps to the x axis."""
        toolbar = self.figure.canvas.toolbar
        return toolbar is not None and bool(toolbar.mode)

    def _go(self, options: ViewOptions) -> None:
        try:
            self.look_at(options)
        except Exception as error:
            # A toolkit would print it and go on; the next tick raises it where it is handled.
            self._failed = error
        self.figure.canvas.draw_idle()

    def close(self) -> None:
        """Stop reading, and take no more keys and clicks."""
        for each in self._connected:
            self.figure.canvas.mpl_disconnect(each)
        self._stop()

    def _stop(self) -> None:
        if self._reader is not None:
            self._reader.stop()
            self._reader = None


def _opens(options: ViewOptions) -> tuple[object, ...]:
    """What runs have to be opened for."""
    return options.reads, options.run, options.findings
