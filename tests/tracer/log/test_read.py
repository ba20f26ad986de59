import contextlib
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import tracer
from tests.commands import viewer_says
from tests.logs import activations, close_run, events, extremes, flip_bit, histograms, metrics, new_run, publish_next
from tracer import BadPartWarning, LogError, scan
from tracer.log import schema
from tracer.log.parts import Part, list_parts, merge
from tracer.log.store import Local as Path


def log_of(run: Path, steps: Sequence[int], params: Sequence[str] = ("weight",)) -> Path:
    """A run with a part a step."""
    for step in steps:
        publish_next(run, "extremes", extremes([step], params))
    return run


def steps(frame: pl.LazyFrame) -> list[int]:
    """The steps of a frame, in its order."""
    return frame.collect()["step"].to_list()


@pytest.mark.parametrize("merged", [False, True], ids=["fresh", "merged"])
def test_scan_gives_what_plain_polars_gives(tmp_path: Path, merged: bool) -> None:
    """The rows of a scan are those that polars and pyarrow read from the table's folder, without gradwatch."""
    run = log_of(new_run(tmp_path / "run"), range(5), ["conv.weight", "fc.bias"])
    if merged:
        merge(run, "extremes", 0)
    found = scan(run).collect()
    assert_frame_equal(found, pl.scan_parquet(run / "extremes").collect())
    assert found.to_dicts() == pq.read_table(run / "extremes").sort_by("step").to_pylist()


@pytest.mark.parametrize(
    ("table", "rows"), [("metrics", metrics([0, 1], [0.5, 0.25])), ("events", events([0, 1], param="weight"))]
)
def test_scan_reads_every_table(tmp_path: Path, table: str, rows: pa.Table) -> None:
    """A scan reads the table that it is asked for."""
    run = log_of(new_run(tmp_path / "run"), [7])
    publish_next(run, table, rows)
    assert scan(run, table).collect().to_dicts() == rows.to_pylist()


def test_scan_takes_a_path_as_a_string(tmp_path: Path) -> None:
    """A run's folder may be given as a string."""
    run = log_of(new_run(tmp_path / "run"), [0, 1])
    assert steps(scan(str(run))) == [0, 1]


def test_scan_is_public() -> None:
    """What reads a log is found in the package itself."""
    assert (tracer.scan, tracer.LogError, tracer.BadPartWarning) == (scan, LogError, BadPartWarning)


@pytest.mark.parametrize("name", ["a[1]*", "a?", "{b,c}", "a b", "ü-✓", "%20", "x=1", "a\nb", "'\"", "run.parquet"])
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    """A folder's name is taken as it is: no pattern, no escape, no partition."""
    decoy = "a1" if name == "a[1]*" else "other"
    log_of(new_run(tmp_path / decoy), [1, 2, 3])
    run = log_of(new_run(tmp_path / name), [7])
    assert steps(scan(run)) == [7]
    assert scan(run).collect_schema().names() == schema.SCHEMAS["extremes"].names


def test_an_unknown_table_is_refused(tmp_path: Path) -> None:
    """A table that does not exist is refused in a sentence that names those that do."""
    run = new_run(tmp_path / "run")
    with pytest.raises(LogError, match="attempts=1 is neither 'latest' nor 'all'"):
        scan(tmp_path / "run", attempts=1)  # type: ignore[arg-type]
    with pytest.raises(LogError, match="no table 'losses': choose one of extremes, metrics, events"):
        scan(run, "losses")


