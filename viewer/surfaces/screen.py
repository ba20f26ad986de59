"""A figure that answers the user's keys and clicks, in a window or on a page."""

import dataclasses
import time
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.backend_bases import Event, KeyEvent, MouseEvent
from matplotlib.figure import Figure

from viewer.draw.layers import Layers
from viewer.draw.panels import ROWS, set_title
from viewer.draw.views import fill
from viewer.options import Histograms, View, ViewOptions, XAxis, zoom_part
from viewer.read.reader import Reader
from viewer.read.runs import Runs
from viewer.snapshot import Snapshot
from viewer.words import notices, title

# So many steps on either side of one: a part of the run, and at least a few.
_SHARE_BESIDE, _FEWEST_BESIDE = 40, 8
_VIEW_KEYS = {"1": View.OVERVIEW, "2": View.LAYERS, "3": View.PARAM, "4": View.ACTIVATIONS}


class Screen:
    """Shows runs in a figure, in the view that the user chooses.

    Keys 1 to 4 choose the view, x the x axis, m the map or the mountains of histograms; a click on a row of the
    layers opens it. Only the thread that owns the figure may call this.

    Args:
        figure: The figure, with its canvas.
        open_runs: Opens the runs that options ask for.
        options: The first view.
        titled: Whether the figure's title says how the runs are.

    Attributes:
        options: The present view, with what the user has zoomed to.
        snapshots: The runs as they are now; none before they have been read.
        drawing: What fills the figure; another one whenever the view is changed.
    """

    def __init__(
        self, figure: Figure, open_runs: Callable[[ViewOptions], Runs], options: ViewOptions, titled: bool = True
    ) -> None:
        self.figure = figure
        self.options = options
        self.snapshots: Sequence[Snapshot] = ()
        self._open_runs = open_runs
        self._titled = titled
        self._failed: Exception | None = None
        self._reader = Reader(open_runs(options))
        self._reader.start()
        self._fill(options)
        canvas = figure.canvas
        self._connected = [
            canvas.mpl_connect("button_press_event", self._click),
            canvas.mpl_connect("key_press_event", self._key),
        ]

    def look_at(self, options: ViewOptions) -> None:
        """Change the view, or how it is shown; the runs are read again only if that needs other rows."""
        # What has been zoomed since the last tick would be lost.
        if options.zoom == self.options.zoom:
            options = dataclasses.replace(options, zoom=_kept(self._zoomed(), self.options, options))
        if _opens(options) != _opens(self.options):
            runs = self._open_runs(options)
            self._reader.stop()
            self._reader = Reader(runs)
            self._reader.start()
        self._fill(options)

    def _fill(self, options: ViewOptions) -> None:
        self.options = options
        self.snapshots = ()
        self.drawing = fill(self.figure, options, self._titled)
        # The panels whose zoom is as the options say.
        self._panels: list[Axes] = []
        self._said = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all runs, shown or not."""
        return self._reader.runs.names

    def said(self) -> str:
        """How the runs are, in the first line; notices in further lines."""
        if self.snapshots:
            return "\n".join([title(self.snapshots, time.time(), self.options), *notices(self.snapshots)])
        done, total = self._reader.read
        return f"reading: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB" if total else "no run yet: waiting for it"

    @property
    def fresh(self) -> bool:
        """Whether there is news of the runs for a tick to take in; any thread may ask."""
        return not self.snapshots or self._reader.latest is not self.snapshots or self._reader.error is not None

    def tick(self) -> bool:
        """Take in the news; whether the figure has to be drawn.

        Raises:
            LogError: the run cannot be read.
        """
        failed = self._failed or self._reader.error
        if failed is not None:
            raise failed
        if (zoom := self._zoomed()) != self.options.zoom:
            self.options = dataclasses.replace(self.options, zoom=zoom)
        newest = self._reader.latest
        fresh = newest is not self.snapshots and bool(newest)
        self.snapshots = newest
        said = self.said()
        # A figure's title tells the age of the last row, too.
        if not fresh and (said == self._said or not self._titled):
            return False
        self._said = said
        self.redraw()
        return True

    def redraw(self) -> None:
        """Fill the figure again, as after a change of its size."""
        if self.snapshots:
            zoom = self._zoomed()
            self.drawing.update(self._drawn(), time.time())
            if self.figure.axes != self._panels:
                self._panels = self.figure.axes
                self._restore(zoom)
        elif self._titled:
            set_title(self.figure, self.options, self.said())

    def _restore(self, zoom: Sequence[str]) -> None:
        """Zoom new panels as those before them were; the toolbar leads back to all that there is."""
        toolbar = self.figure.canvas.toolbar
        if toolbar is not None:
            toolbar.update()
            toolbar.push_current()
        self.drawing.zoom(zoom)
        if toolbar is not None and zoom:
            toolbar.push_current()

    def _zoomed(self) -> tuple[str, ...]:
        """What the user has zoomed to; what was asked for, as long as nothing is drawn."""
        return self.drawing.zoomed if self._panels and self._panels == self.figure.axes else self.options.zoom

    def around(self, snapshot: Snapshot, step: int) -> tuple[str, ...] | None:
        """The zoom that shows a run's step with those beside it; None where its place is unknown."""
        # The same for a while, although the run goes on.
        beside = max(_FEWEST_BESIDE, 1 << ((snapshot.last_step or 0) // _SHARE_BESIDE).bit_length())
        ends = self.drawing.places(snapshot.name, (step - beside, step + beside), self.options.x)
        others = [part for part in self.options.zoom if zoom_part(part)[0]]
        return None if ends is None else (f"{ends[0]:.15g},{ends[1]:.15g}", *others)

    def _drawn(self) -> Sequence[Snapshot]:
        """The runs that are drawn: a page has a table in which the user chooses them."""
        return self.snapshots if self._titled else self.options.drawn(self.snapshots)

    def _click(self, event: Event) -> None:
        if not isinstance(event, MouseEvent) or event.button != 1 or self._zooming():
            return
        picked = self.drawing.picked(event.inaxes, event.ydata) if isinstance(self.drawing, Layers) else None
        if picked is not None:
            self._go(picked)

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
        elif key == "m":
            (other,) = set(Histograms) - {self.options.histograms}
            self._go(dataclasses.replace(self.options, histograms=other))

    def _zooming(self) -> bool:
        """Whether the toolbar zooms or moves the figure: it then takes clicks, and the key x for the x axis alone."""
        toolbar = self.figure.canvas.toolbar
        return toolbar is not None and bool(toolbar.mode)

    def _go(self, options: ViewOptions) -> None:
        try:
            self.look_at(options)
        except Exception as error:
            # A toolkit would print it and go on. The next tick raises it where it is handled.
            self._failed = error
        self.figure.canvas.draw_idle()

    def close(self) -> None:
        """Stop reading, and take no more keys and clicks."""
        for connection in self._connected:
            self.figure.canvas.mpl_disconnect(connection)
        self._reader.stop()


def _kept(zoom: tuple[str, ...], before: ViewOptions, after: ViewOptions) -> tuple[str, ...]:
    """The parts of a zoom that mean the same in another view."""
    lost = set()
    if before.x is not after.x:
        lost.add("")
    if before.params != after.params:
        # Rows of the layers are numbers.
        lost.add(ROWS)
    return tuple(part for part in zoom if zoom_part(part)[0] not in lost)


def _opens(options: ViewOptions) -> tuple[object, ...]:
    """The parts of options for which runs have to be opened anew."""
    return options.reads, options.run, options.findings, options.named
