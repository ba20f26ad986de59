"""The figure as a file: the right format, and replaced whole."""

import math
import threading
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from xml.etree import ElementTree

import polars as pl
import pytest

from tests.logs import close_run, extremes, largest_file, metrics, new_run, publish_next
from tests.viewing import all_shown
from tests.waiting import wait_until
from tracer.log.ranks import beat, close_rank
from tracer.log.store import Local as Path
from viewer.options import View, ViewOptions
from viewer.read.runs import Runs
from viewer.snapshot import Snapshot
from viewer.surfaces.files import FORMATS, FigureFile, follow
from viewer.words import notices

MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml", "pdf": b"%PDF-", "csv": b"run,curve,step,time,value"}


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    """Follows a run with a loss and extremes."""
    run = new_run(tmp_path / "<script>run")
    publish_next(run, "extremes", extremes(range(5)))
    publish_next(run, "metrics", metrics(range(5), range(5), "<script>loss</script>"))
    runs = Runs([run])
    yield runs
    runs.close()


def test_each_format_has_an_example() -> None:
    """The formats tested here are all that there are."""
    assert sorted(MAGIC) == sorted(FORMATS)


@pytest.mark.parametrize("suffix", [*FORMATS, "PNG"])
def test_a_file_has_the_format_of_its_name_and_nothing_is_left_beside_it(
    runs: Runs, tmp_path: Path, suffix: str
) -> None:
    """A file begins as its format does, and is alone in its folder."""
    folder = tmp_path / "figures"
    folder.mkdir()
    file = folder / f"figure.{suffix}"
    FigureFile(file, ViewOptions()).write(all_shown(runs))
    content = file.read_bytes()
    assert content.startswith(MAGIC[suffix.lower()])
    assert len(content) > 1000
    assert list(folder.iterdir()) == [file]


def test_a_file_of_numbers_has_each_point_of_each_curve(runs: Runs, tmp_path: Path) -> None:
    """A CSV reader finds the metrics and extremes as they were recorded, and which were NaN."""
    publish_next(runs.paths[0], "metrics", metrics([5], [math.nan], "<script>loss</script>"))
    file = FigureFile(tmp_path / "figure.csv", ViewOptions())
    file.write(all_shown(runs))
    rows = pl.read_csv(file.path.read_bytes(), try_parse_dates=True)
    loss = rows.filter(pl.col("curve") == "<script>loss</script>")
    assert loss["run"].unique().to_list() == ["<script>run"]
    assert loss["time"].to_list() == [datetime(2026, 1, 1, second=step, tzinfo=UTC) for step in range(6)]
    numbers = loss.select("step", "value", "smoothed", "lowest", "highest", "nonfinite").rows()
    assert numbers[:5] == [(step, *[float(step)] * 4, None) for step in range(5)]
    assert (numbers[5][0], str(numbers[5][1]), numbers[5][5]) == (5, "nan", 5)
    assert rows.filter(pl.col("curve") == "gradient max")["value"].to_list() == [2.0] * 5


def test_a_file_is_replaced_whole(runs: Runs, tmp_path: Path) -> None:
    """Who has the old picture open goes on reading the old one, while the name leads to the new one."""
    file = FigureFile(tmp_path / "figure.png", ViewOptions())
    file.write(all_shown(runs))
    before = file.path.read_bytes()
    publish_next(runs.paths[0], "extremes", extremes([99], values={"grad_max": [1e6]}))
    with file.path.open("rb") as opened:
        file.write(all_shown(runs))
        assert opened.read() == before
    assert file.path.read_bytes() != before
    assert {path.name for path in tmp_path.iterdir()} == {runs.paths[0].name, "figure.png"}


def test_a_folder_that_has_gone_is_an_error_and_nothing_is_left(runs: Runs, tmp_path: Path) -> None:
    """A figure that cannot be written raises OSError, and makes no folder of its own."""
    with pytest.raises(OSError, match="gone"):
        FigureFile(tmp_path / "gone" / "figure.png", ViewOptions()).write(all_shown(runs))
    assert [path.name for path in tmp_path.iterdir()] == [runs.paths[0].name]


def test_a_full_disk_leaves_the_old_picture_and_no_half_of_a_new_one(runs: Runs, tmp_path: Path) -> None:
    """Where a figure cannot be written to its end, the error is raised and the folder is as it was."""
    file = FigureFile(tmp_path / "figure.svg", ViewOptions())
    file.write(all_shown(runs))
    before = file.path.read_bytes()
    publish_next(runs.paths[0], "extremes", extremes([99]))
    snapshot = all_shown(runs)
    with largest_file(len(before) // 2), pytest.raises(OSError, match="too large"):
        file.write(snapshot)
    assert file.path.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {runs.paths[0].name, "figure.svg"}


def test_names_in_an_svg_are_text(runs: Runs, tmp_path: Path) -> None:
    """Markup in a run's or metric's name is no element of the SVG."""
    file = tmp_path / "figure.svg"
    FigureFile(file, ViewOptions()).write(all_shown(runs))
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(file).iter()}
    assert "path" in tags
    assert "script" not in tags


def test_following_ends_with_the_run(runs: Runs, tmp_path: Path) -> None:
    """Once the run is closed, its last state is in the file and the following ends."""
    close_run(runs.paths[0])
    (last,) = follow(runs, FigureFile(tmp_path / "figure.png", ViewOptions()))
    assert (last.state, last.last_step) == ("closed", 4)
    assert (tmp_path / "figure.png").exists()


