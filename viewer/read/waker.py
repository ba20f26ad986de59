"""Watchdog wakes a waiting reader when something is published. What was published, the folder's listing tells."""

import contextlib
import logging
import threading
from collections.abc import Iterable

from watchdog.events import DirCreatedEvent, FileCreatedEvent, FileMovedEvent, FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch

from tracer.log.place import Place

# An error in watchdog, such as a race when its threads end, costs a wake-up at most: keep it off the terminal.
logging.getLogger("watchdog").addHandler(logging.NullHandler())

# For file systems that give no events, and to notice that a run stopped without closing.
RESCAN_SECONDS = 2.0
_EVENTS: list[type[FileSystemEvent]] = [FileCreatedEvent, FileMovedEvent, DirCreatedEvent]


class Waker(FileSystemEventHandler):
    """Ends a ``wait`` when something is published into one of the folders.

    Without events (an object store, a network disk, a full inotify table) ``wait`` just lasts its time. Callers list
    the folder after each wait, whatever woke them.

    Args:
        events: False never asks for events.
    """

    def __init__(self, events: bool = True) -> None:
        self._events = events
        self._woken = threading.Event()
        self._observer: BaseObserver | None = None
        self._watched: dict[Place, ObservedWatch] = {}

    def watch(self, folders: Iterable[Place]) -> None:
        """Watch those of these folders that exist on a disk and are not watched yet."""
        for folder in folders:
            path = folder.on_disk
            if path is None:
                continue
            if not path.is_dir():
                # A later folder of the same name needs a watch of its own.
                self.forget([folder])
            elif self._events and folder not in self._watched:
                try:
                    if self._observer is None:
                        # The constructor itself may start a thread, and fail where the inotify table is full.
                        self._observer = Observer()
                        self._observer.start()
                    self._watched[folder] = self._observer.schedule(self, str(path), event_filter=_EVENTS)
                except OSError:
                    continue

    def forget(self, folders: Iterable[Place]) -> None:
        """Watch these folders no longer, so that ``watch`` begins anew."""
        for folder in folders:
            watched = self._watched.pop(folder, None)
            if watched is not None and self._observer is not None:
                # The folder may be gone, and its watch with it.
                with contextlib.suppress(OSError, KeyError):
                    self._observer.unschedule(watched)

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Called by watchdog in its own thread."""
        self._woken.set()

    def wait(self, seconds: float) -> None:
        """Wait for a wake-up, at most this long; earlier wake-ups that nobody waited for count as one."""
        self._woken.wait(seconds)
        self._woken.clear()

    def wake(self) -> None:
        """End the ``wait`` of another thread."""
        self._woken.set()

    def close(self) -> None:
        """Stop watching, and end watchdog's threads; ``watch`` begins anew."""
        if self._observer is not None:
            self._observer.stop()
            self._observer.join()
        self._observer = None
        self._watched.clear()
