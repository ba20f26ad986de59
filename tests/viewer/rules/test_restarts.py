"""A run that was restarted: what went wrong before stays a finding that is over, and each attempt can be looked at."""

import json
import math
from pathlib import Path

import pytest
import torch

import tracer
from tests.commands import viewer_says
from tests.logs import events, extremes, metrics, new_run, publish_next
from tests.training import loss_of, mlp
from tracer.log.store import Local
from viewer.options import ViewOptions
from viewer.read.live import Live
from viewer.read.monitor import FindingsMonitor
from viewer.snapshot import Severity


def train(path: Path) -> None:
    """Weights become NaN in step 12, and the training goes on; restored at step 8, it goes well."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with tracer.attach(model, path) as trace:

        def go_on(steps: range, bad: int = -1) -> None:
            for step in steps:
                optimizer.zero_grad()
                loss = loss_of(model) * (math.nan if step == bad else 1.0)
                loss.backward()
                optimizer.step()
                trace.log(loss=loss)

        go_on(range(8))
        weights = {name: each.clone() for name, each in model.state_dict().items()}
        state = trace.state_dict()
        go_on(range(8, 20), bad=12)
        model.load_state_dict(weights)
        trace.load_state_dict(state)
        go_on(range(8, 30))


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Such a run, closed."""
    path = tmp_path_factory.mktemp("restarted") / "run"
    train(path)
    return path


def test_what_went_wrong_before_a_restart_is_a_finding_that_is_over(restarted: Path) -> None:
    """It stands before all notes, with its cause and the step at which the run went on."""
    monitor = FindingsMonitor(Local(restarted))
    monitor.refresh()
    first = monitor.findings[0]
    assert (first.kind, first.first_step, first.resolved, first.restart) == ("nonfinite", 12, True, 8)
    assert first.severity is Severity.ERROR
    assert first.sentence.startswith("Before the restart at step 8: loss became NaN or infinite at step 12")
    assert all(finding.severity is Severity.NOTE for finding in monitor.findings[1:])


def test_it_is_said_and_fails_no_job(restarted: Path) -> None:
    """``check`` says it, for people and machines, and ends with 0: the run that goes on has no error."""
    said = viewer_says(restarted.parent, "check", "run")
    assert said.returncode == 0
    assert "Before the restart at step 8" in " ".join(said.stdout.split())
    (run,) = json.loads(viewer_says(restarted.parent, "check", "run", "--json").stdout)
    assert run["findings"][0]["restart"] == 8


def test_it_marks_no_step_of_the_attempt_that_is_drawn(restarted: Path) -> None:
    """The strip lists it; its steps are others than those in the figure."""
    said = viewer_says(restarted.parent, "run", "--text")
    assert "before the restart at step 8" in " ".join(said.stdout.split())


def test_an_attempt_is_shown_as_it_was(restarted: Path) -> None:
    """With ``attempt`` no later one counts: neither for curves nor for findings."""
    for attempt, last, bad in (("0", 19, [12, 13]), ("1", 29, []), ("", 29, [])):
        live = Live(Local(restarted), ViewOptions(attempt=attempt))
        snapshot = live.refresh()
        live.close()
        assert snapshot is not None
        assert snapshot.last_step == last
        assert snapshot.extremes is not None
        assert list(snapshot.extremes.nonfinite["value"])[:1] == bad[1:]
        monitor = FindingsMonitor(Local(restarted), attempt=ViewOptions(attempt=attempt).last_attempt)
        monitor.refresh()
        present = [finding for finding in monitor.findings if finding.kind == "nonfinite" and finding.restart is None]
        assert [finding.first_step for finding in present] == bad[:1]
        # What happened to the run later is none of this attempt's.
        assert [finding.kind for finding in monitor.findings if finding.kind == "restored"] == ["restored"] * (
            attempt != "0"
        )


def test_the_command_shows_an_attempt(restarted: Path) -> None:
    """In the terminal, too; what is no attempt is refused."""
    said = viewer_says(restarted.parent, "run", "--attempt", "0", "--text")
    assert "19" in said.stdout
    assert "before the restart" not in said.stdout
    assert viewer_says(restarted.parent, "run", "--attempt", "-1", "--text").returncode == 2
    with pytest.raises(ValueError, match="no attempt 'x'"):
        ViewOptions(attempt="x")


def test_of_what_began_before_and_goes_on_there_is_one_finding(tmp_path: Path) -> None:
    """A loss that does not fall is no news of the attempt that was given up."""
    run = new_run(tmp_path / "run")
    publish_next(run, "metrics", metrics(range(400), [2.0] * 400))
    publish_next(run, "events", events([300], "resumed", attempt=1))
    publish_next(run, "metrics", metrics(range(300, 600), [2.0] * 300, attempt=1))
    monitor = FindingsMonitor(run)
    monitor.refresh()
    assert [(each.kind, each.restart) for each in monitor.findings if each.kind == "loss_flat"] == [("loss_flat", None)]


def test_live_it_is_kept_as_the_run_is_restarted(tmp_path: Path) -> None:
    """What was found live and what is found afterwards are the same, once; each restart has its own."""
    run = new_run(tmp_path / "run")
    monitor = FindingsMonitor(run)
    bad = {"grad_max": [0.1] * 5 + [math.nan], "grad_min": [-0.1] * 5 + [math.nan]}
    publish_next(run, "extremes", extremes(range(6), values=bad))
    monitor.refresh()
    assert [(each.first_step, each.resolved) for each in monitor.findings] == [(5, False)]
    for attempt in (1, 2):
        publish_next(run, "events", events([2], "resumed", attempt=attempt))
        publish_next(run, "extremes", extremes(range(2, 8), values=bad, attempt=attempt))
        monitor.refresh()
        found = {(each.first_step, each.restart) for each in monitor.findings if each.kind == "nonfinite"}
        # The newest goes on; the first ended in step 5, and each later one in step 7.
        assert found == {(7, None), (5, 2), *[(7, 2)] * (attempt - 1)}


def test_live_an_attempt_stays_as_it_was(tmp_path: Path) -> None:
    """Though it gave up another one, which had been read, and was given up itself."""
    run = new_run(tmp_path / "run")
    live, monitor = Live(run, ViewOptions(attempt="1")), FindingsMonitor(run)
    for attempt, steps in enumerate((range(10), range(5, 8), range(3, 20))):
        if attempt:
            publish_next(run, "events", events([steps[0]], "resumed", attempt=attempt))
        bad = [math.nan if attempt == 0 and step == 9 else 0.1 for step in steps]
        publish_next(run, "extremes", extremes(steps, values={"grad_max": bad}, attempt=attempt))
        snapshot = live.refresh()
        monitor.refresh()
    live.close()
    assert snapshot is not None
    assert snapshot.last_step == 7
    # Each is said once, however often one looks.
    publish_next(run, "extremes", extremes([20], attempt=2))
    monitor.refresh()
    assert [(each.first_step, each.restart) for each in monitor.findings if each.kind == "nonfinite"] == [(9, 5)]
