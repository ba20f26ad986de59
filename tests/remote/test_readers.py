"""Reading a run far away while it changes: each row once, few requests, and nothing left on this machine."""

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tracer
import viewer
from tests.logs import close_run, extremes, metrics, publish_next
from tests.remote.conftest import SECRET, Server
from tests.remote.runs import begin, new_run, steps_of
from tests.torture import often
from tests.viewing import all_shown, view, viewing
from tests.waiting import wait_until
from tracer.log import remote, store
from tracer.log.parts import MergeTimeoutError, all_parts, list_parts, merge, publish
from tracer.log.place import Place
from tracer.log.ranks import HEARTBEAT_STALE_SECONDS, beat, state
from tracer.log.run import LogError, create_run, open_run
from tracer.log.store import Local as Path
from viewer.read.follow import Follower
from viewer.read.runs import Runs

pytestmark = pytest.mark.slow

Figures = Callable[..., None]
PUBLISHED = often(25, 275)


def tracer_says(*arguments: object) -> subprocess.CompletedProcess[str]:
    """What the command ``tracer`` says."""
    command = [sys.executable, "-m", "tracer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def begin_together(uri: str, count: int) -> list[str]:
    """The ids of those of so many runs, begun at the same moment at one place, that were not refused."""
    together = threading.Barrier(count)
    begun: list[str] = []
    refused: list[str] = []

    def claim() -> None:
        together.wait()
        try:
            run = create_run(store.at(uri), {"model": "M", "params": [], "settings": {}, "versions": {}})
            begun.append(run.info["run_id"])
        except LogError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=claim) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ["already holds a run" in words for words in refused] == [True] * (count - len(begun))
    return begun


@pytest.mark.parametrize("slow", ["", "/staging/run-", "PUT /bucket/[^?]*/run.json", "HEAD /bucket/[^?]*/run.json"])
def test_of_many_that_begin_a_run_at_one_place_one_does(s3: Server, slow: str) -> None:
    """However the requests of several processes mix, run.json is that of the only one that was not refused."""
    if slow:
        s3.fails("slow", slow, 2, seconds=0.7)
    for _ in range(1 if slow else often(4, 44)):
        uri = s3.uri()
        (begun,) = begin_together(uri, 4)
        assert open_run(store.at(uri)).info["run_id"] == begun
        assert store.at(uri).names("staging") == set()


