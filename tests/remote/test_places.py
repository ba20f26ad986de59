"""What a URI names: any key, any store that a library opens, and no secret that is ever shown."""

import os
import subprocess
import sys

import pytest
import torch
from fsspec.implementations.memory import MemoryFile
from torch import nn

import tracer
from tests.logs import close_run, extremes, publish_next
from tests.logs import new_run as new_local_run
from tests.remote.conftest import Server
from tests.remote.runs import begin, new_run, steps_of
from tests.tracer.log.test_run import assert_one_goes_on, reopening
from tests.training import loss_of, mlp
from tracer.log import remote, store
from tracer.log.parts import all_parts, damage, list_parts, merge, publish
from tracer.log.ranks import state
from tracer.log.remote import Remote
from tracer.log.run import LogError, runs_in
from tracer.log.store import Local as Path

pytestmark = pytest.mark.slow

ODD = ["a b", "100%", "a%20b", "a+b", "é-日本", "x#1", "x#2", "a=b&c", "@home", "a:b", "~"]


def test_every_key_names_a_run_of_its_own(s3: Server) -> None:
    """Spaces, percent signs, plus signs and letters of any language stand for themselves."""
    folder = s3.uri("runs")
    for number, name in enumerate(ODD):
        publish_next(new_run(f"{folder}/{name}"), "extremes", extremes([number]))
    assert [steps_of(f"{folder}/{name}") for name in ODD] == [[number] for number in range(len(ODD))]
    assert sorted(run.name for run in runs_in(store.at(folder))) == sorted(ODD)
    assert [str(store.at(f"{folder}/{name}/")) for name in ODD] == [f"{folder}/{name}" for name in ODD]


@pytest.mark.parametrize("uri", ["memory://bucket/{}/run", "memory://{}"])
def test_a_scheme_that_only_fsspec_knows_is_a_place_like_any_other(uri: str, tmp_path: Path) -> None:
    """A run in the memory of this process is traced, read, merged, checked, resumed and shown."""
    uri = uri.format(tmp_path.name)
    torch.manual_seed(0)
    model, optimizer = mlp(), None
    for resume in (False, True):
        with tracer.attach(model, uri, resume=resume) as trace:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(3):
                loss_of(model).backward()
                optimizer.step()
            assert state(trace.path) == "running"
        assert str(trace.path) == uri
    run = store.at(uri)
    frame = tracer.scan(uri).collect()
    assert sorted(set(frame["step"])) == list(range(6))
    assert frame.height == 6 * len(list(model.parameters()))
    assert [damage(part) for part in list_parts(run, "extremes")] == [None] * len(list_parts(run, "extremes"))
    merge(run, "extremes", 0)
    assert len(all_parts(run, "extremes")) == 1
    assert tracer.scan(uri).collect().equals(frame)
    assert state(run) == "closed"
    assert run.names("staging") == set()


@pytest.mark.smoke
def test_what_is_written_twice_because_an_answer_was_lost_is_there_once(tmp_path: Path) -> None:
    """Where files are moved into place, the same part published again is no error, and changes nothing."""
    run = new_run(f"memory://{tmp_path.name}", 1)
    once = publish_next(run, "extremes", extremes([1]))
    written = once.path.modified()
    assert publish(run, "extremes", 0, once.first, extremes([1])) == once
    assert once.path.modified() == written
    assert steps_of(run) == [0, 1]


def test_what_was_not_written_completely_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a stream may end short without an error, such a part never gets its name."""
    run = new_run(f"memory://{tmp_path.name}", 1)
    with monkeypatch.context() as short:
        short.setattr(MemoryFile, "close", lambda file: file.truncate(100))
        with pytest.raises(OSError, match="not written completely"):
            publish(run, "extremes", 0, 1, extremes([1]))
    assert len(all_parts(run, "extremes")) == 1
    publish(run, "extremes", 0, 1, extremes([1]))
    assert steps_of(run) == [0, 1]


def test_a_file_uri_is_a_folder(tmp_path: Path) -> None:
    """``file://`` names the folder that its path names, with the escapes that such a URI has."""
    run = new_local_run(tmp_path / "a b")
    publish_next(run, "extremes", extremes([0]))
    uri = run.as_uri()
    assert "%20" in uri
    assert store.at(uri) == run
    assert steps_of(uri) == [0]


