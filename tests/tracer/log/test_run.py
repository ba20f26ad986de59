import contextlib
import itertools
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.commands import tracer_says, viewer_says
from tests.logs import age_heartbeat, close_run, extremes, largest_file, new_run, publish_next
from tracer.log import schema, store
from tracer.log.place import Place
from tracer.log.ranks import (
    HEARTBEAT_STALE_SECONDS,
    beat,
    close_rank,
    closed_summaries,
    rank_states,
    ranks_in,
    reopen_rank,
    settle,
    state,
    sure,
)
from tracer.log.run import LogError, create_run, holds_run, newest_run, open_run, prepare_folders
from tracer.log.store import Local as Path

ROOT = Path(__file__).parents[3]
INFO = {"model": "ResNet", "params": [], "settings": {"every": 1}, "versions": {}}


@contextmanager
def another_process() -> Iterator[int]:
    """The id of a process that lives until the end of the block, and is dead and buried after it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def written_by(run: Path, host: str, pid: int, rank: int = 0) -> None:
    """Let a rank's heartbeat be that of a process."""
    (run / f"heartbeat-r{rank:05d}").write_text(f"{host} {pid}\n")


def writer_of(run: Path) -> str:
    """Whose heartbeat rank 0's is."""
    return (run / "heartbeat-r00000").read_text().splitlines()[0]


def is_ours(run: Path) -> bool:
    """Whether this process is the one that writes as rank 0."""
    return writer_of(run) == f"{socket.gethostname()} {os.getpid()}" and state(run) == "running"


def test_a_place_on_the_disk_is_a_path_to_every_library(tmp_path: Path) -> None:
    """A path that users get from us is one of pathlib's, and has no method by which libraries know an open file."""
    place = store.at(str(tmp_path))
    assert isinstance(place, pathlib.Path)
    assert place == pathlib.Path(str(tmp_path))
    assert not {"read", "write", "close"} & set(dir(place))


def test_a_new_run_has_the_documented_files(tmp_path: Path) -> None:
    """A new run has its run.json and a folder a table, all empty, and nothing else."""
    create_run(tmp_path / "runs" / "a", INFO)
    found = {str(path.relative_to(tmp_path / "runs" / "a")) for path in (tmp_path / "runs" / "a").rglob("*")}
    assert found == {"run.json", "extremes", "metrics", "events", "staging"}


def test_run_json_says_what_was_traced_and_when(tmp_path: Path) -> None:
    """The file run.json holds the format, an id, the start, the host, and what the tracer adds."""
    before = datetime.now(UTC)
    run = create_run(tmp_path / "run", INFO)
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert stored == run.info
    assert {key: stored[key] for key in INFO} == INFO
    assert (stored["format"], stored["host"]) == (1, socket.gethostname())
    assert before <= datetime.fromisoformat(stored["started"]) <= datetime.now(UTC)
    assert stored["run_id"] != create_run(tmp_path / "other", INFO).info["run_id"]


def test_an_opened_run_is_the_one_that_was_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening a run gives what creating it gave, and its name is its folder's, however the path is written."""
    created = create_run(tmp_path / "run", INFO)
    assert open_run(tmp_path / "run") == created
    monkeypatch.chdir(tmp_path / "run")
    assert open_run(Path()).name == "run"


def test_a_run_may_be_made_in_a_folder_that_exists(tmp_path: Path) -> None:
    """A folder without a run may hold anything else, which stays."""
    (tmp_path / "notes.txt").write_text("mine")
    create_run(tmp_path, INFO)
    assert holds_run(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_is_never_overwritten(tmp_path: Path) -> None:
    """Creating a run where there is one is refused in a sentence with both ways out, and changes nothing."""
    run = new_run(tmp_path / "run")
    before = (run / "run.json").read_bytes()
    with pytest.raises(LogError, match="already holds a run: give another path, or attach with resume=True"):
        create_run(run, INFO)
    assert (run / "run.json").read_bytes() == before
    assert os.listdir(run / "staging") == []


CREATORS = """
import sys
from tracer.log.store import Local as Path
from tracer.log.run import LogError, create_run

print("ready", flush=True)
sys.stdin.readline()
for number in range(200):
    try:
        create_run(Path(sys.argv[1]) / str(number), {})
        print(number)
    except LogError as error:
        assert "already holds a run" in str(error), error
"""


def test_a_run_is_created_by_one_of_those_who_try(tmp_path: Path) -> None:
    """Where processes create the same runs at the same time, each has one owner, and the others are told."""
    command = [sys.executable, "-c", CREATORS, str(tmp_path)]
    creators = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)
    ]
    for creator in creators:
        assert creator.stdout is not None
        creator.stdout.readline()
    for creator in creators:
        assert creator.stdin is not None
        creator.stdin.write("go\n")
        creator.stdin.flush()
    created = [int(number) for creator in creators for number in creator.communicate()[0].split()]
    assert [creator.returncode for creator in creators] == [0, 0, 0]
    assert sorted(created) == list(range(200))


