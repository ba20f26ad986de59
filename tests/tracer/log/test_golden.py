"""The format is frozen: a run that an earlier version wrote is read for ever, and one of today has all that it had."""

import json
import shutil

import pytest

from tests.commands import tracer_says, viewer_says
from tests.golden import GOLDEN, NUMBERS, rows, train
from tracer.log.store import Local as Path


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy of the golden run."""
    shutil.copytree(GOLDEN, tmp_path / "run")
    return tmp_path / "run"


def test_every_number_of_the_golden_run_is_read_as_it_was_written(golden: Path) -> None:
    """All tables, to the last bit; columns that came later are null."""
    expected = json.loads(NUMBERS.read_text(encoding="utf-8"))
    found = rows(golden)
    for table, (columns, *lines) in expected.items():
        now, *read = found[table]
        places = [now.index(column) for column in columns]
        assert sorted(([row[place] for place in places] for row in read), key=repr) == lines, table


def test_commands_answer_of_the_golden_run(golden: Path, tmp_path: Path) -> None:
    """It is whole, closed at step 5, and its NaN that the loop skipped is found."""
    assert tracer_says("verify", golden).returncode == 0
    (told,) = json.loads(tracer_says("info", golden, "--json").stdout)
    assert (told["state"], told["steps"], told["params"], told["rows_dropped"]) == ("closed", 6, 5, 0)
    (checked,) = json.loads(viewer_says(tmp_path, "check", golden, "--json").stdout)
    assert "discarded" in {finding["kind"] for finding in checked["findings"]}


def test_a_run_of_today_has_the_tables_columns_and_rows_of_the_golden_one(tmp_path: Path) -> None:
    """The same training gives as many rows in each table, with all columns, of the same steps and names."""
    train(tmp_path / "run")
    expected = json.loads(NUMBERS.read_text(encoding="utf-8"))
    for table, (now, *read) in rows(tmp_path / "run").items():
        columns, *lines = expected[table]
        assert set(columns) <= set(now), table
        keys = [
            column
            for column in columns
            if column in ("step", "rank", "attempt", "param", "name", "module", "kind", "of")
        ]
        of_today = sorted(([row[now.index(key)] for key in keys] for row in read), key=repr)
        assert of_today == sorted(([row[columns.index(key)] for key in keys] for row in lines), key=repr), table
