"""Runs on a disk of this machine, and the place that a path or a URI names.

Every call to the disk that changes a run, or looks at its folders, is made here: tests of faults let the calls of
``os`` in this module fail, one after the other. A file is written in ``staging/``, brought to the disk, and renamed
into place.
"""

import contextlib
import os
import stat
import zlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tracer.log import system
from tracer.log.place import LARGEST_BYTES, Place, Staged
from tracer.log.remote import Remote, is_uri
from tracer.log.system import patiently


def at(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> Place:
    """The place that a path or a URI names; a path is made absolute, as the process may go to another folder later.

    Raises:
        OSError: a ``file://`` URI names another machine, or the path is relative and the current folder is gone.
    """
    text = os.fsdecode(path)
    if text.startswith("file://"):
        uri = urlsplit(text)
        if uri.netloc not in ("", "localhost"):
            raise OSError(f"{text} is on the machine {uri.netloc!r}: a folder of this one is file:///path, or its path")
        text = url2pathname(uri.path)
    elif is_uri(text):
        return Remote(text)
    # As a shell does, and unlike pathlib, this takes the ~ of no user for a name.
    return Local(os.path.expanduser(text)).absolute()  # noqa: PTH111


def from_here(path: Place) -> str:
    """A path as a user would write it in the current folder."""
    with contextlib.suppress(OSError, ValueError):
        if path.on_disk:
            return str(path.on_disk.relative_to(Path.cwd()))
    return str(path)


class Local(system.DiskPath):
    """A place on a disk of this machine: a path, with what ``Place`` asks for beside it."""

    @property
    def on_disk(self) -> Path:
        return self

    def resolve(self, strict: bool = False) -> "Local":
        # Unlike pathlib's, this raises nothing for links that lead in a circle.
        return Local(os.path.realpath(self, strict=strict))

    def names(self, folder: str = "") -> set[str]:
        inner = self / folder
        return set() if folder and inner.is_symlink() else inner._files()

    def _files(self) -> set[str]:
        try:
            with os.scandir(self) as entries:
                return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
        except FileNotFoundError:
            return set()

    def written_times(self) -> dict[str, float]:
        times = {}
        for name in self._files():
            with contextlib.suppress(FileNotFoundError):
                times[name] = (self / name).modified()
        return times

    def folders(self) -> list[Place]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(self) as entries:
            return [Local(entry.path) for entry in entries if entry.is_dir()]
        return []

    def beside(self) -> list[Place]:
        return self.parent.folders()

    def sizes_bytes(self, names: Iterable[str]) -> dict[str, int]:
        return {name: (self / name)._size_bytes() for name in names}

    def _size_bytes(self) -> int:
        try:
            return os.lstat(self).st_size
        except FileNotFoundError:
            raise
        except OSError:
            # What is wrong with it is found when it is read.
            return 0

    def file_exists(self) -> bool:
        try:
            return stat.S_ISREG(os.lstat(self).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def modified(self) -> float:
        return os.lstat(self).st_mtime

    def content(self) -> bytes:
        # Whoever can write into the folder might leave a link to elsewhere here, or a pipe that never gives a byte.
        if stat.S_ISLNK(os.lstat(self).st_mode):
            raise OSError("it is a link")
        descriptor = patiently(os.open, self, os.O_RDONLY | system.NO_LINK_NOR_PIPE)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_BYTES:
                raise OSError(f"it is no regular file of at most {LARGEST_BYTES >> 20} MiB")
            with os.fdopen(descriptor, "rb", closefd=False) as stream:
                return stream.read(LARGEST_BYTES)
        finally:
            os.close(descriptor)

    def local_file(self) -> Path:
        return self

    def fetch(self, names: Iterable[str]) -> None:
        """Do nothing: the files are here."""

    def brief_copies(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def make_folders(self, names: Iterable[str]) -> None:
        for name in names:
            os.makedirs(self / name, exist_ok=True)

    def remake_folders(self, names: Iterable[str]) -> None:
        for name in names:
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                os.mkdir(self / name)

    def renew(self, content: bytes) -> None:
        try:
            os.utime(self, follow_symlinks=system.UTIME_FOLLOWS)
        except FileNotFoundError:
            descriptor = os.open(self, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | system.NO_LINK, 0o666)
            try:
                os.write(descriptor, content)
            finally:
                os.close(descriptor)

    def remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            patiently(os.unlink, self)

    def remove_files(self, names: Iterable[str]) -> None:
        for name in names:
            (self / name).remove()

    def stage(self, name: str) -> AbstractContextManager[Staged]:
        return contextlib.closing(_StagedFile(self, name))


class _StagedFile:
    """A file in ``staging/`` of a run."""

    closed = False

    def __init__(self, run: Local, name: str) -> None:
        self.crc32 = 0
        self._run = run
        self._path: Local | None = run / "staging" / name
        self._size_bytes = 0
        self._descriptor: int | None = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | system.BINARY, 0o666)

    def write(self, data: bytes) -> int:
        assert self._descriptor is not None
        left = memoryview(data)
        self.crc32 = zlib.crc32(left, self.crc32)
        self._size_bytes += len(left)
        while left:
            left = left[os.write(self._descriptor, left) :]
        return len(data)

    def flush(self) -> None:
        """Do nothing: writers of Parquet ask for it, and no byte is held back."""

    def publish(self, name: str) -> None:
        self._complete()
        self._rename(self._run / name)

    def claim(self, name: str) -> None:
        assert self._path is not None
        target = self._run / name
        self._complete()
        try:
            os.link(self._path, target)
        except FileExistsError:
            raise
        except OSError:
            # This disk knows no hard links, so two processes at the same moment would go unnoticed.
            self._rename(target)
        else:
            _sync_names(target.parent)

    def _complete(self) -> None:
        """Bring all of it to the disk, and close it: Windows renames no open file."""
        assert self._descriptor is not None
        os.fsync(self._descriptor)
        system.flush_drive(self._descriptor)
        # Some network disks take what they have no space for, and tell nobody.
        if os.fstat(self._descriptor).st_size != self._size_bytes:
            raise OSError(f"{self._path} was not written completely")
        self._close_file()

    def _rename(self, target: Local) -> None:
        assert self._path is not None
        patiently(os.replace, self._path, target)
        self._path = None
        _sync_names(target.parent)

    def _close_file(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def close(self) -> None:
        self._close_file()
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)


def _sync_names(folder: Path) -> None:
    """Bring the names in a folder to the disk, where that is possible.

    Nothing is raised: readers see the renamed file already, and an error would have it written again. Windows and some
    network disks cannot sync a folder; a power failure may cost them the last file.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            system.flush_drive(descriptor)
        finally:
            os.close(descriptor)
