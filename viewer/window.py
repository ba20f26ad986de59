"""The surface with a screen: a matplotlib window. Its thread draws and answers the user; another one reads."""

import signal

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.backends.registry import BackendFilter, backend_registry

from viewer.figure import SIZE_INCHES
from viewer.live import Live, Reader, Snapshot
from viewer.look import Look
from viewer.views import fill

_TICK_MILLISECONDS = 200


def backend() -> str | None:
    """The window toolkit that matplotlib finds here; None where there is none, or no display."""
    try:
        name = matplotlib.get_backend().lower()
    except ImportError:
        return None
    return name if name in backend_registry.list_builtin(BackendFilter.INTERACTIVE) else None


def show(live: Live, look: Look) -> None:
    """Show a run in a window until the user closes it; returns when the window is closed.

    Raises:
        LogError: the run cannot be read.
        KeyboardInterrupt: the user ended it with Ctrl-C.
    """
    figure = plt.figure(figsize=SIZE_INCHES)
    manager = figure.canvas.manager
    if manager is not None:
        manager.set_window_title(f"viewer {live.path}")
    shown = fill(figure, look)
    reader = Reader(live)
    drawn: Snapshot | None = None
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True

    def tick() -> None:
        nonlocal drawn
        if interrupted or reader.error is not None:
            plt.close(figure)
        elif reader.latest is not drawn and reader.latest is not None:
            drawn = reader.latest
            shown.update(drawn)
            figure.canvas.draw_idle()

    timer = figure.canvas.new_timer(interval=_TICK_MILLISECONDS)
    timer.add_callback(tick)
    timer.start()
    reader.start()
    # Raised inside a toolkit's callback, KeyboardInterrupt would be printed there, and the window would stay.
    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        plt.show()
    finally:
        signal.signal(signal.SIGINT, previous)
        timer.stop()
        reader.stop()
        plt.close(figure)
    if interrupted:
        raise KeyboardInterrupt
    if reader.error is not None:
        raise reader.error
