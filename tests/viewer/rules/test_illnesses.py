"""Real trainings, traced: what is ill is found, what is healthy is left alone, and the first NaN is the very first.

``make torture`` lets the healthy ones train with five seeds each.
"""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import nn

import tracer
from tests.digits import batches, classify, digits, mlp
from tests.halves import smoke_of
from tests.healthy import HEALTHY, frozen, rewarded
from tests.illnesses import ILL, Illness, judged, midway
from tests.torture import often
from tests.zoo import ZOO
from tracer.log.store import Local as Path
from viewer.read.monitor import FindingsMonitor
from viewer.rules.findings import findings
from viewer.snapshot import Severity

pytestmark = pytest.mark.slow

SEEDS = range(often(1, 5))
MOMENTS = often(4, 20)


@pytest.mark.parametrize("illness", smoke_of(ILL), ids=lambda illness: illness.train.__name__)
def test_an_ill_training_is_told_what_it_has(illness: Illness, tmp_path: Path) -> None:
    """Each illness has its finding, which is an error or a warning."""
    _, found = judged(illness.train, tmp_path / "run")
    severities = {finding.kind: finding.severity for finding in found}
    assert set(illness.kinds) <= severities.keys()
    assert Severity.NOTE not in {severities[kind] for kind in illness.kinds}


@pytest.mark.parametrize(
    ("weight", "bias", "activation"),
    [(0.0, 0.0, nn.Sigmoid), (0.0, 0.1, nn.ReLU), (0.1, 0.0, nn.ReLU), (0.1, 0.1, nn.Tanh)],
)
def test_neurons_that_begin_alike_are_an_error_whatever_their_constant(
    weight: float, bias: float, activation: type[nn.Module], tmp_path: Path
) -> None:
    """Inputs make their weights differ, and targets those of the last layer, but each hidden layer has one neuron."""

    def train(path: Path) -> None:
        model = mlp(64, 32, 32, 10, activation=activation)
        for name, parameter in model.named_parameters():
            nn.init.constant_(parameter, weight if name.endswith("weight") else bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with tracer.attach(model, path) as trace:
            classify(model, optimizer, batches(*digits(), 50), trace)

    (found,) = [finding for finding in judged(train, tmp_path / "run")[1] if finding.kind == "constant_init"]
    assert found.severity is Severity.ERROR


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("train", [*HEALTHY, *ZOO], ids=lambda train: train.__name__)
def test_a_healthy_training_is_left_alone(train: Callable[[Path], None], seed: int, tmp_path: Path) -> None:
    """No errors, and at most one warning, also of those that come and go: more would teach people to look away."""
    _, at_the_end = judged(train, tmp_path / "run", seed)
    found = [finding for each in (*midway(tmp_path / "run", MOMENTS), at_the_end) for finding in each]
    alarms = [finding for finding in found if finding.severity is not Severity.NOTE]
    assert not [finding for finding in alarms if finding.severity is Severity.ERROR], alarms
    assert len({(finding.kind, finding.numbers.get("metric")) for finding in alarms}) <= 1, alarms


def test_the_first_reward_is_no_error(tmp_path: Path) -> None:
    """A value's loss and gradients rise far with its targets, and stay there: no job is to be cancelled for that."""
    found = judged(rewarded, tmp_path / "run")[1]
    assert {finding.severity for finding in found if finding.kind in ("exploding", "loss_diverging")} == {
        Severity.WARNING
    }
    assert not [finding for finding in found if finding.severity is Severity.ERROR]


@pytest.mark.smoke
def test_a_frozen_layer_is_no_finding_at_all(tmp_path: Path) -> None:
    """Who freezes a layer need not be told."""
    assert judged(frozen, tmp_path / "run")[1] == []


class Root(nn.Module):
    """The root of what comes in: of exactly 0 its gradient is infinite, though its value is not."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The root of the positive part."""
        return (inputs * (inputs > 0)).sqrt()


def exploding() -> nn.Sequential:
    """Regressions with a learning rate that is too large for them."""
    return mlp(64, 32, 32, 1, activation=nn.LeakyReLU)


def root() -> nn.Sequential:
    """A layer whose gradient is infinite once its input falls below 0, while the loss stays finite."""
    return nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 4), Root(), nn.Linear(4, 1))


def half() -> nn.Sequential:
    """Half precision."""
    return mlp(64, 32, 32, 1).half()


@pytest.mark.smoke
@pytest.mark.parametrize(("make", "rate"), [(exploding, 0.2), (root, 1e-3), (half, 1e-3)])
def test_the_first_nan_is_that_of_a_check_by_hand(
    make: Callable[[], nn.Sequential], rate: float, tmp_path: Path
) -> None:
    """A loop over all values and gradients after each backward, as gradients arrived, finds the same step and name."""
    model = make()
    by_name = dict(model.named_parameters())
    if make is root:
        with torch.no_grad():
            by_name["2.bias"].fill_(3.0)
    dtype = next(model.parameters()).dtype
    arrived: list[str] = []
    for name, parameter in by_name.items():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: arrived.append(name))
    by_hand: tuple[int, str, str] | None = None
    finite_loss = True
    inputs, labels = digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with tracer.attach(model, tmp_path / "run") as trace:
        for step, (batch, targets) in enumerate(batches(inputs.to(dtype), labels, 60)):
            optimizer.zero_grad()
            arrived.clear()
            loss = (model(batch).squeeze(1) - targets.to(dtype)).square().mean() * (2.0**step if make is half else 1)
            loss.backward()
            trace.log(loss=loss)
            checks = itertools.chain(
                (("value", name, parameter.detach()) for name, parameter in by_name.items()),
                (("gradient", name, by_name[name].grad) for name in arrived),
            )
            bad = [
                (step, of, name) for of, name, each in checks if each is not None and not bool(each.isfinite().all())
            ]
            if bad and by_hand is None:
                by_hand, finite_loss = bad[0], bool(loss.isfinite())
            if make is root and step == 20:
                with torch.no_grad():
                    by_name["2.bias"][1] = -100.0
            optimizer.step()
    assert by_hand is not None
    evidence = FindingsMonitor(tmp_path / "run").refresh()
    assert evidence is not None
    (found,) = [finding for finding in findings(evidence) if finding.kind == "nonfinite"]
    assert (found.first_step, *(found.numbers[name] for name in ("what", "first_nonfinite"))) == by_hand
    assert found.numbers["loss_finite"] == finite_loss