@pytest.mark.parametrize("path", ["nowhere", "empty", "file"])
def test_what_is_no_run_is_refused(tmp_path: Path, path: str) -> None:
    """A path without a run is refused in a sentence that names it."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match=f"{path} holds no run"):
        scan(tmp_path / path)


@pytest.mark.parametrize("table", schema.TABLES)
@pytest.mark.parametrize("folder", [True, False], ids=["folder", "no-folder"])
def test_an_empty_run_gives_an_empty_frame(tmp_path: Path, table: str, folder: bool) -> None:
    """A run without a row gives a frame without a row, with the columns and types that its rows will have."""
    empty, full = new_run(tmp_path / "empty"), new_run(tmp_path / "full")
    if not folder:
        (empty / table).rmdir()
    rows = {
        "extremes": extremes([0]),
        "metrics": metrics([0], [0.5]),
        "events": events([0]),
        "discarded": extremes([0]),
        "histograms": histograms([0]),
        "activations": activations([0]),
    }
    publish_next(full, table, rows[table])
    assert scan(empty, table).collect().is_empty()
    assert scan(empty, table).collect().schema == scan(full, table).collect().schema


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (pl.col("param") == "b", ["b", "b"]),
        (pl.col("param") != "b", ["a", "c", "a", "c"]),
        (pl.col("param").is_in(["c", "nowhere"]), ["c", "c"]),
        (pl.col("param") == "nowhere", []),
        (pl.col("param").cast(pl.String).str.starts_with("a"), ["a", "a"]),
        (pl.col("param") > "a", ["b", "c", "b", "c"]),
    ],
    ids=str,
)
@pytest.mark.parametrize("mixed", [False, True], ids=["alike", "mixed"])
def test_rows_are_selected_by_a_name(tmp_path: Path, condition: pl.Expr, expected: list[str], mixed: bool) -> None:
    """The param column, a categorical, compares with strings, over parts whose dictionaries and columns differ."""
    run = new_run(tmp_path / "run")
    publish_next(run, "extremes", extremes([0], ["a", "b", "c"]))
    second = extremes([1], ["c", "b", "a"]).take([2, 1, 0])
    publish_next(run, "extremes", second.append_column("grad_norm", pa.array([1.0] * 3)) if mixed else second)
    found = scan(run).filter(condition).collect()
    assert found["param"].cast(pl.String).to_list() == expected
    assert found["param"].dtype == pl.Categorical


def test_statistics_that_a_part_lacks_are_null(tmp_path: Path) -> None:
    """Parts with other statistics are read together, in their order, null where a part has none."""
    run = new_run(tmp_path / "run")
    for step in range(4):
        rows = extremes([step])
        publish_next(run, "extremes", rows if step % 2 else rows.append_column("grad_norm", pa.array([0.5])))
    publish_next(run, "extremes", extremes([4]).drop_columns(["value_min"]))
    found = scan(run).collect()
    assert found["step"].to_list() == [0, 1, 2, 3, 4]
    assert found["grad_norm"].to_list() == [0.5, None, 0.5, None, None]
    assert found["value_min"].to_list() == [-1.0] * 4 + [None]
    merge(run, "extremes", 0)
    assert_frame_equal(scan(run).collect(), found)


def test_activations_of_an_older_log_are_read(tmp_path: Path) -> None:
    """Zeros, saturated and dead, which older logs lack, are null there, beside rows that have them, and once merged."""
    run = new_run(tmp_path / "run")
    publish_next(run, "activations", activations([0]).drop_columns(["zeros", "saturated", "dead"]))
    for expected in ([None], [None, 0.25]):
        for _ in range(2):
            found = scan(run, "activations").collect()
            assert found["zeros"].to_list() == expected
            assert dict(found.schema) == dict(pl.DataFrame(pl.from_arrow(activations([0]))).schema)
            merge(run, "activations", 0)
        publish_next(run, "activations", activations([1]))


def _with(name: str, values: pa.Array, *, nullable: bool = True) -> pa.Table:
    """Three rows, with one more column, or with another one of this name."""
    rows = extremes([3, 4, 5])
    field = pa.field(name, values.type, nullable=nullable)
    index = rows.schema.get_field_index(name)
    return rows.append_column(field, values) if index < 0 else rows.set_column(index, field, values)


LATER = {
    "a text": _with("new", pa.array(["a", None, "b"])),
    "an integer": _with("new", pa.array([1, 2, 3], pa.int8())),
    "a list": _with("new", pa.array([[1.5], [], None])),
    "a struct": _with("new", pa.array([{"a": 1}] * 3)),
    "bytes": _with("new", pa.array([b"\xff"] * 3)),
    "never null": _with("new", pa.array([1, 2, 3]), nullable=False),
    "step int32": _with("step", pa.array([3, 4, 5], pa.int32())),
    "step nullable": _with("step", pa.array([3, 4, 5])),
    "rank int64": _with("rank", pa.array([0, 0, 0])),
    "attempt uint8": _with("attempt", pa.array([0, 0, 0], pa.uint8())),
    "value float32": _with("value_min", pa.array([-1.0] * 3, pa.float32())),
    "time ns": _with("time", extremes([3, 4, 5])["time"].cast(pa.timestamp("ns", "UTC")).combine_chunks()),
    "time ms": _with("time", extremes([3, 4, 5])["time"].cast(pa.timestamp("ms", "UTC")).combine_chunks()),
    "time s": _with("time", extremes([3, 4, 5])["time"].cast(pa.timestamp("s", "UTC")).combine_chunks()),
    "time elsewhere": _with("time", extremes([3, 4, 5])["time"].cast(pa.timestamp("us", "+02:00")).combine_chunks()),
    "a name like a known one": _with("step.before", pa.array([-1, -1, -1])),
    "param text": _with("param", pa.array(["weight"] * 3), nullable=False),
    "param large text": _with("param", pa.array(["weight"] * 3, pa.large_string()), nullable=False),
}


@pytest.mark.parametrize("rows", LATER.values(), ids=LATER)
@pytest.mark.parametrize("mixed", [True, False])
def test_what_a_minor_version_adds_costs_no_row(tmp_path: Path, rows: pa.Table, mixed: bool) -> None:
    """A new column of any type is left out, a known one of another width has its own type, before a merge and after."""
    run = log_of(new_run(tmp_path / "run"), range(3)) if mixed else new_run(tmp_path / "run")
    publish_next(run, "extremes", rows)
    wanted = range(0 if mixed else 3, 6)
    for _ in range(2):
        found = scan(run).collect()
        assert found["step"].to_list() == list(wanted)
        assert dict(found.schema) == dict(pl.DataFrame(pl.from_arrow(extremes([0]))).schema)
        assert found["value_min"].to_list() == [-1.0] * len(wanted)
        assert found["time"].to_list() == pl.DataFrame(pl.from_arrow(extremes(wanted)))["time"].to_list()
        merge(run, "extremes", 0)
    close_run(run, 5)
    said = viewer_says(tmp_path, "check", "run")
    assert "closed at step 5; nothing found" in said.stdout, said


@pytest.mark.parametrize("counts", [pa.list_(pa.int32()), pa.large_list(pa.uint64()), pa.list_(pa.int64(), 3)], ids=str)
def test_counts_of_another_kind_of_list_cost_no_row(tmp_path: Path, counts: pa.DataType) -> None:
    """Lists of a fixed or another length, and of integers of another width, have the specified type."""
    rows = histograms([1])
    index = rows.schema.get_field_index("counts")
    run = new_run(tmp_path / "run")
    publish_next(run, "histograms", histograms([0]))
    publish_next(run, "histograms", rows.set_column(index, "counts", rows["counts"].cast(counts)))
    found = scan(run, "histograms").collect()
    assert found["counts"].to_list() == [[1, 0, 3]] * 2
    assert found.schema["counts"] == pl.List(pl.Int64())


def test_a_column_of_another_kind_is_no_later_version(tmp_path: Path) -> None:
    """A number in a name's place is damage."""
    run = log_of(new_run(tmp_path / "run"), range(3))
    publish_next(run, "extremes", _with("param", pa.array([1, 2, 3]), nullable=False))
    with pytest.warns(BadPartWarning, match="it lacks param, or has another type of it"):
        assert scan(run).collect()["step"].to_list() == [0, 1, 2]