def test_a_run_is_created_where_the_disk_knows_no_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links holds runs like any other."""

    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    assert open_run(new_run(tmp_path / "run")).info["model"] == "Model"
    with pytest.raises(LogError, match="already holds a run"):
        create_run(tmp_path / "run", INFO)
    assert os.listdir(tmp_path / "run" / "staging") == []


@pytest.mark.parametrize("path", ["file", "file/run", "run"])
def test_a_file_in_the_way_is_refused(tmp_path: Path, path: str) -> None:
    """A file where a folder must be is refused in a sentence that names it."""
    (tmp_path / "file").write_text("")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics").write_text("")
    in_the_way = {"run": "metrics"}.get(path, "file")
    with pytest.raises(LogError, match=f"{path} cannot be a run's folder: .*{in_the_way}.* is a file"):
        create_run(tmp_path / path, INFO)


def test_a_path_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """A folder that the system does not make is refused in a sentence with the system's reason."""
    with pytest.raises(LogError, match="cannot be made: File name too long"):
        create_run(tmp_path / ("x" * 300), INFO)


def test_a_full_disk_is_told_when_the_run_is_created(tmp_path: Path) -> None:
    """Where the system refuses the bytes of run.json, creating the run is refused with the reason, and leaves none."""
    with largest_file(10), pytest.raises(LogError, match="cannot be written: File too large; give a path"):
        create_run(tmp_path / "run", INFO)
    assert not holds_run(tmp_path / "run")
    assert os.listdir(tmp_path / "run" / "staging") == []
    create_run(tmp_path / "run", INFO)


def test_preparing_folders_twice_is_harmless(tmp_path: Path) -> None:
    """Every rank may prepare the folders, before or after the run is created."""
    prepare_folders(tmp_path / "run")
    assert not holds_run(tmp_path / "run")
    new_run(tmp_path / "run")
    prepare_folders(tmp_path / "run")
    assert holds_run(tmp_path / "run")


