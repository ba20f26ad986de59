"""What differs between Linux, macOS and Windows: nothing else asks for the system's name.

Windows refuses to rename, replace or delete a file that a process has open. It opens no folder, forks no process, and
has neither users' numbers nor modes. macOS has a call of its own that brings a file to the disk.
"""

import contextlib
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import psutil

Given = ParamSpec("Given")
Result = TypeVar("Result")

WINDOWS = sys.platform == "win32"

if sys.platform == "win32":
    DiskPath = pathlib.WindowsPath
else:
    DiskPath = pathlib.PosixPath

# With these a file is opened. Windows would change the ends of lines.
BINARY = getattr(os, "O_BINARY", 0)
# A link is refused, and a pipe is not waited for, where the system has such flags.
NO_LINK = BINARY | getattr(os, "O_NOFOLLOW", 0)
NO_LINK_NOR_PIPE = NO_LINK | getattr(os, "O_NONBLOCK", 0)
# Whether ``os.utime`` cannot but follow links.
UTIME_FOLLOWS = os.utime not in os.supports_follow_symlinks
# Whether a folder can be opened, and then a file by its name in it.
FOLDERS_OPEN = os.open in os.supports_dir_fd

# Windows' numbers for a file that a process has open: access is denied, it is used, locked, mapped into memory.
_IN_USE = frozenset({5, 32, 33, 1224})
# A reader lets go of a file within milliseconds, what looks for viruses within a second.
_PATIENCE_SECONDS = 1.0
_PAUSE_SECONDS = 0.02


def in_use(error: OSError) -> bool:
    """Whether this is how Windows refuses what is done to an open file; rights that are missing look alike."""
    return getattr(error, "winerror", None) in _IN_USE


def patiently(action: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs) -> Result:
    """Do something to a file; while a process has it open and Windows refuses, try again for a second.

    Raises:
        OSError: it went wrong in another way, or the file is still open.
    """
    give_up = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return action(*args, **kwargs)
        except OSError as error:
            if not in_use(error) or time.monotonic() >= give_up:
                raise
        time.sleep(_PAUSE_SECONDS)


def flush_drive(descriptor: int) -> None:
    """Let the drive write what it was given by ``os.fsync``, which on macOS may stop at the drive's own memory.

    Not every drive can be asked to, which is no error.
    """
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)


@contextlib.contextmanager
def entered(folder: pathlib.Path, forbidden: int) -> Iterator[tuple[pathlib.Path, int | None]]:
    """Enter a folder that is this user's alone, as one process at a time.

    Its files are opened by its descriptor, so that nobody can put another folder in its place meanwhile. On Windows it
    has none: there the rights of the user's own folder keep others out, and two processes may enter together.

    Args:
        folder: The folder.
        forbidden: The bits of a mode that it must not have.

    Yields:
        What stands before the name of a file in it, and the ``dir_fd`` by which that is opened.

    Raises:
        OSError: it is no folder, belongs to another user, or its mode has one of these bits.
    """
    if not FOLDERS_OPEN:
        yield folder, None
        return
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | NO_LINK)
    try:
        if not is_ours(os.fstat(descriptor), forbidden):
            raise PermissionError(f"{folder} belongs to another user, or others may write there")
        if sys.platform != "win32":
            import fcntl

            # Some network disks know no locks.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield pathlib.Path(), descriptor
    finally:
        os.close(descriptor)


def is_ours(status: os.stat_result, forbidden: int) -> bool:
    """Whether a file is this user's, and its mode has none of these bits; true on Windows, which has neither."""
    user = getattr(os, "geteuid", None)
    return user is None or (status.st_uid == user() and not status.st_mode & forbidden)


def in_forked_children(action: Callable[[], object]) -> None:
    """Call this in each child that this process forks; Windows forks none."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=action)


def lives(pid: int) -> bool:
    """Whether there is a process of this number, anybody's."""
    try:
        # Not ``os.kill``, which on Windows would send it a Ctrl-C.
        return bool(psutil.pid_exists(pid))
    except OverflowError:
        return False


def pid_space() -> str:
    """Where a process's number is its own: the machine's boot and the namespace, as far as the system tells them."""
    boot, namespace = "-", 0
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = pathlib.Path("/proc/self/ns/pid").stat().st_ino
    return f"{boot} {namespace}"


def quoted(word: str) -> str:
    """A word of a command line as this system's shells take it."""
    return subprocess.list2cmdline([word]) if WINDOWS else shlex.quote(word)


def file_name(text: str) -> str:
    """This text as the name of a file, which on Windows has no colon and the like."""
    return re.sub(r'[<>:"/\\|?*]', "_", text) if WINDOWS else text


def has_display() -> bool:
    """Whether a window can be opened here."""
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
