"""The command ``viewer check`` as users run it: its words, its JSON and its exit codes, in a process of its own."""

import contextlib
import json
import math
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

import pyarrow as pa
import pytest

from tests.disk import Disk
from tests.logs import age_heartbeat, close_run, events, extremes, flip_bit, metrics, new_run, publish_next
from tests.terminals import bare, on_terminal
from tests.viewing import view, viewing
from tests.waiting import wait_until
from tracer.log.parts import all_parts
from tracer.log.place import Place
from tracer.log.ranks import beat, close_rank
from tracer.log.run import LogError
from tracer.log.store import Local as Path
from viewer.options import ViewOptions
from viewer.read.follow import Progress
from viewer.read.live import Live
from viewer.read.monitor import FindingsMonitor
from viewer.read.runs import Runs
from viewer.rules.evidence import Evidence
from viewer.rules.findings import LIMITS, THRESHOLDS, findings
from viewer.snapshot import Snapshot
from viewer.surfaces import report

PARAMS = ("conv.weight", "fc.weight")


def rows(
    steps: Sequence[int], bad: Sequence[int] = (), unused: bool = False, attempt: int = 0, rank: int = 0
) -> pa.Table:
    """Extremes of two parameters whose values move: NaN in these steps, or the second still and without a gradient."""
    values: dict[str, list[float | None]] = {name: [] for name in ("value_min", "value_max", "grad_min", "grad_max")}
    for step in steps:
        for param in PARAMS:
            left_out = unused and param == "fc.weight"
            # Not as the first one begins, of which it would be a copy.
            size = 0.4 if left_out else 0.5 + 1e-4 * step
            grad = None if left_out else math.nan if step in bad else 0.1
            for name, number in zip(values, (-size, size, grad and -grad, grad), strict=True):
                values[name].append(number)
    return extremes(steps, PARAMS, values, rank, attempt)


def written(path: Path, bad: Sequence[int] = (), unused: bool = False) -> Path:
    """A run of thirty steps that has closed."""
    run = new_run(path, PARAMS)
    publish_next(run, "extremes", rows(range(30), bad, unused))
    publish_next(run, "metrics", metrics(range(30), [1 / (step + 1) for step in range(30)]))
    close_run(run, 29)
    return run


def kinds(run: Place) -> list[str]:
    """The kinds of a run's findings."""
    evidence = FindingsMonitor(run).refresh()
    assert evidence is not None
    return [finding.kind for finding in findings(evidence)]


@pytest.mark.parametrize(
    ("given", "arguments", "code"),
    [
        ({}, "", 0),
        ({}, "--strict", 0),
        ({"unused": True}, "", 0),
        ({"unused": True}, "--strict", 1),
        ({"unused": True}, "--strict --rule unused.rows=31", 0),
        ({"bad": [7]}, "", 2),
        ({"bad": [7]}, "--strict", 2),
    ],
)
def test_the_exit_code_says_how_bad_it_is(tmp_path: Path, given: dict[str, object], arguments: str, code: int) -> None:
    """0 without errors, 1 for warnings with --strict, 2 for errors."""
    written(tmp_path / "run", **given)  # type: ignore[arg-type]
    found, said, complained = view(tmp_path, "check", "run", *arguments.split())
    assert (found, complained) == (code, "")
    assert "run: closed at step 29" in said
    assert ("unused" in said) == ("unused" in given and "--rule" not in arguments)
    assert ("became NaN or infinite at step 7" in " ".join(said.split())) == ("bad" in given)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("nowhere", "nowhere holds no run"),
        ("newer", "upgrade"),
        ("", "no run under runs/ yet"),
        ("run --rule dead.row=3", "try dead.rows"),
        ("run --rule dead.rows=x", "gives no number"),
        ("run --sideways", "--sideways"),
    ],
)
def test_what_cannot_be_checked_has_a_code_of_its_own(tmp_path: Path, arguments: str, words: str) -> None:
    """A run that cannot be read, and a wrong command line, end with 3: no answer is neither health nor illness."""
    written(tmp_path / "run")
    info = json.loads((new_run(tmp_path / "newer") / "run.json").read_text())
    (tmp_path / "newer" / "run.json").write_text(json.dumps(info | {"format": 99}))
    code, said, complained = view(tmp_path, "check", *arguments.split())
    assert (code, said, words in complained) == (3, "", True), complained


