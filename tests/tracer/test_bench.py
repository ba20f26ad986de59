"""The command that measures what tracing costs here: its table, its numbers, and what it does without a device."""

import json
import math
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models import resnet18, resnet50

import tracer
from tests.commands import tracer_says
from tracer import trainings
from tracer.bench import bench, measure

TRAINED = ["plain", "plain again", "floor", "traced"]
# So short that a turn is few steps, and there are no more rounds than quartiles need.
BRIEF = ("bench", "--device", "cpu", "--seconds", "0.1")


def cells(table: str) -> list[list[str]]:
    """The cells of a Markdown table's rows."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]


def test_the_table_has_a_row_for_each_way_to_train() -> None:
    """The output is where it was measured and a Markdown table, of which every ratio is positive; nothing else."""
    said = tracer_says(*BRIEF, "--network", "MLP")
    assert (said.returncode, said.stderr) == (0, "")
    where, _, table = said.stdout.partition("\n\n")
    assert f"torch {torch.__version__}, cpu: " in where
    assert f"{torch.get_num_threads()} threads" in where
    headings, line, *rows = cells(table)
    assert headings == ["network", "trained", "ms a step", "× plain", "quartiles"]
    assert set("".join(line)) == {"-"}
    assert [row[:2] for row in rows] == [["MLP", way] for way in TRAINED]
    assert all(float(number) > 0 for row in rows for cell in row[2:] for number in cell.split(" to "))
    assert rows[0][3:] == ["1.000", "1.000 to 1.000"]


def test_json_has_the_same_rows() -> None:
    """For machines each row is an object, whose quartiles enclose its ratio."""
    said = tracer_says(*BRIEF, "--network", "MLP", "--json")
    assert (said.returncode, said.stderr) == (0, "")
    found = json.loads(said.stdout)
    assert f"torch {torch.__version__}" in found["on"]
    assert [(row["network"], row["trained"]) for row in found["rows"]] == [("MLP", way) for way in TRAINED]
    for row in found["rows"]:
        low, high = row["quartiles"]
        assert 0 < low <= row["times_plain"] <= high < math.inf
        assert 0 < row["ms_a_step"] < math.inf


@pytest.mark.slow
def test_every_network_is_trained_in_every_way() -> None:
    """Without a choice there are the three networks for a CPU, in order of their size."""
    rows = cells(tracer_says(*BRIEF).stdout)[2:]
    networks = ("MLP", "ResNet-18", "transformer")
    assert [row[:2] for row in rows] == [[network, way] for network in networks for way in TRAINED]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "gpu"), "there is no device 'gpu' here"),
        pytest.param(
            ("--device", "cuda"),
            "there is no device 'cuda' here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        (("--device", "cpu", "--network", "VGG"), "there is no network 'VGG': choose of MLP, ResNet-18, transformer"),
    ],
)
def test_what_is_not_there_is_one_line(arguments: tuple[str, ...], words: str) -> None:
    """A device or a network that there is none of ends the command with 1 and a line that names it, and no table."""
    said = tracer_says("bench", *arguments)
    assert (said.returncode, said.stdout, said.stderr.count("\n")) == (1, "", 1)
    assert said.stderr.startswith(f"tracer: {words}")


def test_no_time_at_all_is_a_wrong_command_line() -> None:
    """Zero seconds are refused with exit code 2."""
    said = tracer_says("bench", "--seconds", "0")
    assert (said.returncode, said.stdout, "--seconds" in said.stderr) == (2, "", True)


def test_without_torch_there_is_one_line() -> None:
    """Where torch is not installed, the command says how to install it, and ends with 1."""
    program = "import sys; sys.modules['torch'] = None\nfrom tracer.cli import main\nmain(['bench'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("tracer: this command needs torch")
    assert "pip install torch" in done.stderr


def test_a_network_that_does_not_fit_is_an_error_that_names_it() -> None:
    """Too little memory on a GPU is one line, with the network and what torch says in its first line."""

    def build() -> tuple[nn.Module, torch.Tensor]:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nSee the documentation")

    with pytest.raises(tracer.LogError, match=r"^cpu has too little memory for huge: CUDA out of memory\.$"):
        next(bench({"huge": build}, torch.device("cpu"), 1.0))


def test_turns_are_taken_in_rounds() -> None:
    """Each round has one turn of each contestant, and a turn all its steps in a row; rounds of warm-up do not count."""
    taken: list[str] = []
    steps = {name: lambda name=name: taken.append(name) for name in ("a", "b", "c")}
    seconds = measure(steps, rounds=4, warm_up=1, in_a_row=3)
    turns = [taken[at : at + 3] for at in range(0, len(taken), 3)]
    assert all(len(set(turn)) == 1 for turn in turns)
    assert [sorted(turn[0] for turn in turns[at : at + 3]) for at in range(0, 15, 3)] == [["a", "b", "c"]] * 5
    assert {name: len(times) for name, times in seconds.items()} == {"a": 4, "b": 4, "c": 4}


@pytest.mark.parametrize(
    ("ours", "theirs"), [(trainings.resnet18, resnet18), (trainings.resnet50, resnet50)], ids=["18", "50"]
)
def test_resnets_are_those_of_torchvision(ours: trainings.Build, theirs: Callable[..., nn.Module]) -> None:
    """Our own ResNets have parameters of the same shapes, as many of each."""
    shapes = [sorted(tuple(each.shape) for each in model.parameters()) for model in (ours()[0], theirs(num_classes=10))]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("build", [trainings.mlp, trainings.resnet18, trainings.small_transformer])
def test_a_training_step_trains(build: trainings.Build) -> None:
    """A step changes every parameter, and hands over its loss before the update."""
    model, inputs = build()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    losses: list[float] = []

    def look(loss: torch.Tensor) -> None:
        assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
        losses.append(loss.item())

    trainings.training_step(model, inputs, look)()
    assert len(losses) == 1
    assert math.isfinite(losses[0])
    assert not any(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
