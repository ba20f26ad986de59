"""Runs in an object store, or on any other file system that pyarrow or fsspec opens, named by a URI.

Where a store shows a file whole or not at all, it is put in one piece; elsewhere it is written in ``staging/`` and
moved into place. A reader gets copies on this machine, one of each file: parts never change.
"""

import atexit
import contextlib
import functools
import mmap
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, ParamSpec, TypeVar, cast
from urllib.parse import urlunsplit

from tracer.log import filesystems
from tracer.log.place import LARGEST_BYTES, Place, Staged
from tracer.log.system import in_forked_children, in_use, patiently

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

Given = ParamSpec("Given")
Result = TypeVar("Result")

_URI = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_PUT_WHOLE = ("s3", "gcs", "abfs")
_PAUSE_SECONDS = 0.5
_BLOCK_BYTES = 8 << 20
# A merged part may be as large as the log; a fresh one is small.
_IN_MEMORY_BYTES = 64 << 20
# A store answers a request in some hundredths of a second, and a run that goes on has thousands of parts.
_AT_A_TIME = 16
# A process that has not finished its claim by then has died.
_CLAIM_SECONDS = 20.0
_CLAIM_POLL_SECONDS = 0.2


def _twice(action: Callable[Given, Result]) -> Callable[Given, Result]:
    """Repeat a request once, after a pause, if it fails."""

    @functools.wraps(action)
    def tried(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return action(*args, **kwargs)
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(_PAUSE_SECONDS)
            return action(*args, **kwargs)

    return tried


def is_uri(path: str) -> bool:
    """Whether this names a place elsewhere, as ``s3://bucket/runs/a`` does."""
    return _URI.match(path) is not None


@dataclass(frozen=True, order=True)
class Remote:
    """A place elsewhere; its methods are those of ``Place``.

    Args:
        uri: A URI as pyarrow or fsspec takes it, but its path is taken literally: ``%20`` is no space in it.
    """

    uri: str = field(repr=False)

    def __str__(self) -> str:
        return filesystems.shown(self.uri)

    def __repr__(self) -> str:
        return f"Remote({str(self)!r})"

    def __fspath__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> "Remote":
        parts = filesystems.split(self.uri)
        return Remote(urlunsplit((*parts[:2], f"{parts[2].rstrip('/')}/{name}", *parts[3:])))

    @property
    def name(self) -> str:
        return str(self).rpartition("/")[2]

    @property
    def on_disk(self) -> None:
        return None

    def resolve(self) -> "Remote":
        return self

    def names(self, folder: str = "") -> set[str]:
        listed = (self / folder if folder else self)._listed()
        return {file.base_name for file in listed if file.is_file}

    def written_times(self) -> dict[str, float]:
        system, _ = filesystems.opened(self.uri)
        return {file.base_name: filesystems.modified(system, file) for file in self._listed() if file.is_file}

    def folders(self) -> list[Place]:
        return [self / folder.base_name for folder in self._listed() if not folder.is_file]

    def beside(self) -> list[Place]:
        return []

    def sizes_bytes(self, names: Iterable[str]) -> dict[str, int]:
        wanted = set(names)
        sizes = {file.base_name: int(file.size) for file in self._listed() if file.is_file} if wanted else {}
        if missing := wanted - sizes.keys():
            raise FileNotFoundError(f"there is no {self / min(missing)}")
        return {name: sizes[name] for name in wanted}

    @_twice
    def _listed(self) -> "list[FileInfo]":
        from pyarrow.fs import FileSelector

        system, path = filesystems.opened(self.uri)
        return cast("list[FileInfo]", system.get_file_info(FileSelector(path, allow_not_found=True)))

    def file_exists(self) -> bool:
        return bool(self._info()[1].is_file)

    def modified(self) -> float:
        system, file = self._info()
        if not file.is_file:
            raise FileNotFoundError(f"there is no {self}")
        return filesystems.modified(system, file)

    @_twice
    def _info(self) -> "tuple[FileSystem, FileInfo]":
        system, path = filesystems.opened(self.uri)
        return system, system.get_file_info(path)

    @_twice
    def content(self) -> bytes:
        system, path = filesystems.opened(self.uri)
        with system.open_input_stream(path) as stream:
            content = cast("bytes", stream.read(LARGEST_BYTES + 1))
        if len(content) > LARGEST_BYTES:
            raise OSError(f"{self} is larger than {LARGEST_BYTES >> 20} MiB")
        return content

    @_twice
    def write(self, content: "bytes | mmap.mmap") -> None:
        """Put this file, in one call: a stream that is closed after an exception would put what it has by then."""
        system, path = filesystems.opened(self.uri)
        with system.open_output_stream(path) as stream:
            stream.write(content)

    def renew(self, content: bytes) -> None:
        self.write(content)

    @_twice
    def remove(self) -> None:
        system, path = filesystems.opened(self.uri)
        with contextlib.suppress(FileNotFoundError):
            system.delete_file(path)

    @_twice
    def move(self, target: "Remote") -> None:
        """Move this file to another place in the same store."""
        system, path = filesystems.opened(self.uri)
        system.move(path, filesystems.opened(target.uri)[1])

    def put_whole(self) -> bool:
        """Whether a file that is put here is seen whole or not at all."""
        return filesystems.opened(self.uri)[0].type_name in _PUT_WHOLE

    def make_folders(self, names: Iterable[str]) -> None:
        if not self.put_whole():
            for name in names:
                (self / name)._make_folder()

    remake_folders = make_folders

    @_twice
    def _make_folder(self) -> None:
        system, path = filesystems.opened(self.uri)
        system.create_dir(path, recursive=True)

    def remove_files(self, names: Iterable[str]) -> None:
        with ThreadPoolExecutor(_AT_A_TIME) as threads:
            list(threads.map(lambda name: (self / name).remove(), names))

    def stage(self, name: str) -> AbstractContextManager[Staged]:
        return contextlib.closing(_Upload(self, name))

    def local_file(self) -> Path:
        copy = self._copy()
        if not copy.exists():
            self._download(copy)
        return copy

    def fetch(self, names: Iterable[str]) -> None:
        files = [self / name for name in names]
        missing = [(file, copy) for file in files if not (copy := file._copy()).exists()]
        if len(missing) > 1:
            with ThreadPoolExecutor(min(_AT_A_TIME, len(missing))) as threads:
                list(threads.map(lambda pair: pair[0]._download(pair[1]), missing))

    def brief_copies(self) -> AbstractContextManager[None]:
        return _brief_copies()

    def _copy(self) -> Path:
        return (_brief.get() or _copies()) / f"{zlib.crc32(self.uri.encode()):08x}-{self.name}"

    @_twice
    def _download(self, copy: Path) -> None:
        system, path = filesystems.opened(self.uri)
        made = tempfile.NamedTemporaryFile(dir=copy.parent, delete=False)  # noqa: SIM115 (it is renamed)
        try:
            with made, system.open_input_stream(path) as stream:
                shutil.copyfileobj(stream, made, _BLOCK_BYTES)
            patiently(os.replace, made.name, copy)
        except BaseException as error:
            os.unlink(made.name)
            # Another thread may have made the copy, and on Windows have it open.
            if not (isinstance(error, OSError) and in_use(error) and copy.exists()):
                raise


class _Upload:
    """A file of a run that is being written on this machine, and is then given to readers in one piece."""

    closed = False

    def __init__(self, run: Remote, name: str) -> None:
        self.crc32 = 0
        self._run = run
        self._name = name
        # Where a claim is staked, and a file is written that the store cannot put whole.
        self._staged = run / "staging" / name
        self._size_bytes = 0
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 (`close` closes it)

    def write(self, data: bytes) -> int:
        self.crc32 = zlib.crc32(data, self.crc32)
        self._size_bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Do nothing: writers of Parquet ask for it, and the file is put at the end."""

    def publish(self, name: str) -> None:
        target = self._run / name
        if target.put_whole():
            target.write(self._content())
        # The file exists if an earlier answer was lost, and no file is moved over another.
        elif not target.file_exists():
            self._staged.write(self._content())
            if (self._run / "staging").sizes_bytes([self._name])[self._name] != self._size_bytes:
                raise OSError(f"{target} was not written completely")
            self._staged.move(target)

    def claim(self, name: str) -> None:
        """Publish, unless there is such a file, or another process is making one at this moment.

        No library promises this: Arrow, which reaches S3 and GCS, has no conditional put; in fsspec the exclusive modes
        are on trial, and by default look first and write then. So each process first stakes its claim in ``staging/``.
        Of two, at least one sees the other's. The first in the alphabet goes on, after the others have withdrawn.
        """
        target = self._run / name
        self._staged.write(self._content())
        try:
            give_up = time.monotonic() + _CLAIM_SECONDS
            while (rivals := self._rivals(target)) and time.monotonic() < give_up:
                if min(rivals) < self._name:
                    raise FileExistsError(str(target))
                time.sleep(_CLAIM_POLL_SECONDS)
            if target.file_exists():
                raise FileExistsError(str(target))
            self.publish(name)
        finally:
            self._staged.remove()

    def _rivals(self, target: Remote) -> list[str]:
        """The other claims of the same file, without those of processes that died long ago."""
        written = (self._run / "staging").written_times()
        since = written.get(self._name, 0.0) - _CLAIM_SECONDS
        kind = f"{target.name.partition('.')[0]}-"
        return [name for name, then in written.items() if name.startswith(kind) and name != self._name and then > since]

    def close(self) -> None:
        self._file.close()

    def _content(self) -> "bytes | mmap.mmap":
        self._file.seek(0)
        if self._size_bytes <= _IN_MEMORY_BYTES:
            return self._file.read()
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)


_brief: ContextVar[Path | None] = ContextVar("brief", default=None)


@contextlib.contextmanager
def _brief_copies() -> Iterator[None]:
    folder = Path(tempfile.mkdtemp(dir=_copies()))
    outer = _brief.set(folder)
    try:
        yield
    finally:
        _brief.reset(outer)
        shutil.rmtree(folder, ignore_errors=True)


@functools.lru_cache(maxsize=1)
def _copies() -> Path:
    """The folder of this process's copies."""
    return Path(tempfile.mkdtemp(prefix="gradwatch-"))


# A forked child makes copies of its own, and ends without deleting its parent's.
in_forked_children(_copies.cache_clear)


# Exit handlers run in reverse order of registration: traces that are closed at the exit still merge.
@atexit.register
def _remove_copies() -> None:
    if _copies.cache_info().currsize:
        shutil.rmtree(_copies(), ignore_errors=True)
