"""Paths as users give them: relative, with ``~``, with signs that mean something elsewhere."""

import json
import os
import shlex

import pytest
import torch
from torch import nn

import tracer
from tests.commands import tracer_says, viewer_says
from tests.logs import events, extremes, new_run, publish_next
from tests.training import loss_of, mlp
from tracer import LogError
from tracer.log.ranks import state
from tracer.log.store import Local as Path
from tracer.log.store import at

NAMES = ["adam:1e-3", "2026-11-29T12:30:00", "file:", "http:x", "-x", "check", "a b'c", "~nobody here"]


def train(model: nn.Module, steps: int) -> None:
    """Train a model for some steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()


def test_a_run_stays_where_it_began_when_the_process_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a chdir the rows still go into the run's folder, and a run of that relative name elsewhere is untouched."""
    (tmp_path / "here").mkdir()
    other = new_run(tmp_path / "there" / "runs" / "a")
    publish_next(other, "extremes", extremes([7]))
    monkeypatch.chdir(tmp_path / "here")
    model = mlp()
    with tracer.attach(model, "runs/a") as trace:
        train(model, 1)
        monkeypatch.chdir(tmp_path / "there")
        train(model, 2)
    assert Path(trace.path) == tmp_path / "here" / "runs" / "a"
    assert state(tmp_path / "here" / "runs" / "a") == "closed"
    assert sorted(set(tracer.scan(trace.path).collect()["step"])) == [0, 1, 2]
    assert tracer.scan("runs/a").collect()["step"].to_list() == [7]


def test_a_run_stays_where_a_link_led_when_it_began(tmp_path: Path) -> None:
    """A link that leads to another run by now, as ``runs/latest`` may, takes no row there."""
    other, link = new_run(tmp_path / "b"), tmp_path / "latest"
    publish_next(other, "extremes", extremes([7]))
    (tmp_path / "a").mkdir()
    link.symlink_to(tmp_path / "a")
    model = mlp()
    with tracer.attach(model, link) as trace:
        train(model, 1)
        link.unlink()
        link.symlink_to(other)
        train(model, 2)
    assert trace.path == tmp_path / "a"
    assert (state(tmp_path / "a"), state(other)) == ("closed", "running")
    assert sorted(set(tracer.scan(trace.path).collect()["step"])) == [0, 1, 2]
    assert tracer.scan(other).collect()["step"].to_list() == [7]


def test_links_that_lead_in_a_circle_are_refused(tmp_path: Path) -> None:
    """Also while another model is traced, whose path is compared with this one."""
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with tracer.attach(mlp(), tmp_path / "a"), pytest.raises(LogError, match="cannot be made"):
        tracer.attach(mlp(), tmp_path / "circle" / "b")


def test_a_path_of_bytes_is_a_path(tmp_path: Path) -> None:
    """As ``os.fsencode`` gives it, and as all functions of ``os`` take it."""
    assert at(bytes(tmp_path / "a")) == tmp_path / "a"
    publish_next(new_run(tmp_path / "a"), "extremes", extremes([7]))
    assert tracer.scan(bytes(tmp_path / "a")).collect()["step"].to_list() == [7]  # type: ignore[arg-type]


def test_a_frame_is_of_the_run_that_was_scanned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lazy frame is collected wherever the process is by then."""
    publish_next(new_run(tmp_path / "run"), "extremes", extremes([7]))
    monkeypatch.chdir(tmp_path)
    frame = tracer.scan("run")
    monkeypatch.chdir("/")
    assert frame.collect()["step"].to_list() == [7]


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~/runs/a`` is in the home folder, as a string and as a path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert at("~/runs/a") == at(Path("~/runs/a")) == tmp_path / "runs" / "a"


@pytest.mark.parametrize("name", NAMES)
def test_a_relative_name_is_a_name_whatever_its_signs_mean_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It is read by a scan and by the commands, and no library takes it for a URI or an option."""
    monkeypatch.chdir(tmp_path)
    run = new_run(at(name))
    publish_next(run, "events", events([0]))
    publish_next(run, "extremes", extremes([7]))
    assert tracer.scan(name).collect()["step"].to_list() == [7]
    assert "1 recorded, 7 to 7" in tracer_says("info", "--", name, folder=tmp_path).stdout
    checked = viewer_says(tmp_path, "check", "--json", "--", name)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "parts" not in checked.stdout
    assert json.loads(checked.stdout)[0]["run"] == name


@pytest.mark.parametrize("name", NAMES)
def test_the_command_that_is_printed_can_be_pasted_into_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """A shell reads the command's last word as the run's folder."""
    monkeypatch.chdir(tmp_path)
    tracer.attach(mlp(), name).close()
    command = capsys.readouterr().err.partition("watch it with: ")[2]
    assert shlex.split(command) == ["viewer", str(tmp_path / name)]


def test_a_path_that_is_not_utf8_is_refused_by_who_writes_and_who_reads(tmp_path: Path) -> None:
    """No library that reads Parquet opens it, so nothing is written there; runs beside it are read as ever."""
    name = os.fsdecode(b"caf\xe9")
    with pytest.raises(LogError, match=r"caf\\udce9 is not UTF-8"):
        tracer.attach(mlp(), tmp_path / name)
    assert not (tmp_path / name).exists()
    run = new_run(tmp_path / "a")
    publish_next(run, "extremes", extremes([7]))
    new_run(tmp_path / "b").rename(tmp_path / name)
    with pytest.raises(LogError, match="is not UTF-8"):
        tracer.scan(tmp_path / name)
    checked = viewer_says(tmp_path, "check", tmp_path)
    assert (checked.returncode, "is not UTF-8" in checked.stderr) == (3, True)
    assert f"{tmp_path}/a: running at step 7" in checked.stdout


def test_a_uri_of_another_machine_is_no_folder_of_this_one(tmp_path: Path) -> None:
    """``file://runs/a`` names a machine, so it is refused and not written to ``/a``."""
    with pytest.raises(LogError, match="is on the machine 'runs'"):
        tracer.attach(mlp(), "file://runs/a")
    assert at(f"file://localhost{tmp_path}/a%20b") == tmp_path / "a b"


def test_a_relative_path_in_a_folder_that_is_gone_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An absolute path still serves there."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(LogError, match="give an absolute path"):
        tracer.attach(mlp(), "a")
    tracer.attach(mlp(), tmp_path / "a").close()
