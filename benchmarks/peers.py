"""The cost of other tools that record parameters and gradients, in the same training step, beside the tracer.

Each contestant has a process of its own, because some look for one another in a process (trainscope joins a running
wandb), and wandb has threads that would slow the rest. The process trains one copy of a model with the contestant and a
second copy plainly. A round takes one step of each, in a random order. *Extra* is the median difference between them.
All read their loss with ``loss.item()``, except traced, which gets it as a tensor. Work in a contestant's own threads
or processes (gradwatch, wandb and TensorBoard write there) slows both copies, and is not in the difference.

Each contestant is asked for this, and records this:

- plain: nothing. The loss is kept in a list. The difference to its twin is noise.
- traced: ``tracer.attach(model)``: minimum and maximum of every parameter and gradient, every step.
- traced, histograms: ``stats="histogram", histogram_every=1``: the same, and a histogram of 64 bins of every parameter
  and gradient.
- TensorBoard: ``add_histogram`` of every parameter and gradient, every step, in its own bins, with minimum, maximum,
  sum and sum of squares. It has more than 1,500 bins, and leaves out the empty ones at both ends.
- wandb: ``wandb.watch(log="all", log_freq=1)`` and ``wandb.log``, offline: a histogram of 64 bins of the finite
  elements of every parameter and gradient, every step.
- trainscope: its profile "debug", which records all that it can at every step. Of every parameter: norm, mean, standard
  deviation, minimum, largest magnitude and 16 bins. Of every gradient: norm, mean, largest magnitude and the fraction
  that is not finite (no signed extremes, no histogram). Of the output of every innermost module: seven statistics. Its
  optimizer is a twin of the loop's. Under SGD it reads only the learning rate of it.
- torchinstruments: ``sampler=AlwaysSampler()``: nine statistics and a histogram of every module's outputs, and of the
  gradients of these. It knows neither parameters nor their gradients, so it measures other tensors than the others. It
  has no place for a loss, which is kept in a list. It writes its whole history again at every forward and backward, so
  its cost grows with the steps taken before: this is the cost in a run of so many rounds.

The rows "by default" are the same calls at each tool's own frequency: ``log_freq=1000`` of wandb, one forward a minute
of torchinstruments, and trainscope's every fifth step for modules and every fiftieth for histograms. Their numbers are
means a step. For trainscope they are means over whole periods of its 50 steps. For the other two, they are computed
from the cost of a step that is left out and the cost of a step in the row above, each weighted by how often it occurs.
Their quartiles are those of the steps that were taken. TensorBoard has no frequency of its own, and traced takes every
step by default.

*Bytes a step* is the growth of the contestant's folder from its first step until it was closed, divided by the steps.

*Host reads a step* counts how often the training thread reads a tensor's numbers: ``aten::_local_scalar_dense`` (from
``item``, ``float``, ``bool`` and the like), and tensors on which ``cpu``, ``numpy`` or ``tolist`` is called. Each would
wait for a GPU if its tensor were there. Two things cannot be known without a GPU. A contestant might copy a tensor to
the host at once, and then read it several times. And traced would copy its loss without waiting, and count its
histograms on the GPU: only where a tensor is on the host does it use NumPy. Waits inside an operation, such as indexing
by a mask, are not counted.

Run: ``python -m benchmarks.peers``; ``pip install -e '.[demo,bench]'`` brings the peers. A missing one is left out.
"""

import argparse
import copy
import importlib.metadata
import importlib.util
import itertools
import math
import multiprocessing
import os
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import tracer
from tracer.bench import OwnHooks, measure
from tracer.trainings import After, Build, Step, mlp, resnet18, training_step

Attach = Callable[[nn.Module, Path], AbstractContextManager[After]]

MODELS: Mapping[str, Build] = {
    "MLP, 14 parameters": mlp,
    "ResNet-18 on 16 × 3 × 64 × 64, 62 parameters": resnet18,
}
"""How to build a model, by title."""

# By default, trainscope does the same again after this many steps.
PERIOD = 50
WANDB_STEPS = 1000
LEAST_ROUNDS = 10
TORCHINSTRUMENTS_SECONDS = 60


def plain(model: nn.Module, folder: Path) -> AbstractContextManager[After]:
    """Keep the loss, and nothing else."""
    losses: list[float] = []
    return nullcontext(lambda loss: losses.append(loss.item()))


@contextmanager
def traced(model: nn.Module, folder: Path, **settings: Any) -> Iterator[After]:
    """Attach gradwatch's tracer."""
    with tracer.attach(model, folder / "run", **settings) as trace:
        yield lambda loss: trace.log(loss=loss)


def traced_histograms(model: nn.Module, folder: Path) -> AbstractContextManager[After]:
    """Attach gradwatch's tracer, with a histogram of each parameter and gradient at every step."""
    return traced(model, folder, stats="histogram", histogram_every=1)