def test_statistics_that_every_part_lacks_are_null(tmp_path: Path) -> None:
    """A table has its specified columns even where no part of the run has them all."""
    run = new_run(tmp_path / "run")
    publish_next(run, "extremes", extremes([0]).drop_columns(["grad_min", "grad_max"]))
    found = scan(run).collect()
    assert found.columns == schema.SCHEMAS["extremes"].names
    assert found.select("grad_min", "grad_max").row(0) == (None, None)


def test_a_damaged_part_is_named_and_left_out(tmp_path: Path) -> None:
    """A damaged part is named in a warning, once a scan, and the rows of all others are read."""
    run = log_of(new_run(tmp_path / "run"), range(5))
    damaged = list_parts(run, "extremes")[2]
    flip_bit(damaged.path)
    with pytest.warns(BadPartWarning, match=damaged.path.name) as caught:
        found = steps(scan(run))
    assert found == [0, 1, 3, 4]
    assert len(caught) == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: os.truncate(path, path.stat().st_size - 1),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: path.write_text("hello"),
    ],
    ids=["empty", "cut", "longer", "foreign"],
)
def test_no_damage_keeps_the_rest_from_being_read(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    """Whatever became of one file, the others are read."""
    run = log_of(new_run(tmp_path / "run"), range(3))
    damage(Path(list_parts(run, "extremes")[0].file()))
    with pytest.warns(BadPartWarning):
        assert steps(scan(run)) == [1, 2]


def test_a_run_of_which_every_part_is_damaged_is_empty(tmp_path: Path) -> None:
    """Where nothing can be read, the frame is empty, and has its columns."""
    run = log_of(new_run(tmp_path / "run"), [0])
    flip_bit(list_parts(run, "extremes")[0].path)
    with pytest.warns(BadPartWarning):
        found = scan(run).collect()
    assert found.is_empty()
    assert found.columns == schema.SCHEMAS["extremes"].names


def test_damage_after_the_first_scan_is_found(tmp_path: Path) -> None:
    """A part that was good when it was first read and changes on the disk later is left out from then on."""
    run = log_of(new_run(tmp_path / "run"), [0, 1])
    assert steps(scan(run)) == [0, 1]
    flip_bit(list_parts(run, "extremes")[1].path)
    with pytest.warns(BadPartWarning):
        assert steps(scan(run)) == [0]


def test_several_runs_are_told_apart_by_name(tmp_path: Path) -> None:
    """Several runs come in the order given, with their folders' names in a first column."""
    first = log_of(new_run(tmp_path / "first"), [0, 1])
    second = log_of(new_run(tmp_path / "second"), [5])
    empty = new_run(tmp_path / "empty")
    found = scan(path for path in (second, empty, first)).collect()
    assert found.columns == ["run", *schema.SCHEMAS["extremes"].names]
    assert found.select("run", "step").rows() == [("second", 5), ("first", 0), ("first", 1)]
    assert found["run"].dtype == pl.String


def test_runs_of_the_same_name_are_told_apart_by_path(tmp_path: Path) -> None:
    """Folders of the same name appear as the paths that were given; the others keep their names."""
    paths = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "b" / "other"]
    for step, path in enumerate(paths):
        log_of(new_run(path), [step])
    assert scan(paths).collect()["run"].to_list() == [str(paths[0]), str(paths[1]), "other"]


