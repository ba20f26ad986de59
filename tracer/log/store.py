"""The seam to the outside: every look at a run's folder and every change to it goes through here.

A run lies in a folder of this machine, a ``Path``, or in an object store, a ``Remote``. On the disk a file is written
in ``staging/``, brought to the disk, and renamed into place; an object is put in one piece. Tests of faults let the
calls of ``os`` in this module fail, one after the other.
"""

import contextlib
import os
import stat
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

from tracer.log import remote
from tracer.log.remote import Remote, Upload, is_uri

Place = Path | Remote

# What is read whole is small: run.json names each parameter, a closed mark a few numbers.
_LARGEST_BYTES = 256 << 20


class Staged(Protocol):
    """A file that is being written where nobody reads it.

    Attributes:
        crc32: The CRC-32 of what was written.
    """

    crc32: int

    def write(self, data: bytes) -> int:
        """Append bytes, all of them; how many they were."""

    def publish(self, target: Place) -> None:
        """Give it to readers, complete, or raise ``OSError``."""

    def claim(self, target: Place) -> None:
        """As ``publish``, but raise ``FileExistsError`` where there is such a file."""


def at(path: str | os.PathLike[str]) -> Place:
    """The place that a path or a URI names."""
    if isinstance(path, Remote):
        return path
    text = os.fspath(path)
    if text.startswith("file://"):
        return Path(url2pathname(urlsplit(text).path))
    return Remote(text) if is_uri(text) else Path(text)


def names(folder: Place) -> set[str]:
    """The names of the files in a folder, symbolic links left out; none where there is no folder."""
    if isinstance(folder, Remote):
        return folder.names()
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file(follow_symlinks=False)}
    except FileNotFoundError:
        return set()


def written(folder: Place) -> dict[str, float]:
    """When the files in a folder were written last, by name, in seconds since 1970; none where there is no folder."""
    if isinstance(folder, Remote):
        return folder.written()
    times = {}
    for name in names(folder):
        with contextlib.suppress(FileNotFoundError):
            times[name] = modified(folder / name)
    return times


def inner_names(run: Place, folder: str) -> set[str]:
    """As ``names``, of a folder inside a run; none where that is a symbolic link, which may lead anywhere."""
    inner = run / folder
    return set() if isinstance(inner, Path) and inner.is_symlink() else names(inner)


def folders(folder: Place) -> list[Place]:
    """The folders in a folder."""
    if isinstance(folder, Remote):
        return [*folder.folders()]
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return [Path(entry.path) for entry in entries if entry.is_dir()]
    return []