def test_a_claim_of_a_process_that_died_is_passed_over(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process left that died while it began a run hinders the next one for a while only."""
    monkeypatch.setattr(remote, "_CLAIM_SECONDS", 2.0)
    for name in ("run-.json", "run-zzz.json"):
        uri = s3.uri()
        left = store.at(uri) / "staging" / name
        assert isinstance(left, remote.Remote)
        left.write(b"{}")
        if name == "run-.json":
            with pytest.raises(LogError, match="already holds a run"):
                begin(uri)
            wait_until(lambda uri=uri: begun(uri))  # type: ignore[misc]
        else:
            begin(uri)
        assert open_run(store.at(uri))


def begun(uri: str) -> bool:
    """Whether a run can be begun now."""
    try:
        begin(uri)
    except LogError:
        return False
    return True


class Log:
    """A table far away of which each row has a value of its own, and all that a reader was given of it."""

    def __init__(self, run: Place, figures: Figures) -> None:
        self.run = run
        self.figures = figures
        self.published: list[float] = []
        self.given: list[float] = []
        self.follower = Follower(run, "metrics")
        self._values = itertools.count()

    def publish(self) -> None:
        """One more part, of two rows."""
        values = [float(next(self._values)) for _ in range(2)]
        publish_next(self.run, "metrics", metrics(range(2), values))
        self.published += values

    def merge(self) -> None:
        """All parts become one."""
        merge(self.run, "metrics", 0)

    def merge_and_die(self) -> None:
        """The merging process dies before it has deleted what it merged."""
        before = {part.path: part.path.content() for part in all_parts(self.run, "metrics")}
        self.merge()
        for path, content in before.items():
            assert isinstance(path, remote.Remote)
            path.write(content)

    def follow(self) -> None:
        """Give out what is new."""
        self.follower.give(lambda frame: self.given.extend(frame.collect()["value"]))

    def scan(self) -> None:
        """A reader sees exactly what was published."""
        found = tracer.scan(self.run, "metrics", attempts="all").collect()["value"].to_list()
        self.figures(reads=1, reads_that_missed_or_repeated_a_row=found != self.published)
        assert found == self.published


ACTIONS = ["publish", "publish", "merge", "merge_and_die", "follow", "scan"]


@given(st.lists(st.sampled_from(ACTIONS), max_size=12))
@settings(max_examples=often(12, 500), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_happens_in_between_each_row_is_read_once(s3: Server, figures: Figures, actions: list[str]) -> None:
    """In any order of publishing, merging, dying and reading, readers see what was published, once."""
    figures(interleavings=1)
    log = Log(begin(s3.uri()), figures)
    for action in [*actions, "follow", "scan"]:
        getattr(log, action)()
    assert log.given == log.published


@pytest.mark.smoke
def test_rows_are_read_once_while_others_publish_and_merge(s3: Server, figures: Figures) -> None:
    """A follower and scans in one thread, a writer and a merger in others: no row is missed or there twice."""
    log = Log(begin(s3.uri()), figures)
    over = threading.Event()

    def write() -> None:
        for number in range(PUBLISHED):
            publish(log.run, "metrics", 0, number, metrics([number], [float(number)]))
        over.set()

    def tidy() -> None:
        while not over.is_set():
            log.merge()

    threads = [threading.Thread(target=work) for work in (write, tidy)]
    for thread in threads:
        thread.start()
    while not over.is_set():
        log.follow()
        seen = steps_of(log.run, "metrics")
        figures(reads=1, reads_that_missed_or_repeated_a_row=seen != list(range(len(seen))))
        assert seen == list(range(len(seen)))
    for thread in threads:
        thread.join()
    log.follow()
    assert log.given == [float(number) for number in range(PUBLISHED)]


def test_an_object_that_goes_between_two_requests_is_looked_for_again(s3: Server) -> None:
    """A part that was merged away after it was found, and before it was read, is read from what replaced it."""
    run = new_run(s3.uri(), 2)
    s3.fails("slow", "^GET .*extremes/.*parquet", 2, seconds=1.5)

    def merge_meanwhile() -> None:
        s3.asked_for("GET /bucket/")
        merge(run, "extremes", 0)

    merging = threading.Thread(target=merge_meanwhile)
    merging.start()
    assert steps_of(run) == [0, 1]
    merging.join()
    assert len(all_parts(run, "extremes")) == 1


def test_a_part_that_is_gone_is_a_file_not_found(s3: Server) -> None:
    """Whether its absence shows before or while it is read, a missing object is no other error."""
    run = new_run(s3.uri(), 1)
    (part,) = list_parts(run, "extremes")
    part.path.remove()
    part.path.remove()
    for look in (part.file, part.path.content, part.path.modified):
        with pytest.raises(FileNotFoundError):
            look()
    with pytest.raises(FileNotFoundError):
        (run / "extremes").sizes_bytes([part.path.name])
    assert not part.path.file_exists()


def test_a_merge_that_may_take_no_time_changes_nothing(s3: Server) -> None:
    """As on a disk."""
    run = new_run(s3.uri(), 3)
    with pytest.raises(MergeTimeoutError):
        merge(run, "extremes", 0, seconds=-1)
    assert len(all_parts(run, "extremes")) == 3


def test_a_merged_part_that_does_not_fit_into_memory_is_put_whole(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is large is written to this machine's disk first, and put from there."""
    monkeypatch.setattr(remote, "_IN_MEMORY_BYTES", 1000)
    run = new_run(s3.uri(), 5)
    merge(run, "extremes", 0)
    (part,) = all_parts(run, "extremes")
    assert len(part.path.content()) > 1000
    assert steps_of(run) == list(range(5))


def test_the_state_of_a_run_needs_no_agreement_of_clocks(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat that is renewed is a sign of life, by whatever clock; one that stays old is none."""
    run = new_run(s3.uri())
    assert state(run) == "running"
    ahead = [3600.0]
    real, monotonic = time.time, time.monotonic
    monkeypatch.setattr("time.time", lambda: real() + ahead[0])
    assert state(run) == "stopped"
    before = (run / "heartbeat-r00000").modified()

    def renewed() -> bool:
        beat(run, 0)
        return (run / "heartbeat-r00000").modified() > before

    wait_until(renewed)
    assert state(run) == "running"
    ahead[0] = -3600.0
    assert state(run) == "running"
    other = new_run(s3.uri())
    assert state(other) == "running"
    monkeypatch.setattr("time.monotonic", lambda: monotonic() + HEARTBEAT_STALE_SECONDS + 1)
    assert [state(run), state(other)] == ["stopped", "stopped"]


def test_a_look_and_a_part_cost_few_requests(s3: Server) -> None:
    """A refresh without news asks seven times at most, a part is put with one request, and read with two."""
    run = new_run(s3.uri())
    publish(run, "metrics", 0, 0, metrics([0], [0.5]))
    publish(run, "extremes", 0, 0, extremes([0]))
    runs = Runs([run])
    all_shown(runs)
    s3.asked()
    assert runs.refresh() is None
    assert len(s3.asked()) <= 7
    publish(run, "extremes", 0, 1, extremes([1]))
    assert len(s3.asked()) == 1
    all_shown(runs)
    assert len([request for request in s3.asked() if ".parquet" in request]) == 2
    runs.close()


def test_following_leaves_nothing_on_this_machine(s3: Server) -> None:
    """What a viewer has read it does not keep; a frame that was made from copies keeps its own."""
    run = new_run(s3.uri(), 3)
    frame = tracer.scan(run)
    kept = sorted(remote._copies().iterdir())
    runs = Runs([run])
    for step in range(3, 6):
        assert all_shown(runs)[0].last_step == step - 1
        publish_next(run, "extremes", extremes([step]))
    runs.close()
    assert sorted(remote._copies().iterdir()) == kept
    assert frame.collect()["step"].to_list() == [0, 1, 2]


def test_polars_reads_a_table_where_it_lies(s3: Server) -> None:
    """A table of a run, merged in part, is a folder of Parquet files to any reader of S3."""
    run = new_run(s3.uri(), 3)
    merge(run, "extremes", 0)
    publish_next(run, "extremes", extremes([3]))
    options = {"aws_endpoint_url": s3.url, "aws_secret_access_key": SECRET, "aws_allow_http": "true"}
    options |= {"aws_access_key_id": "testing", "aws_region": "us-east-1"}
    frame = pl.scan_parquet(f"{run}/extremes/*.parquet", storage_options=options).sort("step").collect()
    assert frame["step"].to_list() == [0, 1, 2, 3]
    assert frame.equals(tracer.scan(run).collect())


def test_the_commands_take_a_uri(s3: Server) -> None:
    """``tracer info``, ``merge`` and ``verify`` do with a run far away, living or closed, what they do here."""
    run = new_run(s3.uri(), 3)
    assert "running" in tracer_says("info", run).stdout
    assert tracer_says("merge", run).stdout == f"{run}: 3 parts before, 1 now\n"
    publish_next(run, "extremes", extremes([3]))
    close_run(run)
    assert tracer_says("merge", run).stdout == f"{run}: 2 parts before, 1 now\n"
    assert tracer_says("verify", run).stdout == f"{run}: 1 parts, every byte as it was published\n"
    said = tracer_says("info", run)
    assert "closed" in said.stdout
    assert "4 recorded, 0 to 3" in said.stdout
    list_parts(run, "extremes")[0].path.remove()
    assert steps_of(run) == []
    missing = tracer_says("info", s3.uri())
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "holds no run" in missing.stderr


def test_the_viewer_takes_a_uri(s3: Server, tmp_path: Path) -> None:
    """A figure of a run far away is written, by the command and in Python; without its name, of all in a folder."""
    run = new_run(s3.uri("a"), 3)
    close_run(run)
    folder = str(run).removesuffix("/a")
    code, said, complained = view(tmp_path, f"{run}?region=us-east-1", "--save", "a.png")
    assert (code, complained) == (0, "")
    assert said == "viewer: a is closed at step 2: a.png\n"
    assert (tmp_path / "a.png").stat().st_size > 0
    assert viewer.figure(folder).axes
    code, said, complained = view(tmp_path, "nothing://x:s3cr3t@y/z", "--save", "a.png")
    assert (code, complained.count("\n")) == (1, 1)
    assert "s3cr3t" not in complained


@pytest.fixture
def watched(s3: Server, tmp_path: Path) -> Iterator[Place]:
    """A run that is being written; what the viewer copies lies in a folder of this test's."""
    yield new_run(s3.uri(), 2)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("gradwatch-")]


def test_a_viewer_outlasts_an_outage(
    s3: Server, watched: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A viewer that follows a run goes on through an outage, and shows what came meanwhile; its copies go with it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with viewing(tmp_path, watched, "--text", "--poll", "0.2") as following:
        following.wait_for("step 1")
        s3.fails("reset")
        following.wait_for("left out")
        s3.works()
        publish_next(watched, "extremes", extremes([2]))
        following.wait_for("step 2")
        close_run(watched, 2)
        assert following.wait() == 0
    assert "Traceback" not in following.complained()
