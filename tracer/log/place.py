"""The interface of a place: a file or a folder of a run, wherever it lies."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

# run.json names each parameter, a closed mark a few numbers: what is read whole is small.
LARGEST_BYTES = 256 << 20


class Staged(Protocol):
    """A file that is being written where no reader looks.

    Attributes:
        crc32: The CRC-32 of what was written.
    """

    crc32: int

    def write(self, data: bytes) -> int:
        """Append bytes, all of them, and return how many they were."""

    def publish(self, name: str) -> None:
        """Give it to readers, complete, under this name in the run's folder, or raise ``OSError``."""

    def claim(self, name: str) -> None:
        """As ``publish``, but raise ``FileExistsError`` where there is such a file."""


class Place(Protocol):
    """A file or a folder. ``store.Local`` is one on this machine's disk, ``remote.Remote`` one at a URI."""

    @property
    def name(self) -> str:
        """The last piece of the path."""

    @property
    def on_disk(self) -> Path | None:
        """The path on this machine's disk, or None."""

    def __truediv__(self, name: str) -> "Place": ...

    def __fspath__(self) -> str: ...

    def resolve(self) -> "Place":
        """The same place under the name that tells whether two are the same."""

    def names(self, folder: str = "") -> set[str]:
        """The names of the files in this folder, or in a folder in it.

        Symbolic links are left out. A folder that is one has no files, as it may lead anywhere; nor has a missing one.
        """

    def written_times(self) -> dict[str, float]:
        """When the files in this folder were last written, by name, in seconds since 1970; empty if it is missing."""

    def folders(self) -> "list[Place]":
        """The folders in this folder."""

    def beside(self) -> "list[Place]":
        """The folders that stand beside this one on a disk; of a store, none."""

    def sizes_bytes(self, names: Iterable[str]) -> dict[str, int]:
        """The sizes of these files in this folder, by name; 0 where one cannot be known now.

        Raises:
            FileNotFoundError: one of them is missing.
        """

    def file_exists(self) -> bool:
        """Whether this is a file; a symbolic link is none."""

    def modified(self) -> float:
        """When this file was last written, in seconds since 1970.

        Raises:
            FileNotFoundError: it is missing.
        """

    # Not called ``read``: libraries take whatever has such a method for an open file, and a ``Local`` is a path.
    def content(self) -> bytes:
        """The bytes of this file, which is small.

        Raises:
            FileNotFoundError: it is missing.
            OSError: it cannot be read, is no regular file, or has more than ``LARGEST_BYTES``.
        """

    def local_file(self) -> Path:
        """A file on this machine with the bytes of this file, which never changes: itself, or a copy.

        Raises:
            FileNotFoundError: it is missing.
        """

    def fetch(self, names: Iterable[str]) -> None:
        """Make the copies that ``local_file`` would make of these files in this folder, several at a time.

        Raises:
            FileNotFoundError: one of them is missing.
        """

    def brief_copies(self) -> AbstractContextManager[None]:
        """Delete the copies that this thread makes within the block at its end."""

    def make_folders(self, names: Iterable[str]) -> None:
        """Make a run's folder and these folders in it, where they are missing and the store has folders."""

    def remake_folders(self, names: Iterable[str]) -> None:
        """Make these folders in a run's folder where they are missing, but never the run's folder."""

    def renew(self, content: bytes) -> None:
        """Renew the time at which this file was written, or write it."""

    def remove(self) -> None:
        """Delete this file, if it exists."""

    def remove_files(self, names: Iterable[str]) -> None:
        """Delete these files in this folder, those that exist, several at a time."""

    def stage(self, name: str) -> AbstractContextManager[Staged]:
        """Write a file of this run; what is not published within the block is thrown away.

        Args:
            name: The name under which it is written in ``staging/``.
        """