@pytest.mark.parametrize("name", ["run.json", "closed-r00000.json"])
def test_what_describes_a_run_is_on_the_disk_before_it_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A file that a run cannot do without is synced before it gets its name, as parts are."""
    synced: list[tuple[int, bool]] = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, (tmp_path / "run" / name).exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    new_run(tmp_path / "run")
    close_run(tmp_path / "run")
    assert ((tmp_path / "run" / name).stat().st_ino, False) in synced


@pytest.mark.parametrize("path", ["nowhere", "folder", "file"])
def test_what_is_no_run_is_not_opened(tmp_path: Path, path: str) -> None:
    """A path without a run.json is refused in a sentence that names it."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    assert not holds_run(tmp_path / path)
    with pytest.raises(LogError, match=f"{path} holds no run: it has no run.json"):
        open_run(tmp_path / path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\0", b"[]", b'"text"', b"1", b"null", b"{}"]
    + [b'{"format": %s}' % version for version in (b"null", b'"new"', b"[]", b"Infinity", b"NaN")],
    ids=repr,
)
def test_a_damaged_run_json_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever run.json holds, it is a run or is refused in a sentence that names the file."""
    run = new_run(tmp_path / "run")
    (run / "run.json").write_bytes(content)
    with pytest.raises(LogError, match=r"run\.json cannot be read"):
        open_run(run)


@pytest.mark.parametrize(
    "wrong",
    [
        {"run_id": None},
        {"started": 5},
        {"started": "yesterday"},
        {"params": None},
        {"params": ["weight"]},
        {"params": [{"name": None}]},
        {"settings": []},
        {"settings": {"stats": "norm"}},
        {"settings": {"total_steps": "ten"}},
        {"settings": {"every": 2.5}},
        {"settings": {"budget": "1 %"}},
        {"settings": {"fold": "ten"}},
    ],
    ids=repr,
)
def test_a_run_json_of_wrong_types_is_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    """What readers rely on has the type that the format says, or the run is refused in a sentence."""
    run = new_run(tmp_path / "run")
    (run / "run.json").write_text(json.dumps({**open_run(run).info, **wrong}))
    with pytest.raises(LogError, match=r"run\.json cannot be read"):
        open_run(run)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """A run of a newer format is refused in a sentence that says what to upgrade."""
    run = new_run(tmp_path / "run", format=schema.FORMAT + 1)
    with pytest.raises(LogError, match="has log format 2, and this gradwatch reads formats up to 1: upgrade gradwatch"):
        open_run(run)
    assert holds_run(run)


def test_the_newest_run_is_the_one_that_was_started_last(tmp_path: Path) -> None:
    """Of a folder's runs, the one whose run.json is youngest is the newest, however old the others' rows are."""
    for name, started in (("b", 1_000), ("c", 3_000), ("a", 2_000)):
        os.utime(new_run(tmp_path / name) / "run.json", (started, started))
    (tmp_path / "no-run").mkdir()
    (tmp_path / "file").write_text("")
    beat(tmp_path / "b", 0)
    assert newest_run(tmp_path) == tmp_path / "c"


def test_a_folder_without_runs_has_no_newest(tmp_path: Path) -> None:
    """Where there is no run, or no folder, there is no newest run."""
    assert newest_run(tmp_path) is None
    assert newest_run(tmp_path / "nowhere") is None


def test_a_heartbeat_that_is_a_link_leads_nowhere(tmp_path: Path) -> None:
    """Who puts a link in a heartbeat's place has nothing written where it leads to."""
    run = Path(create_run(tmp_path / "run", INFO).path)
    (run / "heartbeat-r00000").symlink_to(tmp_path / "elsewhere")
    beat(run, 0)
    assert not (tmp_path / "elsewhere").exists()


def test_a_heartbeat_tells_who_writes_and_renews_its_time(tmp_path: Path) -> None:
    """A heartbeat holds the host and process that began it, and where its id counts; a beat renews its time alone."""
    run = create_run(tmp_path / "run", INFO).path
    beat(run, 3)
    heartbeat = Path(run) / "heartbeat-r00003"
    written = heartbeat.read_text()
    process, space = written.splitlines()
    assert process == f"{socket.gethostname()} {os.getpid()}"
    assert re.fullmatch(r"[0-9a-f-]{36} \d{10}", space) or sys.platform != "linux"
    os.utime(heartbeat, (0, 0))
    beat(run, 3)
    assert heartbeat.stat().st_mtime > 0
    assert heartbeat.read_text() == written


def test_a_run_that_nobody_has_written_is_stopped(tmp_path: Path) -> None:
    """A run without a heartbeat is not running and was never closed."""
    run = create_run(tmp_path / "run", INFO).path
    assert (ranks_in(run), state(run)) == ([], "stopped")
    assert state(tmp_path / "nowhere") == "stopped"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (-3600, "running"),
        (0, "running"),
        (HEARTBEAT_STALE_SECONDS / 2, "running"),
        (HEARTBEAT_STALE_SECONDS + 1, "stopped"),
        (10**6, "stopped"),
    ],
)
def test_a_run_is_running_while_its_heart_beats(tmp_path: Path, seconds: float, expected: str) -> None:
    """A run that is not closed runs while its heartbeat is fresh, even with a clock ahead, and then has stopped."""
    run = new_run(tmp_path / "run")
    age_heartbeat(run, seconds)
    assert state(run) == expected


