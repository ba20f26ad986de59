"""How the tracer speaks inside training: one warning, and never an exception."""

import sys
import warnings


class TracerWarning(UserWarning):
    """Something in the tracer failed or looks wrong; training is untouched."""


def warn(message: str) -> None:
    """Warn the user, even where warnings are turned into errors: nothing is raised into training."""
    try:
        warnings.warn(f"gradwatch: {message}", TracerWarning, stacklevel=3)
    except TracerWarning:
        print(f"TracerWarning: gradwatch: {message}", file=sys.stderr)
