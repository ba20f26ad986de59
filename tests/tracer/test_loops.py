"""Loops that people write beside the plain one: what their rows hold, by hand."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import tracer
from tests.training import assert_rows, by_hand, events, extremes_of, loss_of, metric, mlp, recorded
from tracer.log.store import Local as Path
from viewer.read.monitor import FindingsMonitor
from viewer.rules.findings import findings

Extremes = dict[str, float | None]


def one_weight(value: float) -> nn.Linear:
    """The model weight * x."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def row(value: float, gradient: float | None) -> Extremes:
    """The row of a parameter that is one number."""
    return {"value_min": value, "value_max": value, "grad_min": gradient, "grad_max": gradient}


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.Optimizer:
    """An optimizer of all parameters."""
    return torch.optim.SGD(model.parameters(), lr=lr)


def test_several_backwards_of_one_graph_are_one_step(tmp_path: Path) -> None:
    """Two losses through one retained graph, one of them twice, are one step, and their gradients are summed."""
    model = one_weight(2.0)
    optimizer = sgd(model, lr=0.5)
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(2):
            optimizer.zero_grad()
            output = model(torch.tensor([3.0]))
            output.sum().backward(retain_graph=True)
            output.sum().backward(retain_graph=True)
            output.square().sum().backward()
            optimizer.step()
    # 3 + 3 + 2 * (2 * 3) * 3 = 42, and 2 - 42 / 2 = -19; then 3 + 3 + 2 * (-19 * 3) * 3 = -336.
    assert_rows(tmp_path / "run", [{"weight": row(2.0, 42.0)}, {"weight": row(-19.0, -336.0)}])


class Checkpointed(nn.Module):
    """Two segments that are computed again in the backward, and that share one weight."""

    def __init__(self, use_reentrant: bool | None) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.encoder = nn.Linear(6, 6)
        self.decoder = nn.Linear(6, 6)
        self.decoder.weight = self.encoder.weight
        self._use_reentrant = use_reentrant

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.first(inputs)
        for segment in (self.encoder, self.decoder):
            if self._use_reentrant is None:
                hidden = segment(hidden).tanh()
            else:
                hidden = checkpoint(segment, hidden, use_reentrant=self._use_reentrant).tanh()
        return hidden


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_weight_shared_by_checkpointed_segments_has_one_row_a_step(use_reentrant: bool, tmp_path: Path) -> None:
    """Whatever the kind of checkpoint, each update is one step, whose gradient is the sum over both segments."""
    model = Checkpointed(use_reentrant)
    plain = Checkpointed(None)
    optimizer = sgd(model)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            optimizer.zero_grad()
            inputs = torch.randn(4, 6)
            model(inputs).square().mean().backward()
            expected.append(by_hand(model))
            plain.load_state_dict(model.state_dict())
            plain.zero_grad()
            plain(inputs).square().mean().backward()
            torch.testing.assert_close(model.encoder.weight.grad, plain.encoder.weight.grad)
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


def test_optimizers_inside_the_backward_of_a_checkpointed_model_are_one_step_a_backward(tmp_path: Path) -> None:
    """The forward that runs again inside the backward begins no step of its own."""
    model = Checkpointed(use_reentrant=False)
    expected: list[dict[str, Extremes]] = []
    for name, parameter in model.named_parameters():
        optimizer = torch.optim.SGD([parameter], lr=0.1)

        def update(_: torch.Tensor, name: str = name, optimizer: torch.optim.Optimizer = optimizer) -> None:
            expected[-1][name] = by_hand(model)[name]
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(update)
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            expected.append({})
            loss_of(model).backward()
    assert_rows(tmp_path / "run", expected)


def to_none(model: nn.Module) -> None:
    """Free each gradient."""
    for parameter in model.parameters():
        parameter.grad = None


def to_zero(model: nn.Module) -> None:
    """Zero each gradient in place."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()


def to_zero_through_data(model: nn.Module) -> None:
    """Zero each gradient in place, as old code does."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.data.zero_()


@pytest.mark.parametrize("forget", [to_none, to_zero, to_zero_through_data])
def test_weights_updated_by_hand_are_recorded_however_gradients_are_forgotten(
    forget: Callable[[nn.Module], None], tmp_path: Path
) -> None:
    """With trace.step(), gradients that are freed or zeroed in place belong to one step, and are null in the next."""
    model = nn.ModuleDict({"always": one_weight(2.0), "sometimes": one_weight(-1.0)})
    with tracer.attach(model, tmp_path / "run") as trace:
        for number in range(3):
            used = ["always", "sometimes"] if number != 1 else ["always"]
            torch.stack([model[name](torch.tensor([4.0])) for name in used]).sum().backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(0.25 * parameter.grad)
            trace.step()
            forget(model)
    assert_rows(
        tmp_path / "run",
        [
            {"always.weight": row(2.0, 4.0), "sometimes.weight": row(-1.0, 4.0)},
            {"always.weight": row(1.0, 4.0), "sometimes.weight": row(-2.0, None)},
            {"always.weight": row(0.0, 4.0), "sometimes.weight": row(-2.0, 4.0)},
        ],
    )