@pytest.mark.slow
def test_a_closed_run_is_followed_until_its_last_rows_have_arrived(tmp_path: Path) -> None:
    """Where the closed mark arrives before the last parts, as a network disk may show it, the figure waits for them."""
    run = new_run(tmp_path / "run")
    part = publish_next(run, "extremes", extremes(range(5)))
    hidden = part.file().rename(tmp_path / part.file().name)
    close_rank(run, 0, {"last_step": 4, "rows_dropped": {}, "published": {"extremes": 1}})
    runs = Runs([run])
    try:
        (early,) = all_shown(runs)
        assert (early.state, early.complete, early.last_step) == ("closed", False, None)
        assert notices([early]) == ["the last rows are still to arrive"]
        arrival = threading.Timer(0.5, hidden.rename, [part.path])
        arrival.start()
        (last,) = follow(runs, FigureFile(tmp_path / "figure.png", ViewOptions()))
        arrival.join()
    finally:
        runs.close()
    assert (last.state, last.complete, last.last_step) == ("closed", True, 4)


def test_rows_that_never_arrive_are_waited_for_some_time(tmp_path: Path) -> None:
    """Where the last rows of a closed run are lost, the figure shows what there is, and says so."""
    run = new_run(tmp_path / "run")
    publish_next(run, "extremes", extremes(range(5)))
    close_rank(run, 0, {"last_step": 9, "rows_dropped": {}, "published": {"extremes": 2}})
    runs = Runs([run])
    runs.late_seconds, runs.rescan_seconds = 0.2, 0.05
    try:
        (last,) = follow(runs, FigureFile(tmp_path / "figure.png", ViewOptions()))
    finally:
        runs.close()
    assert (last.state, last.complete, last.last_step) == ("closed", False, 4)


class Following(threading.Thread):
    """Follows runs into a file, in a thread of its own."""

    def __init__(self, runs: Runs, file: FigureFile) -> None:
        super().__init__()
        self._runs, self._file = runs, file
        self.written: Sequence[Snapshot] = ()
        self.last: Sequence[Snapshot] = ()

    def run(self) -> None:
        write = self._file.write

        def counted(snapshots: Sequence[Snapshot]) -> None:
            write(snapshots)
            self.written = snapshots

        self._file.write = counted  # type: ignore[method-assign]
        self.last = follow(self._runs, self._file)


@pytest.mark.slow
def test_following_several_waits_for_all_that_were_named(tmp_path: Path) -> None:
    """A closed run does not end it while another that was named has not begun, or is going on."""
    first, second = new_run(tmp_path / "first"), tmp_path / "second"
    publish_next(first, "extremes", extremes([3]))
    close_run(first)
    runs = Runs([first, second])
    runs.rescan_seconds = 0.05
    following = Following(runs, FigureFile(tmp_path / "figure.png", ViewOptions()))
    following.start()
    try:
        wait_until(lambda: bool(following.written))
        following.join(0.3)
        assert following.is_alive()
        new_run(second)
        publish_next(second, "extremes", extremes([7]))
        wait_until(lambda: [snapshot.last_step for snapshot in following.written] == [3, 7])
        following.join(0.3)
        assert following.is_alive()
    finally:
        if not second.exists():
            new_run(second)
        close_run(second)
        following.join(60)
        runs.close()
    assert {snapshot.name: (snapshot.state, snapshot.last_step) for snapshot in following.last} == {
        "first": ("closed", 3),
        "second": ("closed", 7),
    }


def test_a_resumed_run_has_new_patience_for_its_last_rows(tmp_path: Path) -> None:
    """Where a closed run goes on before its last rows were seen, those of its second end are waited for as long."""
    run = new_run(tmp_path / "run")
    states = iter(["incomplete", "resumed", "incomplete", "complete"])
    clock = iter([1.0, 2.0, 1000.0, 1001.0])
    seconds = 0.0

    class Scripted(Runs):
        def wait(self) -> None:
            nonlocal seconds
            now, seconds = next(states), next(clock)
            if now == "resumed":
                (run / "closed-r00000.json").unlink()
                beat(run, 0)
            else:
                published = {"extremes": 9 if now == "incomplete" else 0}
                close_rank(run, 0, {"last_step": 0, "rows_dropped": {}, "published": published})

    runs = Scripted([run])
    runs.clock = lambda: seconds
    try:
        (last,) = follow(runs, FigureFile(tmp_path / "figure.png", ViewOptions()))
    finally:
        runs.close()
    assert last.complete


@pytest.mark.parametrize(
    "look", [ViewOptions(View.LAYERS), ViewOptions(View.PARAM, param="weight"), ViewOptions(dark=True)], ids=str
)
def test_every_view_is_written(runs: Runs, tmp_path: Path, look: ViewOptions) -> None:
    """A file shows whatever is looked at."""
    file = FigureFile(tmp_path / "figure.png", look)
    watched = Runs(runs.paths, look)
    try:
        file.write(all_shown(watched))
    finally:
        watched.close()
    assert file.path.read_bytes().startswith(MAGIC["png"])


def test_several_runs_are_written_together(runs: Runs, tmp_path: Path) -> None:
    """A file shows several runs, and one of them when the others have gone."""
    one = all_shown(runs)
    file = FigureFile(tmp_path / "figure.svg", ViewOptions())
    file.write(one)
    alone = file.path.stat().st_size
    file.write((*one, Snapshot("other", "running", None)))
    assert file.path.stat().st_size != alone
