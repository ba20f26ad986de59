"""Commands in this process, with what they print caught: a process of its own would cost seconds of imports each."""

import contextlib
import io
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

import gradwatch
from tests.warned import make_errors
from tracer import cli as tracer_cli
from viewer import cli as viewer_cli

# Where a viewer would look for a screen.
DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")
Said = subprocess.CompletedProcess[str]
"""A command's exit code, and what it wrote."""


def _print_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: object = None, line: str = ""
) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))


def _run(
    main: Callable[[Sequence[str]], None],
    arguments: Sequence[object],
    folder: Path,
    filters: Callable[[], None],
    columns: int = 200,
    encoding: str = "utf-8",
) -> Said:
    """Call a command's main as its process would, without a screen, in a folder, in a terminal of this width."""
    words = [str(argument) for argument in arguments]
    stdout, stderr = (
        io.TextIOWrapper(io.BytesIO(), encoding, errors, write_through=True)
        for errors in ("strict", "backslashreplace")
    )
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        filters()
        patch.setattr(warnings, "showwarning", _print_warning)
        patch.setattr(warnings, "formatwarning", warnings.formatwarning)
        patch.setattr(sys, "path", [*sys.path])
        for name in DISPLAYS:
            patch.delenv(name, raising=False)
        patch.setenv("COLUMNS", str(columns))
        patch.chdir(folder)
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                main(words)
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return Said(words, code, *(stream.buffer.getvalue().decode(encoding) for stream in (stdout, stderr)))


def tracer_says(*arguments: object, folder: Path | None = None, columns: int = 200, encoding: str = "utf-8") -> Said:
    """The command ``tracer``, which warns as Python does unless told otherwise."""
    default = partial(warnings.simplefilter, "default")
    return _run(tracer_cli.main, arguments, folder or Path.cwd(), default, columns, encoding)


def viewer_says(folder: Path, *arguments: object, encoding: str = "utf-8") -> Said:
    """The command ``viewer`` in a folder; whatever its libraries warn of would be seen by the user, and is an error."""
    return _run(viewer_cli.main, arguments, folder, make_errors, encoding=encoding)


def gradwatch_says(folder: Path, *arguments: object) -> Said:
    """The command ``gradwatch`` in a folder."""
    return _run(gradwatch.main, arguments, folder, make_errors)