def by_norm(model: nn.Module) -> None:
    """Clip the gradients' common norm."""
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)


def by_value(model: nn.Module) -> None:
    """Clip each gradient's elements."""
    nn.utils.clip_grad_value_(model.parameters(), 0.5)


@pytest.mark.parametrize("clip", [by_norm, by_value])
def test_clipping_before_the_update_hides_no_gradient(clip: Callable[[nn.Module], None], tmp_path: Path) -> None:
    """What the backward handed over is recorded, not what clipping made of it; the update uses the clipped one."""
    model = one_weight(2.0)
    optimizer = sgd(model, lr=1.0)
    with tracer.attach(model, tmp_path / "run"):
        for scale in (100.0, -100.0):
            optimizer.zero_grad()
            model(torch.tensor([scale])).sum().backward()
            clip(model)
            assert model.weight.grad is not None
            torch.testing.assert_close(model.weight.grad.item(), math.copysign(0.5, scale))
            # Exactly a half, so that the value of the next step is known.
            model.weight.grad.round_(decimals=2)
            optimizer.step()
    assert_rows(tmp_path / "run", [{"weight": row(2.0, 100.0)}, {"weight": row(1.5, -100.0)}])


def test_tied_parameters_have_one_name_and_their_summed_gradient(tmp_path: Path) -> None:
    """A weight used under two names has one row, the sum of both uses, and its other name stands in run.json."""
    model = nn.Sequential(one_weight(3.0), one_weight(0.0), one_weight(7.0))
    model[1].weight = model[0].weight
    optimizer = sgd(model, lr=0.5)
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(2):
            optimizer.zero_grad()
            model[1](model[0](torch.tensor([1.0]))).sum().backward()
            optimizer.step()
    # The gradient of w * w is 2 w, and 3 - 6 / 2 = 0.
    unused = row(7.0, None)
    assert_rows(
        tmp_path / "run",
        [{"0.weight": row(3.0, 6.0), "2.weight": unused}, {"0.weight": row(0.0, 0.0), "2.weight": unused}],
    )
    described = json.loads((tmp_path / "run" / "run.json").read_text())["params"]
    assert [(parameter["name"], parameter["aliases"]) for parameter in described] == [
        ("0.weight", ["1.weight"]),
        ("2.weight", []),
    ]


def test_two_models_that_train_against_each_other_have_their_own_steps(tmp_path: Path) -> None:
    """In a GAN's loop each model has the rows of its own updates, and none of what the other's backward left there."""
    generator, critic = nn.Linear(2, 6), nn.Linear(6, 1)
    optimizers = {"generator": sgd(generator), "critic": sgd(critic)}
    expected: dict[str, list[dict[str, Extremes]]] = {"generator": [], "critic": []}
    with tracer.attach(generator, tmp_path / "generator"), tracer.attach(critic, tmp_path / "critic"):
        for _ in range(3):
            fake = generator(torch.randn(4, 2))
            optimizers["critic"].zero_grad()
            (critic(fake.detach()).mean() - critic(torch.randn(4, 6)).mean()).backward()
            expected["critic"].append(by_hand(critic))
            optimizers["critic"].step()
            optimizers["generator"].zero_grad()
            critic(fake).mean().neg().backward()
            expected["generator"].append(by_hand(generator))
            optimizers["generator"].step()
    for name, rows in expected.items():
        assert_rows(tmp_path / name, rows)


def as_text(rows: dict[tuple[int, str], Extremes]) -> dict[tuple[int, str], dict[str, str]]:
    """The same rows in a form in which a NaN equals a NaN."""
    return {key: {name: repr(number) for name, number in extremes.items()} for key, extremes in rows.items()}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite_is_recorded_where_it_occurs(bad: float, tmp_path: Path) -> None:
    """The step of a bad gradient shows it, the next one the weight that it ruined, and training goes on beyond."""
    model = one_weight(2.0)
    optimizer = sgd(model, lr=1.0)
    with tracer.attach(model, tmp_path / "run"):
        for step in range(4):
            if step == 3:
                nn.init.constant_(model.weight, 5.0)
            optimizer.zero_grad()
            (model(torch.tensor([3.0])).sum() * (bad if step == 1 else 1.0)).backward()
            optimizer.step()
    found = {key: extremes_of(found) for key, found in recorded(tmp_path / "run").items()}
    expected = [row(2.0, 3.0), row(-1.0, bad), row(-bad, 3.0), row(5.0, 3.0)]
    assert as_text(found) == as_text({(step, "weight"): extremes for step, extremes in enumerate(expected)})
    assert events(tmp_path / "run", "failed") == []


