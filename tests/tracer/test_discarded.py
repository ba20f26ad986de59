"""Backwards that no update uses, and the step to which metrics belong then."""

import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import nn

import tracer
from tests.training import assert_rows, by_hand, events, loss_of, metric, mlp, values_of_first

Row = dict[str, dict[str, float | None]]


def sgd(model: nn.Module) -> torch.optim.SGD:
    """An optimizer of all parameters."""
    return torch.optim.SGD(model.parameters(), lr=0.1)


def discarded(path: Path) -> pl.DataFrame:
    """The rows of backwards that were thrown away, in order."""
    return tracer.scan(path, "discarded").sort("time", "param").collect()


def to_none(model: nn.Module) -> None:
    """Forget gradients as ``zero_grad`` does today."""
    model.zero_grad()


def to_zero(model: nn.Module) -> None:
    """Forget gradients as ``zero_grad`` did once."""
    model.zero_grad(set_to_none=False)


def backward_of(model: nn.Module, *, bad: bool) -> None:
    """Give the model gradients, which are NaN if they are bad."""
    (loss_of(model) * (math.nan if bad else 1.0)).backward()


@pytest.mark.parametrize("forget", [to_none, to_zero])
@pytest.mark.parametrize("bad", [{0}, {2, 3}, {5}, {0, 1, 4}], ids=str)
def test_a_nan_that_the_loop_skips_is_kept_beside_the_steps(
    forget: Callable[[nn.Module], None], bad: set[int], tmp_path: Path
) -> None:
    """A loop that updates only where the norm is finite: its steps are the updates, and each NaN row is kept apart."""
    model = mlp()
    optimizer = sgd(model)
    expected: list[Row] = []
    count: dict[int, int] = {}
    with tracer.attach(model, tmp_path / "run"):
        for batch in range(6):
            forget(model)
            backward_of(model, bad=batch in bad)
            row = by_hand(model)
            if math.isfinite(nn.utils.clip_grad_norm_(model.parameters(), 1.0)):
                expected.append(row)
                optimizer.step()
            else:
                count[len(expected)] = count.get(len(expected), 0) + 1
        forget(model)
    assert_rows(tmp_path / "run", expected)
    rows = discarded(tmp_path / "run")
    assert sorted(rows["step"].to_list()) == sorted(step for step, times in count.items() for _ in range(4 * times))
    assert rows["grad_max"].is_nan().all()
    # The last one of all has no step of its own; it counts where the training ended.
    last = len(expected) - 1
    wanted = [(min(step, last), float(times)) for step, times in count.items()]
    assert metric(tmp_path / "run", "discarded") == wanted


def test_a_finite_backward_that_is_thrown_away_is_counted_alone(tmp_path: Path) -> None:
    """It has no row anywhere, and what it alone had reached has no gradient in the step that follows."""
    model = nn.ModuleDict({"a": nn.Linear(6, 3), "b": nn.Linear(6, 3)})
    optimizer = sgd(model)
    with tracer.attach(model, tmp_path / "run"):
        loss_of(model["a"]).backward()
        optimizer.zero_grad()
        loss_of(model["b"]).backward()
        expected = [by_hand(model)]
        optimizer.step()
    assert expected[0]["a.weight"]["grad_max"] is None
    assert_rows(tmp_path / "run", expected)
    assert discarded(tmp_path / "run").is_empty()
    assert metric(tmp_path / "run", "discarded") == [(0, 1.0)]


def test_one_thrown_away_before_others_is_counted(tmp_path: Path) -> None:
    """Two of three backwards of all parameters are thrown away: the step says 2."""
    model = mlp()
    optimizer = sgd(model)
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
        expected = [by_hand(model)]
        optimizer.step()
    assert_rows(tmp_path / "run", expected)
    assert metric(tmp_path / "run", "discarded") == [(0, 2.0)]


def test_a_model_of_one_parameter_can_throw_its_gradient_away(tmp_path: Path) -> None:
    """No other parameter is needed to see that."""
    model = nn.Linear(1, 1, bias=False)
    optimizer = sgd(model)
    with tracer.attach(model, tmp_path / "run"):
        for factor in (math.inf, 1.0):
            optimizer.zero_grad()
            (model(torch.ones(1, 1)).sum() * factor).backward()
        optimizer.step()
    assert discarded(tmp_path / "run")["grad_max"].to_list() == [math.inf]


