"""A viewer on a terminal of its own, as over ssh: a pty."""

import codecs
import contextlib
import os
import re
import select
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.viewing import SEEN_BY_USERS
from tests.waiting import wait_until
from tracer.log.store import Local as Path

ENTER, LEAVE, HOME, SHOW_CURSOR = "\x1b[?1049h", "\x1b[?1049l", "\x1b[H", "\x1b[?25h"
_ESCAPE = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Z0-9])")


def bare(text: str) -> str:
    """A text without its escape codes."""
    return _ESCAPE.sub("", text).replace("\r", "")


@dataclass
class Terminal:
    """A pty on which a viewer runs."""

    process: "subprocess.Popen[bytes]"
    keyboard: int
    raw: str = ""
    # What is read may end within a letter.
    decoder: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8"))

    def read(self) -> str:
        """Everything that was written so far."""
        while select.select([self.keyboard], [], [], 0)[0]:
            try:
                self.raw += self.decoder.decode(os.read(self.keyboard, 1 << 16))
            except OSError:
                break
        return self.raw

    def frame(self) -> str:
        """What stands on the terminal since it was last drawn from its first line on."""
        return bare(self.read().rpartition(HOME)[2])

    def wait_for(self, words: str) -> str:
        """Wait until a picture has these words; that picture."""
        wait_until(lambda: words in self.frame() or self.process.poll() is not None)
        assert words in self.frame(), self.raw
        return self.frame()

    def end(self) -> int:
        """Wait for the viewer's end; its exit code."""
        wait_until(lambda: self.read() is not None and self.process.poll() is not None)
        self.read()
        return self.process.returncode


def resize(keyboard: int, columns: int, lines: int) -> None:
    """Give a terminal another size, as when a user draws its window larger."""
    import fcntl
    import termios

    fcntl.ioctl(keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@contextlib.contextmanager
def on_terminal(
    folder: Path, *arguments: object, size: tuple[int, int] = (80, 24), **environment: str
) -> Iterator[Terminal]:
    """A viewer on a terminal of so many columns and lines; at the end of the block it is ended."""
    import fcntl
    import termios

    ours, theirs = os.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    kept |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", "PYTHONWARNINGS": SEEN_BY_USERS, "PYTHONUTF8": "1"}
    resize(ours, *size)
    process = subprocess.Popen(
        [sys.executable, "-m", "viewer", *map(str, arguments)],
        cwd=folder,
        env=kept | environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    with process:
        try:
            yield Terminal(process, ours)
        finally:
            process.kill()
            process.wait()
            os.close(ours)
