"""How the tracer speaks inside training: one warning, and never an exception."""

import contextlib
import sys
import warnings

from tracer.log.text import failure, plain

# Between the tracer and a user's line there are frames of these, too.
_NOT_THE_USERS = {"tracer", "torch", "lightning", "pytorch_lightning", "transformers", "accelerate"}


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
    """An error in one line: some errors of torch's dispatcher have a hundred, and those of the system have numbers."""
    if isinstance(error, OSError) and error.strerror:
        return failure(error)
    return (in_full(error).splitlines() or [""])[0]


def warn(message: str) -> None:
    """Warn the user, at the user's own line. Nothing is raised into training, even if warnings are errors."""
    message = plain(message)
    try:
        warnings.warn(f"gradwatch: {message}", TracerWarning, stacklevel=_depth_of_user())
    except Exception:
        # stderr may be closed.
        with contextlib.suppress(Exception):
            print(f"TracerWarning: gradwatch: {message}", file=sys.stderr)


def _depth_of_user() -> int:
    """How many frames the caller is away from the user's line; too many where a thread has none."""
    frame, depth = sys._getframe(1), 1
    while (caller := frame.f_back) is not None:
        frame, depth = caller, depth + 1
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _NOT_THE_USERS:
            return depth
    return depth + 1