@pytest.mark.parametrize("create_graph", [False, True])
def test_accumulation_throws_nothing_away(create_graph: bool, tmp_path: Path) -> None:
    """However gradients are added up, and also where one of them is NaN."""
    model = mlp()
    optimizer = sgd(model)
    expected = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using backward")
        with tracer.attach(model, tmp_path / "run"):
            for step in range(3):
                optimizer.zero_grad()
                for micro in range(3):
                    loss = loss_of(model) * (math.nan if (step, micro) == (1, 1) else 1.0)
                    loss.backward(create_graph=create_graph)
                expected.append(by_hand(model))
                optimizer.step()
    found = {(row["step"], row["param"]): row["grad_max"] for row in tracer.scan(tmp_path / "run").collect().to_dicts()}
    for step, names in enumerate(expected):
        for name, row in names.items():
            assert found[step, name] == pytest.approx(row["grad_max"], nan_ok=True, abs=0)
    assert metric(tmp_path / "run", "discarded") == []


def test_histograms_are_of_the_backward_that_counts(tmp_path: Path) -> None:
    """The gradient of a backward that was thrown away has no histogram in the step."""
    model = nn.ModuleDict({"a": nn.Linear(6, 3, bias=False), "b": nn.Linear(6, 3, bias=False)})
    optimizer = sgd(model)
    with tracer.attach(model, tmp_path / "run", stats="histogram"):
        loss_of(model["a"]).backward()
        optimizer.zero_grad()
        loss_of(model["b"]).backward()
        optimizer.step()
    of = tracer.scan(tmp_path / "run", "histograms").filter(pl.col("of") == "grad").collect()["param"].to_list()
    assert of == ["b.weight"]


def test_a_step_that_is_trained_with_trial_weights_tells_the_weights_it_began_with(tmp_path: Path) -> None:
    """SAM: the values are those of the first backward, before it climbs, and the gradients those of the second."""
    model = mlp()
    optimizer = sgd(model)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            inputs = torch.randn(4, 6)
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            first = by_hand(model)
            moves = [0.05 * parameter.grad for parameter in model.parameters() if parameter.grad is not None]
            with torch.no_grad():
                for parameter, move in zip(model.parameters(), moves, strict=True):
                    parameter.add_(move)
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            expected.append(values_of_first([first, by_hand(model)]))
            with torch.no_grad():
                for parameter, move in zip(model.parameters(), moves, strict=True):
                    parameter.sub_(move)
            optimizer.step()
    assert_rows(tmp_path / "run", expected)
    assert metric(tmp_path / "run", "discarded") == [], "a gradient that moved the weights was used"


def test_what_a_closure_tries_is_not_thrown_away(tmp_path: Path) -> None:
    """An optimizer that evaluates its closure several times uses what it asks for."""
    model = mlp()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4)
    inputs = torch.randn(5, 6)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(inputs).square().mean()
        loss.backward()
        return loss

    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            optimizer.step(closure)
    assert metric(tmp_path / "run", "discarded") == []


def test_weights_that_are_swapped_for_a_validation_are_not_the_steps(tmp_path: Path) -> None:
    """An average of the weights that stands in for a validation between two steps shows in no row."""
    model = mlp()
    optimizer = sgd(model)
    average = torch.optim.swa_utils.AveragedModel(model)
    expected = []
    with tracer.attach(model, tmp_path / "run") as trace:
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            expected.append(by_hand(model))
            optimizer.step()
            average.update_parameters(model)
            kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            model.load_state_dict(average.module.state_dict())
            with torch.no_grad():
                trace.log(val_loss=loss_of(model))
            model.load_state_dict(kept)
    assert_rows(tmp_path / "run", expected)
    assert [step for step, _ in metric(tmp_path / "run", "val_loss")] == [0, 1, 2]


@contextmanager
def adversaries(path: Path, every: int) -> Iterator[Callable[[int], None]]:
    """A generator and a critic, both traced; what is given trains them once, and logs the number at its end."""
    generator, critic = nn.Linear(2, 6), nn.Linear(6, 1)
    of_generator, of_critic = sgd(generator), sgd(critic)
    with (
        tracer.attach(generator, path / "generator", every=every) as first,
        tracer.attach(critic, path / "critic", every=every) as second,
    ):

        def train(number: int) -> None:
            fake = generator(torch.randn(4, 2))
            of_critic.zero_grad()
            (critic(fake.detach()).mean() - critic(torch.randn(4, 6)).mean()).backward()
            of_critic.step()
            of_generator.zero_grad()
            critic(fake).mean().neg().backward()
            of_generator.step()
            first.log(number=number)
            second.log(number=number)

        yield train


@pytest.mark.parametrize("every", [1, 3])
def test_metrics_of_an_iteration_stand_at_its_step_of_each_model(every: int, tmp_path: Path) -> None:
    """Where one model's backward goes through another, what is logged at the end of an iteration is not a step late."""
    with adversaries(tmp_path, every) as train:
        for number in range(7):
            train(number)
    for name in ("generator", "critic"):
        run = tmp_path / name
        assert metric(run, "number") == [(number, float(number)) for number in range(7)]
        assert tracer.scan(run).collect()["step"].unique().sort().to_list() == list(range(0, 7, every))
        assert events(run, "closed")[0][0] == 6


