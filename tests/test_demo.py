import subprocess
import sys
from pathlib import Path

import polars as pl

import tracer
from tracer.log.parts import list_parts, problem
from tracer.log.run import state


def test_the_demo_trains_draws_and_reports(tmp_path: Path) -> None:
    """One epoch leaves a closed run without a damaged byte, a figure, and a report whose query gives what it says."""
    done = subprocess.run(
        [sys.executable, "-m", "tracer", "demo", "--epochs", "1", "--path", "runs/it"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    run = tmp_path / "runs" / "it"
    assert state(run) == "closed"
    assert [problem(part) for table in ("extremes", "metrics") for part in list_parts(run, table)] == [None, None]
    assert (tmp_path / "runs" / "it.png").read_bytes().startswith(b"\x89PNG")
    frame = tracer.scan(run).collect()
    assert frame["param"].n_unique() == 62
    last = frame.filter(pl.col("step") == pl.col("step").max())
    assert last["grad_min"].null_count() == 0
    largest = max(max(abs(low), abs(high)) for low, high in frame.select("grad_min", "grad_max").iter_rows())
    assert f"largest gradient      {largest:.4g}" in done.stdout
    query = done.stdout.partition("found with polars:")[2].strip()
    found = subprocess.run(
        [sys.executable, "-c", f"import polars as pl, tracer\nprint({query}['gradient'].item())"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(found.stdout) == largest


def test_data_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    """Without a network, a data set that needs one gives a sentence that names the one that does not."""
    done = subprocess.run(
        [sys.executable, "-m", "tracer", "demo", "--data", "cifar10"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "", "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"},
    )
    assert done.returncode == 1
    assert "cifar10 cannot be had" in done.stderr
    assert "--data digits" in done.stderr
    assert "Traceback" not in done.stderr