SECRETS = [
    ("s3://KEY:{}@bucket/runs/a?region=us-east-1", "s3://bucket/runs/a"),
    ("s3://bucket/runs/a?secret_key={}", "s3://bucket/runs/a"),
    ("sftp://someone:{}@host:22/runs/a", "sftp://host:22/runs/a"),
    ("hdfs://someone@host:8020/runs/a", "hdfs://someone@host:8020/runs/a"),
    ("memory://[::1]:80/{}", "memory://[::1]:80/s3cr3t"),
    ("s3://KEY:a/{}@bucket/runs/a", "s3://…"),
]


@pytest.mark.parametrize(("uri", "shown"), SECRETS)
def test_a_secret_in_a_uri_is_in_no_word_about_it(uri: str, shown: str) -> None:
    """A place prints without password and query, and so does everything made from it."""
    uri = uri.format("s3cr3t")
    place = store.at(uri)
    assert isinstance(place, Remote)
    assert str(place) == f"{place}" == shown
    assert repr(place) == f"Remote({shown!r})"
    assert str(place / "run.json").startswith(shown)
    assert os.fspath(place) == uri


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("nothing://KEY:s3cr3t@bucket/run", "Protocol not known: nothing"),
        ("s3://KEY:s3cr3t@bucket/run?key=s3cr3t", "Unexpected query parameter in S3 URI: 'key'"),
        ("s3://KEY:a/s3cr3t@bucket/run", "cannot be opened"),
        ("s3://KEY:s3cr3t@buc ket/run", "cannot be opened"),
        ("s3:///run", "Missing bucket name in S3 URI"),
        ("nothing://bucket/run?s3cr3t", "Protocol not known: nothing"),
    ],
)
@pytest.mark.parametrize("resume", [False, True])
def test_a_store_that_cannot_be_opened_is_one_line_without_a_secret(uri: str, reason: str, resume: bool) -> None:
    """Where no library knows a scheme, or cannot use a URI, attach and scan say so in a line."""
    with pytest.raises(LogError, match=r".") as refused:
        tracer.attach(mlp(), uri, resume=resume)
    with pytest.raises(LogError, match=r".") as unread:
        tracer.scan(uri)
    for told in (str(refused.value), str(unread.value)):
        assert reason in told
        assert "s3cr3t" not in told
        assert "\n" not in told


def test_a_traced_run_tells_no_secret(s3: Server, capfd: pytest.CaptureFixture[str]) -> None:
    """What attach prints, what it raises, run.json and the path of the trace are without password and query."""
    name = s3.uri().removeprefix("s3://bucket")
    uri = f"s3://testing:s3cr3t@bucket{name}?region=us-east-1"
    with tracer.attach(mlp(), uri) as trace:
        with pytest.raises(RuntimeError, match="another model is being traced") as refused:
            tracer.attach(nn.Linear(2, 2), uri)
        assert f"{trace.path} {trace.path!r}".count(f"s3://bucket{name}") == 2
        told = f"{refused.value} {trace.path} {trace.path!r} {capfd.readouterr()}"
        assert steps_of(trace.path) == []
    told += (store.at(uri) / "run.json").content().decode() + str(capfd.readouterr())
    assert "s3cr3t" not in told
    assert "region" not in told
    told = subprocess.run(
        [sys.executable, "-m", "tracer", "info", uri], capture_output=True, text=True, check=True
    ).stdout
    assert "s3cr3t" not in told


def test_a_run_that_cannot_be_used_tells_no_secret(s3: Server) -> None:
    """Where the store fails while a run is resumed, or a part is damaged, what is said names the run, and no secret."""
    run = new_run(s3.uri(), 1)
    uri = str(run).replace("s3://", "s3://testing:s3cr3t@") + "?region=us-east-1"
    s3.fails("error", "GET /bucket.*extremes", status=403)
    with pytest.raises(LogError, match=f"^{run} cannot be used: ") as refused:
        tracer.attach(mlp(), uri, resume=True)
    s3.works()
    (part,) = list_parts(run, "extremes")
    assert isinstance(part.path, Remote)
    part.path.write(b"damaged")
    told = subprocess.run([sys.executable, "-m", "tracer", "info", uri], capture_output=True, text=True, check=True)
    assert f"tracer verify {run} names them" in " ".join(told.stdout.split())
    assert "s3cr3t" not in f"{refused.value} {told.stdout} {told.stderr}"


