"""How the tracer speaks inside training: one warning, and never an exception."""

import contextlib
import sys
import warnings

from tracer.log.text import plain


class TracerWarning(UserWarning):
    """Something in the tracer failed or looks wrong; training is untouched."""


def encodable(text: str) -> str:
    """A text as UTF-8 can hold it: a lone surrogate, as a file name that is not UTF-8 has, becomes its escape."""
    return text.encode(errors="backslashreplace").decode()


def in_full(error: BaseException) -> str:
    """An error's kind and message, whatever its class does when it is asked for it."""
    try:
        message = str(error)
    except Exception:
        message = "its message cannot be had"
    return encodable(f"{type(error).__name__}: {message}")


def in_short(error: BaseException) -> str:
    """An error in one line: some errors of torch's dispatcher have a hundred."""
    return (in_full(error).splitlines() or [""])[0]


def warn(message: str) -> None:
    """Warn the user. Nothing is raised into training, even if warnings are errors."""
    message = plain(message)
    try:
        warnings.warn(f"gradwatch: {message}", TracerWarning, stacklevel=3)
    except Exception:
        # stderr may be closed.
        with contextlib.suppress(Exception):
            print(f"TracerWarning: gradwatch: {message}", file=sys.stderr)