def test_every_threshold_is_listed(tmp_path: Path) -> None:
    """A table of what ``--rule`` takes, without a run; as JSON where asked."""
    code, said, _ = view(tmp_path, "check", "--rules")
    assert (code, [name for name in THRESHOLDS if f"\n{name}=" not in f"\n{said}"]) == (0, [])
    code, said, _ = view(tmp_path, "check", "--rules", "--json")
    assert (code, {each["name"]: each["default"] for each in json.loads(said)}) == (0, LIMITS)


def test_one_run_that_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    """What is found of the others is said, with their code where they have errors; JSON says what is wrong with it."""
    written(tmp_path / "good")
    written(tmp_path / "ill", bad=[7])
    code, said, complained = view(tmp_path, "check", "good", "nowhere")
    assert (code, "nothing found" in said, "nowhere holds no run" in complained) == (3, True, True)
    code, said, _ = view(tmp_path, "check", "good", "ill", "nowhere", "--json")
    good, ill, nowhere = json.loads(said)
    assert (code, good["findings"], len(ill["findings"])) == (2, [], 1)
    assert (nowhere["run"], "holds no run" in nowhere["error"]) == ("nowhere", True)


def test_following_says_what_it_waits_for(tmp_path: Path) -> None:
    """A name that is mistyped does not look like a training that is well."""
    with viewing(tmp_path, "check", "typo", "--follow") as viewer:
        wait_until(lambda: "typo holds no run yet: waiting for it" in viewer.complained())


def test_json_holds_what_the_table_shows(tmp_path: Path) -> None:
    """Of several runs one list, each finding with its numbers and parameters; what JSON lacks is null."""
    written(tmp_path / "runs" / "good")
    written(tmp_path / "runs" / "ill", bad=[3, 4])
    code, said, _ = view(tmp_path, "check", "runs", "--json")
    good, ill = json.loads(said)
    assert (code, good["run"], good["findings"]) == (2, "runs/good", [])
    assert (ill["run"], ill["state"], ill["last_step"], ill["complete"]) == ("runs/ill", "closed", 29, True)
    (found,) = [finding for finding in ill["findings"] if finding["kind"] == "nonfinite"]
    assert (found["severity"], found["param"], found["first_step"], found["last_step"]) == ("error", "fc.weight", 3, 4)
    assert found["params"] == ["fc.weight", "conv.weight"]
    assert found["numbers"]["loss_finite"] is True
    assert found["sentence"]
    assert found["advice"]


def test_a_folder_named_as_the_command_is_a_run(tmp_path: Path) -> None:
    """``viewer ./check`` still names a folder."""
    written(tmp_path / "check")
    assert view(tmp_path, "./check", "--text")[0] == 0
    assert "check: closed at step 29; nothing found" in view(tmp_path, "check", "check")[1]


def test_names_in_a_log_cannot_reach_the_terminal(tmp_path: Path) -> None:
    """What a terminal would obey, or rich would read as markup, is not printed as such."""
    run = new_run(tmp_path / "run", ["[red]\x1b[31mevil"])
    publish_next(run, "extremes", extremes([0], ["[red]\x1b[31mevil"], {"grad_max": [math.nan]}))
    code, said, _ = view(tmp_path, "check", "run")
    assert (code, "\x1b" in said) == (2, False)
    assert "[red]" in said


