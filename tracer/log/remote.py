"""Files in an object store, or on any other file system that pyarrow or fsspec opens, named by a URI.

A reader gets copies on this machine, once each: parts never change. Credentials come from the environment, as these
libraries read it; what a URI says beside its path is used to connect, and never shown.
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
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, ParamSpec, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

Given = ParamSpec("Given")
Found = TypeVar("Found")

_URI = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_SERVER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:]*)(:\d*)?")
# What is put there is seen whole or not at all; elsewhere a file is written in staging/ and moved into place.
_PUT_WHOLE = ("s3", "gcs", "abfs")
# A store under load refuses a request now and then. Left to themselves, S3 tries 31 times and GCS for 15 minutes; the
# end of a process waits for the request that is under way, so that each is to be short.
_PAUSE_SECONDS = 0.5
_GCS_SECONDS = 10.0
_BLOCK_BYTES = 8 << 20
# A part that is merged may be as large as the log; one that is not is small.
_IN_MEMORY_BYTES = 64 << 20
# A store answers a request in some hundredths of a second, and a run that goes on has thousands of parts.
_AT_A_TIME = 16
# Who has not finished its claim by then has died.
_CLAIM_SECONDS = 20.0
_CLAIM_POLL_SECONDS = 0.2


def _twice(action: Callable[Given, Found]) -> Callable[Given, Found]:
    """What is done again after a pause, where it fails outside."""

    @functools.wraps(action)
    def tried(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        try:
            return action(*args, **kwargs)
        except FileNotFoundError:
            raise
        except OSError:
            time.sleep(_PAUSE_SECONDS)
            return action(*args, **kwargs)

    return tried


def is_uri(path: str) -> bool:
    """Whether this names something elsewhere, as ``s3://bucket/runs/a`` does."""
    return _URI.match(path) is not None


