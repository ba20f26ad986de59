"""Texts fit for a terminal: a log may come from a stranger, and a locale may know few letters."""

import codecs
import contextlib
import io
import json
import math
import os
import re
import sys
import unicodedata
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")
NAME_LENGTH = 28
_NUMBERS = re.compile(r"\[errno \d+\] ?| ?\(os error \d+\)", re.IGNORECASE)
_QUESTION_MARKS = "gradwatch.question_marks"


def plain(text: object) -> str:
    """A text on one line, without control characters that a terminal would obey and a figure cannot show.

    A replacement character stands for each byte of a file's name that is no letter.
    """
    line = _SURROGATE.sub("\ufffd", " ".join(str(text).split()))
    return "".join(letter for letter in line if letter.isprintable())


def as_json(data: object) -> str:
    """Data as JSON that every reader takes: times in ISO 8601, and null for NaN and infinity."""
    return json.dumps(_for_json(data), indent=1)


def _for_json(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _for_json(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_for_json(value) for value in data]
    if isinstance(data, datetime):
        return data.isoformat()
    return None if isinstance(data, float) and not math.isfinite(data) else data


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


def shortened(name: str, length: int = NAME_LENGTH) -> str:
    """A name on one line, its middle left out where it is too long; a Chinese letter is as wide as two others."""
    # Slow to import for a training, which says no names of runs.
    from rich.cells import cell_len

    line = plain(name)
    if cell_len(line) <= length:
        return line
    half = length // 2
    begin, end = line[: half - 1], line[-half:]
    while cell_len(begin) > half - 1:
        begin = begin[:-1]
    while cell_len(end) > half:
        end = end[1:]
    return f"{begin}…{end}"


def reason(error: BaseException) -> str:
    """Why something failed, on one line: an error's words without the numbers that systems and libraries give it.

    The name of a file is left out where the error has it as an attribute.
    """
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if isinstance(error, json.JSONDecodeError):
        words = f"it is no JSON: {error.msg} in line {error.lineno}"
    return plain(_NUMBERS.sub("", words)) or type(error).__name__


def failure(error: BaseException) -> str:
    """The ``reason`` of an error, after the name of the file that it is about, if it has one."""
    name = error.filename if isinstance(error, OSError) else None
    return reason(error) if name is None else f"{plain(os.fsdecode(name))}: {reason(error)}"


def say_wrong_use(error: Any) -> None:
    """Print what is wrong with a command line, in words that are ours where a library has put its own before them."""
    error.message = error.message.replace("Value error, ", "")
    error.show()


def print_anything() -> None:
    """Let a command print: into nothing where the shell has closed a stream, question marks for letters it lacks.

    Each line goes out when it is printed. Where nobody reads on, as in ``| head -1``, the command hears of it while
    typer still ends it quietly. At Python's own end, there would be a traceback.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_QUESTION_MARKS, line_buffering=True)


def _question_marks(error: UnicodeError) -> tuple[str, int]:
    """As many question marks as the letters are wide, so that tables stay straight."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "?" * sum(map(_width, error.object[error.start : error.end])), error.end


def _width(letter: str) -> int:
    return 0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1


codecs.register_error(_QUESTION_MARKS, _question_marks)