def test_following_ends_at_the_first_error(tmp_path: Path) -> None:
    """It waits for a run, says a warning as it comes, goes on, and ends with 2 once there is an error."""
    with viewing(tmp_path, "check", "run", "--follow") as viewer:
        run = new_run(tmp_path / "run", PARAMS)
        publish_next(run, "extremes", rows(range(30), unused=True))
        viewer.wait_for("run: warning at step 0: Never a gradient")
        assert viewer.process.poll() is None
        publish_next(run, "extremes", rows(range(30, 40), bad=[33], unused=True))
        assert viewer.wait() == 2
        assert "run: error at step 33: " in viewer.said()
        assert viewer.said().count("warning at step 0") == 1
        assert "silent" not in viewer.said()


def test_following_ends_with_the_run(tmp_path: Path) -> None:
    """Without an error it ends with 0 once the run has closed."""
    run = new_run(tmp_path / "run", PARAMS)
    publish_next(run, "extremes", rows(range(30)))
    with viewing(tmp_path, "check", "run", "--follow", "--json") as viewer:
        publish_next(run, "extremes", rows(range(30, 40)))
        publish_next(run, "events", events([39], "closed"))
        close_run(run, 39)
        assert viewer.wait() == 0
        (found,) = json.loads(viewer.said())
    assert (found["last_step"], found["findings"]) == (39, [])


def test_following_forgives_a_training_that_was_silent(tmp_path: Path) -> None:
    """That nothing was heard of it for a while is said, and costs nothing once it has closed in order."""
    run = new_run(tmp_path / "run", PARAMS)
    publish_next(run, "extremes", rows(range(30)))
    age_heartbeat(run, 3600)
    with viewing(tmp_path, "check", "run", "--follow") as viewer:
        viewer.wait_for("run: error at step 29: Nothing is heard of the training")
        beat(run, 0)
        close_run(run, 29)
        assert viewer.wait() == 0


class Scripted(Runs):
    """Runs before whose looks things happen, one after the other."""

    def __init__(
        self,
        paths: Sequence[Path],
        *happens: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
        monitors: dict[tuple[Place, int | None, int | None], FindingsMonitor] | None = None,
    ) -> None:
        super().__init__(paths, monitors=monitors)
        self.clock = clock
        self._happens = iter(happens)

    def wait(self) -> None:
        """Let the next thing happen."""
        next(self._happens)()


def followed(runs: Runs, quiet: bool = True) -> list[Snapshot]:
    """What ``check --follow`` knows at its end."""
    with contextlib.closing(runs):
        return report.followed(runs, quiet)


