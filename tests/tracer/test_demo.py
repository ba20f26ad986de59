import struct
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

import tracer
from tracer.demo import load
from tracer.log.parts import damage, list_parts
from tracer.log.ranks import state
from tracer.log.store import Local as Path

pytestmark = pytest.mark.slow


def write_images(data: Path, count: int) -> None:
    """Write so many images of Fashion-MNIST, in the form in which torchvision downloads them: one black, one white."""
    folder = data / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    pixels[0], pixels[1] = 0, 255
    labels = bytes(number % 10 for number in range(count))
    for kind in ("train", "t10k"):
        (folder / f"{kind}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, *pixels.shape) + pixels.tobytes())
        (folder / f"{kind}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, count) + labels)


def test_the_demo_trains_draws_and_reports(tmp_path: Path) -> None:
    """One epoch leaves a closed run without a damaged byte, a figure, and a report whose query gives what it says."""
    write_images(tmp_path / "runs" / "data", 160)
    done = subprocess.run(
        [sys.executable, "-m", "tracer", "demo", "--data", "fashion-mnist", "--epochs", "1", "--path", "runs/it"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    run = tmp_path / "runs" / "it"
    assert state(run) == "closed"
    assert [damage(part) for table in ("extremes", "metrics") for part in list_parts(run, table)] == [None, None]
    assert (tmp_path / "runs" / "it.png").read_bytes().startswith(b"\x89PNG")
    frame = tracer.scan(run).collect()
    assert frame["step"].unique().sort().to_list() == [0, 1, 2, 3]
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


@pytest.mark.smoke
def test_fashion_mnist_is_read_by_torchvision(tmp_path: Path) -> None:
    """Files in the form in which torchvision downloads them become images in [-1, 1], with their classes."""
    write_images(tmp_path, 7)
    loaded = load("fashion-mnist", tmp_path)
    assert loaded.images.shape == (7, 3, 32, 32)
    assert (loaded.images[0] == -1).all()
    assert (loaded.images[1] == 1).all()
    assert loaded.labels.tolist() == list(range(7))


@pytest.mark.smoke
def test_digits_are_there_without_a_network(tmp_path: Path) -> None:
    """What the demo trains on unless told otherwise comes with scikit-learn: images in [-1, 1], with their classes."""
    loaded = load("digits", tmp_path)
    assert loaded.images.shape == (1797, 3, 32, 32)
    assert (loaded.images.min().item(), loaded.images.max().item()) == (-1, 1)
    assert loaded.labels.unique().tolist() == list(range(10))
    assert list(tmp_path.iterdir()) == []


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