def test_a_relative_path_is_named_after_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run given as ``.`` bears the name of the folder that this is."""
    monkeypatch.chdir(log_of(new_run(tmp_path / "here"), [0]))
    assert scan(["."]).collect()["run"].to_list() == ["here"]


def test_several_runs_may_have_different_statistics(tmp_path: Path) -> None:
    """What one run measured and another did not is null in the other."""
    first, second = new_run(tmp_path / "first"), log_of(new_run(tmp_path / "second"), [0])
    publish_next(first, "extremes", extremes([0]).append_column("grad_norm", pa.array([0.5])))
    assert scan([first, second]).collect().select("run", "grad_norm").rows() == [("first", 0.5), ("second", None)]


def test_no_run_at_all_is_refused() -> None:
    """A scan of nothing is refused in a sentence."""
    with pytest.raises(LogError, match="no run was given"):
        scan([])


def resumed(run: Path) -> Path:
    """A run whose rank 0 was resumed at step 2, by when only one of its two parameters was left; rank 1 never was."""
    publish_next(run, "extremes", extremes(range(4), ["a", "b"], attempt=0))
    publish_next(run, "extremes", extremes(range(4), ["a"], rank=1), rank=1)
    publish_next(run, "extremes", extremes([2, 3, 4], ["a"], attempt=1))
    publish_next(run, "extremes", extremes([4], ["a"], attempt=2))
    return run


def test_a_resumed_run_shows_the_latest_attempt_of_each_step(tmp_path: Path) -> None:
    """Without events, an attempt begins with its first row: earlier rows from there on are left out, of its rank."""
    found = scan(resumed(new_run(tmp_path / "run"))).select("rank", "step", "attempt", pl.col("param").cast(pl.String))
    first = [(0, step, 0, param) for step in (0, 1) for param in ("a", "b")]
    later = [(0, 2, 1, "a"), (0, 3, 1, "a"), (0, 4, 2, "a")]
    assert found.collect().rows() == [*first, *later, *((1, step, 0, "a") for step in range(4))]


def test_a_row_of_an_older_attempt_does_not_come_back_through_a_filter(tmp_path: Path) -> None:
    """What a filter selects are rows of the latest attempts: it is applied after them, not before."""
    found = scan(resumed(new_run(tmp_path / "run"))).filter(pl.col("param") == "b")
    assert steps(found) == [0, 1]


def test_all_attempts_are_there_for_who_asks(tmp_path: Path) -> None:
    """With attempts="all" every row of the log is given."""
    run = resumed(new_run(tmp_path / "run"))
    assert_frame_equal(scan(run, attempts="all").collect(), pl.scan_parquet(run / "extremes").collect())


def test_what_happened_in_earlier_attempts_stays_told(tmp_path: Path) -> None:
    """Events of all attempts are given, even of steps that were repeated: they did happen."""
    run = new_run(tmp_path / "run")
    rows = events([3])
    publish_next(run, "events", rows)
    publish_next(run, "events", events([3], attempt=1))
    publish_next(run, "events", events([2], "restored", attempt=2))
    assert scan(run, "events").collect()["attempt"].to_list() == [0, 1, 2]


def abandoned(run: Path) -> Path:
    """A run of two parameters that was restored at step 2, and whose new attempt has not recorded a step yet."""
    publish_next(run, "extremes", extremes(range(5), ["a", "b"]))
    publish_next(run, "events", events([2], "restored", attempt=1))
    return run


def test_what_was_abandoned_is_left_out_before_its_steps_are_reached_again(tmp_path: Path) -> None:
    """A step that the latest attempt has not come to shows nothing, rather than what another branch recorded there."""
    run = abandoned(new_run(tmp_path / "run"))
    assert steps(scan(run)) == [0, 0, 1, 1]
    publish_next(run, "extremes", extremes([2], ["a", "b"], attempt=1))
    assert steps(scan(run)) == [0, 0, 1, 1, 2, 2]
    assert scan(run, attempts="all").collect().height == 12


def test_an_attempt_begins_at_the_earliest_step_to_which_it_went(tmp_path: Path) -> None:
    """Resumed after the last step, and restored at an earlier one before it recorded any: that one counts."""
    run = new_run(tmp_path / "run")
    publish_next(run, "extremes", extremes(range(5)))
    for step, kind in ((5, "resumed"), (3, "restored"), (9, "restored")):
        publish_next(run, "events", events([step], kind, attempt=1))
    publish_next(run, "extremes", extremes([9], attempt=1))
    assert steps(scan(run)) == [0, 1, 2, 9]


def test_a_rank_abandons_its_own_rows_alone(tmp_path: Path) -> None:
    """Where one rank has begun another attempt and the other not yet, that one's rows stay."""
    run = abandoned(new_run(tmp_path / "run"))
    publish_next(run, "extremes", extremes(range(5), ["a"], rank=1), rank=1)
    assert scan(run).collect().filter(pl.col("rank") == 1).height == 5