def test_following_says_what_spreads_and_is_not_flooded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finding is said again when twice as many parameters have it, one of another metric at once."""
    run = new_run(tmp_path / "run", PARAMS)

    def failed(number: int) -> None:
        publish_next(run, "events", events([number], "failed", f"p{number}", f"reason {number}"))
        publish_next(run, "metrics", metrics([number], [math.nan if number in (6, 7) else 1.0], f"val_loss_{number}"))

    looks = [partial(failed, number) for number in range(1, 10)]
    followed(Scripted([run], *looks, lambda: close_run(run, 9)), quiet=False)
    said = capsys.readouterr().out
    assert re.findall(r"reason (\d)", said) == ["1", "2", "4", "8"]
    assert re.findall(r"warning .*val_loss_(\d) became", said) == ["6", "7"]


@pytest.mark.slow
def test_following_outlives_a_moment_without_the_disk(tmp_path: Path) -> None:
    """Whoever cancels a training where this fails does not for a run that could be read a moment ago, and can again."""
    run = new_run(tmp_path / "run", PARAMS)
    publish_next(run, "extremes", rows(range(30)))
    file = run / "run.json"
    content = file.read_text()

    def back() -> None:
        file.write_text(content)
        close_run(run, 29)

    (snapshot,) = followed(Scripted([run], lambda: file.write_text("{"), lambda: None, back))
    assert (snapshot.state, snapshot.findings) == ("closed", ())
    file.write_text("{")
    with pytest.raises(LogError):
        followed(Runs([run]))
    with pytest.raises(LogError):
        followed(Runs([run, written(tmp_path / "other")]))


def test_following_takes_nobody_for_dead_who_may_live(tmp_path: Path) -> None:
    """Silence is an error once it has lasted: a training whose disk hangs is not to be cancelled for that."""
    run = new_run(tmp_path / "run", PARAMS)
    publish_next(run, "extremes", rows(range(30)))
    now = 0.0
    silent = partial(age_heartbeat, run, 3600)

    def later(seconds: float) -> None:
        nonlocal now
        now += seconds

    silent()
    happens: list[Callable[[], object]] = [
        partial(later, 50),
        lambda: beat(run, 0),
        silent,
        partial(later, 50),
        partial(later, 11),
    ]
    (snapshot,) = followed(Scripted([run], *happens, clock=lambda: now))
    assert (now, snapshot.state, [finding.kind for finding in snapshot.findings]) == (111, "stopped", ["silent"])
    bad = partial(publish_next, run, "extremes", rows(range(30, 40), bad=[33]))
    (snapshot,) = followed(Scripted([run], bad, clock=lambda: now))
    assert {finding.kind for finding in snapshot.findings} == {"silent", "nonfinite"}


def test_following_takes_nobody_for_dead_whom_it_cannot_see(tmp_path: Path, disk: Disk) -> None:
    """While the watcher's own disk fails, silence says nothing."""
    run = new_run(tmp_path / "run", PARAMS)
    publish_next(run, "extremes", rows(range(30)))
    age_heartbeat(run, 3600)
    now = 0.0

    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    def later(then: Callable[..., int]) -> None:
        nonlocal now
        now += 40
        disk.open = then

    def back() -> None:
        later(os.open)
        beat(run, 0)

    happens: list[Callable[[], object]] = [partial(later, fail)] * 3 + [
        partial(later, os.open),
        back,
        partial(close_run, run, 29),
    ]
    (snapshot,) = followed(Scripted([run], *happens, clock=lambda: now))
    assert snapshot.state == "closed"


def test_one_that_dies_among_others_is_an_error(tmp_path: Path) -> None:
    """A training that has been silent for a minute ends the following, although another one goes on."""
    live, dead = (new_run(tmp_path / name, PARAMS) for name in ("live", "dead"))
    for run in (live, dead):
        publish_next(run, "extremes", rows(range(30)))
    age_heartbeat(dead, 3600)
    now = 0.0

    def later() -> None:
        nonlocal now
        now += 40

    runs = Scripted([live, dead], later, later, clock=lambda: now)
    states = {Path(snapshot.name).name: snapshot.state for snapshot in followed(runs)}
    assert states == {"live": "running", "dead": "stopped"}


def test_following_sees_a_run_that_begins_in_its_folder(tmp_path: Path) -> None:
    """A folder stands for the runs that are in it, and for those that come."""
    new_run(tmp_path / "first", PARAMS)

    def begin() -> None:
        publish_next(new_run(tmp_path / "second", PARAMS), "extremes", rows(range(30), bad=[7]))

    severities = [[str(finding.severity) for finding in run.findings] for run in followed(Scripted([tmp_path], begin))]
    assert severities == [[], ["error"]]


def test_a_deleted_run_keeps_its_findings(tmp_path: Path) -> None:
    """One that was over is deleted while another goes on: it stays in the report, and nobody waits for it."""
    gone, live = written(tmp_path / "gone", unused=True), new_run(tmp_path / "live", PARAMS)
    publish_next(live, "extremes", rows(range(30)))
    happens = (lambda: shutil.rmtree(gone), lambda: close_run(live, 29), lambda: None)
    reported = followed(Scripted([gone, live], *happens))
    assert [(Path(run.name).name, [finding.kind for finding in run.findings]) for run in reported] == [
        ("gone", ["unused"]),
        ("live", []),
    ]


