"""The viewer inside Python: figures for papers, and pictures in a real notebook that follow a training."""

import base64
import io
import itertools
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

import viewer
from tests.logs import close_run, extremes, metrics, new_run, publish_next
from tracer.log.run import LogError
from viewer.marks import DARK

ROOT = Path(__file__).parents[1]

# Executes a notebook as a frontend does, and writes every display that it is told of into a file each, as it comes.
FRONTEND = """
import base64, json, sys
from pathlib import Path
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
from pathlib import Path

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
    """A closed run with a loss, another metric and two parameters."""
    run = new_run(tmp_path / "run", params=["conv.weight", "fc.bias"])
    publish_next(run, "extremes", extremes(range(5), params=["conv.weight", "fc.bias"]))
    publish_next(run, "metrics", metrics(range(5), range(5)))
    publish_next(run, "metrics", metrics(range(5), [0.1] * 5, "lr"))
    close_run(run, 4)
    return run


def labels(figure: Figure) -> list[str]:
    """The names of the panels."""
    return [axes.get_ylabel() for axes in figure.axes]


def drawn(axes: Axes) -> dict[str, list[float]]:
    """Curves by the first word of their legend."""
    return {str(line.get_label()).split()[0]: list(map(float, line.get_ydata())) for line in axes.lines}  # type: ignore[arg-type]


def test_a_figure_of_a_run_belongs_to_who_asked_for_it(run: Path, tmp_path: Path) -> None:
    """It is drawn, can be saved in a paper's format, and pyplot knows nothing of it."""
    figure = viewer.figure(str(run))
    assert type(figure.canvas) is FigureCanvasAgg
    assert not pyplot.get_fignums()
    assert drawn(figure.axes[0])["loss"] == [0, 1, 2, 3, 4]
    figure.savefig(tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF-")


def test_a_figure_shows_what_is_asked_for(run: Path) -> None:
    """Every view has its panels; a parameter's name alone asks for its view; other fields of a look go with it."""
    assert labels(viewer.figure(run)) == labels(viewer.figure(run, "overview")) == ["loss", "accuracy", "extremes"]
    ticks = [tick.get_text() for tick in viewer.figure(run, view="layers").axes[0].get_yticklabels()]
    assert [name for name in ticks if name] == ["conv.weight", "fc.bias"]
    assert labels(viewer.figure(run, "param", param="fc.bias")) == ["value", "gradient"]
    assert labels(viewer.figure(run, param="fc.bias", rank=0)) == ["value", "gradient"]
    for metrics_asked in ("lr", ["lr"]):
        figure = viewer.figure(run, metrics=metrics_asked, dark=True, x="relative", scale="linear")
        assert drawn(figure.axes[2])["lr"] == [0.1] * 5
        assert figure.axes[-1].get_xlabel() == "time since the run began"
        assert figure.axes[-1].get_yscale() == "linear"
        assert to_hex(figure.get_facecolor()) == DARK.ground


def test_a_figure_shows_several_runs(run: Path, tmp_path: Path) -> None:
    """Several folders, or a folder of runs, are side by side."""
    other = new_run(tmp_path / "other")
    publish_next(other, "metrics", metrics(range(3), [7, 8, 9]))
    for figure in (viewer.figure([run, str(other)]), viewer.figure(tmp_path)):
        assert drawn(figure.axes[0]) == {"run": [0, 1, 2, 3, 4], "other": [7, 8, 9]}


def test_a_notebook_shows_a_figure_as_a_picture(run: Path, tmp_path: Path) -> None:
    """A figure that is the last value of a cell is seen, although pyplot does not know it."""
    picture = tmp_path / "picture.png"
    picture.write_bytes(viewer.figure(run)._repr_png_())  # type: ignore[attr-defined]
    with Image.open(picture) as image:
        assert image.size == (1000, 800)


@pytest.mark.parametrize(
    ("look", "error", "words"),
    [
        ({"colour": "red"}, TypeError, "no 'colour': there are view, params, param, statistic"),
        ({"view": "histogram"}, ValueError, "no view 'histogram': give overview, layers, param"),
        ({"x": "epoch"}, ValueError, "no x 'epoch': give step, wall, relative"),
        ({"scale": 2}, ValueError, "no scale 2: give auto, linear, log, symlog"),
        ({"view": "param"}, ValueError, "needs param"),
        ({"params": "("}, ValueError, "no regular expression"),
        ({"rank": "first"}, ValueError, "no rank 'first'"),
        ({"smoothing": 1.5}, ValueError, "smoothing 1.5"),
        ({"smoothing": "much"}, TypeError, "smoothing='much' is no float"),
        ({"dark": 1}, TypeError, "dark=1 is no bool"),
        ({"param": 1}, TypeError, "param=1 is no str"),
        ({"metrics": [1]}, TypeError, "metrics=.1. is no list of names"),
        ({"metrics": 1}, TypeError, "'int' object is not iterable"),
    ],
)
@pytest.mark.parametrize("ask", [viewer.figure, viewer.show])
def test_a_look_that_cannot_be_is_an_error_that_says_what_there_is(
    run: Path, ask: Any, look: dict[str, Any], error: type[Exception], words: str
) -> None:
    """A field that does not exist, of a wrong type or with a wrong value is named at once, in either function."""
    with pytest.raises(error, match=words):
        ask(run, **look)


def test_what_is_not_there_is_an_error_of_the_log(run: Path, tmp_path: Path) -> None:
    """A run, a parameter or parameters that do not exist are said to be missing, in the sentence of the command."""
    with pytest.raises(LogError, match="nowhere holds no run"):
        viewer.figure([run, tmp_path / "nowhere"])
    with pytest.raises(LogError, match=r"no row of a parameter 'conv.weigth': try conv\.weight"):
        viewer.figure(run, param="conv.weigth")
    with pytest.raises(LogError, match=r"no parameter's name matches 'layer': there are conv\.weight, fc\.bias"):
        viewer.figure(run, params="layer")
    with pytest.raises(ValueError, match="no run is named"):
        viewer.figure([])


def test_showing_outside_of_a_notebook_says_what_to_do_instead(run: Path) -> None:
    """In a script, ``show`` names the function and the command that can be used there."""
    with pytest.raises(RuntimeError, match=r"viewer\.figure, or the command `viewer`"):
        viewer.show(run)


def test_the_package_is_light_until_a_name_is_used() -> None:
    """Importing the viewer imports nothing heavy; its functions bring neither torch nor pyplot."""
    script = """
import sys, viewer
light = {"matplotlib", "polars", "pyarrow", "numpy"} & set(sys.modules)
viewer.show, viewer.figure
print(sorted(light | {"torch", "matplotlib.pyplot"} & set(sys.modules)), "matplotlib" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[] True"
    assert viewer.__all__ == ["figure", "show"]
    assert set(viewer.__all__) <= set(dir(viewer))
    with pytest.raises(AttributeError, match="no attribute 'watch'"):
        viewer.watch  # noqa: B018


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_that_is_yet_to_come_is_waited_for(tmp_path: Path, run: Path) -> None:
    """Where one of several runs has ended, and another has not begun, the picture waits for it."""
    done = execute(
        tmp_path,
        TRAINING,
        """
        viewer.show(["run", "later"])
        while not Path("told-001.json").exists(): pass
        model, optimizer = training()
        with tracer.attach(model, "later") as trace:
            trace.log(loss=step(model, optimizer, 0))
        join()
        """,
    )
    truth = viewer.figure([run, tmp_path / "later"])._repr_png_()  # type: ignore[attr-defined]
    assert done.pictures[-1] == truth


def test_what_ends_a_picture_is_one_line(tmp_path: Path) -> None:
    """A run that cannot be read puts its sentence in the place of the picture, and no traceback anywhere."""
    info = json.loads((new_run(tmp_path / "newer") / "run.json").read_text())
    (tmp_path / "newer" / "run.json").write_text(json.dumps(info | {"format": 99}))
    done = execute(tmp_path, TRAINING, 'viewer.show("newer"); join()')
    (output,) = done.cells[1].outputs
    assert output.data["text/plain"].startswith("viewer: newer has log format 99")
    assert "\n" not in output.data["text/plain"]
    assert "Traceback" not in done.complaints


@pytest.mark.slow
def test_a_kernel_ends_while_it_shows(tmp_path: Path) -> None:
    """A kernel that is shut down with a picture that still follows ends without a word of it."""
    done = execute(
        tmp_path,
        TRAINING,
        'viewer.show("run")',
        """
        model, optimizer = training()
        trace = tracer.attach(model, "run")
        while not Path("told-001.json").exists(): step(model, optimizer, 0)
        """,
    )
    assert done.pictures
    assert "Traceback" not in done.complaints
    assert "viewer" not in done.complaints
