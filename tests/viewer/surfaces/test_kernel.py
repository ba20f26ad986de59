"""Pictures in a real notebook that follow a training."""

import base64
import html
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from typing import Any

import nbformat
import pytest
from PIL import Image

import viewer
from tests.logs import close_run, extremes, metrics, new_run, publish_next
from tracer.log.store import Local as Path

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]

# Executes a notebook as a frontend does, and writes every message about a display into a file each, as it comes: the
# displays are numbered in the order in which they appear, and so are the messages of each.
FRONTEND = """
import collections, json
from tracer.log.store import Local as Path
import nbformat
from nbclient import NotebookClient

class Frontend(NotebookClient):
    displays, counts = {}, collections.Counter()

    def process_message(self, message, cell, index):
        if message["msg_type"] in ("display_data", "update_display_data"):
            content = message["content"]
            display = self.displays.setdefault(content["transient"]["display_id"], len(self.displays))
            told = Path(f"told-{display}-{self.counts[display]:03d}.json")
            told.with_suffix(".new").write_text(json.dumps([message["msg_type"], content]))
            told.with_suffix(".new").rename(told)
            self.counts[display] += 1
        return super().process_message(message, cell, index)

notebook = nbformat.read("notebook.ipynb", as_version=4)
Frontend(notebook, kernel_name="here", timeout=120).execute()
nbformat.write(notebook, "notebook.ipynb")
"""

TRAINING = """
import os
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

# The cells after it, each with the displays that it makes. A kernel takes seconds to start: all share one.
CELLS = {
    "show": """
        showing = viewer.show("run", smoothing=0)  # display 0
        showing
        """,
    "train": """
        model, optimizer = training()
        steps = 0
        with tracer.attach(model, "run") as trace:
            while not Path("told-0-003.json").exists():
                trace.log(loss=step(model, optimizer, steps))
                steps += 1
                time.sleep(0.01)
            assert viewers()
            showing.stop()
            assert not viewers()
        """,
    "train alone": """
        alone, optimizer = training()
        for number in range(steps):
            step(alone, optimizer, number)
        assert all(map(torch.equal, model.parameters(), alone.parameters()))
        """,
    "a run that closes": """
        model, optimizer = training()
        with tracer.attach(model, "closes") as trace:
            viewer.show("closes", "param", param="0.weight")  # display 1
            for number in range(20):
                step(model, optimizer, number)
        """,
    "the same again": """
        assert not viewers()
        viewer.show(["closes"], param="0.weight")  # display 2
        join()
        """,
    "a run to come": """
        viewer.show(["closed", "later"])  # display 3
        while not Path("told-3-001.json").exists(): time.sleep(0.05)
        model, optimizer = training()
        with tracer.attach(model, "later") as trace:
            trace.log(loss=step(model, optimizer, 0))
        join()
        """,
    "a newer format": """
        viewer.show("newer")  # display 4
        join()
        """,
    "another folder": """
        model, optimizer = training()
        os.mkdir("elsewhere")
        trace = tracer.attach(model, "moves")
        viewer.show("moves")  # display 5
        rows = tracer.scan("closes")
        os.chdir("elsewhere")
        for number in range(3):
            trace.log(loss=step(model, optimizer, number))
        trace.close()
        assert set(rows.collect()["step"]) == set(range(20))
        os.chdir("..")
        """,
    "a path that holds a run": """
        tracer.attach(model, "closes")
        """,
    "attached again": """
        tracer.attach(model, "again")
        tracer.attach(model, "again", overwrite=True)
        tracer.close()
        """,
    "a wrong parameter": """
        viewer.show("closes", param="0.wieght")
        """,
    "findings": """
        viewer.check("ill")
        """,
    "the end": """
        viewer.show("ends")  # display 6
        model, optimizer = training()
        trace = tracer.attach(model, "ends")
        while not Path("told-6-001.json").exists():
            step(model, optimizer, 0)
            time.sleep(0.01)
        """,
}

RAISING = ("a path that holds a run", "a wrong parameter")


@dataclass
class Executed:
    """A notebook that was executed: its folder, its cells, and what it complained of."""

    folder: Path
    cells: dict[str, Any]
    complaints: str

    def told(self, display: int) -> list[tuple[str, dict[str, Any]]]:
        """What the frontend was told of a display, in order: the kind of the message, and its content."""
        return [tuple(json.loads(file.read_text())) for file in sorted(self.folder.glob(f"told-{display}-*.json"))]

    def pictures(self, display: int) -> list[bytes]:
        """The pictures of a display, each after the one that it replaced."""
        contents = [content["data"] for _, content in self.told(display)]
        return [base64.b64decode(data["image/png"]) for data in contents if "image/png" in data]

    def printed(self, cell: str) -> dict[str, str]:
        """What a cell printed, by stream."""
        printed: dict[str, str] = {}
        for output in self.cells[cell].outputs:
            if output.output_type == "stream":
                printed[output.name] = printed.get(output.name, "") + output.text
        return printed

    def failure(self, cell: str) -> str:
        """The traceback below a cell, without its colours."""
        (output,) = [each for each in self.cells[cell].outputs if each.output_type == "error"]
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))

    def output(self, cell: str) -> Any:
        """What is left below a cell with one display, beside what it printed."""
        (output,) = [each for each in self.cells[cell].outputs if "data" in each]
        return output.data


BLUE = (0, 114, 178)


def colours(picture: bytes) -> set[Any]:
    """The colours that occur in a picture."""
    with Image.open(io.BytesIO(picture)) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}


def heading(picture: bytes) -> bytes:
    """The pixels of a picture's heading: the run's name, state, step and speed."""
    with Image.open(io.BytesIO(picture)) as image:
        return image.crop((0, 0, image.width, 22)).convert("RGB").tobytes()


def execute(folder: Path) -> Executed:
    """Execute the cells in a folder, with a kernel of this interpreter and of this working tree."""
    kernel = folder / "jupyter" / "kernels" / "here" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "here", "language": "python"}))
    cells = [nbformat.v4.new_code_cell(textwrap.dedent(cell)) for cell in (TRAINING, *CELLS.values())]
    for name, cell in zip(CELLS, cells[1:], strict=True):
        cell.metadata["tags"] = ["raises-exception"] if name in RAISING else []
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "notebook.ipynb")
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
        timeout=480,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    _, *cells = nbformat.read(folder / "notebook.ipynb", as_version=4).cells
    return Executed(folder, dict(zip(CELLS, cells, strict=True)), done.stderr)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Executed:
    """The notebook, executed beside a run that has closed and one of a newer format."""
    folder = Path(tmp_path_factory.mktemp("notebook"))
    closed = new_run(folder / "closed")
    publish_next(closed, "metrics", metrics(range(5), range(5)))
    close_run(closed, 4)
    ill = new_run(folder / "ill")
    gradients = [-2.0, math.nan, math.nan]
    publish_next(ill, "extremes", extremes(range(3), values={"grad_min": gradients, "grad_max": gradients}))
    close_run(ill, 2)
    newer = new_run(folder / "newer") / "run.json"
    newer.write_text(json.dumps(json.loads(newer.read_text()) | {"format": 99}))
    return execute(folder)


def test_a_notebook_follows_its_own_training_in_one_picture(done: Executed) -> None:
    """The cell's one output is replaced as rows arrive, until ``stop``; the training computes what it would alone."""
    first, *others = done.told(0)
    assert [first[0], *(kind for kind, _ in others)] == ["display_data", *["update_display_data"] * len(others)]
    assert len(pictures := done.pictures(0)) == len(others) >= 3
    assert all(before != after for before, after in itertools.pairwise(pictures))
    assert base64.b64decode(done.output("show")["image/png"]) == pictures[-1]
    assert BLUE in colours(pictures[-1])


