"""Texts of a stranger's log on a terminal: no command obeys them, nor does a warning inside training."""

import os

import pytest

from tests.commands import Said, tracer_says, viewer_says
from tests.logs import close_run, events, flip_bit, metrics, new_run, publish_next, statistics
from tracer.log import ranks
from tracer.log.read import BadPartWarning, scan
from tracer.log.run import LogError
from tracer.log.store import Local as Path
from tracer.warn import TracerWarning, warn

# Writes the clipboard, rings, clears the screen (in C0 and C1), deletes, turns letters round, and breaks lines.
HOSTILE = "x\x1b]52;c;aGk=\x07\x1b[2J\x9b2J\x7f\u202e\r\nloss"


def obeyed(text: str) -> list[str]:
    """The letters of a text that a terminal would obey."""
    return [letter for letter in text if letter != "\n" and not letter.isprintable()]


def hostile_run(path: Path) -> Path:
    """A closed run whose every text is hostile, with findings, events of all kinds, and a damaged part."""
    run = new_run(path, ["weight", HOSTILE], model=HOSTILE, host=HOSTILE)
    bad = {"grad_max": [float("nan")] * 10, f"grad_{HOSTILE}": [1.0] * 10}
    publish_next(run, "extremes", statistics(range(5), ["weight", HOSTILE], bad))
    publish_next(run, "metrics", metrics(range(5), [1.0, 2.0, 3.0, 4.0, float("nan")], HOSTILE))
    for kind in ("failed", "dropped", "closed", HOSTILE):
        publish_next(run, "events", events([0], kind, HOSTILE, HOSTILE))
    flip_bit(publish_next(run, "extremes", statistics([9], ["weight"], {})).path)
    staged = run / "staging" / f"r00000-{HOSTILE}"
    staged.write_bytes(b"")
    os.utime(staged, (0, 0))
    close_run(run, last_step=4)
    return run


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("tracer info RUN", 0),
        ("tracer verify RUN", 1),
        ("tracer merge RUN", 0),
        ("tracer info RUN/none", 1),
        ("viewer RUN --save a.png", 0),
        ("viewer RUN --text", 0),
        ("viewer RUN --text --view layers", 0),
        ("viewer RUN --text --param NAME", 0),
        ("viewer RUN RUN2 --text", 0),
        ("viewer RUN --text --params none", 1),
        ("viewer RUN --text --param none", 1),
        ("viewer RUN --text --rank 7", 1),
        ("viewer RUN --text --view layers --statistic grad_none", 1),
        ("viewer RUN/none --save a.png", 1),
        ("viewer check RUN", 2),
        ("viewer check RUN --json", 2),
        ("viewer check RUN --follow", 2),
        ("viewer check RUN RUN2 RUN/none", 2),
        ("viewer check RUN --rank 7", 3),
        ("viewer diff RUN RUN2", 1),
        ("viewer diff RUN RUN2 --json", 1),
    ],
)
def test_no_text_of_a_log_is_obeyed(tmp_path: Path, arguments: str, code: int) -> None:
    """Whatever the names of runs, models, parameters, metrics, columns and files, lines of letters come out."""
    run, other = (hostile_run(tmp_path / f"{number}{HOSTILE}") for number in (1, 2))
    publish_next(other, "metrics", metrics(range(5), [9.0] * 5, HOSTILE))
    places = {"RUN": str(run), "RUN2": str(other), "RUN/none": str(run / "none"), "NAME": HOSTILE}
    program, *words = arguments.split()
    words = [places.get(word, word) for word in words]
    said: Said = tracer_says(*words) if program == "tracer" else viewer_says(tmp_path, *words)
    assert (said.returncode, bool(said.stdout + said.stderr)) == (code, True), said
    assert not obeyed(said.stdout + said.stderr), said


def test_no_warning_and_no_error_inside_a_training_is_obeyed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Python prints of warnings and of errors, with their tracebacks, are lines of letters, too."""
    run = hostile_run(tmp_path / HOSTILE)
    with pytest.warns(BadPartWarning) as bad_part:
        scan(run)
    with pytest.warns(TracerWarning) as warned:
        warn(HOSTILE)
    with pytest.raises(LogError) as missing:
        scan(run / "none")
    for said in (*(warning.message for warning in (*bad_part, *warned)), missing.value):
        assert not obeyed(str(said))
    monkeypatch.setattr(ranks, "HEARTBEAT_STALE_SECONDS", 0.0)
    assert not ranks._still_written(run, 0, f"{HOSTILE} 7", 0.0)
    assert "still being written" in (said := capsys.readouterr().err)
    assert not obeyed(said)
