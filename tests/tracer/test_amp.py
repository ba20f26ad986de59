"""Loops with a GradScaler: gradients are recorded as they are without its scale, and skipped steps are steps."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

import tracer
from tests.training import Rows, by_hand, extremes_of, loss_of, metric, mlp, recorded, steps
from tracer.log.store import Local
from viewer.read.monitor import FindingsMonitor

SCALE = 1024.0


def scaler_of(scale: float = SCALE) -> GradScaler:
    """A scaler that doubles its scale after every two good steps, and halves it after a bad one."""
    return GradScaler("cpu", init_scale=scale, growth_interval=2)


OPTIMIZERS = pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])


def train(
    model: nn.Module,
    scaler: GradScaler,
    *,
    fused: bool = False,
    bad: int | None = None,
    clip: float | None = None,
    count: int = 4,
    log: Callable[[int], None] = lambda step: None,
) -> list[dict[str, dict[str, float | None]]]:
    """A loop as PyTorch's documentation has it; returns the extremes of values and of gradients without the scale.

    Args:
        model: What is trained.
        scaler: Scales the loss.
        fused: Whether the optimizer does its own unscaling.
        bad: The step whose loss is infinite.
        clip: The norm to which gradients are clipped.
        count: How many steps.
        log: Called with each step's number after its update.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=fused)
    twin = mlp()
    found = []
    for step in range(count):
        optimizer.zero_grad()
        seed = torch.random.get_rng_state()
        factor = math.inf if step == bad else 1.0
        scaler.scale(loss_of(model) * factor).backward()
        # The same backward without a scale: powers of two change no digit.
        torch.random.set_rng_state(seed)
        twin.load_state_dict(model.state_dict())
        twin.zero_grad()
        (loss_of(twin) * factor).backward()
        found.append(by_hand(twin))
        if clip is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        log(step)
    return found


def numbers(rows: Rows) -> dict[tuple[int, str], list[float | str | None]]:
    """The four numbers of each row; NaN as a word, so that it equals itself."""
    return {
        key: ["nan" if number is not None and math.isnan(number) else number for number in extremes_of(row).values()]
        for key, row in rows.items()
    }


def wanted(expected: list[dict[str, dict[str, float | None]]]) -> Rows:
    """Extremes taken by hand, in the form of ``recorded``."""
    return {(step, name): extremes for step, found in enumerate(expected) for name, extremes in found.items()}


@OPTIMIZERS
@pytest.mark.parametrize("clip", [None, 0.01])
def test_gradients_are_recorded_without_the_scale(fused: bool, clip: float | None, tmp_path: Path) -> None:
    """With the loop's scaler, rows hold the gradients that the loss has without it, whatever the scale is by then."""
    model, scaler = mlp(), scaler_of()
    with tracer.attach(model, tmp_path / "run", scaler=scaler):
        expected = train(model, scaler, fused=fused, clip=clip)
    assert numbers(recorded(tmp_path / "run")) == numbers(wanted(expected))
    assert metric(tmp_path / "run", "amp_scale") == [(0, SCALE), (1, SCALE), (2, 2 * SCALE), (3, 2 * SCALE)]
    assert metric(tmp_path / "run", "skipped") == [(0, 0.0), (1, 0.0), (2, 0.0), (3, 0.0)]


@OPTIMIZERS
@pytest.mark.parametrize("bad", [0, 2, 3])
def test_a_skipped_step_keeps_its_own_row(fused: bool, bad: int, tmp_path: Path) -> None:
    """A step that the scaler skips has a row with its infinities and NaNs, and the metric skipped is 1."""
    model, scaler = mlp(), scaler_of()
    with tracer.attach(model, tmp_path / "run", scaler=scaler) as trace:
        expected = train(model, scaler, fused=fused, bad=bad, log=lambda step: trace.log(number=step))
    found = numbers(recorded(tmp_path / "run"))
    assert found == numbers(wanted(expected))
    assert not all(isinstance(each, float) and math.isfinite(each) for each in found[bad, "2.bias"])
    assert metric(tmp_path / "run", "skipped") == [(step, float(step == bad)) for step in range(4)]
    assert metric(tmp_path / "run", "number") == [(step, float(step)) for step in range(4)]


