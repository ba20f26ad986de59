"""How a run is, in words: all that is known, to the precision that is meant, and nothing that is not."""

import dataclasses
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len

from tracer.log.ranks import State
from tracer.log.text import shortened
from viewer.snapshot import Snapshot
from viewer.words import duration, notices, title, words

NOW = 1_000_000.0


def snapshot(state: State = "running", **fields: Any) -> Snapshot:
    """A run at step 1,234 whose last row is a minute old."""
    return Snapshot("run", state, **({"last_step": 1234, "last_time": NOW - 60} | fields))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (snapshot(), "● running · step 1,234 · last row 1 min ago"),
        (snapshot(last_step=None, last_time=None, total_steps=50), "● running · no step yet"),
        (snapshot("closed"), "■ closed · step 1,234"),
        (snapshot("stopped"), "▲ stopped without closing · step 1,234 · last row 1 min ago"),
        (snapshot(last_time=None), "● running · step 1,234"),
        (snapshot(steps_per_second=None), "● running · step 1,234 · last row 1 min ago"),
        (snapshot(steps_per_second=1234.5), "● running · step 1,234 · 1,234 steps/s · last row 1 min ago"),
        (snapshot(steps_per_second=3.14159), "● running · step 1,234 · 3.14 steps/s · last row 1 min ago"),
        (
            snapshot(steps_per_second=2.0, total_steps=2675),
            "● running · step 1,234 (46 %) · 2 steps/s · last row 1 min ago · about 12 min left",
        ),
        # Nobody knows how long it takes without a speed, nor once it has ended.
        (snapshot(total_steps=5000), "● running · step 1,234 (24 %) · last row 1 min ago"),
        (snapshot("closed", total_steps=5000, steps_per_second=2.0), "■ closed · step 1,234 (24 %) · 2 steps/s"),
        (
            snapshot("stopped", total_steps=5000, steps_per_second=2.0),
            "▲ stopped without closing · step 1,234 (24 %) · 2 steps/s · last row 1 min ago",
        ),
        # The last step, and steps beyond what was announced.
        (
            snapshot(steps_per_second=2.0, total_steps=1235),
            "● running · step 1,234 (100 %) · 2 steps/s · last row 1 min ago",
        ),
        (
            snapshot(steps_per_second=2.0, total_steps=7),
            "● running · step 1,234 · 2 steps/s · last row 1 min ago",
        ),
        (
            snapshot(steps_per_second=2.0, total_steps=1237),
            "● running · step 1,234 (99 %) · 2 steps/s · last row 1 min ago · about 10 s left",
        ),
    ],
)
def test_words_say_what_is_known(given: Snapshot, expected: str) -> None:
    """State, step, speed, age of the last row, and how long it will take: each where it is known."""
    assert words(given, NOW) == expected


@pytest.mark.parametrize(
    ("age", "expected"),
    [
        (0.0, "just now"),
        (9.9, "just now"),
        (10.0, "10 s ago"),
        (59.99, "1 min ago"),
        (60.0, "1 min ago"),
        (7200.0, "2 h ago"),
        # The clock of the machine that trains is ahead of ours.
        (-1.0, "just now"),
        (-86_400.0, "just now"),
    ],
)
def test_the_age_of_the_last_row_is_coarse(age: float, expected: str) -> None:
    """An age changes seldom, so that figures need not be drawn every second, and is never negative."""
    assert words(snapshot(last_time=NOW - age), NOW).endswith(f"last row {expected}")


@pytest.mark.parametrize(
    ("steps", "expected"), [(3, "10 s"), (14, "10 s"), (16, "20 s"), (28, "30 s"), (57, "1 min"), (90, "1.5 min")]
)
def test_the_time_left_is_the_nearest_round_one(steps: int, expected: str) -> None:
    """28 seconds are about 30, and not about 20."""
    given = snapshot(last_step=99, total_steps=100 + steps, steps_per_second=1.0)
    assert words(given, NOW).endswith(f"about {expected} left")


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (9.99, "10 s"),
        (45, "40 s"),
        (59.999, "1 min"),
        (60, "1 min"),
        (90, "1.5 min"),
        (599, "10 min"),
        (89 * 60, "89 min"),
        (5399.9, "90 min"),
        (90 * 60, "1.5 h"),
        (35.9 * 3600, "36 h"),
        (36 * 3600, "1.5 days"),
        (2.14 * 86_400, "2.1 days"),
        (99.4 * 86_400, "99 days"),
        (99.6 * 86_400, "100 days"),
        (12_345 * 86_400, "12,345 days"),
    ],
)
def test_a_duration_is_in_its_largest_unit(seconds: float, expected: str) -> None:
    """Two digits and a unit, also where a number is rounded up to the next unit."""
    assert duration(seconds) == expected


def unit_seconds(words: str) -> float:
    """What a duration in words means."""
    number, unit = words.replace(",", "").split(" ")
    return float(number) * {"s": 1, "min": 60, "h": 3600, "days": 86_400}[unit]


@given(st.floats(0, 1e10), st.floats(0, 1e10))
@example(59.9, 60.0)
@example(5399.99, 5400.0)
@example(129_599.0, 129_600.0)
def test_a_duration_is_about_right_and_grows_with_time(one: float, other: float) -> None:
    """No duration is in powers of ten, is off by more than its precision, or is shorter than that of less time."""
    for seconds in (one, other):
        assert re.fullmatch(r"(\d|\d\.\d|\d\d|[\d,]{3,}) (s|min|h|days)", duration(seconds))
        assert unit_seconds(duration(seconds)) == pytest.approx(seconds, rel=0.1, abs=10)
    if one <= other:
        assert unit_seconds(duration(one)) <= unit_seconds(duration(other))


def test_the_title_of_one_run_has_its_name_and_words() -> None:
    """One run stands above the figure with all that is known of it."""
    assert title([snapshot()], NOW) == f"run  {words(snapshot(), NOW)}"


def test_the_title_of_several_runs_counts_them_by_state() -> None:
    """Of several, it says how many there are, and how many of them run, have closed and have stopped."""
    states: list[State] = ["running", "closed", "running", "stopped"]
    assert (
        title([snapshot(state) for state in states], NOW)
        == "4 runs  ● 2 running · ■ 1 closed · ▲ 1 stopped without closing"
    )


def test_notices_name_what_is_damaged_lost_or_late() -> None:
    """Each thing to be known is a line, with the run's name where there are several; otherwise there is none."""
    whole = snapshot()
    bad = dataclasses.replace(
        snapshot("closed"), name="bad", complete=False, dropped=12_345, problems=("a.parquet is short", "b is gone")
    )
    lines = [
        "the last rows are still to arrive",
        "12,345 rows dropped, which could not be written",
        "left out: a.parquet is short",
        "left out: b is gone",
    ]
    assert notices([whole]) == []
    assert notices([bad]) == lines
    assert notices([whole, bad]) == [f"bad: {line}" for line in lines]


@given(st.text(max_size=60) | st.text("実a é", max_size=60), st.integers(4, 40))
@example("実" * 40, 24)
def test_a_shortened_name_is_one_line_of_at_most_that_length(name: str, length: int) -> None:
    """It begins and ends as the name does; one that is short enough stays as it is."""
    line = "".join(letter for letter in " ".join(name.split()) if letter.isprintable())
    found = shortened(name, length)
    assert cell_len(found) <= length
    assert len(found.splitlines()) <= 1
    if cell_len(line) <= length:
        assert found == line
    else:
        assert any(line.startswith(found[:at]) and line.endswith(found[at + 1 :]) for at in range(len(found)))
        assert cell_len(found) >= length - 3 or not line.isascii()