def test_a_discriminator_that_uses_such_gradients_has_its_metrics_there(tmp_path: Path) -> None:
    """Gradients that another model's backward left, and that are used after all, make the step of what was logged."""
    generator, critic = nn.Linear(2, 6), nn.Linear(6, 1)
    of_generator, of_critic = sgd(generator), sgd(critic)
    with tracer.attach(critic, tmp_path / "run") as trace:
        for number in range(4):
            critic(generator(torch.randn(4, 2))).mean().backward()
            if number:
                of_generator.step()
                trace.log(number=number)
            of_critic.step()
            of_critic.zero_grad()
    assert metric(tmp_path / "run", "number") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_loss_that_is_logged_before_its_backward_is_its_steps(tmp_path: Path) -> None:
    """Each loss, and what is logged from then until its backward, stand at the step that they lead to."""
    model = mlp()
    optimizer = sgd(model)
    with tracer.attach(model, tmp_path / "run") as trace:
        for number in range(4):
            loss = loss_of(model)
            trace.log(loss=loss, number=number)
            trace.log(again=number)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name in ("loss", "number", "again"):
        assert [step for step, _ in metric(tmp_path / "run", name)] == [0, 1, 2, 3], name


@pytest.mark.parametrize("every", [1, 2])
def test_a_loss_whose_backward_never_comes_is_the_last_steps(every: int, tmp_path: Path) -> None:
    """A validation that forgot ``no_grad`` belongs to the step that it judges, also at the very end."""
    model = mlp()
    optimizer = sgd(model)
    with tracer.attach(model, tmp_path / "run", every=every) as trace:
        for number in range(4):
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            optimizer.step()
            trace.log(loss=loss)
            trace.log(val_loss=loss_of(model), number=number)
    for name in ("loss", "val_loss", "number"):
        assert [step for step, _ in metric(tmp_path / "run", name)] == [0, 1, 2, 3], name


def test_who_knows_the_step_may_say_it(tmp_path: Path) -> None:
    """A step that is given counts, whatever came last; one that is none is an error at the call."""
    model = mlp()
    with tracer.attach(model, tmp_path / "run") as trace:
        trace.log(loss=1.0, step=7)
        for wrong in (-1, 1 << 53, True, 0.5):
            with pytest.raises(ValueError, match="step="):
                trace.log(loss=1.0, step=wrong)
    assert metric(tmp_path / "run", "loss") == [(7, 1.0)]


def by_data(model: nn.Module) -> None:
    """Update by hand as older libraries do, which leaves no trace in a parameter's version."""
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.data.add_(parameter.grad.data, alpha=-0.1)
        parameter.grad = None


def test_updates_through_data_are_noticed_within_a_few_backwards(tmp_path: Path) -> None:
    """The loop is told once to call ``trace.step()``; nothing is taken for thrown away."""
    model = mlp()
    with pytest.warns(tracer.TracerWarning, match=r"call trace.step\(\) after each update") as caught:
        trace = tracer.attach(model, tmp_path / "run")
        for _ in range(4):
            loss_of(model).backward()
            by_data(model)
        assert len(caught) == 1
        for _ in range(20):
            loss_of(model).backward()
            by_data(model)
        trace.close()
    assert len(caught) == 1
    assert metric(tmp_path / "run", "discarded") == []


def test_after_that_word_each_update_through_data_is_a_step(tmp_path: Path) -> None:
    """With ``trace.step()`` nothing is thrown away either, though each backward finds a fresh gradient."""
    model = mlp()
    expected = []
    with tracer.attach(model, tmp_path / "run") as trace:
        for _ in range(4):
            loss_of(model).backward()
            expected.append(by_hand(model))
            by_data(model)
            trace.step()
    assert_rows(tmp_path / "run", expected)
    assert metric(tmp_path / "run", "discarded") == []


def test_a_trace_keeps_no_gradient_of_its_model(tmp_path: Path) -> None:
    """Neither in a step that is not measured, after another model's update, nor once it is closed."""
    critic, other = nn.Linear(6, 1), nn.Linear(2, 2)
    of_critic, of_other = sgd(critic), sgd(other)
    with tracer.attach(critic, tmp_path / "run", every=3):
        for number in range(6):
            for optimizer in (of_critic, of_other):
                of_critic.zero_grad()
                critic(torch.randn(4, 6)).sum().backward()
                other(torch.randn(4, 2)).sum().backward()
                optimizer.step()
            if number == 3:
                of_critic.zero_grad()
                critic(torch.randn(4, 6)).sum().backward()
                of_critic.step()
                used = weakref.ref(critic.bias.grad)
                of_critic.zero_grad()
                assert used() is None
        last = weakref.ref(critic.bias.grad)
    of_critic.zero_grad()
    assert last() is None