def test_a_folder_that_appears_and_holds_no_run_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be read, and was not there at the beginning, is said once; the others are followed to their end."""
    live = new_run(tmp_path / "live", PARAMS)
    publish_next(live, "extremes", rows(range(30)))

    def appear() -> None:
        (tmp_path / "strange").mkdir()
        (tmp_path / "strange" / "run.json").write_text("{}")

    (reported,) = followed(Scripted([tmp_path], appear, lambda: None, lambda: close_run(live, 29)))
    assert reported.state == "closed"
    (line,) = capsys.readouterr().err.splitlines()
    assert "strange" in line


class Failing(FindingsMonitor):
    """Findings of which some reads fail."""

    failures = 0

    def refresh(self, progress: Progress | None = None) -> Evidence | None:
        """Fail, or read."""
        if self.failures:
            self.failures, self.current = self.failures - 1, False
            raise OSError(5, "Input/output error")
        return super().refresh(progress)


def test_a_closed_run_is_not_left_before_its_findings_are_known(tmp_path: Path) -> None:
    """Findings that cannot be read at the end of a run are read again, and decide."""
    run = written(tmp_path / "run", bad=[12])
    monitor = Failing(run)
    monitor.failures = 2
    (reported,) = followed(Scripted([run], lambda: None, lambda: None, monitors={(run, None, None): monitor}))
    assert [finding.kind for finding in reported.findings] == ["nonfinite"]


def test_silence_that_was_is_no_error_of_a_training_that_lives(tmp_path: Path) -> None:
    """Its heartbeat is back, but findings cannot be read at that moment: the silence that they hold does not count."""
    run = new_run(tmp_path / "run", PARAMS)
    publish_next(run, "extremes", rows(range(30)))
    age_heartbeat(run, 3600)
    monitor = Failing(run)

    def back() -> None:
        beat(run, 0)
        monitor.failures = 1

    (reported,) = followed(Scripted([run], back, lambda: close_run(run, 29), monitors={(run, None, None): monitor}))
    assert (reported.state, [finding.kind for finding in reported.findings]) == ("closed", ["silent"])
    assert reported.findings[0].resolved


@pytest.mark.slow
def test_following_does_not_watch_what_has_ended(tmp_path: Path) -> None:
    """Each watch is a thread, and most of a folder's runs have ended."""
    live = new_run(tmp_path / "live", PARAMS)
    publish_next(live, "extremes", rows(range(30)))
    watching: list[int] = []

    def count() -> None:
        watching.append(sum("Emitter" in type(thread).__name__ for thread in threading.enumerate()))
        close_run(live, 29)

    followed(Scripted([live, *(written(tmp_path / name) for name in ("a", "b", "c"))], count))
    assert 0 < watching[0] <= len(Live(live).folders)


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_report_is_made_of_paragraphs_of_whole_words(tmp_path: Path, columns: int) -> None:
    """In a terminal of any width no line is longer than it but for a name, no word is broken, and no word is lost."""
    name = "transformer.encoder.layers.11.self_attention.out_projection.weight"
    publish_next(new_run(tmp_path / "run", [name]), "extremes", extremes([0], [name], {"grad_max": [math.nan]}))
    with on_terminal(tmp_path, "check", "run", size=(columns, 24)) as terminal:
        code, said = terminal.end(), bare(terminal.raw)
    lines = said.splitlines()
    (snapshot,) = report.read([tmp_path / "run"], LIMITS, ViewOptions(), {})
    written = [word for finding in snapshot.findings for word in f"{finding.sentence} {finding.advice}".split()]
    assert (code, name in said) == (2, True)
    assert max(len(line) for line in lines if name not in line) <= columns
    assert " ".join(written) in " ".join(said.split())
    assert max(map(len, lines)) > min(columns, 100) - 15