def test_other_events_abandon_nothing(tmp_path: Path) -> None:
    """What happens to a parameter in a later attempt does not say where that begins."""
    run = new_run(tmp_path / "run")
    publish_next(run, "extremes", extremes(range(5)))
    publish_next(run, "events", events([0], "frozen", attempt=1))
    assert steps(scan(run)) == [0, 1, 2, 3, 4]


def test_damaged_events_leave_what_the_rows_tell(tmp_path: Path) -> None:
    """Where it is lost at which step an attempt began, it began with its first row; the damage is named."""
    run = abandoned(new_run(tmp_path / "run"))
    publish_next(run, "extremes", extremes([3], ["a", "b"], attempt=1))
    flip_bit(list_parts(run, "events")[0].path)
    with pytest.warns(BadPartWarning):
        found = scan(run).select("step", "attempt").unique().sort("step").collect().rows()
    assert found == [(0, 0), (1, 0), (2, 0), (3, 1)]


def test_where_nothing_is_cut_a_scan_is_that_of_all_rows(tmp_path: Path) -> None:
    """A run that was only ever resumed after its last step is read as it is: its plan has no filter."""
    run = new_run(tmp_path / "run")
    for attempt in range(3):
        publish_next(run, "events", events([2 * attempt], "resumed", attempt=attempt))
        publish_next(run, "extremes", extremes([2 * attempt, 2 * attempt + 1], attempt=attempt))
    assert "FILTER" not in scan(run).explain(optimized=False)
    assert "FILTER" in scan(abandoned(new_run(tmp_path / "other"))).explain(optimized=False)


PUBLISHED = st.tuples(st.integers(0, 1), st.integers(0, 3), st.lists(st.integers(0, 4), max_size=3))
BEGUN = st.tuples(st.integers(0, 1), st.integers(0, 3), st.lists(st.integers(0, 4), max_size=2))


