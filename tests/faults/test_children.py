"""Children never write to the parent's log, however they are made and however they end."""

import subprocess
import sys
from collections.abc import Callable

import polars as pl
import pytest

import tracer
from tests.torture import FACTOR, often
from tracer.log import ranks, schema
from tracer.log.parts import damage, list_parts
from tracer.log.store import Local as Path

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 6

# The top level attaches, as a script without a main function does; a child that is not forked runs it again.
SCRIPT = """
import multiprocessing
import os
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tracer

path, method = sys.argv[1:]
model = nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = TensorDataset(torch.arange(24.0).reshape(12, 2))
trace = tracer.attach(model, path or None)


def train(x, **metrics):
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()
    trace.log(loss=1.0, **metrics)


def child(number):
    # What a child trains is its own affair: its copy of the model is not traced.
    for _ in range(3):
        train(torch.full((1, 2), -1000.0), child=1.0)
    trace.step()
    trace.close()
    return number


def end(code):
    child(0)
    code()


def forked(code):
    pid = os.fork()
    if not pid:
        child(0)
        code(0)
    assert os.waitpid(pid, 0)[1] == 0


if __name__ == "__main__":
    for (x,) in DataLoader(data, batch_size=2, num_workers=1, multiprocessing_context=method):
        train(x)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.map(child, range(3)) == [0, 1, 2]
    if method == "fork":
        process = multiprocessing.get_context(method).Process(target=child, args=(0,))
        process.start()
        process.join()
        assert process.exitcode == 0
        forked(sys.exit)
        forked(os._exit)
    trace.close()
"""


def runs(folder: Path, *arguments: str, script: str = SCRIPT) -> str:
    """Run a script that must end well; what it wrote to stderr."""
    (folder / "train.py").write_text(script)
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "train.py", *arguments]
    done = subprocess.run(
        command, cwd=folder, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("round_", range(often(1, 5)))
@pytest.mark.parametrize(("method", "path"), [("fork", "runs/a"), ("spawn", ""), ("forkserver", "runs/a")])
def test_children_leave_the_log_alone(
    tmp_path: Path, method: str, path: str, round_: int, figures: Callable[..., None]
) -> None:
    """There is one run; it holds the parent's steps and nothing else, is whole, and is closed by the parent alone."""
    said = runs(tmp_path, path, method)
    (run,) = (tmp_path / "runs").iterdir()
    rows = tracer.scan(run).filter(pl.col("param") == "weight").collect()
    metrics = tracer.scan(run, "metrics").filter(pl.col("name") != "lr").collect()
    figures(children={"fork": 5}.get(method, 2), rows_of_children=rows.height + metrics.height - 2 * STEPS)
    assert rows["step"].to_list() == list(range(STEPS))
    assert metrics["name"].cast(pl.String).to_list() == ["loss"] * STEPS
    assert [damage(part) for table in schema.ALWAYS for part in list_parts(run, table)] == [None] * 3
    assert [summary["last_step"] for summary in ranks.closed_summaries(run)] == [STEPS - 1]
    assert tracer.scan(run, "events").collect()["kind"].to_list() == ["attached", "order", "closed"]
    assert not list((run / "staging").iterdir())
    # None of them waits in vain for a daemon that it does not have.
    assert "may be lost" not in said
    # Once a process: the server that children are forked from may have run the script for them.
    assert said.count("nothing is traced there") in ((0,) if method == "fork" else (1, 2)), said


SPAWNED = """
import os
import sys

import torch
from torch import nn

import tracer


def train(rank, path, how):
    if how == "ranks":
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    elif how == "paths":
        path = f"{path}-{rank}"
    else:
        os.environ |= {"MASTER_ADDR": "127.0.0.1"}
        store = torch.distributed.FileStore(f"{path}-store", 2)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = nn.Linear(2, 1)
    if how == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, path) as trace:
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            trace.log(rank=rank)
    if how == "ddp":
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    torch.multiprocessing.spawn(train, args=sys.argv[1:], nprocs=2)
"""


@pytest.mark.parametrize("how", ["ddp", *(["ranks", "paths"] if FACTOR else [])])
def test_a_training_in_a_spawned_process_is_traced(tmp_path: Path, how: str) -> None:
    """Where training itself is what a child was made for, it is traced: as a rank of one run, or in runs of its own."""
    runs(tmp_path, "run", how, script=SPAWNED)
    paths = [tmp_path / "run-0", tmp_path / "run-1"] if how == "paths" else [tmp_path / "run"]
    rows = tracer.scan(paths, "metrics").filter(pl.col("name") != "lr").collect()
    assert sorted(rows.select("step", "value").rows()) == [(step, rank) for step in range(3) for rank in (0.0, 1.0)]
    assert [ranks.state(path) for path in paths] == ["closed"] * len(paths)