def test_what_is_followed_equals_what_is_read_at_once(tmp_path: Path) -> None:
    """Part by part, the findings are those of the whole; where nothing is new, nothing is said."""
    run = new_run(tmp_path / "run", PARAMS)
    monitor = FindingsMonitor(run)
    assert FindingsMonitor(tmp_path / "nowhere").refresh() is None
    for begin in range(0, 30, 5):
        publish_next(run, "extremes", rows(range(begin, begin + 5), bad=[12], unused=True))
        followed = monitor.refresh()
        assert followed is not None
        assert monitor.refresh() is None
        at_once = FindingsMonitor(run).refresh()
        assert at_once is not None
        assert findings(followed) == findings(at_once)


@pytest.mark.parametrize("how", ["resumed", "restored"])
def test_steps_that_were_made_again_count_once(tmp_path: Path, how: str) -> None:
    """Where the latest attempt is healthy, the NaN of the one before is over, whenever that is noticed."""
    run = new_run(tmp_path / "run", PARAMS)
    monitor = FindingsMonitor(run)
    publish_next(run, "extremes", rows(range(30), bad=[20]))
    evidence = monitor.refresh()
    assert evidence is not None
    assert [finding.kind for finding in findings(evidence)] == ["nonfinite"]
    resumed = events([15], how)
    resumed = resumed.set_column(3, resumed.schema.field("attempt"), pa.array([1], pa.int32()))
    publish_next(run, "events", resumed)
    publish_next(run, "extremes", rows(range(15, 30), attempt=1))
    evidence = monitor.refresh()
    assert evidence is not None
    assert [finding.kind for finding in findings(evidence)] == [how]
    assert [(finding.kind, finding.restart) for finding in monitor.findings] == [("nonfinite", 15), (how, None)]
    assert kinds(run) == [how]


def test_a_restart_is_no_failure(tmp_path: Path) -> None:
    """It is said, with each of its steps, and the code is that of a healthy run, with --strict, too."""
    run = new_run(tmp_path / "run", PARAMS)
    publish_next(run, "extremes", rows(range(20)))
    publish_next(run, "events", events([20], "resumed", attempt=1))
    publish_next(run, "events", events([10], "restored", detail="step 20 -> step 10", attempt=1))
    publish_next(run, "extremes", rows(range(10, 40), attempt=1))
    close_run(run, 39)
    code, said, complained = view(tmp_path, "check", "run", "--strict")
    assert (code, complained, "checkpoint: step 20 -> step 10." in " ".join(said.split())) == (0, "", True)
    code, said, _ = view(tmp_path, "check", "run", "--json")
    (found,) = json.loads(said)[0]["findings"]
    assert (code, found["kind"], found["steps"]) == (0, "restored", [10])


def test_a_crowd_of_ranks_hides_no_restart(tmp_path: Path) -> None:
    """Of many ranks that were resumed often, the last time is known, too."""
    run = new_run(tmp_path / "run", PARAMS)
    publish_next(run, "extremes", rows(range(20)))
    monitor = FindingsMonitor(run)
    for steps in (range(18), [18]):
        for rank in range(60):
            publish_next(run, "events", events(steps, "resumed", rank=rank), rank=rank)
        monitor.refresh()
    (found,) = monitor.findings
    assert (found.steps, found.numbers["times"]) == (tuple(range(19)), 19)


def two_ranks(path: Path) -> Path:
    """A closed run of which rank 0 is healthy, and has logged the loss; rank 1 got a NaN and died of an exception."""
    run = written(path)
    beat(run, 1)
    publish_next(run, "extremes", rows(range(30), bad=[7], rank=1), rank=1)
    close_rank(run, 1, {"last_step": 29, "reason": "ValueError: no", "rows_dropped": {"extremes": 5}})
    return run