@pytest.mark.parametrize(
    ("each", "expected"),
    [
        (["closed", "closed"], "closed"),
        (["closed", "fresh"], "running"),
        (["closed", "stale"], "stopped"),
        (["fresh", "stale"], "running"),
        (["stale", "stale"], "stopped"),
        (["fresh", "closed", "stale"], "running"),
        (["closed, without heartbeat", "closed"], "closed"),
        (["closed, without heartbeat", "fresh"], "running"),
    ],
    ids=str,
)
def test_the_state_of_a_run_is_that_of_all_its_ranks(tmp_path: Path, each: list[str], expected: str) -> None:
    """A run is closed when every rank is, and running while any rank that is not closed has a fresh heartbeat."""
    run = create_run(tmp_path / "run", INFO).path
    for rank, what in enumerate(each):
        beat(run, rank)
        age_heartbeat(run, 0.0 if what == "fresh" else 10 * HEARTBEAT_STALE_SECONDS, rank)
        if what.startswith("closed"):
            close_rank(run, rank, {})
        if what.endswith("without heartbeat"):
            (Path(run) / f"heartbeat-r{rank:05d}").unlink()
    assert ranks_in(run) == list(range(len(each)))
    assert state(run) == expected


@pytest.mark.parametrize(
    ("names", "ranks"),
    [
        ((), []),
        (("heartbeat-r00002", "closed-r00000.json", "heartbeat-r00000"), [0, 2]),
        (("heartbeat-r123456", "closed-r2147483647.json"), [123_456, 2**31 - 1]),
        (("heartbeat-r2147483648", "closed-r99999999999999999999.json"), []),
        (("heartbeat-r00001.json", "closed-r00001", "heartbeat-r00001~", "heartbeat-r0001", "heartbeat-r000001"), []),
        (("heartbeat-r٠٠٠٠١", "closed-r-0001.json", "heartbeat-r00001 (copy)", "run.json"), []),
    ],
    ids=str,
)
def test_ranks_are_known_by_the_names_that_they_write(tmp_path: Path, names: Sequence[str], ranks: list[int]) -> None:
    """A heartbeat or a closed mark names a rank; a copy of one, or a number that no rank has, is none."""
    for name in names:
        (Path(tmp_path) / name).write_text("")
    assert ranks_in(Path(tmp_path)) == ranks


def test_closed_ranks_say_what_they_wrote(tmp_path: Path) -> None:
    """Each closed rank's summary is given, by rank, with the time at which it closed."""
    run = new_run(tmp_path / "run")
    for rank in (2, 0):
        beat(run, rank)
        close_rank(run, rank, {"last_step": rank})
    beat(run, 1)
    assert [summary["last_step"] for summary in closed_summaries(run)] == [0, 2]
    assert all(datetime.fromisoformat(summary["closed"]) <= datetime.now(UTC) for summary in closed_summaries(run))


@pytest.mark.parametrize(
    "content",
    ['{"rank": 0', "[]", "5", "{}", '{"rank": "0"}', '{"rank": 0, "published": 5}']
    + [f'{{"rank": 0, "{counts}": {{"extremes": "many"}}}}' for counts in ("published", "rows_dropped")],
)
def test_a_damaged_closed_mark_is_refused(tmp_path: Path, content: str) -> None:
    """A closed mark that cannot be read is named in a sentence; the rank counts as closed all the same."""
    run = new_run(tmp_path / "run")
    close_run(run)
    (run / "closed-r00000.json").write_text(content)
    with pytest.raises(LogError, match=r"closed-r00000\.json cannot be read"):
        closed_summaries(run)
    assert state(run) == "closed"


def test_a_rank_that_goes_on_is_no_longer_closed(tmp_path: Path) -> None:
    """Reopening takes back the closed mark of this rank alone, and it runs from that moment on."""
    run = new_run(tmp_path / "run")
    close_run(run)
    beat(run, 1)
    close_rank(run, 1, {})
    reopen_rank(run, 0)
    left = ["closed-r00001.json", "heartbeat-r00000", "heartbeat-r00001"]
    assert sorted(path.name for path in run.glob("*-r*")) == left
    assert state(run) == "running"
    assert list((run / "staging").iterdir()) == []


