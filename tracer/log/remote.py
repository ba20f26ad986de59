"""Files in an object store, or on any other file system that pyarrow or fsspec opens, named by a URI.

Each file is put in one piece. A reader gets copies on this machine, once each: parts never change. Credentials come
from the environment, as these libraries read it; what a URI says beside its path is used to connect, and never shown.
"""

import atexit
import functools
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_URI = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_BLOCK_BYTES = 8 << 20
# A part that is merged may be as large as the log; one that is not is small.
_IN_MEMORY_BYTES = 64 << 20


def is_uri(path: str) -> bool:
    """Whether this names something elsewhere, as ``s3://bucket/runs/a`` does."""
    return _URI.match(path) is not None


@dataclass(frozen=True, order=True)
class Remote:
    """A file or folder elsewhere; the part of ``pathlib.Path`` that logs need.

    Args:
        uri: As pyarrow or fsspec takes it.
    """

    uri: str

    def __str__(self) -> str:
        scheme, host, path, _, _ = urlsplit(self.uri)
        return urlunsplit((scheme, host.rpartition("@")[2], path.rstrip("/"), "", ""))

    def __fspath__(self) -> str:
        return self.uri

    def __truediv__(self, name: str) -> "Remote":
        return self._with_path(f"{urlsplit(self.uri).path.rstrip('/')}/{name}")

    def _with_path(self, path: str) -> "Remote":
        return Remote(urlunsplit(urlsplit(self.uri)._replace(path=path)))

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

    def folders(self) -> Iterator["Remote"]:
        """The folders in this folder."""
        return (self / found.base_name for found in self._listed() if not found.is_file)

    def _listed(self) -> "list[FileInfo]":
        from pyarrow.fs import FileSelector

        system, path = _opened(self.uri)
        return cast("list[FileInfo]", system.get_file_info(FileSelector(path, allow_not_found=True)))

    def exists(self) -> bool:
        """Whether there is such a file."""
        return bool(self._info().is_file)

    def modified(self) -> float:
        """When it was written last, in seconds since 1970 by the store's clock.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return float(self._there().mtime_ns) / 1e9

    def size_bytes(self) -> int:
        """How many bytes it has.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return int(self._there().size)

    def _info(self) -> "FileInfo":
        system, path = _opened(self.uri)
        return system.get_file_info(path)

    def _there(self) -> "FileInfo":
        found = self._info()
        if not found.is_file:
            raise FileNotFoundError(f"there is no {self}")
        return found

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

    def write(self, content: bytes) -> None:
        """Put a small file."""
        system, path = _opened(self.uri)
        with system.open_output_stream(path) as stream:
            stream.write(content)

    def remove(self) -> None:
        """Delete it, if it is there."""
        system, path = _opened(self.uri)
        try:
            system.delete_file(path)
        except FileNotFoundError:
            return

    def copy(self) -> Path:
        """A copy on this machine, made at the first call; ``forget`` deletes it, and so does this process's end.

        Raises:
            FileNotFoundError: there is no such file.
        """
        copy = self._copy()
        if not copy.exists():
            system, path = _opened(self.uri)
            with (
                system.open_input_stream(path) as stream,
                tempfile.NamedTemporaryFile(dir=_copies(), delete=False) as made,
            ):
                shutil.copyfileobj(stream, made, _BLOCK_BYTES)
            os.replace(made.name, copy)
        return copy

    def forget(self) -> None:
        """Delete the copy on this machine, if there is one."""
        self._copy().unlink(missing_ok=True)

    def _copy(self) -> Path:
        return _copies() / f"{zlib.crc32(self.uri.encode()):08x}-{self.name}"


class Upload:
    """A file that is being written, to be put in one piece.

    Attributes:
        crc32: The CRC-32 of what was written.
    """

    closed = False

    def __init__(self) -> None:
        self.crc32 = 0
        self._size_bytes = 0
        self._content: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 (`close` closes it)

    def write(self, data: bytes) -> int:
        """Append bytes; how many they were."""
        self.crc32 = zlib.crc32(data, self.crc32)
        self._size_bytes += len(data)
        return self._content.write(data)

    def flush(self) -> None:
        """Asked for by writers of Parquet; nothing is held back."""

    def publish(self, target: Path | Remote) -> None:
        """Put it.

        Raises:
            OSError: it was not put, or not whole.
        """
        assert isinstance(target, Remote)
        self._content.seek(0)
        system, path = _opened(target.uri)
        with system.open_output_stream(path) as stream:
            while block := self._content.read(_BLOCK_BYTES):
                stream.write(block)
        # A stream that broke off may have been closed all the same.
        if target.size_bytes() != self._size_bytes:
            raise OSError(f"{target} was not written completely")

    def claim(self, target: Path | Remote) -> None:
        """Put it, unless there is such a file.

        Raises:
            FileExistsError: there is one, or another process has put one at this moment.
        """
        assert isinstance(target, Remote)
        if target.exists():
            raise FileExistsError(str(target))
        self.publish(target)
        self._content.seek(0)
        if target.read(self._size_bytes) != self._content.read():
            raise FileExistsError(str(target))

    def close(self) -> None:
        """Throw away what was written here."""
        self._content.close()


@functools.lru_cache(maxsize=1)
def _copies() -> Path:
    """The folder of this process's copies."""
    folder = Path(tempfile.mkdtemp(prefix="gradwatch-"))
    owner = os.getpid()

    def remove() -> None:
        # A forked child ends without taking its parent's copies away.
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _opened(uri: str) -> "tuple[FileSystem, str]":
    """The file system of a URI, and the path in it."""
    scheme, host, path, query, _ = urlsplit(uri)
    system, root = _file_system(urlunsplit((scheme, host, "/", query, "")))
    return system, f"{root.rstrip('/')}{path}".rstrip("/")


@functools.lru_cache(maxsize=64)
def _file_system(uri: str) -> "tuple[FileSystem, str]":
    import pyarrow.fs

    return cast("tuple[FileSystem, str]", pyarrow.fs.FileSystem.from_uri(uri))