def test_one_rank_is_checked_as_the_viewer_shows_it(tmp_path: Path) -> None:
    """What it wrote decides: its rows, how it ended and what it dropped; not what others did."""
    two_ranks(tmp_path / "run")
    found = {}
    for rank in ("", "--rank 0", "--rank 1"):
        code, said, _ = view(tmp_path, "check", "run", "--json", *rank.split())
        (read,) = json.loads(said)
        found[rank] = code, {each["kind"]: each["sentence"] for each in read["findings"]}
        assert read.get("rank", "") == (int(rank[-1]) if rank else "")
    assert {rank: (code, sorted(kinds)) for rank, (code, kinds) in found.items()} == {
        "": (2, ["dropped", "ended", "nonfinite"]),
        "--rank 0": (0, []),
        "--rank 1": (2, ["dropped", "ended", "nonfinite"]),
    }
    # As in its curves, there is no loss that only rank 0 has logged.
    assert ["the loss was finite" in found[rank][1]["nonfinite"] for rank in ("", "--rank 1")] == [True, False]
    assert "run, rank 0: closed at step 29; nothing found" in view(tmp_path, "check", "run", "--rank", "0")[1]
    assert "run, rank 1: closed at step 29" in view(tmp_path, "check", "run", "--rank", "1")[1]


@pytest.mark.parametrize("follow", ["", "--follow"])
def test_a_rank_that_is_not_there_is_not_healthy(tmp_path: Path, follow: str) -> None:
    """Its name was mistyped: that is an error, with those that there are."""
    two_ranks(tmp_path / "run")
    code, said, complained = view(tmp_path, "check", "run", "--rank", "2", *follow.split())
    assert (code, said, "run has no rank 2: there are 0, 1" in complained) == (3, "", True), complained
    code, _, complained = view(tmp_path, "check", "run", "--rank", "spread", *follow.split())
    assert (code, "--rank" in complained) == (3, True)
    written(tmp_path / "other")
    code, said, complained = view(tmp_path, "check", "other", "run", "--rank", "1", "--json", *follow.split())
    assert (code, "other has no rank 1: there are 0" in complained) == (2, True), complained
    assert ["error" in each for each in json.loads(said)] == [False, True]


def test_one_rank_is_read_alone(tmp_path: Path) -> None:
    """What another rank has written costs nothing, and spoils nothing."""
    run = two_ranks(tmp_path / "run")
    for part in all_parts(run, "extremes"):
        if part.rank == 1:
            flip_bit(Path(str(part.path)))
    monitor = FindingsMonitor(run, rank=0)
    assert monitor.refresh() is not None
    assert monitor.findings == ()
    assert "damaged" in kinds(run)


def test_a_damaged_part_and_a_silent_rank_are_findings(tmp_path: Path) -> None:
    """What cannot be known is said, as warnings."""
    run = new_run(tmp_path / "run", PARAMS)
    publish_next(run, "extremes", rows(range(30)))
    flip_bit(publish_next(run, "extremes", rows(range(30, 40))).path)
    beat(run, 1)
    age_heartbeat(run, 3600, rank=1)
    assert set(kinds(run)) == {"damaged", "silent"}


def test_the_newest_run_is_the_default(tmp_path: Path) -> None:
    """Without a run named, the newest under runs/ is checked."""
    for age, name in ((200, "old"), (100, "new")):
        then = written(tmp_path / "runs" / name).stat().st_mtime - age
        os.utime(tmp_path / "runs" / name / "run.json", (then, then))
    assert "runs/new: closed" in view(tmp_path, "check")[1]


def test_a_disk_that_lists_a_part_late_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is gone when it is read was merged: the next look finds what replaced it."""
    run = written(tmp_path / "run")
    monitor = FindingsMonitor(run)

    def gone(self: object, *given: object) -> bool:
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr("viewer.read.follow.Follower.give", gone)
        assert monitor.refresh() is None
    assert monitor.refresh() is not None
