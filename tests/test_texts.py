"""Texts of a log on a terminal: none is obeyed, in no command and no warning, and none is too much for an encoding."""

import io
import os
import time
from contextlib import redirect_stdout

import pytest

from tests.commands import Said, tracer_says, viewer_says
from tests.halves import first_of
from tests.logs import close_run, events, flip_bit, metrics, new_run, publish_next, statistics
from tracer.log import ranks
from tracer.log.parts import BadPartWarning
from tracer.log.read import scan
from tracer.log.run import LogError
from tracer.log.store import Local as Path
from tracer.log.text import plain, print_anything
from tracer.warn import TracerWarning, warn

# Writes the clipboard, rings, clears the screen (in C0 and C1), deletes, turns letters round, and breaks lines.
HOSTILE = "x\x1b]52;c;aGk=\x07\x1b[2J\x9b2J\x7f\u202e\r\nloss"


def obeyed(text: str) -> list[str]:
    """The letters of a text that a terminal would obey."""
    return [letter for letter in text if letter != "\n" and not letter.isprintable()]


# Each command with its exit code; RUN and OTHER are runs, NAME is the name of a parameter and a metric.
COMMANDS = [
    ("tracer info RUN", 0),
    ("tracer verify RUN", 1),
    ("tracer merge RUN", 0),
    ("tracer info RUN/none", 1),
    ("viewer RUN --save a.png", 0),
    ("viewer RUN --text", 0),
    ("viewer RUN --text --view layers", 0),
    ("viewer RUN --text --param NAME", 0),
    ("viewer RUN OTHER --text", 0),
    ("viewer RUN --text --params none", 1),
    ("viewer RUN --text --param none", 1),
    ("viewer RUN --text --rank 7", 1),
    ("viewer RUN --text --view layers --statistic grad_none", 1),
    ("viewer RUN/none --save a.png", 1),
    ("viewer check RUN", 2),
    ("viewer check RUN --json", 2),
    ("viewer check RUN --follow", 2),
    ("viewer check RUN OTHER RUN/none", 2),
    ("viewer check RUN --rank 7", 3),
    ("viewer diff RUN OTHER", 1),
    ("viewer diff RUN OTHER --json", 1),
    ("viewer --help", 0),
    ("tracer --help", 0),
    ("viewer check --rules", 0),
]


def run_named(path: Path, name: str) -> Path:
    """A closed run whose every text is this name, with findings, events of all kinds, and a damaged part."""
    run = new_run(path, ["weight", name], model=name, host=name)
    bad = {"grad_max": [float("nan")] * 10, f"grad_{name}": [1.0] * 10}
    publish_next(run, "extremes", statistics(range(5), ["weight", name], bad))
    publish_next(run, "metrics", metrics(range(5), [1.0, 2.0, 3.0, 4.0, float("nan")], name))
    for kind in ("failed", "dropped", "closed", name):
        publish_next(run, "events", events([0], kind, name, name))
    flip_bit(publish_next(run, "extremes", statistics([9], ["weight"], {})).path)
    staged = run / "staging" / f"r00000-{name}"
    staged.write_bytes(b"")
    os.utime(staged, (0, 0))
    close_run(run, last_step=4)
    return run


def said_of(folder: Path, arguments: str, name: str, encoding: str = "utf-8") -> Said:
    """What a command says of runs in which everything has this name, on a terminal of this encoding."""
    run, other = (run_named(folder / f"{number}{name}", name) for number in (1, 2))
    publish_next(other, "metrics", metrics(range(5), [9.0] * 5, name))
    places = {"RUN": run, "OTHER": other, "RUN/none": run / "none", "NAME": name}
    program, *words = arguments.split()
    given = [places.get(word, word) for word in words]
    if program == "tracer":
        return tracer_says(*given, encoding=encoding)
    return viewer_says(folder, *given, encoding=encoding)


@pytest.mark.parametrize(("arguments", "code"), COMMANDS)
def test_no_text_of_a_log_is_obeyed(tmp_path: Path, arguments: str, code: int) -> None:
    """Whatever the names of runs, models, parameters, metrics, columns and files, lines of letters come out."""
    said = said_of(tmp_path, arguments, HOSTILE)
    assert (said.returncode, bool(said.stdout + said.stderr)) == (code, True), said
    assert not obeyed(said.stdout + said.stderr), said


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("arguments", "code"),
    first_of(COMMANDS),
)
def test_letters_that_the_terminal_lacks_cost_no_command(
    tmp_path: Path, arguments: str, code: int, encoding: str
) -> None:
    """Question marks stand for them on stdout, and escapes on stderr; the exit code is the same."""
    said = said_of(tmp_path, arguments, "実験-λ-é-loss-😀", encoding)
    assert (said.returncode, bool(said.stdout + said.stderr)) == (code, True), said
    assert "Traceback" not in said.stderr


def test_question_marks_are_as_wide_as_the_letters() -> None:
    """A table of names that the terminal lacks has its columns where one of letters has them."""
    said = io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True)
    with redirect_stdout(said):
        print_anything()
        print("実験 λ é e\u0301 \udcff")
    assert said.buffer.getvalue() == b"???? ? ? e ?\n"


def test_a_name_of_bytes_that_are_no_letters_is_seen() -> None:
    """In a folder's name that is not UTF-8, a replacement character stands where such a byte is."""
    assert plain("run\udcff\udc80-1") == "run\ufffd\ufffd-1"


def test_no_warning_and_no_error_inside_a_training_is_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Python prints of warnings and of errors, with their tracebacks, are lines of letters, too."""
    run = run_named(tmp_path / HOSTILE, HOSTILE)
    with pytest.warns(BadPartWarning) as bad_part:
        scan(run)
    with pytest.warns(TracerWarning) as warned:
        warn(HOSTILE)
    with pytest.raises(LogError) as missing:
        scan(run / "none")
    for said in (*(warning.message for warning in (*bad_part, *warned)), missing.value):
        assert not obeyed(str(said))
    monkeypatch.setattr(ranks, "HEARTBEAT_STALE_SECONDS", 0.0)
    assert not ranks._still_written(run, 0, f"{HOSTILE.splitlines()[0]} 7", time.time())
    assert "still being written" in (said := capsys.readouterr().err)
    assert not obeyed(said)
