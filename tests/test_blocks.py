"""The blocks of README and of the documentation that are no whole programs, run as they stand.

Where no test can run a block, a comment in front of it says why: ``<!-- not run: it needs a network -->``.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tracer
import viewer
from tests.commands import DISPLAYS
from tests.documents import BLOCKS, PATH, TEXTS, blocks, programs
from tests.halves import first_of
from tests.logs import extremes, publish_next
from tests.waiting import wait_until
from tracer.log.ranks import close_rank
from tracer.log.store import Local

OURS = ("tracer", "viewer", "torchrun")
# What a line may call where something went wrong. Here it does nothing.
OTHERS = ("notify-send", "scancel")
# The runs that command lines name, but for those that they make.
RUNS = ("a", "b", "demo", "nan", "resnet18", "start")
# Where a command serves a page until it is ended.
SERVED = "http://127.0.0.1:"


def pages_with(language: str) -> list[str]:
    """The pages with a block of a language that is to be run, and is no whole program."""
    return sorted({block.page for block in blocks(language) if not block.name and not block.unrun})


class Net(nn.Module):
    """A network whose parameters have names that the pages use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Linear(4, 4)
        self.layer4 = nn.Sequential(nn.ModuleDict({"conv1": nn.Linear(4, 4)}))
        self.experts = nn.ParameterDict({"w": torch.randn(2, 4, 4)})
        self.fc = nn.Linear(4, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Through all of them."""
        hidden = self.layer4.get_submodule("0.conv1")(self.conv1(inputs))
        outputs: torch.Tensor = self.fc(hidden @ self.experts["w"].sum(0))
        return outputs


def train(run: Path) -> None:
    """Train such a network, recording what the pages ask for."""
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    recorded: dict[str, Any] = {"stats": ("absmax", "smallest", "histogram"), "activations": True}
    with tracer.attach(model, run, config={"lr": 0.01}, **recorded) as trace:
        for _ in range(20):
            outputs, labels = model(torch.randn(8, 4)), torch.randint(2, (8,))
            loss = nn.functional.cross_entropy(outputs, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            trace.log(loss=loss, accuracy=(outputs.argmax(1) == labels).float().mean())


@pytest.mark.parametrize("page", first_of(pages_with("python")))
def test_the_fragments_of_a_page_run(page: str, tmp_path: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, where the reader has a model and its data; a run that they only read is there."""
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "runs" / "demo")
    model = Net()
    names: dict[str, object] = {
        "criterion": nn.CrossEntropyLoss(),
        "loader": DataLoader(TensorDataset(torch.randn(20, 4), torch.randint(2, (20,))), batch_size=4),
        "loss": torch.tensor(1.0),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "os": os,
        "pl": pl,
        "torch": torch,
        "tracer": tracer,
        "viewer": viewer,
    }
    for block in blocks("python", page):
        if not block.name and not block.unrun:
            exec(compile(block.code, page, "exec"), names)
    tracer.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs that command lines name, and programs of others that do nothing."""
    folder = Local(tmp_path_factory.mktemp("trained"))
    for name in RUNS:
        train(folder / "runs" / name)
    ranks = folder / "runs" / "resnet18"
    publish_next(ranks, "extremes", extremes(range(20), ["fc.weight"], rank=3), rank=3)
    close_rank(ranks, 3, {"last_step": 19})
    (folder / "bin").mkdir()
    for name in OTHERS:
        program = folder / "bin" / name
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Local) -> Local:
    """A copy of it."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return tmp_path


def told(line: str, folder: Path) -> tuple[int, str]:
    """A line's exit code in a shell and what it printed; one that serves a page is ended once it has said where."""
    environment = {name: value for name, value in os.environ.items() if name not in DISPLAYS}
    environment["PATH"] = os.pathsep.join([str(folder / "bin"), PATH])
    output = folder / "output"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            ["sh", "-c", line],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: process.poll() is not None or SERVED in output.read_text(), 120)
        code = process.poll() or 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return code, output.read_text()


@pytest.mark.parametrize("page", first_of(pages_with("console")))
def test_the_command_lines_of_a_page_run(page: str, folder: Local) -> None:
    """Each does what it says in a shell: it ends without an error, or serves a page; a check may find something."""
    for program in programs(page):
        (folder / program.name).write_text(program.code)
    for block in blocks("console", page):
        for line in re.findall(r"^\$ (.*)", block.code, flags=re.MULTILINE):
            if block.unrun:
                continue
            assert line.split()[0] in OURS, f"{page}: say why it is not run: {line}"
            code, said = told(line, folder)
            found = (0, 1, 2) if re.match("viewer (check|diff)", line) else (0,)
            assert code in found, f"{line}: {code}: {said}"
            assert "Traceback" not in said, f"{line}: {said}"


def test_every_block_is_known_and_every_mark_stands_in_front_of_one() -> None:
    """A block in another language would never be run, and a comment that belongs to none would say nothing."""
    for page, text in TEXTS.items():
        fences = re.findall(r"^ *```(.*)$", text, flags=re.MULTILINE)
        # What begins with a brace is for Sphinx.
        assert all(opened in ("python", "console") or opened.startswith("{") for opened in fences[::2]), page
    assert "".join(TEXTS.values()).count("<!-- not run: ") == sum(bool(block.unrun) for block in BLOCKS)
