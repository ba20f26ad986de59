"""The figure as a file: the right format, and replaced whole."""

import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.logs import close_run, extremes, metrics, new_run, publish_next
from tests.viewing import shown
from tracer.log.run import close_rank
from viewer.figure import title
from viewer.files import FORMATS, FigureFile, follow
from viewer.live import Live
from viewer.look import Look

MAGIC = {"png": b"\x89PNG\r\n\x1a\n", "svg": b"<?xml", "pdf": b"%PDF-"}


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    """Follows a run with a loss and extremes."""
    run = new_run(tmp_path / "<script>run")
    publish_next(run, "extremes", extremes(range(5)))
    publish_next(run, "metrics", metrics(range(5), range(5), "<script>loss</script>"))
    live = Live(run)
    yield live
    live.close()


def test_each_format_has_an_example() -> None:
    """The formats tested here are all that there are."""
    assert sorted(MAGIC) == sorted(FORMATS)


@pytest.mark.parametrize("suffix", [*FORMATS, "PNG"])
def test_a_file_has_the_format_of_its_name_and_nothing_is_left_beside_it(
    live: Live, tmp_path: Path, suffix: str
) -> None:
    """A file begins as its format does, and is alone in its folder."""
    folder = tmp_path / "figures"
    folder.mkdir()
    file = folder / f"figure.{suffix}"
    FigureFile(file, Look()).write(shown(live))
    content = file.read_bytes()
    assert content.startswith(MAGIC[suffix.lower()])
    assert len(content) > 5000
    assert list(folder.iterdir()) == [file]


def test_a_file_is_replaced_whole(live: Live, tmp_path: Path) -> None:
    """Who has the old picture open goes on reading the old one, while the name leads to the new one."""
    file = FigureFile(tmp_path / "figure.png", Look())
    file.write(shown(live))
    before = file.path.read_bytes()
    publish_next(live.path, "extremes", extremes([99], values={"grad_max": [1e6]}))
    with file.path.open("rb") as opened:
        file.write(shown(live))
        assert opened.read() == before
    assert file.path.read_bytes() != before
    assert {path.name for path in tmp_path.iterdir()} == {live.path.name, "figure.png"}


def test_a_folder_that_has_gone_is_an_error_and_nothing_is_left(live: Live, tmp_path: Path) -> None:
    """A figure that cannot be written raises OSError, and makes no folder of its own."""
    with pytest.raises(OSError, match="gone"):
        FigureFile(tmp_path / "gone" / "figure.png", Look()).write(shown(live))
    assert [path.name for path in tmp_path.iterdir()] == [live.path.name]


def test_a_full_disk_leaves_the_old_picture_and_no_half_of_a_new_one(live: Live, tmp_path: Path) -> None:
    """Where a figure cannot be written to its end, the error is raised and the folder is as it was."""
    file = FigureFile(tmp_path / "figure.svg", Look())
    file.write(shown(live))
    before = file.path.read_bytes()
    publish_next(live.path, "extremes", extremes([99]))
    snapshot = shown(live)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            file.write(snapshot)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert file.path.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {live.path.name, "figure.svg"}


def test_names_in_an_svg_are_text(live: Live, tmp_path: Path) -> None:
    """Markup in a run's or metric's name is no element of the SVG."""
    file = tmp_path / "figure.svg"
    FigureFile(file, Look()).write(shown(live))
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.parse(file).iter()}
    assert "path" in tags
    assert "script" not in tags


def test_following_ends_with_the_run(live: Live, tmp_path: Path) -> None:
    """Once the run is closed, its last state is in the file and the following ends."""
    close_run(live.path)
    last = follow(live, FigureFile(tmp_path / "figure.png", Look()))
    assert (last.state, last.last_step) == ("closed", 4)
    assert (tmp_path / "figure.png").exists()


def test_a_closed_run_is_followed_until_its_last_rows_have_arrived(tmp_path: Path) -> None:
    """Where the closed mark arrives before the last parts, as a network disk may show it, the figure waits for them."""
    run = new_run(tmp_path / "run")
    part = publish_next(run, "extremes", extremes(range(5)))
    hidden = part.path.rename(tmp_path / part.path.name)
    close_rank(run, 0, {"last_step": 4, "rows_dropped": {}, "published": {"extremes": 1}})
    live = Live(run)
    try:
        early = live.refresh()
        assert early is not None
        assert (early.state, early.complete, early.last_step) == ("closed", False, None)
        assert "still to arrive" in title(early)
        arrival = threading.Timer(0.5, hidden.rename, [part.path])
        arrival.start()
        last = follow(live, FigureFile(tmp_path / "figure.png", Look()))
        arrival.join()
    finally:
        live.close()
    assert (last.state, last.complete, last.last_step) == ("closed", True, 4)