def test_one_element_that_is_not_finite_leaves_the_other_extreme(tmp_path: Path) -> None:
    """Beside one infinite weight, or gradient, the extreme on the other side is still the finite one."""
    model = nn.Linear(3, 1, bias=False)
    model.weight = nn.Parameter(torch.tensor([[1.0, math.inf, -2.0]]))
    with tracer.attach(model, tmp_path / "run"):
        model(torch.tensor([4.0, 5.0, -math.inf])).sum().backward()
    expected: Extremes = {"value_min": -2.0, "value_max": math.inf, "grad_min": -math.inf, "grad_max": 5.0}
    assert_rows(tmp_path / "run", [{"weight": expected}])


class Doubled(nn.Module):
    """A parametrization whose weight is twice what is stored."""

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        return original * 2

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def doubled(layer: nn.Module) -> None:
    """Register a parametrization of one's own."""
    parametrize.register_parametrization(layer, "weight", Doubled())


@pytest.mark.parametrize(
    ("apply", "originals"),
    [
        (parametrizations.weight_norm, ["original0", "original1"]),
        (parametrizations.spectral_norm, ["original"]),
        (parametrizations.orthogonal, ["original"]),
        (doubled, ["original"]),
    ],
)
def test_a_parametrized_weight_is_recorded_as_what_is_stored(
    apply: Callable[[nn.Module], object], originals: list[str], tmp_path: Path
) -> None:
    """The rows are those of the tensors that train, under the names that torch gives them."""
    model = mlp()
    apply(model[0])
    optimizer = sgd(model)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(model).backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert {f"0.parametrizations.weight.{original}" for original in originals} < set(expected[0])
    assert_rows(tmp_path / "run", expected)


def test_a_parametrized_weights_row_is_not_that_of_the_weight_it_makes(tmp_path: Path) -> None:
    """A weight of 6 that is stored as 3 has the value 3, and twice the gradient."""
    model = one_weight(6.0)
    doubled(model)
    with tracer.attach(model, tmp_path / "run"):
        model(torch.tensor([5.0])).sum().backward()
    assert_rows(tmp_path / "run", [{"parametrizations.weight.original": row(3.0, 10.0)}])


def test_a_weight_that_is_normed_in_mid_run_is_followed(tmp_path: Path) -> None:
    """The two parameters that weight_norm makes of a weight have rows from that step on, and the weight afterwards."""
    model = mlp()
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for step in range(6):
            if step == 2:
                parametrizations.weight_norm(model[0])
            elif step == 4:
                parametrize.remove_parametrizations(model[0], "weight")
            optimizer = sgd(model)
            optimizer.zero_grad()
            loss_of(model).backward()
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


def test_a_backward_for_some_inputs_leaves_the_others_null(tmp_path: Path) -> None:
    """backward(inputs=…) gives gradients to these parameters alone; the others have their values, and null."""
    model = mlp()
    optimizer = sgd(model)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for chosen in ([model[0].weight], [model[2].bias, model[2].weight], list(model.parameters())):
            # Old gradients are zeroed, not freed, so that only the backward tells who has one in this step.
            optimizer.zero_grad(set_to_none=False)
            loss_of(model).backward(inputs=chosen)
            expected.append(by_hand(model))
            for name, parameter in model.named_parameters():
                if all(parameter is not other for other in chosen):
                    expected[-1][name] |= {"grad_min": None, "grad_max": None}
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


def test_backwards_for_different_inputs_are_one_step_together(tmp_path: Path) -> None:
    """Each parameter's row holds its own last backward in the step, not that of the others."""
    model = mlp()
    optimizer = sgd(model)
    expected = []
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(model).backward(inputs=list(model[0].parameters()))
            loss_of(model).backward(inputs=list(model[2].parameters()))
            expected.append(by_hand(model))
            optimizer.step()
    assert_rows(tmp_path / "run", expected)


