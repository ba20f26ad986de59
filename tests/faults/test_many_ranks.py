"""Ranks never collide: each writes its own parts, none knows of another, and one that dies is named."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Callable

import polars as pl
import pytest
from torch import nn

import tracer
from tests.disk import Disk
from tests.logs import age_heartbeat, extremes, new_run, publish_next
from tests.torture import often
from tests.waiting import wait_until
from tests.warm import warm
from tracer.log import ranks
from tracer.log import run as run_folder
from tracer.log.parts import merge
from tracer.log.store import Local as Path
from viewer.read.live import Live
from viewer.words import notices

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WORLD = 8

# Forks the ranks once everything is imported, so that all of them attach in the same moment.
RANKS = """
import os
import sys
import time

import torch
from torch import nn

import tracer
from tracer import trace

path, world, claims, steps = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","), int(sys.argv[4])
# The first optimizer imports much, which every rank would import again.
torch.optim.SGD(nn.Linear(1, 1).parameters())
waits, go = os.pipe()


def train(rank):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world)}
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    os.close(go)
    os.read(waits, 1)
    try:
        trace = tracer.attach(model, path, overwrite=len(sys.argv) > 5)
    except tracer.LogError as error:
        os.write(1, f"{rank} refused: {error}\\n".encode())
        return
    os.write(1, f"{rank} {os.getpid()} writes\\n".encode())
    # Ranks that train together wait for each other, so that none has ended before another attaches.
    while not all(os.path.exists(f"{path}/heartbeat-r{int(other):05d}") for other in claims):
        time.sleep(0.01)
    for step in range(steps):
        optimizer.zero_grad()
        model(torch.full((1, 2), float(rank + 1))).sum().backward()
        optimizer.step()
        trace.log(loss=rank)
        if steps > 1000:
            time.sleep(0.05)
    trace.close()


children = []
for rank in claims:
    children.append(os.fork())
    if not children[-1]:
        code = 1
        try:
            train(int(rank))
            code = 0
        finally:
            os._exit(code)
