"""Real trainings of seconds, ill and healthy, each traced; run as a script it prints what the viewer says of each.

``python -m tests.illnesses`` prints the README's table.
"""

import itertools
import math
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

import tracer
from tracer.demo import Images, evaluate, load
from tracer.log.store import Local as Path
from viewer.read.monitor import FindingsMonitor
from viewer.rules.evidence import Evidence
from viewer.rules.findings import findings
from viewer.snapshot import Finding, Severity

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


def digits(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """1,797 real images of 64 pixels between 0 and 1, and their classes, in an order of its own for each seed."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
    return torch.tensor(found.data / 16, dtype=torch.float32)[order], torch.tensor(found.target)[order]


def batches(inputs: torch.Tensor, labels: torch.Tensor, steps: int, size: int = 64) -> Batches:
    """So many batches, around and around."""
    for step in range(steps):
        at = torch.arange(step * size, (step + 1) * size) % len(labels)
        yield inputs[at], labels[at]


def mlp(*sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers with an activation between each two."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1])


def classify(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Batches,
    trace: tracer.Trace,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """Train a classifier, logging loss and accuracy at each step."""
    for step, (inputs, labels) in enumerate(data):
        optimizer.zero_grad()
        scores = model(inputs)
        loss = nn.functional.cross_entropy(scores.float(), labels)
        loss.backward()
        optimizer.step()
        trace.log(loss=loss, accuracy=(scores.argmax(1) == labels).float().mean())
        after(step)


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


def frozen(path: Path) -> None:
    """A layer that is frozen on purpose."""
    model = mlp(64, 64, 32, 10)
    model[0].requires_grad_(False)
    with tracer.attach(model, path) as trace:
        classify(
            model,
            torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3),
            batches(*digits(), 300),
            trace,
        )


def healthy_mlp(path: Path) -> None:
    """An MLP with Adam."""
    model = mlp(64, 128, 64, 10)
    with tracer.attach(model, path) as trace:
        classify(model, torch.optim.Adam(model.parameters(), lr=1e-3), batches(*digits(), 400), trace)


def converged(path: Path) -> None:
    """An MLP that has long learnt all there is, with the validation logged."""
    inputs, labels = digits(int(torch.initial_seed()))
    model = mlp(64, 128, 64, 10)
    with tracer.attach(model, path) as trace:

        def validate(step: int) -> None:
            if step % 100 == 99:
                with torch.no_grad():
                    trace.log(val_loss=nn.functional.cross_entropy(model(inputs[1500:]), labels[1500:]))

        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        classify(model, optimizer, batches(inputs[:1500], labels[:1500], 1500), trace, validate)


def by_hand(path: Path) -> None:
    """Gradients of a part that are made by autograd.grad, and set by hand."""
    model = nn.Sequential(mlp(64, 32, 32), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, path) as trace:
        for inputs, labels in batches(*digits(), 200):
            optimizer.zero_grad()
            hidden = model[0](inputs)
            loss = nn.functional.cross_entropy(model[1](hidden), labels)
            gradients = torch.autograd.grad(loss, list(model[0].parameters()), retain_graph=True)
            nn.functional.cross_entropy(model[1](hidden.detach()), labels).backward()
            for parameter, gradient in zip(model[0].parameters(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            trace.log(loss=loss)


def moving_targets(path: Path) -> None:
    """A value whose targets grow, as those of a DQN do, and its loss with them."""
    inputs, labels = digits()
    model = mlp(64, 64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with tracer.attach(model, path) as trace:
        for step, (batch, targets) in enumerate(batches(inputs, labels, 600)):
            optimizer.zero_grad()
            loss = (model(batch).squeeze(1) - targets * (1 + step / 20)).square().mean()
            loss.backward()
            optimizer.step()
            trace.log(value_loss=loss)


def rewarded(path: Path) -> None:
    """A value whose targets are almost 0 until there is a reward, as those of a DQN."""
    inputs, labels = digits()
    model = mlp(64, 64, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with tracer.attach(model, path) as trace:
        for step, (batch, targets) in enumerate(batches(inputs, labels, 400)):
            optimizer.zero_grad()
            noisy = targets * (300 if step >= 200 else 0) + 0.01 * torch.randn(len(targets))
            loss = (model(batch).squeeze(1) - noisy).square().mean()
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)


def clipped(path: Path) -> None:
    """A critic as in a WGAN, whose weights are clipped."""
    inputs, _ = digits()
    model = mlp(64, 32, 32, 1)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    with tracer.attach(model, path) as trace:
        for real, _ in batches(inputs, inputs, 300):
            optimizer.zero_grad()
            loss = model(torch.rand_like(real)).mean() - model(real).mean()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.clamp_(-0.01, 0.01)
            trace.log(critic_loss=loss)


class Transformer(nn.Module):
    """A small one: tokens of 0 to 16, one a pixel's row and column."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(17, 32)
        self.places = nn.Parameter(torch.randn(64, 32) * 0.02)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scores of ten classes for each image."""
        found: torch.Tensor = self.head(self.encoder(self.tokens((pixels * 16).long()) + self.places).mean(1))
        return found


def transformer(path: Path) -> None:
    """A small transformer with AdamW."""
    model = Transformer()
    with tracer.attach(model, path) as trace:
        classify(model, torch.optim.AdamW(model.parameters(), lr=1e-3), batches(*digits(), 200, 32), trace)


def resnet(path: Path, epochs: int = 2) -> None:
    """ResNet-18 on digits, as the demo trains it, in short epochs."""
    from torchvision.models import resnet18

    model = resnet18(weights=None, num_classes=10)
    training, validation = load("digits", path).split(0.2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30 * epochs)
    generator = torch.Generator().manual_seed(int(torch.initial_seed()))
    with tracer.attach(model, path) as trace:
        for _ in range(epochs):
            model.train()
            few = itertools.islice(training.batches(generator), 30)
            classify(model, optimizer, few, trace, lambda step: schedule.step())
            loss, accuracy = evaluate(model, Images(validation.images[:100], validation.labels[:100]))
            trace.log(val_loss=loss, val_accuracy=accuracy)


@dataclass(frozen=True)
class Illness:
    """A training that is ill, and what is to be said of it."""

    words: str
    train: Callable[[Path], None]
    kinds: tuple[str, ...]


ILL = [
    Illness("sigmoid MLP of 20 layers", vanishing, ("vanishing",)),
    Illness("learning rate too large", exploding, ("exploding", "nonfinite")),
    Illness("ReLUs behind a bias of -100", dead, ("dead",)),
    Illness("all weights begin as 0", zero_init, ("constant_init",)),
    Illness("a class that noisy data lacks", class_missing, ("output_bias",)),
    Illness("memorised labels", memorised, ("overfitting",)),
    Illness("float16 overflow", half, ("overflow", "nonfinite")),
    Illness("bad batches, which the loop skips", skipped, ("discarded",)),
]
HEALTHY = [frozen, healthy_mlp, converged, by_hand, moving_targets, clipped, transformer, resnet]


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


def main() -> None:
    """Print the README's table, then what is said of healthy trainings."""
    with tempfile.TemporaryDirectory() as folder:
        print("| illness | what the viewer said | at step |\n| --- | --- | --- |")
        for illness in ILL:
            evidence, found = judged(illness.train, Path(folder, illness.train.__name__))
            for finding in found:
                mark = "**" if finding.kind in illness.kinds else ""
                said = f"{finding.severity}: {mark}{finding.kind}{mark}: {finding.sentence}"
                print(f"| {illness.words} | {said} | {finding.first_step:,} of {evidence.last_step:,} |")
        seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 1
        for train in HEALTHY:
            for seed in range(seeds):
                _, found = judged(train, Path(folder, f"{train.__name__}{seed}"), seed)
                counts = {each.value: sum(finding.severity is each for finding in found) for each in Severity}
                print(train.__name__, seed, counts)
                for finding in found:
                    print("    ", finding.severity, finding.kind, finding.sentence)


if __name__ == "__main__":
    main()
