"""Real trainings of seconds that are ill, each traced; run as a script it prints what the viewer says of each.

``python -m tests.illnesses`` prints the table of docs/findings.md, and what is said of healthy trainings.
"""

import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import polars as pl
import torch
from torch import nn

import tracer
from tests.digits import batches, classify, digits, mlp
from tests.healthy import HEALTHY
from tests.zoo import ZOO
from tracer.log.read import scan
from tracer.log.run import open_run
from tracer.log.store import Local as Path
from viewer.read.monitor import FindingsMonitor
from viewer.rules.evidence import Evidence, Record
from viewer.rules.findings import findings
from viewer.snapshot import Finding, Severity


def vanishing(path: Path) -> None:
    """Twenty layers of sigmoids."""
    model = mlp(64, *[32] * 19, 10, activation=nn.Sigmoid)
    with tracer.attach(model, path) as trace:
        classify(model, torch.optim.SGD(model.parameters(), lr=0.1), batches(*digits(), 300), trace)


def exploding(path: Path) -> None:
    """A regression whose learning rate is too large: it explodes, and then is NaN."""
    inputs, labels = digits()
    model = mlp(64, 32, 32, 1, activation=nn.LeakyReLU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    with tracer.attach(model, path) as trace:
        for batch, targets in batches(inputs, labels, 40):
            optimizer.zero_grad()
            loss = (model(batch).squeeze(1) - targets).square().mean()
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)


def dead(path: Path) -> None:
    """ReLUs behind a large negative bias."""
    model = mlp(64, 32, 32, 10)
    with torch.no_grad():
        model[2].bias.fill_(-100)  # type: ignore[operator]
    with tracer.attach(model, path) as trace:
        classify(model, torch.optim.Adam(model.parameters(), lr=1e-3), batches(*digits(), 300), trace)


def zero_init(path: Path) -> None:
    """All weights begin as zero."""
    model = mlp(64, 32, 32, 10)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    with tracer.attach(model, path) as trace:
        classify(model, torch.optim.SGD(model.parameters(), lr=0.1), batches(*digits(), 300), trace)


def class_missing(path: Path) -> None:
    """A class that the data lacks, of images in so much noise that the bias has to tell how frequent classes are."""
    inputs, labels = digits(int(torch.initial_seed()))
    inputs, labels = inputs[labels != 3], labels[labels != 3]
    model = mlp(64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    noisy = ((batch + 2 * torch.randn_like(batch), targets) for batch, targets in batches(inputs, labels, 600))
    with tracer.attach(model, path) as trace:
        classify(model, optimizer, noisy, trace)


def memorised(path: Path) -> None:
    """Labels that are noise, learnt by heart; the validation loss is logged."""
    inputs, labels = digits()
    labels = torch.randint(10, labels.shape)
    model = mlp(64, 256, 256, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with tracer.attach(model, path) as trace:

        def validate(step: int) -> None:
            if step % 40 == 39:
                with torch.no_grad():
                    trace.log(val_loss=nn.functional.cross_entropy(model(inputs[512:1024]), labels[512:1024]))

        classify(model, optimizer, batches(inputs[:512], labels[:512], 600), trace, validate)


def half(path: Path) -> None:
    """Training in float16, whose gradients overflow as a loss is scaled by hand."""
    inputs, labels = digits()
    model = mlp(64, 32, 32, 10).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with tracer.attach(model, path) as trace:
        for step, (batch, targets) in enumerate(batches(inputs.half(), labels, 60)):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch).float(), targets) * 2.0 ** (step // 2)
            loss.backward()
            if all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None):
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.grad /= 2.0 ** (step // 2)
            optimizer.step()
            trace.log(loss=loss / 2.0 ** (step // 2))


def skipped(path: Path) -> None:
    """A batch of many is NaN, and the loop skips what it gives."""
    model = mlp(64, 32, 32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, path) as trace:
        for step, (inputs, labels) in enumerate(batches(*digits(), 300)):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs * (math.nan if step % 60 == 40 else 1.0)), labels)
            loss.backward()
            if nn.utils.clip_grad_norm_(model.parameters(), 1.0).isfinite():
                optimizer.step()
                trace.log(loss=loss)


@dataclass(frozen=True)
class Illness:
    """A training that is ill, and what is to be said of it."""

    words: str
    train: Callable[[Path], None]
    kinds: tuple[str, ...]


ILL = [
    Illness("sigmoid MLP of 20 layers", vanishing, ("vanishing",)),
    Illness("learning rate too large", exploding, ("nonfinite",)),
    Illness("ReLUs behind a bias of -100", dead, ("dead",)),
    Illness("all weights begin as 0", zero_init, ("constant_init",)),
    Illness("a class that noisy data lacks", class_missing, ("output_bias",)),
    Illness("memorised labels", memorised, ("overfitting",)),
    Illness("float16 overflow", half, ("nonfinite",)),
    Illness("bad batches, which the loop skips", skipped, ("discarded",)),
]


def judged(train: Callable[[Path], None], path: Path, seed: int = 0) -> tuple[Evidence, list[Finding]]:
    """A training's evidence and findings."""
    torch.manual_seed(seed)
    threads = torch.get_num_threads()
    # For models as small as these, another thread is a hindrance.
    torch.set_num_threads(1)
    try:
        train(path)
    finally:
        torch.set_num_threads(threads)
    evidence = FindingsMonitor(path).refresh()
    assert evidence is not None
    return evidence, findings(evidence)


def midway(path: Path, moments: int) -> Iterator[list[Finding]]:
    """The findings at so many moments of a run that has ended, as they were once its rows had arrived until then."""
    record = Record(open_run(path))
    rows = {table: scan(path, table) for table in Record.tables}
    last = rows["extremes"].select(pl.col("step").max()).collect().item()
    ends = (last * moment // (moments + 1) for moment in range(1, moments + 1))
    for after, until in itertools.pairwise([-1, *ends]):
        for table, frame in rows.items():
            record.absorb(table, frame.filter(pl.col("step").is_between(after, until, "right")))
        yield findings(record.evidence())


def main() -> None:
    """Print the documentation's table, then what is said of healthy trainings."""
    with tempfile.TemporaryDirectory() as folder:
        print("| illness | what the viewer said | at step |\n| --- | --- | --- |")
        for illness in ILL:
            evidence, found = judged(illness.train, Path(folder, illness.train.__name__))
            for finding in found:
                mark = "**" if finding.kind in illness.kinds else ""
                said = f"{finding.severity}: {mark}{finding.kind}{mark}: {finding.sentence}"
                print(f"| {illness.words} | {said} | {finding.first_step:,} of {evidence.last_step:,} |")
        seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
        for train in (*HEALTHY, *ZOO):
            for seed in range(seeds):
                _, found = judged(train, Path(folder, f"{train.__name__}{seed}"), seed)
                counts = {each.value: sum(finding.severity is each for finding in found) for each in Severity}
                print(train.__name__, seed, counts)
                for finding in found:
                    print("    ", finding.severity, finding.kind, finding.sentence)


if __name__ == "__main__":
    main()
