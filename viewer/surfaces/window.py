"""The window of matplotlib as a surface. Its thread draws and answers the user; another one reads."""

import signal
from collections.abc import Callable

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.backends.registry import BackendFilter, backend_registry

from viewer.draw.theme import SIZE_INCHES
from viewer.options import ViewOptions
from viewer.read.runs import Runs
from viewer.surfaces.screen import Screen

_TICK_MILLISECONDS = 200
# matplotlib counts its own pages as windows. They ask for no token, and one of them needs a notebook.
_PAGES = frozenset({"nbagg", "notebook", "webagg"})


def backend(asked: str = "") -> str | None:
    """The window toolkit that is asked for, or that matplotlib finds; None without a toolkit or a display."""
    try:
        if asked:
            matplotlib.use(asked)
        name = matplotlib.get_backend().lower()
        if name not in backend_registry.list_builtin(BackendFilter.INTERACTIVE) or name in _PAGES:
            return None
        plt.switch_backend(name)
    except (ImportError, ValueError):
        return None
    return name


def show(open_runs: Callable[[ViewOptions], Runs], options: ViewOptions, name: str) -> None:
    """Show runs in a window until the user closes it.

    Args:
        open_runs: Opens the runs that options ask for.
        options: The first view.
        name: For the window's title.

    Raises:
        LogError: the run cannot be read.
        KeyboardInterrupt: the user ended it with Ctrl-C.
    """
    figure = plt.figure(figsize=SIZE_INCHES)
    manager = figure.canvas.manager
    if manager is not None:
        manager.set_window_title(f"viewer {name}")
    screen = Screen(figure, open_runs, options)
    failed: Exception | None = None
    interrupted = False

    def interrupt(*_: object) -> None:
        nonlocal interrupted
        interrupted = True

    def tick() -> None:
        nonlocal failed
        try:
            if screen.tick():
                figure.canvas.draw_idle()
        except Exception as error:
            failed = error
        if interrupted or failed is not None:
            plt.close(figure)

    timer = figure.canvas.new_timer(interval=_TICK_MILLISECONDS)
    timer.add_callback(tick)
    timer.start()
    # A toolkit prints a KeyboardInterrupt that is raised inside its callback, and keeps the window.
    previous = signal.signal(signal.SIGINT, interrupt)
    try:
        plt.show()
    finally:
        signal.signal(signal.SIGINT, previous)
        timer.stop()
        screen.close()
        plt.close(figure)
    if interrupted:
        raise KeyboardInterrupt
    if failed is not None:
        raise failed