@contextmanager
def tensorboard(model: nn.Module, folder: Path) -> Iterator[After]:
    """Add a histogram of each parameter and gradient at every step."""
    from torch.utils.tensorboard import SummaryWriter

    steps = itertools.count()
    with SummaryWriter(str(folder)) as writer:

        def after(loss: torch.Tensor) -> None:
            step = next(steps)
            writer.add_scalar("loss", loss.item(), step)
            for name, parameter in model.named_parameters():
                writer.add_histogram(f"values/{name}", parameter, step)
                writer.add_histogram(f"gradients/{name}", parameter.grad, step)

        yield after


@contextmanager
def wandb(model: nn.Module, folder: Path, log_freq: int = 1) -> Iterator[After]:
    """Let wandb watch parameters and gradients, and log, without a network and in this folder alone."""
    kinds = ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR")
    settings = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    os.environ.update(settings | {f"WANDB_{kind}": str(folder) for kind in kinds})
    import wandb

    with wandb.init(project="gradwatch-benchmark") as run:
        run.watch(model, log="all", log_freq=log_freq)
        yield lambda loss: run.log({"loss": loss.item()})


def wandb_by_default(model: nn.Module, folder: Path) -> AbstractContextManager[After]:
    """Let wandb watch as often as it does by default."""
    return wandb(model, folder, WANDB_STEPS)


@contextmanager
def trainscope(model: nn.Module, folder: Path, profile: str = "debug") -> Iterator[After]:
    """Attach trainscope, and call its step between backward and update, as it recommends."""
    from trainscope import TrainScope
    from trainscope.core.config import TrainScopeConfig
    from trainscope.core.profiles import get_profile

    config = TrainScopeConfig(run_dir=str(folder), run_name="run", **get_profile(profile))
    with TrainScope(model, torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9), config) as scope:
        yield lambda loss: scope.step(loss.item())


def trainscope_by_default(model: nn.Module, folder: Path) -> AbstractContextManager[After]:
    """Attach trainscope with its defaults."""
    return trainscope(model, folder, "default")


@contextmanager
def torchinstruments(model: nn.Module, folder: Path, **settings: Any) -> Iterator[After]:
    """Inject torchinstruments' observer."""
    from torchinstruments import inject_observer, remove_observer

    inject_observer(model, output_dir=folder / "run", **settings)
    with plain(model, folder) as after:
        yield after
    remove_observer(model)


def torchinstruments_always(model: nn.Module, folder: Path) -> AbstractContextManager[After]:
    """Inject torchinstruments' observer, to sample every step."""
    from torchinstruments import AlwaysSampler

    return torchinstruments(model, folder, sampler=AlwaysSampler())


@dataclass(frozen=True)
class Contestant:
    """One row of the table.

    Attributes:
        attach: Attaches it to a model, to write into a folder; gives the function to call after each backward.
        package: The package that must be installed.
        period: The number of steps after which it does the same again.
        sampling: For one that leaves out most steps: the name of the contestant that leaves out none, and the share of
            steps that this one takes, given the seconds a step.
    """

    attach: Attach
    package: str = "torch"
    period: int = 1
    sampling: tuple[str, Callable[[float], float]] | None = None


CONTESTANTS: Mapping[str, Contestant] = {
    "plain": Contestant(plain),
    "traced": Contestant(traced),
    "traced, histograms": Contestant(traced_histograms),
    "TensorBoard": Contestant(tensorboard, "tensorboard"),
    "wandb": Contestant(wandb, "wandb"),
    "wandb, by default": Contestant(wandb_by_default, "wandb", sampling=("wandb", lambda seconds: 1 / WANDB_STEPS)),
    "trainscope": Contestant(trainscope, "trainscope"),
    "trainscope, by default": Contestant(trainscope_by_default, "trainscope", PERIOD),
    "torchinstruments": Contestant(torchinstruments_always, "torchinstruments"),
    "torchinstruments, by default": Contestant(
        torchinstruments,
        "torchinstruments",
        sampling=("torchinstruments", lambda seconds: seconds / TORCHINSTRUMENTS_SECONDS),
    ),
}