@pytest.mark.parametrize("zero", [lambda parameter: parameter.grad.zero_(), lambda parameter: parameter.data])
def test_a_loop_that_never_ends_a_step_is_told_so_once(zero: Callable[[nn.Parameter], object], tmp_path: Path) -> None:
    """Weights updated by hand without trace.step() are one step; one warning says how to have them counted."""
    model = mlp()
    with pytest.warns(tracer.TracerWarning, match=r"call trace.step\(\) after each update") as caught:
        trace = tracer.attach(model, tmp_path / "run")
        for _ in range(3):
            loss_of(model).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.sub_(0.1 * parameter.grad)
                    zero(parameter)
        assert len(caught) == 1
        trace.close()
    assert len(caught) == 1


def test_accumulation_before_the_first_update_is_no_reason_to_warn(tmp_path: Path) -> None:
    """Many backwards before one update are gradient accumulation, and nothing is said."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run"):
        for _ in range(300):
            loss_of(model).backward()
        optimizer.step()


def test_backwards_without_any_update_are_said_at_close(tmp_path: Path) -> None:
    """Where several backwards came and nothing was ever updated, close() says that all is one step."""
    model = mlp()
    with (
        pytest.warns(tracer.TracerWarning, match="no update of a torch optimizer"),
        tracer.attach(model, tmp_path / "run"),
    ):
        for _ in range(2):
            loss_of(model).backward()
    assert "unended" in tracer.scan(tmp_path / "run", "events").collect()["kind"]
    evidence = FindingsMonitor(tmp_path / "run").refresh()
    assert evidence is not None
    assert [each.kind for each in findings(evidence)] == ["no_step"]


def test_a_model_that_is_frozen_while_another_trains_keeps_its_steps(tmp_path: Path) -> None:
    """Frozen for the other model's update and unfrozen again in each iteration, it has a step an iteration."""
    generator, critic = nn.Linear(4, 4), nn.Linear(4, 1)
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (generator, critic)]
    expected = []
    with tracer.attach(critic, tmp_path / "run") as trace:
        for iteration in range(4):
            critic.requires_grad_(True)
            optimizers[1].zero_grad()
            critic(torch.randn(8, 4)).mean().backward()
            expected.append(by_hand(critic))
            optimizers[1].step()
            critic.requires_grad_(False)
            optimizers[0].zero_grad()
            critic(generator(torch.randn(8, 4))).mean().backward()
            optimizers[0].step()
            trace.log(iteration=iteration)
    assert_rows(tmp_path / "run", expected)
    assert metric(tmp_path / "run", "iteration") == [(iteration, float(iteration)) for iteration in range(4)]


def test_a_selection_that_fails_costs_what_is_new_and_no_training(tmp_path: Path) -> None:
    """A callable that raises on a name that came later is one warning, whichever optimizer updates then."""
    model, other = mlp(), mlp()
    names = dict(model.named_parameters())
    with (
        pytest.warns(tracer.TracerWarning, match=r"params raises for 3.weight.*KeyError") as caught,
        tracer.attach(model, tmp_path / "run", params=lambda name: names[name] is not None),
    ):
        model.append(nn.Linear(3, 3))
        loss_of(other).backward()
        torch.optim.SGD(other.parameters(), lr=0.1).step()
        loss_of(model).backward()
    assert len(caught) == 1


def test_tracing_pauses_while_a_cuda_graph_is_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A captured step touches no row and no count, and is said once; replayed, it has its values and no gradients.

    There is no GPU in this test: that one captures is what torch says, and to replay is to write what it would write.
    """
    model = one_weight(2.0)
    optimizer = sgd(model)
    data = torch.ones(1, 1)

    def backward() -> None:
        optimizer.zero_grad(set_to_none=False)
        model(data).sum().backward()

    with tracer.attach(model, tmp_path / "run") as trace:
        backward()
        optimizer.step()
        with monkeypatch.context() as patch, pytest.warns(tracer.TracerWarning, match="pauses while a CUDA graph"):
            patch.setattr(torch.cuda, "is_initialized", lambda: True)
            patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
            for _ in range(2):
                backward()
                trace.log(captured=1)
        for _ in range(2):
            with torch.no_grad():
                model.weight.grad = torch.ones(1, 1)
            optimizer.step()
    assert metric(tmp_path / "run", "captured") == [(0, 1), (0, 1)]
    assert events(tmp_path / "run", "paused") == [(0, None, "a CUDA graph is captured")]
    assert_rows(
        tmp_path / "run",
        [
            {"weight": row(2.0, 1.0)},
            {"weight": row(1.899999976158142, None)},
            {"weight": row(1.7999999523162842, None)},
        ],
    )
