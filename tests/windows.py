"""A disk that behaves as Windows' does, as far as the calls of ``os`` go that this process makes; it needs Linux."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tracer.log import system

_SHARING_VIOLATION = 32
ROOT = Path(__file__).parents[1]


class Windows:
    """Refuses to rename, replace or delete what this process or a child of it has open or mapped.

    It knows no hard links, and opens no folder.

    Attributes:
        refused: The names of the files for which a call was refused because they were open.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refused: list[str] = []
        for name in ("replace", "rename", "unlink", "remove"):
            monkeypatch.setattr(os, name, self._refusing(getattr(os, name)))
        monkeypatch.setattr(os, "link", _no_links)
        monkeypatch.setattr(os, "open", _opening_no_folder(os.open))
        monkeypatch.setattr(system, "FOLDERS_OPEN", False)
        monkeypatch.setattr(system, "UTIME_FOLLOWS", True)

    def _refusing(self, call: Callable[..., None]) -> Callable[..., None]:
        def called(*paths: Any, **options: Any) -> None:
            for path in paths:
                if is_open(path):
                    self.refused.append(Path(path).name)
                    error = PermissionError(errno.EACCES, "another process uses the file", os.fspath(path))
                    error.winerror = _SHARING_VIOLATION  # type: ignore[attr-defined]
                    raise error
            call(*paths, **options)

        return called


def is_open(path: str | os.PathLike[str]) -> bool:
    """Whether this process or a child of it has a file open, or mapped into its memory."""
    file = os.path.realpath(path)
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        place = Path("/proc", str(process.pid))
        try:
            opened = {str(link.readlink()) for link in (place / "fd").iterdir() if link.is_symlink()}
            if file in opened or f" {file}\n" in (place / "maps").read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            # It ended, or closed a file, meanwhile.
            continue
    return False


def _no_links(*_: object) -> None:
    raise OSError(errno.EPERM, "no hard links")


def _opening_no_folder(call: Callable[..., int]) -> Callable[..., int]:
    def opened(path: Any, *args: Any, **options: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return call(path, *args, **options)

    return opened