@dataclass(frozen=True, order=True)
class Remote:
    """A file or folder elsewhere; the part of ``pathlib.Path`` that logs need.

    Args:
        uri: As pyarrow or fsspec takes it, but for its path, which is taken as it stands: ``%20`` is no space in it.
    """

    uri: str = field(repr=False)

    def __str__(self) -> str:
        scheme, host, path, _, _ = _split(self.uri)
        user, _, server = host.rpartition("@")
        if not _SERVER.fullmatch(server):
            # A secret with a slash in it that was not escaped looks like a host and a path.
            return f"{scheme}://…"
        if ":" in user:
            host = server
        return urlunsplit((scheme, host, path.rstrip("/"), "", ""))

    def __repr__(self) -> str:
        return f"Remote({str(self)!r})"

    def __fspath__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> "Remote":
        parts = _split(self.uri)
        return Remote(urlunsplit((*parts[:2], f"{parts[2].rstrip('/')}/{name}", *parts[3:])))

    @property
    def name(self) -> str:
        """The last piece of the path; the bucket's, where there is no path."""
        return str(self).rpartition("/")[2]

    def resolve(self) -> "Remote":
        """Itself: a URI is the same everywhere."""
        return self

    def names(self) -> set[str]:
        """The names of the files in this folder; none where there is none."""
        return {found.base_name for found in self._listed() if found.is_file}

    def folders(self) -> "list[Remote]":
        """The folders in this folder."""
        return [self / found.base_name for found in self._listed() if not found.is_file]

    def sizes_bytes(self) -> dict[str, int]:
        """How many bytes the files in this folder have, by name."""
        return {found.base_name: int(found.size) for found in self._listed() if found.is_file}

    def written(self) -> dict[str, float]:
        """When the files in this folder were written last, by name, in seconds since 1970 by the store's clock."""
        system, _ = _opened(self.uri)
        return {found.base_name: _modified(system, found) for found in self._listed() if found.is_file}

    @_twice
    def _listed(self) -> "list[FileInfo]":
        from pyarrow.fs import FileSelector

        system, path = _opened(self.uri)
        return cast("list[FileInfo]", system.get_file_info(FileSelector(path, allow_not_found=True)))

    def exists(self) -> bool:
        """Whether there is such a file."""
        return bool(self._info()[1].is_file)

    def modified(self) -> float:
        """When it was written last, in seconds since 1970 by the store's clock.

        Raises:
            FileNotFoundError: there is no such file.
        """
        system, found = self._there()
        return _modified(system, found)

    def size_bytes(self) -> int:
        """How many bytes it has.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return int(self._there()[1].size)

    @_twice
    def _info(self) -> "tuple[FileSystem, FileInfo]":
        system, path = _opened(self.uri)
        return system, system.get_file_info(path)

    def _there(self) -> "tuple[FileSystem, FileInfo]":
        system, found = self._info()
        if not found.is_file:
            raise FileNotFoundError(f"there is no {self}")
        return system, found

    @_twice
    def read(self, limit_bytes: int) -> bytes:
        """Its bytes.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read, or has more bytes than that.
        """
        system, path = _opened(self.uri)
        with system.open_input_stream(path) as stream:
            content = cast("bytes", stream.read(limit_bytes + 1))
        if len(content) > limit_bytes:
            raise OSError(f"{self} is larger than {limit_bytes >> 20} MiB")
        return content

    @_twice
    def write(self, content: "bytes | mmap.mmap") -> None:
        """Put a file, in one call: a stream that were left after an exception would put what it has."""
        system, path = _opened(self.uri)
        with system.open_output_stream(path) as stream:
            stream.write(content)

    @_twice
    def remove(self) -> None:
        """Delete it, if it is there."""
        system, path = _opened(self.uri)
        with contextlib.suppress(FileNotFoundError):
            system.delete_file(path)

    @_twice
    def move(self, target: "Remote") -> None:
        """Give it another place in the same store."""
        system, path = _opened(self.uri)
        system.move(path, _opened(target.uri)[1])

    def put_whole(self) -> bool:
        """Whether a file that is put here is seen whole or not at all."""
        return _opened(self.uri)[0].type_name in _PUT_WHOLE

    @_twice
    def make_folder(self) -> None:
        """Make this folder and those above it, where a store has folders."""
        if not self.put_whole():
            system, path = _opened(self.uri)
            system.create_dir(path, recursive=True)

    def copy(self) -> Path:
        """A copy on this machine, made at the first call, for as long as the process or ``brief_copies`` lasts.

        Raises:
            FileNotFoundError: there is no such file.
        """
        copy = self._copy()
        if not copy.exists():
            self._download(copy)
        return copy

    def _copy(self) -> Path:
        return (_brief.get() or _copies()) / f"{zlib.crc32(self.uri.encode()):08x}-{self.name}"

    @_twice
    def _download(self, copy: Path) -> None:
        system, path = _opened(self.uri)
        made = tempfile.NamedTemporaryFile(dir=copy.parent, delete=False)  # noqa: SIM115 (it is renamed)
        try:
            with made, system.open_input_stream(path) as stream:
                shutil.copyfileobj(stream, made, _BLOCK_BYTES)
            os.replace(made.name, copy)
        except BaseException:
            os.unlink(made.name)
            raise


def fetch(files: Iterable[Remote]) -> None:
    """Make those copies that are not there yet, several at a time.

    Raises:
        FileNotFoundError: there is no such file.
    """
    missing = [(file, copy) for file in files if not (copy := file._copy()).exists()]
    if len(missing) > 1:
        with ThreadPoolExecutor(min(_AT_A_TIME, len(missing))) as threads:
            list(threads.map(lambda pair: pair[0]._download(pair[1]), missing))


class Upload:
    """A file that is being written, to be given to readers in one piece.

    Args:
        folder: Where claims are staked, and files are written that the store cannot put whole.
        name: What it is called there.

    Attributes:
        crc32: The CRC-32 of what was written.
    """

    closed = False

    def __init__(self, folder: Remote, name: str) -> None:
        self.crc32 = 0
        self._folder = folder
        self._name = name
        self._staged = folder / name
        self._size_bytes = 0
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 (`close` closes it)

    def write(self, data: bytes) -> int:
        """Append bytes; how many they were."""
        self.crc32 = zlib.crc32(data, self.crc32)
        self._size_bytes += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Asked for by writers of Parquet; nothing is held back."""

    def publish(self, target: Path | Remote) -> None:
        """Give it to readers.

        Raises:
            OSError: it was not written, or not whole.
        """
        assert isinstance(target, Remote)
        if target.put_whole():
            target.write(self._content())
        # It is there if an earlier answer was lost: nothing is moved where something is.
        elif not target.exists():
            self._staged.write(self._content())
            if self._staged.size_bytes() != self._size_bytes:
                raise OSError(f"{target} was not written completely")
            self._staged.move(target)

    def claim(self, target: Path | Remote) -> None:
        """Give it to readers, unless there is such a file.

        Raises:
            FileExistsError: there is one, or another process is making one at this moment.
        """
        # No store promises through pyarrow to put a file only where there is none. So each says first that it wants to:
        # of two, at least one sees the other. It leaves to the first in the alphabet, which waits for the other's end.
        assert isinstance(target, Remote)
        self._staged.write(self._content())
        try:
            give_up = time.monotonic() + _CLAIM_SECONDS
            while (rivals := self._rivals(target)) and time.monotonic() < give_up:
                if min(rivals) < self._name:
                    raise FileExistsError(str(target))
                time.sleep(_CLAIM_POLL_SECONDS)
            if target.exists():
                raise FileExistsError(str(target))
            self.publish(target)
        finally:
            self._staged.remove()

    def _rivals(self, target: Remote) -> list[str]:
        """Who else claims this, and has not died long ago."""
        written = self._folder.written()
        since = written.get(self._name, 0.0) - _CLAIM_SECONDS
        kind = f"{target.name.partition('.')[0]}-"
        return [name for name, then in written.items() if name.startswith(kind) and name != self._name and then > since]

    def close(self) -> None:
        """Throw away what was written here."""
        self._file.close()

    def _content(self) -> "bytes | mmap.mmap":
        self._file.seek(0)
        if self._size_bytes <= _IN_MEMORY_BYTES:
            return self._file.read()
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)