@OPTIMIZERS
def test_what_a_skipped_step_did_not_apply_is_null(fused: bool, tmp_path: Path) -> None:
    """applied_* is what the optimizer used: the unscaled and clipped gradient, and nothing in a skipped step."""
    model, scaler = mlp(), scaler_of()
    with tracer.attach(model, tmp_path / "run", scaler=scaler, applied=True):
        train(model, scaler, fused=fused, bad=2)
    for (step, _), row in recorded(tmp_path / "run").items():
        expected = (None, None) if step == 2 else (row["grad_min"], row["grad_max"])
        assert (row["applied_min"], row["applied_max"]) == expected


def test_applied_is_unscaled_even_without_the_scaler(tmp_path: Path) -> None:
    """A fused optimizer divides by the scale itself; applied_* has the gradient as it has it."""
    model, scaler = mlp(), scaler_of()
    with tracer.attach(model, tmp_path / "run", applied=True):
        expected = train(model, scaler, fused=True, count=1)
    (row,) = [row for key, row in recorded(tmp_path / "run").items() if key == (0, "0.weight")]
    assert row["applied_max"] == expected[0]["0.weight"]["grad_max"]


def test_a_disabled_scaler_scales_nothing(tmp_path: Path) -> None:
    """With GradScaler(enabled=False) gradients are recorded as they are, there is no warning, and no scale to log."""
    model, scaler = mlp(), GradScaler("cpu", enabled=False)
    with tracer.attach(model, tmp_path / "run", scaler=scaler):
        expected = train(model, scaler, count=2)
    assert numbers(recorded(tmp_path / "run")) == numbers(wanted(expected))
    assert metric(tmp_path / "run", "amp_scale") == []


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("resumed", [None, False, True])
def test_the_log_says_whose_metrics_those_of_a_scaler_are(begun: bool, resumed: bool | None, tmp_path: Path) -> None:
    """Metrics called skipped and amp_scale are the tracer's if a scaler was given, then or later, else the user's."""
    for given in [begun] if resumed is None else [begun, resumed]:
        model, scaler = mlp(), scaler_of() if given else GradScaler("cpu", enabled=False)
        with warnings.catch_warnings(), tracer.attach(model, tmp_path / "run", scaler=scaler, resume=True) as trace:
            # Where it is the tracer's, the user's gets another name.
            warnings.simplefilter("ignore", tracer.TracerWarning)
            train(model, scaler, log=lambda step, trace=trace: trace.log(skipped=1.0))  # type: ignore[misc]
    evidence = FindingsMonitor(Local(tmp_path / "run")).refresh()
    assert evidence is not None
    assert evidence.own_metrics == ({"skipped", "amp_scale"} if begun or resumed else set())
    assert (evidence.own("skipped") is None) is not (begun or bool(resumed))


@pytest.mark.parametrize("again", [False, True])
def test_a_users_metric_does_not_mix_with_the_tracers(again: bool, tmp_path: Path) -> None:
    """Where the run has a metric skipped of the tracer's, the user's gets another name, and a warning says which."""
    model, scaler = mlp(), scaler_of()
    said_once = pytest.warns(tracer.TracerWarning, match="skipped is logged as skipped_logged")
    with said_once as said:
        with tracer.attach(model, tmp_path / "run", scaler=scaler) as trace:
            train(model, scaler, log=lambda step: trace.log(number=1) if again else trace.log(skipped=1, amp_scale=2))
        if again:
            with tracer.attach(model, tmp_path / "run", resume=True) as trace:
                trace.log(skipped=1)
    assert len(said) == 1
    assert [value for _, value in metric(tmp_path / "run", "skipped")] == [0.0] * 4
    assert {value for _, value in metric(tmp_path / "run", "skipped_logged")} == {1.0}
    assert {value for _, value in metric(tmp_path / "run", "amp_scale_logged")} == (set() if again else {2.0})