def test_a_picture_ends_with_its_run_and_the_run_can_be_shown_again(done: Executed) -> None:
    """The last picture of a run that closes is that of all its rows; so is the first of another look at it."""
    truth = viewer.figure(done.folder / "closes", param="0.weight")._repr_png_()  # type: ignore[attr-defined]
    for cell in ("a run that closes", "the same again"):
        assert base64.b64decode(done.output(cell)["image/png"]) == truth


def test_a_run_that_is_yet_to_come_is_waited_for(done: Executed) -> None:
    """Where one of several runs has ended, and another has not begun, the picture waits for it."""
    truth = viewer.figure([done.folder / "closed", done.folder / "later"])._repr_png_()  # type: ignore[attr-defined]
    assert done.pictures(3)[-1] == truth


@pytest.mark.smoke
def test_what_ends_a_picture_is_one_line(done: Executed) -> None:
    """A run that cannot be read puts its sentence in the place of the picture, and no traceback anywhere."""
    words = done.output("a newer format")["text/plain"]
    assert words.startswith(f"viewer: {done.folder / 'newer'} has log format 99")
    assert "\n" not in words
    assert "Traceback" not in done.complaints


def test_a_notebook_that_goes_to_another_folder_goes_on_where_it_began(done: Executed) -> None:
    """The run, its picture and its rows stay where they were opened, to the end."""
    truth = viewer.figure(done.folder / "moves")._repr_png_()  # type: ignore[attr-defined]
    shown = base64.b64decode(done.output("another folder")["image/png"])
    assert heading(shown) == heading(truth)
    assert not list((done.folder / "elsewhere").iterdir())


@pytest.mark.smoke
def test_a_mistake_is_one_sentence_below_the_cell(done: Executed) -> None:
    """What is wrong is said at once, without a chain of tracebacks, or the calls within the library."""
    held, wrong = (done.failure(cell) for cell in RAISING)
    path = done.folder / "closes"
    assert held.splitlines()[-1].startswith(f"LogError: {path} already holds a run: give another path, or attach with")
    near = "0.weight, 2.weight, 0.bias"
    assert wrong.splitlines()[-1] == f"LogError: closes has no row of a parameter '0.wieght': try {near}"
    for words in (held, wrong):
        assert words.count("Traceback") == words.count("File ") == words.count("Cell In") == 1, words


def test_the_greeting_is_no_error(done: Executed) -> None:
    """What ``attach`` says stands on standard output, which a notebook does not paint red."""
    printed = done.printed("attached again")
    traced = f"gradwatch traces 4 parameters: {done.folder / 'again'} - watch it with: viewer {done.folder / 'again'}"
    closed = f"gradwatch closed the trace into {done.folder / 'again'}: its model is attached again"
    assert printed == {"stdout": f"{traced}\n{closed}\n{traced}\n"}


def test_findings_are_a_table_with_their_advice(done: Executed) -> None:
    """The last value of a cell shows each finding of a run, its steps, and what people usually try."""
    (finding,) = [each for each in viewer.check(done.folder / "ill").runs[0].findings if each.severity == "error"]
    table = done.output("findings")["text/html"]
    assert f"<td>{finding.first_step}</td>" in re.sub(" style=[^>]*", "", table)
    for words in (finding.sentence, finding.advice, "ill: closed at step 2"):
        assert html.escape(words) in table
    assert "ill: closed at step 2\n  error at step 1: " in done.output("findings")["text/plain"]


def test_a_kernel_ends_while_it_shows(done: Executed) -> None:
    """A kernel that is shut down with a picture that still follows ends without a word of it."""
    assert done.pictures(6)
    assert "Traceback" not in done.complaints
    assert "viewer" not in done.complaints