def test_a_rank_is_not_reopened_while_another_process_writes_it(tmp_path: Path) -> None:
    """Resuming is refused while another process writes as this rank, in a sentence that names it, and then is not."""
    run = new_run(tmp_path / "run")
    with another_process() as pid:
        written_by(run, socket.gethostname(), pid)
        with pytest.raises(LogError, match=f"is being written by '{socket.gethostname()} {pid}'"):
            reopen_rank(run, 0)
        reopen_rank(run, 1)
        assert writer_of(run) == f"{socket.gethostname()} {pid}"
    assert state(run) == "running"
    reopen_rank(run, 0)
    assert is_ours(run)


class Looks:
    """A clock for which waiting takes no time; before each look the next of ``pending`` happens."""

    time = staticmethod(time.time)

    def __init__(self) -> None:
        self.pending: list[Callable[[], object]] = []
        self._waited_seconds = 0.0

    def monotonic(self) -> float:
        """The time that was waited for; other work takes none."""
        return self._waited_seconds

    def sleep(self, seconds: float) -> None:
        """Wait."""
        self._waited_seconds += seconds
        if self.pending:
            self.pending.pop(0)()


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Callable[[], object]]]:
    """What happens, look by look, while the heartbeat of another machine is waited for, by a clock that passes so."""
    clock = Looks()
    monkeypatch.setattr("tracer.log.ranks.time", clock)
    yield clock.pending
    assert not clock.pending


def moved(path: Path) -> Path:
    """A run that another machine was writing a moment ago, by a clock that is ahead."""
    run = new_run(path)
    written_by(run, "node-7", 4711)
    age_heartbeat(run, -3600)
    return run