def test_copies_go_with_the_process_and_not_with_its_children(s3: Server, tmp_path: Path) -> None:
    """A forked child's end leaves its parent's copies alone; the parent's own takes them away."""
    uri = str(new_run(s3.uri(), 2))
    code = f"""
import os, sys, tempfile, tracer
frame = tracer.scan({uri!r})
child = os.fork()
if child == 0:
    sys.exit(0)
assert os.waitpid(child, 0)[1] == 0
assert frame.collect()["step"].to_list() == [0, 1]
assert os.listdir({str(tmp_path)!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "TMPDIR": str(tmp_path)}, timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_of_those_who_reopen_a_rank_far_away_one_has_it(s3: Server) -> None:
    """Of processes that resume one rank at a URI in one moment, one goes on, and the others are told who writes."""
    run = new_run(s3.uri())
    for _ in range(3):
        close_run(run)
        with reopening(run, 3) as said:
            assert_one_goes_on(run, said)


def test_a_run_far_away_is_replaced(s3: Server) -> None:
    """Of the older run nothing is left in the store, and a file beside its parts stays."""
    uri = s3.uri()
    for count in (3, 1):
        with tracer.attach(model := nn.Linear(1, 1), uri, overwrite=True) as trace:
            for _ in range(count):
                model(torch.ones(1, 1)).sum().backward()
                trace.step(loss=count)
        store.at(f"{uri}/extremes/notes.txt").renew(b"mine")
    assert tracer.scan(uri, "metrics").collect().select("step", "value").rows() == [(0, 1.0)]
    assert set(tracer.scan(uri).collect()["step"]) == {0}
    assert store.at(f"{uri}/extremes/notes.txt").content() == b"mine"


def test_what_a_training_reads_of_its_own_run_it_does_not_keep(s3: Server) -> None:
    """Neither merging nor resuming leaves a copy on this machine while the process goes on."""
    run = new_run(s3.uri(), 3)
    close_run(run)
    kept = sorted(remote._copies().rglob("*"))
    with pytest.warns(tracer.TracerWarning, match="another model"):
        tracer.attach(mlp(), run, resume=True).close()
    merge(run, "extremes", 0)
    assert len(all_parts(run, "extremes")) == 1
    assert sorted(remote._copies().rglob("*")) == kept


def test_what_was_read_in_mid_run_keeps_no_exit_from_merging(s3: Server, tmp_path: Path) -> None:
    """A script that scanned its own run, and ends without closing it, ends with merged parts and without copies."""
    code = f"""
import sys, torch, tracer
from tests.training import loss_of, mlp
from tests.waiting import wait_until
model = mlp()
trace = tracer.attach(model, {s3.uri()!r})
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    loss_of(model).backward()
    optimizer.step()
wait_until(lambda: tracer.scan(trace.path).collect().height > 0)
loss_of(model).backward()
print(trace.path)
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment, timeout=60
    )
    assert "Warning" not in done.stderr
    assert len(all_parts(store.at(done.stdout.strip()), "extremes")) == 1
    assert list(tmp_path.glob("gradwatch-*")) == []


@pytest.mark.smoke
def test_a_damaged_part_is_named_and_the_rest_is_read(s3: Server) -> None:
    """A part that is not what its name says, or only half of it, is left out with a warning; merging leaves it be."""
    run = begin(s3.uri())
    parts = [publish_next(run, "extremes", extremes([step])) for step in range(4)]
    for part, keep in ((parts[1], None), (parts[2], 100)):
        content = bytearray(part.path.content())
        content[50] ^= keep is None
        assert isinstance(part.path, Remote)
        part.path.write(bytes(content[:keep]))
    with pytest.warns(tracer.BadPartWarning) as named:
        assert steps_of(run) == [0, 3]
    assert [str(part.path) in str(each.message) for part, each in zip(parts[1:3], named, strict=True)] == [True] * 2
    merge(run, "extremes", 0)
    assert len(all_parts(run, "extremes")) == 4
    close_run(run)
    told = subprocess.run(
        [sys.executable, "-m", "tracer", "verify", str(run)], capture_output=True, text=True, check=False
    )
    assert told.returncode == 1
    assert [line.split(" ")[0] for line in told.stderr.splitlines()] == [str(part.path) for part in parts[1:3]]