def test_a_skipped_step_of_an_accumulating_loop_is_one_step(tmp_path: Path) -> None:
    """Several scaled backwards before an update that is skipped are one step."""
    model, scaler = mlp(), scaler_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", scaler=scaler):
        for step in range(3):
            optimizer.zero_grad()
            for micro in range(3):
                scaler.scale(loss_of(model) * (math.inf if (step, micro) == (1, 1) else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert steps(tmp_path / "run") == [0, 1, 2]
    assert metric(tmp_path / "run", "skipped") == [(0, 0.0), (1, 1.0), (2, 0.0)]


def test_statistics_are_unscaled_too(tmp_path: Path) -> None:
    """Means, norms and histograms of scaled gradients are those of the gradients without the scale."""
    model, scaler = nn.Linear(2, 1, bias=False).double(), scaler_of()
    inputs = torch.tensor([[1.0, -3.0]], dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", scaler=scaler, stats=("mean", "norm", "histogram"), bins=4):
        scaler.scale(model(inputs).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    row = recorded(tmp_path / "run")[0, "weight"]
    assert row["grad_mean"] == pytest.approx(-1.0, rel=1e-12)
    assert row["grad_norm"] == pytest.approx(math.sqrt(10), rel=1e-12)
    histogram = tracer.scan(tmp_path / "run", "histograms").collect().row(1, named=True)
    assert (histogram["low"], histogram["high"], histogram["counts"]) == (-3.0, 1.0, [1, 0, 0, 1])


@pytest.mark.parametrize("scaler", ["scaler", 1024.0])
def test_what_is_no_scaler_is_refused(scaler: object, tmp_path: Path) -> None:
    """The error names the value, and no folder is made."""
    with pytest.raises(TypeError, match=r"scaler=.* must be a torch.amp.GradScaler"):
        tracer.attach(mlp(), tmp_path / "run", scaler=scaler)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("updates", ["one for both", "one each"])
@pytest.mark.parametrize("bad", [None, 0, 2])
def test_a_scaler_shared_with_another_model_counts_this_ones_steps(
    updates: str, bad: int | None, tmp_path: Path
) -> None:
    """In a GAN's loop the critic's steps are the same with a scaler as without, whichever updates it skips."""
    found = {}
    for enabled in (False, True):
        torch.manual_seed(0)
        generator, critic = nn.Linear(4, 4), nn.Linear(4, 1)
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.0) for model in (generator, critic)]
        scaler = GradScaler("cpu", enabled=enabled, init_scale=8.0)
        run = tmp_path / str(enabled)
        with tracer.attach(critic, run, scaler=scaler) as trace:
            for iteration in range(4):
                optimizers[1].zero_grad()
                factor = math.inf if enabled and iteration == bad else 1.0
                scaler.scale(critic(torch.randn(8, 4)).mean() * factor).backward()
                scaler.step(optimizers[1])
                if updates == "one each":
                    scaler.update()
                optimizers[0].zero_grad()
                scaler.scale(-critic(generator(torch.randn(8, 4))).mean()).backward()
                scaler.step(optimizers[0])
                scaler.update()
                trace.log(iteration=iteration)
        found[enabled] = metric(run, "iteration"), steps(run)
        if enabled:
            assert [step for step, skipped in metric(run, "skipped") if skipped] == ([] if bad is None else [bad])
    assert found[True] == found[False]


def test_a_training_whose_only_step_was_skipped_is_not_taken_for_one_without_updates(tmp_path: Path) -> None:
    """Several micro-batches whose update the scaler skipped are one step, and nothing is said of trace.step()."""
    model, scaler = mlp(), scaler_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with tracer.attach(model, tmp_path / "run", scaler=scaler):
        for _ in range(3):
            scaler.scale(loss_of(model) * math.inf).backward()
        scaler.step(optimizer)
        scaler.update()
    assert metric(tmp_path / "run", "skipped") == [(0, 1.0)]
