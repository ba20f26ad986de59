"""Texts fit for a terminal: a log may come from a stranger, and a locale may know few letters."""

import codecs
import contextlib
import io
import os
import re
import sys
import unicodedata
from pathlib import Path

_SURROGATE = re.compile("[\ud800-\udfff]")
_QUESTION_MARKS = "gradwatch.question_marks"


def plain(text: object) -> str:
    """A text on one line, without control characters that a terminal would obey and a figure cannot show.

    A replacement character stands for each byte of a file's name that is no letter.
    """
    line = _SURROGATE.sub("\ufffd", " ".join(str(text).split()))
    return "".join(letter for letter in line if letter.isprintable())


def in_notebook() -> bool:
    """Whether this runs in a notebook, and not in a script or in IPython's terminal."""
    # Whoever runs in one has imported it.
    ipython = sys.modules.get("IPython.core.getipython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None


def say(line: str) -> None:
    """Print a line that is no warning: below a notebook's cell, where standard error is red; else on standard error."""
    # Either may be closed.
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stdout if in_notebook() else sys.stderr)


def print_anything() -> None:
    """Let a command print: into nothing where the shell has closed a stream, question marks for letters it lacks."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_QUESTION_MARKS)


def _question_marks(error: UnicodeError) -> tuple[str, int]:
    """As many question marks as the letters are wide, so that tables stay straight."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "?" * sum(map(_width, error.object[error.start : error.end])), error.end


def _width(letter: str) -> int:
    return 0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1


codecs.register_error(_QUESTION_MARKS, _question_marks)