os.close(go)
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children], flush=True)
"""


def processes(run: Path, claims: str, steps: int, *overwrite: str) -> "subprocess.Popen[str]":
    """A process for each rank that is claimed; with a further word, they are to replace the run."""
    command = [*warm(), "-c", RANKS, str(run), str(WORLD), claims, str(steps), *overwrite]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.mark.parametrize("round_", range(often(1, 10)))
def test_eight_ranks_write_into_one_run(tmp_path: Path, round_: int, figures: Callable[..., None]) -> None:
    """Ranks that attach in one moment, in any order, each find their own rows in the log, whole and once."""
    run = tmp_path / "run"
    order = random.Random(round_).sample(range(WORLD), WORLD)
    with processes(run, ",".join(map(str, order)), 5) as process:
        said = process.communicate()[0]
    assert said.splitlines()[-1] == str([0] * WORLD)
    rows = tracer.scan(run).filter(pl.col("param") == "weight").sort("rank", "step").collect()
    wanted = [(rank, step, float(rank + 1)) for rank in range(WORLD) for step in range(5)]
    found = rows.select("rank", "step", "grad_max").rows()
    figures(ranks=WORLD, rows_lost_or_of_another_rank=len(set(found) ^ set(wanted)))
    assert found == wanted
    assert [summary["rank"] for summary in ranks.closed_summaries(run)] == list(range(WORLD))
    assert ranks.state(run) == "closed"
    assert {path.name[:6] for path in (run / "extremes").iterdir()} == {f"r{rank:05d}" for rank in range(WORLD)}
    assert not list((run / "staging").iterdir())


@pytest.mark.smoke
def test_a_rank_is_claimed_once_by_those_who_looked_before(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two who both saw that a rank had not begun, the second to claim it is told that it has."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    disk.scandir = lambda folder: contextlib.nullcontext(iter([]))
    run_folder.prepare_folders(tmp_path / "run")
    ranks.claim_rank(tmp_path / "run", 3)
    with pytest.raises(tracer.LogError, match="already holds a run"):
        tracer.attach(nn.Linear(2, 1), tmp_path / "run")
    assert not list((tmp_path / "run" / "staging").iterdir())


@pytest.mark.parametrize("round_", range(often(1, 10)))
def test_of_those_who_claim_a_rank_one_has_it(tmp_path: Path, round_: int, figures: Callable[..., None]) -> None:
    """Of processes that claim the same rank in one moment, one writes; the others are told what to do instead."""
    run = tmp_path / "run"
    claims = random.Random(round_).sample([0, 3] * 4, 8)
    with processes(run, ",".join(map(str, claims)), 5) as process:
        said = process.communicate()[0].splitlines()
    refused = sorted(line for line in said if "refused" in line)
    figures(claims_of_taken_ranks=6, claims_wrongly_granted=6 - len(refused))
    words = run_folder.HOLDS_A_RUN.format(path=run)
    assert refused == [f"{rank} refused: {words}" for rank in (0, 0, 0, 3, 3, 3)]
    rows = tracer.scan(run).filter(pl.col("param") == "weight").sort("rank", "step").collect()
    assert rows.select("rank", "step").rows() == [(rank, step) for rank in (0, 3) for step in range(5)]
    assert not list((run / "staging").iterdir())


def test_ranks_replace_a_run_of_more_ranks(tmp_path: Path) -> None:
    """Rank 0 replaces the whole run, though others come first; these wait, and no row of theirs is lost."""
    run = tmp_path / "run"
    for claims, *overwrite in (("0,1,2",), ("1,0", "overwrite")):
        with processes(run, claims, 5, *overwrite) as process:
            said = process.communicate()[0]
        assert "refused" not in said
        ranks_found = sorted(map(int, claims.split(",")))
        rows = tracer.scan(run).filter(pl.col("param") == "weight").sort("rank", "step").collect()
        assert rows.select("rank", "step").rows() == [(rank, step) for rank in ranks_found for step in range(5)]
        assert ranks.ranks_in(run) == ranks_found


def test_of_those_who_replace_a_run_one_does(tmp_path: Path) -> None:
    """Of processes that replace the same run in one moment, one writes; the others leave its run alone."""
    run = tmp_path / "run"
    with processes(run, "0", 3) as process:
        process.communicate()
    with processes(run, "0,0,0", 100_000, "overwrite") as process:
        assert process.stdout is not None
        said = "".join(process.stdout.readline() for _ in range(3))
        (pid,) = map(int, re.findall(r"0 (\d+) writes", said))
        try:
            assert len(re.findall(rf"0 refused: {run} is being written by '\S+ {pid}'", said)) == 2
            wait_until(lambda: (tracer.scan(run).select(pl.col("step").max()).collect().item() or 0) > 3)
        finally:
            os.kill(pid, signal.SIGKILL)
    first = tracer.scan(run).group_by("step", "param").len().collect()["len"]
    assert first.unique().to_list() == [1]
    # It was alive a moment ago, and is not.
    with processes(run, "0", 3, "overwrite") as process:
        assert "refused" not in process.communicate()[0]
    assert tracer.scan(run).select(pl.col("step").max()).collect().item() == 2


def test_a_rank_that_dies_is_named_while_the_others_go_on(tmp_path: Path, figures: Callable[..., None]) -> None:
    """After a SIGKILL the run goes on; info and the viewer name the rank, and what it had published is read."""
    run = tmp_path / "run"
    with processes(run, "0,1,2", 100_000) as process:
        assert process.stdout is not None
        pids = dict(re.findall(r"(\d) (\d+) writes", "".join(process.stdout.readline() for _ in range(3))))
        try:
            wait_until(lambda: tracer.scan(run).select(pl.col("rank").n_unique()).collect().item() == 3)
            os.kill(int(pids["1"]), signal.SIGKILL)
            # A minute later, as far as its heartbeat says, while the others' are renewed.
            wait_until(lambda: not Path(f"/proc/{pids['1']}/task").exists() or zombie(pids["1"]))
            age_heartbeat(run, 60, rank=1)
            assert ranks.state(run) == "running"
            assert ranks.stopped(ranks.rank_states(run)) == [1]
            live = Live(run)
            snapshot = live.refresh()
            live.close()
            assert snapshot is not None
            assert notices([snapshot]) == ["rank 1 stopped without closing, others go on"]
            command = [sys.executable, "-m", "tracer", "info", str(run)]
            said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
            assert re.search(r"ranks +3; stopped without closing: 1 *\n", said)
        finally:
            for pid in pids.values():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            process.stdout.read()
    for rank in range(3):
        rows = tracer.scan(run).filter((pl.col("rank") == rank) & (pl.col("param") == "weight")).collect()
        assert rows["step"].to_list() == list(range(rows.height))
        assert rows.height
    figures(ranks_killed=1)


def zombie(pid: str) -> bool:
    """Whether a process has ended, and its parent does not know yet."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.smoke
def test_a_rank_that_stops_is_noticed_without_a_new_row(tmp_path: Path) -> None:
    """A viewer that looks again says which rank stopped, although nothing was published meanwhile."""
    run = new_run(tmp_path / "run")
    for rank in range(3):
        ranks.beat(run, rank)
        publish_next(run, "extremes", extremes([0], rank=rank), rank)
    live = Live(run)
    first = live.refresh()
    assert first is not None
    assert notices([first]) == []
    assert live.refresh() is None
    age_heartbeat(run, 60, rank=2)
    second = live.refresh()
    live.close()
    assert second is not None
    assert notices([second]) == ["rank 2 stopped without closing, others go on"]
    merge(run, "extremes", 2)
    assert tracer.scan(run).collect()["rank"].to_list() == [0, 1, 2]