@settings(deadline=None, max_examples=40)
@given(published=st.lists(PUBLISHED, max_size=8), begun=st.lists(BEGUN, max_size=3), merging=st.booleans())
def test_latest_attempts_are_those_of_a_plain_loop(
    published: list[tuple[int, int, list[int]]], begun: list[tuple[int, int, list[int]]], merging: bool
) -> None:
    """For any ranks, attempts, steps and events, a scan keeps what a loop over all rows keeps."""
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(Path(folder) / "run")
        for rank, attempt, recorded in published:
            publish_next(run, "extremes", extremes(recorded, rank=rank, attempt=attempt), rank)
        for rank, attempt, at in begun:
            publish_next(run, "events", events(at, "restored", rank=rank, attempt=attempt), rank)
        if merging:
            merge(run, "extremes", 0)
        rows = [
            (rank, step, attempt)
            for rank, attempt, recorded in sorted(published, key=lambda each: each[0])
            for step in recorded
        ]
        expected = [
            (rank, step, attempt)
            for rank, step, attempt in rows
            if not any(of == rank and later > attempt and step >= min(at) for of, later, at in published + begun if at)
        ]
        assert scan(run).select("rank", "step", "attempt").collect().rows() == expected


def test_a_merge_after_the_listing_costs_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where parts are merged away between being listed and being read, a scan lists again and gives every row."""
    run = log_of(new_run(tmp_path / "run"), range(4))

    def overtaken(path: Path, table: str) -> list[Part]:
        with monkeypatch.context() as undisturbed:
            undisturbed.setattr("tracer.log.parts.list_parts", list_parts)
            found = list_parts(path, table)
            merge(path, table, 0)
        return found

    monkeypatch.setattr("tracer.log.parts.list_parts", overtaken)
    assert steps(scan(run)) == [0, 1, 2, 3]


def test_a_plan_stays_valid_while_the_run_grows(tmp_path: Path) -> None:
    """A frame gives the rows of the parts that were there when it was made, and a new one gives the later ones too."""
    run = log_of(new_run(tmp_path / "run"), [0, 1])
    plan = scan(run)
    log_of(run, [2])
    assert steps(plan) == [0, 1]
    assert steps(scan(run)) == [0, 1, 2]


def test_a_plan_says_so_when_its_parts_were_merged(tmp_path: Path) -> None:
    """A frame whose parts were merged away raises FileNotFoundError: it never gives fewer rows in silence."""
    run = log_of(new_run(tmp_path / "run"), [0, 1])
    plan = scan(run)
    merge(run, "extremes", 0)
    with pytest.raises(FileNotFoundError):
        plan.collect()


WRITER = """
import os, sys
from tracer.log.store import Local as Path
from tests.logs import extremes
from tracer.log.parts import merge, publish

os.fsync = lambda _: None
run = Path(sys.argv[1])
for number in range(10**6):
    publish(run, "extremes", 0, number, extremes([2 * number, 2 * number + 1]))
    print(number, flush=True)
    if number % 2:
        merge(run, "extremes", 0)
"""


@pytest.mark.slow
def test_a_run_is_read_while_it_is_written_and_merged(tmp_path: Path) -> None:
    """While another process publishes and merges without a pause, each scan gives all rows so far, each once."""
    run = new_run(tmp_path / "run")
    command = [sys.executable, "-c", WRITER, str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as writer:
        assert writer.stdout is not None
        try:
            read = 0
            for _ in range(300):
                published = int(writer.stdout.readline())
                # Merged once more than a scan looks again, or after it: it may say so, and never give fewer rows.
                with contextlib.suppress(FileNotFoundError):
                    found = steps(scan(run))
                    assert found == list(range(len(found)))
                    assert len(found) >= 2 * (published + 1)
                    read += 1
        finally:
            writer.kill()
    assert read > 0


@pytest.mark.parametrize(
    "asked", [pl.col("grad_max").is_nan(), pl.col("grad_max").is_finite().not_(), ~(pl.col("grad_max") <= 1)]
)
def test_no_filter_hides_a_nan(tmp_path: Path, asked: pl.Expr) -> None:
    """A row with NaN is found by what it is, by polars of any version, though statistics of Parquet leave it out."""
    run = new_run(tmp_path / "run")
    numbers = [math.nan if step == 20 else 0.1 for step in range(30)]
    publish_next(run, "extremes", extremes(range(30), values={"grad_max": numbers}))
    for merged in (False, True):
        if merged:
            publish_next(run, "extremes", extremes(range(30, 40)))
            merge(run, "extremes", 0)
        whole = scan(run).collect().filter(asked)
        assert 20 in whole["step"]
        assert scan(run).filter(asked).collect().equals(whole)
