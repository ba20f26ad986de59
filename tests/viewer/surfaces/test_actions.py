"""``viewer check --on-finding``: a user's command for each new finding, to which a log can say nothing as code."""

import math
from pathlib import Path

import pytest

from tests.commands import viewer_says
from tests.logs import close_run, events, extremes, new_run, publish_next

COMMAND = 'printf "%s|" "$GRADWATCH_SEVERITY" "$GRADWATCH_KIND" "$GRADWATCH_STEP" "$GRADWATCH_PARAM" >> said'


def ill(path: Path, param: str = "weight") -> Path:
    """A closed run with a NaN from step 7 on, and a parameter without a gradient."""
    run = new_run(path, [param, "unused"])
    for name, sizes in ((param, [0.1] * 7 + [math.nan] * 23), ("unused", [None] * 30)):
        values = {"grad_min": [None if size is None else -size for size in sizes], "grad_max": sizes}
        publish_next(run, "extremes", extremes(range(30), [name], values))
    close_run(run, 29)
    return path


@pytest.mark.parametrize("follow", [[], ["--follow"]], ids=["once", "follow"])
def test_a_command_is_run_once_for_each_error(follow: list[str], tmp_path: Path) -> None:
    """Its environment tells of the finding; what it prints is no part of the report."""
    ill(tmp_path / "run")
    done = viewer_says(tmp_path, "check", "run", "--json", *follow, "--on-finding", f"{COMMAND}; echo hello")
    assert done.returncode == 2
    assert "hello" not in done.stdout
    assert (tmp_path / "said").read_text() == "error|nonfinite|7|weight|"


def test_less_severe_ones_count_where_they_are_asked_for(tmp_path: Path) -> None:
    """With a note asked for, warnings count, too."""
    ill(tmp_path / "run")
    viewer_says(tmp_path, "check", "run", "--on-finding", COMMAND, "--on-severity", "warning")
    assert sorted((tmp_path / "said").read_text().split("|")[1::4]) == ["nonfinite", "unused"]


def test_a_log_says_nothing_as_code(tmp_path: Path) -> None:
    """Names and texts are values of variables, and no words of a command line."""
    evil = "$(touch pwned)`touch pwned`; touch pwned; 'x\"\n\0 && touch pwned #"
    run = ill(tmp_path / "run", evil.replace("\0", ""))
    publish_next(run, "events", events([3], "failed", detail=evil))  # type: ignore[arg-type]
    done = viewer_says(tmp_path, "check", "run", "--on-finding", 'echo "$GRADWATCH_TEXT" > said; : $GRADWATCH_PARAM')
    assert done.returncode == 2
    assert "touch pwned" in (tmp_path / "said").read_text()
    assert not (tmp_path / "pwned").exists()


def test_a_command_that_fails_is_told_of_and_costs_no_finding(tmp_path: Path) -> None:
    """The exit code stays that of the findings."""
    ill(tmp_path / "run")
    done = viewer_says(tmp_path, "check", "run", "--on-finding", "exit 7")
    assert (done.returncode, "--on-finding ended with 7" in done.stderr) == (2, True)


def test_what_a_restart_has_ended_is_no_news(tmp_path: Path) -> None:
    """A job that was mended is not stopped for what it had before."""
    run = new_run(tmp_path / "run")
    publish_next(run, "extremes", extremes(range(9), values={"grad_max": [0.1] * 8 + [math.nan]}))
    publish_next(run, "events", events([5], "resumed", attempt=1))
    publish_next(run, "extremes", extremes(range(5, 9), attempt=1))
    close_run(run, 8)
    done = viewer_says(tmp_path, "check", "run", "--on-finding", COMMAND)
    assert (done.returncode, (tmp_path / "said").exists()) == (0, False)