def exists(file: Place) -> bool:
    """Whether there is such a file; a symbolic link is none."""
    if isinstance(file, Remote):
        return file.exists()
    try:
        return stat.S_ISREG(os.lstat(file).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def modified(file: Place) -> float:
    """When a file was written last, in seconds since 1970.

    Raises:
        FileNotFoundError: there is none.
    """
    return file.modified() if isinstance(file, Remote) else os.lstat(file).st_mtime


def sizes_bytes(folder: Place, files: Iterable[str]) -> dict[str, int]:
    """How many bytes these files in a folder have, by name; 0 where that cannot be known now.

    Raises:
        FileNotFoundError: one is not there.
    """
    wanted = list(files)
    if isinstance(folder, Remote):
        there = folder.sizes_bytes() if wanted else {}
        if gone := set(wanted) - there.keys():
            raise FileNotFoundError(f"there is no {folder / min(gone)}")
        return {name: there[name] for name in wanted}
    return {name: _size_bytes(folder / name) for name in wanted}


def _size_bytes(file: Path) -> int:
    try:
        return os.lstat(file).st_size
    except FileNotFoundError:
        raise
    except OSError:
        # What is wrong with it is found when it is read.
        return 0


def read(file: Place) -> bytes:
    """A small file's bytes.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read, is no regular file, or is not small.
    """
    if isinstance(file, Remote):
        return file.read(_LARGEST_BYTES)
    # Who writes into the folder might leave a link to elsewhere here, or a pipe that never gives a byte.
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LARGEST_BYTES:
            raise OSError(f"{file} is no regular file of at most {_LARGEST_BYTES >> 20} MiB")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return stream.read(_LARGEST_BYTES)
    finally:
        os.close(descriptor)


def local(file: Place) -> Path:
    """A file of this machine with the bytes of a file that never changes: itself, or a copy of an object.

    Raises:
        FileNotFoundError: there is none.
    """
    return file.copy() if isinstance(file, Remote) else file


def fetch(files: Iterable[Place]) -> None:
    """Have the copies of objects made that ``local`` would make one by one.

    Raises:
        FileNotFoundError: one of the objects is gone.
    """
    remote.fetch(file for file in files if isinstance(file, Remote))


def brief_copies(run: Place) -> contextlib.AbstractContextManager[None]:
    """Delete the copies that ``local`` makes within the block at its end."""
    return remote.brief_copies() if isinstance(run, Remote) else contextlib.nullcontext()


def make_folders(run: Place, inner: Iterable[str]) -> None:
    """Make a run's folder and those in it, where they are missing; an object store needs none."""
    for folder in (run / name for name in inner):
        if isinstance(folder, Remote):
            folder.make_folder()
        else:
            os.makedirs(folder, exist_ok=True)


def remake_folders(run: Place, inner: Iterable[str]) -> None:
    """Make the folders in a run's where they are missing, but not the run's own."""
    for folder in (run / name for name in inner):
        if isinstance(folder, Remote):
            folder.make_folder()
        else:
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                os.mkdir(folder)


def touch(file: Place, content: bytes) -> None:
    """Renew when a file was written, or write it."""
    if isinstance(file, Remote):
        file.write(content)
        return
    try:
        os.utime(file, follow_symlinks=False)
    except FileNotFoundError:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            os.write(descriptor, content)
        finally:
            os.close(descriptor)


def remove(file: Place) -> None:
    """Delete a file, if it is there."""
    if isinstance(file, Remote):
        file.remove()
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(file)


@contextlib.contextmanager
def stage(run: Place, name: str) -> Iterator[Staged]:
    """Write a file of a run; what is not published within the block is thrown away.

    Args:
        run: The run's folder.
        name: What it is called in ``staging/``.
    """
    if isinstance(run, Remote):
        with contextlib.closing(Upload(run / "staging", name)) as upload:
            yield upload
        return
    staged = _StagedFile(run / "staging" / name)
    try:
        yield staged
    finally:
        staged.close()


class _StagedFile:
    """A file in ``staging/``."""

    closed = False

    def __init__(self, path: Path) -> None:
        self.crc32 = 0
        self._path: Path | None = path
        self._size_bytes = 0
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)

    def write(self, data: bytes) -> int:
        left = memoryview(data)
        self.crc32 = zlib.crc32(left, self.crc32)
        self._size_bytes += len(left)
        while left:
            left = left[os.write(self._descriptor, left) :]
        return len(data)

    def flush(self) -> None:
        """Asked for by writers of Parquet; nothing is held back."""

    def publish(self, target: Place) -> None:
        assert self._path is not None
        assert isinstance(target, Path)
        os.fsync(self._descriptor)
        # Some network disks take what they have no space for, and tell nobody.
        if os.fstat(self._descriptor).st_size != self._size_bytes:
            raise OSError(f"{self._path} was not written completely")
        os.replace(self._path, target)
        self._path = None
        _sync_names(target.parent)

    def claim(self, target: Place) -> None:
        assert self._path is not None
        assert isinstance(target, Path)
        os.fsync(self._descriptor)
        try:
            os.link(self._path, target)
        except FileExistsError:
            raise
        except OSError:
            # This disk knows no hard links, so two processes at the same moment would go unnoticed.
            os.replace(self._path, target)
            self._path = None
        _sync_names(target.parent)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        if self._path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._path)


def _sync_names(folder: Path) -> None:
    """Bring the names in a folder to the disk, where that is possible.

    What was renamed is there for all to see: to raise would have it written again. Some network disks cannot sync a
    folder; there, a power failure may take the last file.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
