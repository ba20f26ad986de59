"""The disk as the log sees it: the one place where tests let it fail."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from tracer.log.store import Local


class Disk:
    """Stands for ``os`` in tracer/log/store.py; a test may replace its calls one by one."""

    fsync: Callable[[int], None] = staticmethod(os.fsync)
    write: Callable[[int, bytes], int] = staticmethod(os.write)
    open: Callable[..., int] = staticmethod(os.open)
    replace: Callable[[Local, Local], None] = staticmethod(os.replace)
    scandir: Callable[..., AbstractContextManager[Iterator[os.DirEntry[str]]]] = staticmethod(os.scandir)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)
