"""Pictures in a real notebook that follow a training."""

import base64
import io
import itertools
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from typing import Any

import nbformat
import pytest
from PIL import Image

import viewer
from tests.logs import close_run, metrics, new_run, publish_next
from tracer.log.store import Local as Path

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]

# Executes a notebook as a frontend does, and writes every display that it is told of into a file each, as it comes.
FRONTEND = """
import base64, json, sys
from tracer.log.store import Local as Path
import nbformat
from nbclient import NotebookClient

class Frontend(NotebookClient):
    count = 0

    def process_message(self, message, cell, index):
        if message["msg_type"] in ("display_data", "update_display_data"):
            told = Path(f"told-{self.count:03d}.json")
            told.with_suffix(".new").write_text(json.dumps([message["msg_type"], message["content"]]))
            told.with_suffix(".new").rename(told)
            self.count += 1
        return super().process_message(message, cell, index)

notebook = nbformat.read("notebook.ipynb", as_version=4)
Frontend(notebook, kernel_name="here", timeout=120).execute()
nbformat.write(notebook, "notebook.ipynb")
"""

TRAINING = """
import threading
import time
from tracer.log.store import Local as Path

import torch
import tracer
import viewer

def training():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.01)

def step(model, optimizer, number):
    inputs = torch.sin(torch.arange(64.0) * (number + 1)).reshape(16, 4)
    loss = model(inputs).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss

def viewers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("viewer-")]

# What is told between two cells may be told to nobody: so a cell waits for the last picture.
def join():
    for thread in viewers():
        thread.join()
"""


@dataclass
class Executed:
    """A notebook that was executed: its cells, and what the frontend was told to display, in order."""

    cells: list[Any]
    told: list[tuple[str, dict[str, Any]]]
    complaints: str

    @property
    def pictures(self) -> list[bytes]:
        """The pictures that came, each after the one that it replaced."""
        return [base64.b64decode(data["data"]["image/png"]) for _, data in self.told if "image/png" in data["data"]]

    @property
    def last_pictures(self) -> list[bytes]:
        """The picture that is left below each cell that has one."""
        outputs = [output["data"] for cell in self.cells for output in cell.outputs if "data" in output]
        return [base64.b64decode(data["image/png"]) for data in outputs]


BLUE = (0, 114, 178)


def colours(picture: bytes) -> set[Any]:
    """The colours that occur in a picture."""
    with Image.open(io.BytesIO(picture)) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}


def execute(folder: Path, *cells: str) -> Executed:
    """Execute cells in a folder, with a kernel of this interpreter and of this working tree."""
    kernel = folder / "jupyter" / "kernels" / "here" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "here", "language": "python"}))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in cells])
    nbformat.write(notebook, folder / "notebook.ipynb")
    done = subprocess.run(
        [sys.executable, "-c", FRONTEND],
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            "JUPYTER_PATH": str(folder / "jupyter"),
            "JUPYTER_CONFIG_DIR": str(folder / "jupyter"),
            "JUPYTER_RUNTIME_DIR": str(folder / "jupyter"),
            "IPYTHONDIR": str(folder / "ipython"),
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [tuple(json.loads(file.read_text())) for file in sorted(folder.glob("told-*.json"))]
    return Executed(nbformat.read(folder / "notebook.ipynb", as_version=4).cells, told, done.stderr)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A closed run."""
    run = new_run(tmp_path / "run")
    publish_next(run, "metrics", metrics(range(5), range(5)))
    close_run(run, 4)
    return run


def test_a_notebook_follows_its_own_training_in_one_picture(tmp_path: Path) -> None:
    """The cell's one output is replaced as rows arrive, until ``stop``; the training computes what it would alone."""
    done = execute(
        tmp_path,
        TRAINING,
        'showing = viewer.show("run", smoothing=0)\nshowing',
        """
        model, optimizer = training()
        steps = 0
        with tracer.attach(model, "run") as trace:
            while not Path("told-003.json").exists():
                trace.log(loss=step(model, optimizer, steps))
                steps += 1
                time.sleep(0.01)
            assert viewers()
            showing.stop()
            assert not viewers()
        """,
        """
        alone, optimizer = training()
        for number in range(steps):
            step(alone, optimizer, number)
        assert all(map(torch.equal, model.parameters(), alone.parameters()))
        """,
    )
    (output,) = done.cells[1].outputs
    first, *others = done.told
    assert [kind for kind, _ in done.told] == ["display_data", *["update_display_data"] * len(others)]
    assert {data["transient"]["display_id"] for _, data in done.told} == {first[1]["transient"]["display_id"]}
    assert len(done.pictures) == len(others) >= 3
    assert all(before != after for before, after in itertools.pairwise(done.pictures))
    assert base64.b64decode(output.data["image/png"]) == done.pictures[-1]
    assert BLUE in colours(done.pictures[-1])


def test_a_picture_ends_with_its_run_and_the_run_can_be_shown_again(tmp_path: Path) -> None:
    """The last picture of a run that closes is that of all its rows; so is the first of another look at it."""
    done = execute(
        tmp_path,
        TRAINING,
        """
        model, optimizer = training()
        with tracer.attach(model, "run") as trace:
            viewer.show("run", "param", param="0.weight")
            for number in range(20):
                step(model, optimizer, number)
        join()
        """,
        'viewer.show(["run"], param="0.weight"); join()',
    )
    truth = viewer.figure(tmp_path / "run", param="0.weight")._repr_png_()  # type: ignore[attr-defined]
    assert done.last_pictures == [truth, truth]


def test_a_run_that_is_yet_to_come_is_waited_for(tmp_path: Path, run: Path) -> None:
    """Where one of several runs has ended, and another has not begun, the picture waits for it."""
    done = execute(
        tmp_path,
        TRAINING,
        """
        viewer.show(["run", "later"])
        while not Path("told-001.json").exists(): time.sleep(0.05)
        model, optimizer = training()
        with tracer.attach(model, "later") as trace:
            trace.log(loss=step(model, optimizer, 0))
        join()
        """,
    )
    truth = viewer.figure([run, tmp_path / "later"])._repr_png_()  # type: ignore[attr-defined]
    assert done.pictures[-1] == truth


@pytest.mark.smoke
def test_what_ends_a_picture_is_one_line(tmp_path: Path) -> None:
    """A run that cannot be read puts its sentence in the place of the picture, and no traceback anywhere."""
    info = json.loads((new_run(tmp_path / "newer") / "run.json").read_text())
    (tmp_path / "newer" / "run.json").write_text(json.dumps(info | {"format": 99}))
    done = execute(tmp_path, TRAINING, 'viewer.show("newer"); join()')
    (output,) = done.cells[1].outputs
    assert output.data["text/plain"].startswith(f"viewer: {tmp_path / 'newer'} has log format 99")
    assert "\n" not in output.data["text/plain"]
    assert "Traceback" not in done.complaints


def test_a_kernel_ends_while_it_shows(tmp_path: Path) -> None:
    """A kernel that is shut down with a picture that still follows ends without a word of it."""
    done = execute(
        tmp_path,
        TRAINING,
        'viewer.show("run")',
        """
        model, optimizer = training()
        trace = tracer.attach(model, "run")
        while not Path("told-001.json").exists():
            step(model, optimizer, 0)
            time.sleep(0.01)
        """,
    )
    assert done.pictures
    assert "Traceback" not in done.complaints
    assert "viewer" not in done.complaints