def test_a_rank_is_not_reopened_while_another_machine_writes_it(
    tmp_path: Path, looks: list[Callable[[], object]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A heartbeat of another machine is waited for; once it is renewed, its host and process are named, and kept."""
    run = moved(tmp_path / "run")
    looks += [lambda: None, lambda: age_heartbeat(run, -3605)]
    with pytest.raises(LogError, match="is being written by 'node-7 4711'"):
        reopen_rank(run, 0)
    assert writer_of(run) == "node-7 4711"
    assert f"is {run} still being written on node-7?" in capsys.readouterr().err


@pytest.mark.parametrize("end", [lambda run: None, lambda run: (run / "heartbeat-r00000").unlink()])
def test_a_rank_is_reopened_once_another_machine_is_silent(
    tmp_path: Path, looks: list[Callable[[], object]], end: Callable[[Path], object]
) -> None:
    """Where a heartbeat of another machine is not renewed for as long as one counts, its process is taken for dead."""
    run = moved(tmp_path / "run")
    looks.append(lambda: end(run))
    reopen_rank(run, 0)
    assert is_ours(run)


def test_a_rank_is_reopened_as_soon_as_another_machine_has_closed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is given a moment to end, and closes, is waited for no longer than that."""
    run = moved(tmp_path / "run")
    looked: list[float] = []

    def close(seconds: float) -> None:
        assert not looked, "waited on"
        looked.append(seconds)
        close_run(run)

    monkeypatch.setattr(time, "sleep", close)
    reopen_rank(run, 0)
    assert (is_ours(run), len(looked)) == (True, 1)


def test_a_heartbeat_of_another_machine_that_is_stale_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that was moved to this machine long ago goes on at once, without a word."""
    run = moved(tmp_path / "run")
    age_heartbeat(run, 3601)
    reopen_rank(run, 0)
    assert (is_ours(run), capsys.readouterr().err) == (True, "")


# How old a heartbeat seems to a reader whose clock is ahead or behind, or agrees.
SEEMS = [-3600, -60, 0, 60, 3500]


@pytest.mark.parametrize("seconds", SEEMS)
def test_a_rank_is_not_reopened_beside_a_living_one_whatever_clocks_say(
    tmp_path: Path, looks: list[Callable[[], object]], seconds: int
) -> None:
    """That its heartbeat seems old or of the future means nothing while it moves."""
    run = moved(tmp_path / "run")
    age_heartbeat(run, seconds)
    looks += [lambda: None, lambda: age_heartbeat(run, seconds - 5)]
    with pytest.raises(LogError, match="is being written by 'node-7 4711'"):
        reopen_rank(run, 0)


@pytest.mark.parametrize("seconds", SEEMS)
@pytest.mark.parametrize("alive", [True, False])
def test_a_rank_of_another_machine_lives_while_its_heartbeat_moves(
    tmp_path: Path, looks: list[Callable[[], object]], seconds: int, alive: bool
) -> None:
    """Who looks once at a run waits for that, and believes no clock; closed ranks beside it are not waited for."""
    run = moved(tmp_path / "run")
    age_heartbeat(run, seconds)
    beat(run, 1)
    close_rank(run, 1, {})
    assert not sure(run)
    if alive:
        looks += [lambda: None, lambda: age_heartbeat(run, seconds - 5)]
    settle([run, tmp_path / "nowhere"])
    assert rank_states(run) == {0: "running" if alive else "stopped", 1: "closed"}
    assert sure(run)


@pytest.mark.parametrize("moves", [True, False])
def test_who_waits_for_a_silent_heartbeat_is_told(
    tmp_path: Path, looks: list[Callable[[], object]], capsys: pytest.CaptureFixture[str], moves: bool
) -> None:
    """A live rank is known within seconds, without a word; a wait for a dead one is no riddle."""
    run = moved(tmp_path / "run")
    if moves:
        looks += [lambda: None] * 9 + [lambda: age_heartbeat(run, -3605)]
    settle([run])
    said = "" if moves else f"gradwatch waits up to 20 s: is {run} still being written?\n"
    assert capsys.readouterr().err == said


def test_a_host_whose_name_is_not_utf8_writes_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a name is escaped, and the host knows itself again."""
    monkeypatch.setattr(socket, "gethostname", lambda: "no\udcffde")
    run = new_run(tmp_path / "run")
    assert (writer_of(run), open_run(run).info["host"]) == (f"no\\udcffde {os.getpid()}", "no\\udcffde")
    assert sure(run)
    reopen_rank(run, 0)


@pytest.mark.parametrize("seconds", [-60, 1])
def test_a_rank_whose_process_is_known_to_be_dead_is_stopped_at_once(tmp_path: Path, seconds: int) -> None:
    """A fresh heartbeat of a process of this machine that is gone is no sign of life; nor is one of the future."""
    run = new_run(tmp_path / "run")
    with another_process() as pid:
        written_by(run, socket.gethostname(), pid)
    age_heartbeat(run, seconds)
    assert sure(run)
    assert state(run) == "stopped"


@pytest.mark.parametrize("seconds", [0, 3601])
def test_a_run_of_this_machine_whose_clock_agrees_is_not_waited_for(tmp_path: Path, seconds: int) -> None:
    """Nor is one that has been silent for an hour."""
    run = new_run(tmp_path / "run")
    age_heartbeat(run, seconds)
    assert sure(run)
    assert state(run) == ("stopped" if seconds else "running")


SAVE = "run --save a.png"


@pytest.mark.parametrize("command", ["info", "check", "diff", "save"])
@pytest.mark.parametrize("alive", [True, False])
def test_commands_that_look_once_say_whether_a_run_lives_whatever_clocks_say(
    tmp_path: Path, looks: list[Callable[[], object]], command: str, alive: bool
) -> None:
    """A live run seems dead to a clock that is ahead, and a dead one alive to one that is behind."""
    run = moved(tmp_path / "run")
    publish_next(run, "extremes", extremes([0]))
    age_heartbeat(run, 60 if alive else -60)
    if alive:
        looks += [lambda: None, lambda: age_heartbeat(run, 55)]
    if command == "info":
        said = tracer_says("info", run)
    else:
        said = viewer_says(tmp_path, *{"check": "check run", "diff": "diff run run"}.get(command, SAVE).split())
    assert ("running" in said.stdout) == alive, said
    assert ("stopped" in said.stdout) == (not alive and command != "diff")


@pytest.mark.parametrize("which", ["our own", "a dead one's", "a living one's"])
@pytest.mark.parametrize("other", [(1, 0), (0, 1)], ids=["boot", "namespace"])
def test_a_process_id_of_another_container_is_none_of_ours(
    tmp_path: Path, looks: list[Callable[[], object]], which: str, other: tuple[int, int]
) -> None:
    """Two containers of one host name each have a process 1: whether the other's lives, only its heartbeat tells."""
    run = new_run(tmp_path / "run")
    with another_process() as living:
        with another_process() as dead:
            pass
        pid = {"our own": os.getpid(), "a dead one's": dead, "a living one's": living}[which]
        boot, namespace = (run / "heartbeat-r00000").read_text().split()[2:]
        space = f"{boot[::-1] if other[0] else boot} {int(namespace) + other[1]}"
        (run / "heartbeat-r00000").write_text(f"{socket.gethostname()} {pid}\n{space}\n")
        age_heartbeat(run, -3600)
        looks += [lambda: None, lambda: age_heartbeat(run, -3605)]
        with pytest.raises(LogError, match=f"is being written by '{socket.gethostname()} {pid}'"):
            reopen_rank(run, 0)


def test_a_closed_run_of_another_machine_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who has closed does not write, however fresh its heartbeat."""
    run = moved(tmp_path / "run")
    close_run(run)
    reopen_rank(run, 0)
    assert (is_ours(run), capsys.readouterr().err) == (True, "")


@pytest.mark.parametrize("why", ["closed", "silent", "own", "unreadable"])
def test_a_rank_is_reopened_where_nobody_writes_it(tmp_path: Path, why: str) -> None:
    """A rank is reopened where it closed, where its process went silent, is this one, or left no name."""
    run = new_run(tmp_path / "run")
    with another_process() as pid:
        written_by(run, socket.gethostname(), os.getpid() if why == "own" else pid)
        if why == "closed":
            close_run(run)
        elif why == "silent":
            age_heartbeat(run, 3601)
        elif why == "unreadable":
            (run / "heartbeat-r00000").write_text("")
        reopen_rank(run, 0)
    assert is_ours(run)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b" ", b"\0", b"%s", b"%s 0", b"%s -1", b"%s \xff", b"%s \xc2\xb2"),
        *(b"%s 1" + b"0" * zeros for zeros in (20, 5000)),
        # Of another machine for all one can tell, which may need so long to show that it lives.
        pytest.param(b"\xff\xfe 1", marks=pytest.mark.slow),
    ],
    ids=lambda content: repr(content[:30]) + str(len(content)),
)
def test_a_heartbeat_that_names_no_process_is_nobodys(tmp_path: Path, content: bytes) -> None:
    """Whatever a stranger writes into a heartbeat, resuming is no error, and goes on."""
    run = new_run(tmp_path / "run")
    (run / "heartbeat-r00000").write_bytes(content.replace(b"%s", socket.gethostname().encode()))
    reopen_rank(run, 0)
    assert is_ours(run)


def test_a_heartbeat_that_is_a_link_is_nobodys(tmp_path: Path) -> None:
    """A link in a heartbeat's place is not followed, and gives way to a heartbeat."""
    run = Path(create_run(tmp_path / "run", INFO).path)
    (tmp_path / "elsewhere").write_text("node-7 4711\n")
    (run / "heartbeat-r00000").symlink_to(tmp_path / "elsewhere")
    reopen_rank(run, 0)
    assert is_ours(run)
    assert (tmp_path / "elsewhere").read_text() == "node-7 4711\n"


# Forks processes that reopen rank 0 of a run, all in one moment, and live until standard input ends.
REOPENS = """
import os
import sys

from tracer.log import store
from tracer.log.ranks import reopen_rank
from tracer.log.run import LogError

waits, go = os.pipe()
lives, end = os.pipe()
children = []
for _ in range(int(sys.argv[2])):
    children.append(os.fork())
    if not children[-1]:
        os.close(go)
        os.close(end)
        os.read(waits, 1)
        try:
            reopen_rank(store.at(sys.argv[1]), 0)
            said = f"{os.getpid()} goes on"
        except LogError as error:
            said = f"refused: {error}"
        except BaseException as error:
            said = repr(error)
        os.write(1, f"{said}\\n".encode())
        os.read(lives, 1)
        os._exit(0)
os.close(go)
sys.stdin.read()
os.close(end)
for child in children:
    os.waitpid(child, 0)
"""


@contextmanager
def reopening(run: Place, count: int) -> Iterator[list[str]]:
    """What so many processes say that reopen a run at the same moment, and live until the end of the block."""
    command = [sys.executable, "-c", REOPENS, str(run), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        yield [process.stdout.readline().strip() for _ in range(count)]


def assert_one_goes_on(run: Place, said: Sequence[str]) -> None:
    """Of those who reopened a run, one has it, and the others are told who that is."""
    (winner,) = [words.split()[0] for words in said if words.endswith(" goes on")]
    refused = f"refused: {run} is being written by '{socket.gethostname()} {winner}' (host, pid): end that first"
    assert sorted(said) == sorted([f"{winner} goes on", *[refused] * (len(said) - 1)])
    assert run.names("staging") == set()


@pytest.mark.slow
@pytest.mark.parametrize("was", ["closed", "stopped", "killed"])
def test_of_those_who_reopen_a_rank_one_has_it(tmp_path: Path, was: str) -> None:
    """Of processes that resume one rank in one moment, one goes on, and the others are told who writes."""
    run = new_run(tmp_path / "run")
    with another_process() as pid:
        written_by(run, socket.gethostname(), pid)
    for _ in range(5):
        if was == "closed":
            close_run(run)
        elif was == "stopped":
            age_heartbeat(run, HEARTBEAT_STALE_SECONDS + 1)
        with reopening(run, 6) as said:
            assert_one_goes_on(run, said)


class OthersOs:
    """``os`` as tracer/log/store.py sees it, while another process does something right before one of our calls.

    Args:
        call: The number of that call, from 1 on.
        other: What the other process does.
    """

    def __init__(self, call: int, other: Callable[[], object]) -> None:
        self.left = call
        self._other = other

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if not callable(function):
            return function

        def call(*args: Any, **options: Any) -> Any:
            self.left -= 1
            if not self.left:
                self._other()
            return function(*args, **options)

        return call


@pytest.mark.slow
@pytest.mark.parametrize("was", ["closed", "stopped", "killed"])
def test_a_rank_that_another_reopens_while_we_look_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: str
) -> None:
    """Whichever of our looks another process reopens a rank before, it has the rank, and we are told its name."""
    lock = "reopening-r00000.lock"
    tried = 0
    with contextlib.ExitStack() as alive:
        for call in itertools.count(1):
            run = new_run(tmp_path / f"run{call}")
            with another_process() as pid:
                written_by(run, socket.gethostname(), pid)
            if was == "closed":
                close_run(run)
            elif was == "stopped":
                age_heartbeat(run, HEARTBEAT_STALE_SECONDS + 1)
            said: list[str] = []

            def other(run: Path = run, said: list[str] = said) -> None:
                if lock not in run.names("staging"):
                    said += alive.enter_context(reopening(run, 1))

            with monkeypatch.context() as ours:
                ours.setattr(store, "os", OthersOs(call, other))
                with contextlib.suppress(LogError):
                    reopen_rank(run, 0)
                    said.append(f"{os.getpid()} goes on")
            if is_ours(run):
                # Before this call it was our turn, so that nobody else was let in.
                assert said == [f"{os.getpid()} goes on"]
                break
            assert said == [writer_of(run).replace(f"{socket.gethostname()} ", "") + " goes on"]
            tried += 1
    assert tried > 5


@pytest.mark.parametrize("alive", [False, True])
def test_who_died_while_it_reopened_a_rank_is_not_waited_for_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alive: bool
) -> None:
    """What a killed process left is no obstacle: at once where it is known to be dead, and else after a while."""
    run = new_run(tmp_path / "run")
    close_run(run)
    left = run / "staging" / "reopening-r00000.lock"
    with another_process() as pid, monkeypatch.context() as impatient:
        left.write_text(f"{socket.gethostname()} {pid}\n")
        if alive:
            impatient.setattr("tracer.log.ranks.HEARTBEAT_STALE_SECONDS", 0.2)
            reopen_rank(run, 0)
    if not alive:
        began = time.monotonic()
        reopen_rank(run, 0)
        assert time.monotonic() - began < HEARTBEAT_STALE_SECONDS
    assert is_ours(run)
    assert not left.exists()