_brief: ContextVar[Path | None] = ContextVar("brief", default=None)


@contextlib.contextmanager
def brief_copies() -> Iterator[None]:
    """Delete the copies that this thread makes within the block at its end; others' stay."""
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


# A forked child makes copies of its own, and ends without taking its parent's away.
os.register_at_fork(after_in_child=_copies.cache_clear)


# Of exit handlers the first registered runs last: traces that are closed at the exit still merge.
@atexit.register
def _remove_copies() -> None:
    if _copies.cache_info().currsize:
        shutil.rmtree(_copies(), ignore_errors=True)


def _split(uri: str) -> tuple[str, str, str, str, str]:
    """Scheme, host, path and query; what follows a # is a part of the path, as in every store."""
    return urlsplit(uri, allow_fragments=False)


def _opened(uri: str) -> "tuple[FileSystem, str]":
    """The file system of a URI, and the path in it."""
    scheme, host, path, query, _ = _split(uri)
    system, root = _file_system(urlunsplit((scheme, host, "/", query, "")))
    return system, f"{root.rstrip('/')}{path}".rstrip("/")


@functools.lru_cache(maxsize=64)
def _file_system(uri: str) -> "tuple[FileSystem, str]":
    """The file system of a URI that ends behind the host, and that host's path in it.

    Raises:
        OSError: it cannot be opened; no secret is in the words.
    """
    import pyarrow as pa
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    try:
        try:
            system, root = FileSystem.from_uri(uri)
        except pa.ArrowInvalid as error:
            if "Unrecognized filesystem type" not in str(error):
                raise
            from fsspec.core import url_to_fs

            made, root = url_to_fs(uri)
            system = PyFileSystem(FSSpecHandler(made))
        return _impatient(system), root
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).replace(uri, "it").split())
        raise OSError(f"{Remote(uri)} cannot be opened: {reason}") from None


def _impatient(system: "FileSystem") -> "FileSystem":
    """The same file system, but one that gives up before long, and puts what is small in one request."""
    from pyarrow.fs import AwsStandardS3RetryStrategy

    limits = {
        "s3": {"retry_strategy": AwsStandardS3RetryStrategy(max_attempts=1), "allow_delayed_open": True},
        "gcs": {"retry_time_limit": timedelta(seconds=_GCS_SECONDS)},
    }
    if system.type_name not in limits:
        return system
    make, (options,) = system.__reduce__()
    return make({**options, **limits[system.type_name]})


def _modified(system: "FileSystem", found: "FileInfo") -> float:
    if found.mtime_ns is None:
        # Asked in this way, some file systems of fsspec do not say.
        return float(system.handler.fs.modified(found.path).timestamp())
    return float(found.mtime_ns) / 1e9