class _Scalars(TorchDispatchMode):
    """Counts how often one number of a tensor is read in this thread."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def host_reads(step: Step) -> int:
    """The number of times that a step reads a tensor's numbers on the host, in this thread."""
    thread = threading.get_ident()
    # The tensors themselves are kept, so that no id is given to another one.
    whole: dict[int, torch.Tensor] = {}

    def noting(method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() == thread:
                whole[id(tensor)] = tensor
            return method(tensor, *args, **kwargs)

        return noted

    with ExitStack() as stack:
        for name in ("cpu", "numpy", "tolist"):
            stack.enter_context(mock.patch.object(torch.Tensor, name, noting(getattr(torch.Tensor, name))))
        stack.enter_context(scalars := _Scalars())  # type: ignore[no-untyped-call]
        step()
    return scalars.count + len(whole)


@dataclass(frozen=True)
class Outcome:
    """The cost of a contestant.

    Attributes:
        plain: The median seconds of a plain step.
        extra: Seconds a step beyond it.
        quartiles: The quartiles of the differences.
        rounds: The number of differences.
        bytes_a_step: The growth of its folder.
        reads_a_step: The number of times that the host read a tensor.
    """

    plain: float
    extra: float
    quartiles: tuple[float, float]
    rounds: int
    bytes_a_step: float
    reads_a_step: float


def contest(name: str, title: str, seconds: float) -> Outcome:
    """Train two copies of a model in turns, one plainly and one with the contestant, for about so many seconds."""
    contestant = CONTESTANTS[name]
    model, inputs = MODELS[title]()
    twin = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        with contestant.attach(twin, Path(folder)) as after, plain(model, Path(folder)) as plain_after:
            own_hooks = OwnHooks()
            own_hooks.belong_to("peer")
            steps = {"plain": training_step(model, inputs, plain_after), "peer": training_step(twin, inputs, after)}
            measure(steps, 1, warm_up=0, own_hooks=own_hooks)
            before = folder_bytes(Path(folder))
            round_seconds = sum(map(statistics.median, measure(steps, 3, warm_up=1, own_hooks=own_hooks).values()))
            periods = max(LEAST_ROUNDS, seconds / round_seconds) / contestant.period
            rounds = math.ceil(periods) * contestant.period
            times = measure(steps, rounds, warm_up=0, own_hooks=own_hooks)
            own_hooks.only("peer")
            reads = sum(host_reads(steps["peer"]) for _ in range(contestant.period))
        # Closing may also tidy up: the folder of one that took no further step has then shrunk.
        grown = max(0, folder_bytes(Path(folder)) - before)
    differences = [peer - alone for peer, alone in zip(times["peer"], times["plain"], strict=True)]
    low, _, high = statistics.quantiles(differences, n=4)
    extra = statistics.fmean(statistics.median(differences[at :: contestant.period]) for at in range(contestant.period))
    return Outcome(
        statistics.median(times["plain"]),
        extra,
        (low, high),
        rounds,
        grown / (4 + rounds + contestant.period),
        reads / contestant.period,
    )


def folder_bytes(folder: Path) -> int:
    """The size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def mixed(rare: Outcome, always: Outcome, share: float) -> Outcome:
    """The cost of one that takes this share of the steps, from its costs when it takes none and when it takes all."""

    def mix(of: Callable[[Outcome], float]) -> float:
        return (1 - share) * of(rare) + share * of(always)

    return replace(
        rare,
        extra=mix(lambda outcome: outcome.extra),
        bytes_a_step=mix(lambda outcome: outcome.bytes_a_step),
        reads_a_step=mix(lambda outcome: outcome.reads_a_step),
    )


def outcomes(names: list[str], title: str, seconds: float) -> dict[str, Outcome]:
    """Every contestant's outcome, each from a process of its own."""
    found: dict[str, Outcome] = {}
    spawn = multiprocessing.get_context("spawn")
    for name in names:
        with ProcessPoolExecutor(1, spawn) as process:
            outcome = process.submit(contest, name, title, seconds).result()
        sampling = CONTESTANTS[name].sampling
        if sampling is not None:
            always, share = sampling
            outcome = mixed(outcome, found[always], share(outcome.plain + outcome.extra))
        found[name] = outcome
    return found


def report(title: str, found: Mapping[str, Outcome]) -> Table:
    """The table, with a row for each contestant."""
    columns = ("rounds", "extra ms a step", "quartiles", "× plain", "bytes a step", "host reads a step")
    table = Table("contestant", *columns, title=title)
    for name, outcome in found.items():
        low, high = (each * 1e3 for each in outcome.quartiles)
        table.add_row(
            name,
            str(outcome.rounds),
            f"{outcome.extra * 1e3:+.3f}",
            f"{low:+.3f} to {high:+.3f}",
            f"{1 + outcome.extra / outcome.plain:.3f}",
            f"{outcome.bytes_a_step:,.0f}",
            f"{outcome.reads_a_step:,.4g}",
        )
    plains = [outcome.plain * 1e3 for outcome in found.values()]
    table.caption = f"a plain step took {min(plains):.3f} to {max(plains):.3f} ms in these processes (medians)"
    return table


def main() -> None:
    """Hold all contests, and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12, help="how long each contestant trains each model, about")
    parser.add_argument("--model", default="", help="only the models whose title contains this")
    arguments = parser.parse_args()
    console = Console(width=130)
    packages = dict.fromkeys(contestant.package for contestant in CONTESTANTS.values())
    there = [package for package in packages if importlib.util.find_spec(package)]
    for package in packages:
        if package not in there:
            console.print(
                f"{package} is not installed, and left out: pip install -e '.[bench]' brings it", markup=False
            )
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in there)
    console.print(f"{versions}; {torch.get_num_threads()} threads")
    names = [name for name, contestant in CONTESTANTS.items() if contestant.package in there]
    with tempfile.TemporaryDirectory() as folder:
        # The processes put temporary files here: wandb has some beside those of its run, and does not delete all.
        os.environ["TMPDIR"] = folder
        for title in MODELS:
            if arguments.model in title:
                console.print(report(title, outcomes(names, title, arguments.seconds)))


if __name__ == "__main__":
    main()
