"""The commands as a shell runs them: each, and each exit code, once in a process of its own."""

import json
import math
import os
import subprocess
import sys

import pytest

from tests.halves import first_of
from tests.logs import close_run, extremes, flip_bit, metrics, new_run, publish_next
from tests.viewing import view_in_process
from tracer.log.store import Local as Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the runs ``good``, ``ill``, ``damaged`` and ``newer``."""
    for name in ("good", "ill", "damaged", "newer"):
        run = new_run(tmp_path / name)
        last = math.nan if name == "ill" else 1.0
        part = publish_next(run, "extremes", extremes(range(5), values={"grad_max": [1.0] * 4 + [last]}))
        publish_next(run, "metrics", metrics(range(5), range(5)))
        close_run(run, last_step=4)
        if name == "damaged":
            flip_bit(part.path)
    info = json.loads((tmp_path / "newer" / "run.json").read_text())
    (tmp_path / "newer" / "run.json").write_text(json.dumps(info | {"format": 99}))
    (tmp_path / "net.py").write_text("from torch import nn\nmodel = nn.Linear(2, 1)\n")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    first_of(
        [
            ("info good", 0, "closed"),
            ("verify good", 0, "every byte as it was published"),
            ("verify damaged", 1, "has changed since it was published"),
            ("merge good", 0, "2 now"),
            ("info newer", 1, "upgrade"),
            ("info", 2, "Missing argument"),
            ("doctor net:model", 0, "2 parameters: 2 traced"),
        ]
    ),
)
def test_the_tracers_commands(folder: Path, arguments: str, code: int, words: str) -> None:
    """``tracer`` ends with 0 where it could do what it was told, 1 where a run is wrong, 2 where the words are."""
    done = subprocess.run(
        [sys.executable, "-m", "tracer", *arguments.split()], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, words in done.stdout + done.stderr) == (code, True), done
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    first_of(
        [
            ("good --save a.png", 0, "good is closed at step 4: a.png"),
            ("good --text", 0, "closed"),
            ("newer --save a.png", 1, "upgrade"),
            ("good --save a.jpg", 2, ".png, .svg, .pdf"),
            ("check good", 0, "nothing found"),
            ("check good --strict --rule dead.rows=x", 3, "dead.rows"),
            ("check ill", 2, "NaN"),
            ("check nowhere", 3, "nowhere holds no run"),
            ("diff good good", 0, "alike"),
            ("diff good ill", 1, "weight"),
            ("diff good", 2, "Missing argument"),
            ("diff good nowhere", 3, "nowhere holds no run"),
        ]
    ),
)
def test_the_viewers_commands(folder: Path, arguments: str, code: int, words: str) -> None:
    """``viewer`` and what it calls end with the codes that their help lists."""
    found, said, complained = view_in_process(folder, *arguments.split())
    assert (found, words in " ".join((said + complained).split())) == (code, True), (said, complained)
    assert "Traceback" not in complained


@pytest.mark.parametrize(
    ("command", "code"),
    first_of(
        [
            # Of a check, 1 and 2 would tell of warnings and errors.
            ("viewer.cli check good", 3),
            ("viewer.cli check good --json", 3),
            ("viewer.cli good --text", 1),
            ("tracer.cli info good --json", 1),
            ("tracer.cli verify good", 1),
            ("gradwatch --help", 1),
        ]
    ),
)
def test_a_command_that_nobody_reads_ends_quietly(folder: Path, command: str, code: int) -> None:
    """Where the reader of a pipe has gone, as in ``| head -1``, it ends with a code of failure, and says nothing."""
    module, *words = command.split()
    call = f"from {module} import main; main({words!r})"
    # As users have it: what is printed waits for more.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", call],
        cwd=folder,
        env=environment,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize("stream", [1, 2])
@pytest.mark.parametrize(
    ("command", "code"),
    first_of(
        [("viewer check good", 0), ("viewer good --text", 0), ("viewer check nowhere", 3), ("tracer info good", 0)]
    ),
)
def test_a_stream_that_the_shell_has_closed_is_no_traceback(folder: Path, command: str, code: int, stream: int) -> None:
    """With ``>&-`` or ``2>&-`` a command ends with the code that it ends with otherwise."""
    program, *words = command.split()
    call = f"from {program}.cli import main; main({words!r})"
    shell = ["sh", "-c", f'exec "$@" {stream}>&-', "sh", sys.executable, "-c", call]
    done = subprocess.run(shell, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == code, done
    assert "Traceback" not in done.stdout + done.stderr
