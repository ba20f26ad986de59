"""Metrics, prepared for the figure and the terminal alike."""

import pytest

from viewer.options import ViewOptions
from viewer.reduce.metrics import FEW_POINTS, is_validation, panel_names, panels, smoothed
from viewer.snapshot import Curve, Snapshot

NUMBERS = [float(number % 7) for number in range(FEW_POINTS + 1)]


def curve(name: str, numbers: list[float] = NUMBERS) -> Curve:
    """A metric without a NaN."""
    return Curve(name, range(len(numbers)), numbers, numbers, numbers, ())


def test_metrics_stand_in_panels_by_their_names() -> None:
    """Losses, accuracies, and those that are asked for; each in one panel, in the run's order, and the rest in none."""
    names = ("val_loss", "lr", "Accuracy", "train/loss", "accumulated_loss", "grad_scale")
    run = Snapshot("a", "running", 9, curves=tuple(map(curve, names)))
    options = ViewOptions(metrics=("lr", "loss", "never"))
    shown = {name: [each.name for each in curves] for name, curves in panels(run, options).items()}
    assert shown == {
        "loss": ["val_loss", "train/loss", "accumulated_loss"],
        "accuracy": ["Accuracy"],
        "metrics": ["lr"],
    }


@pytest.mark.parametrize(("asked", "further"), [((), False), (("val_loss",), False), (("lr",), True)])
def test_further_metrics_have_a_panel_where_they_need_one(asked: tuple[str, ...], further: bool) -> None:
    """Whether or not they are logged; what belongs to another panel needs none."""
    options = ViewOptions(metrics=asked)
    names = ["loss", "accuracy", "metrics"] if further else ["loss", "accuracy"]
    assert panel_names(options) == list(panels(Snapshot("a", "running", None), options)) == names


def test_a_long_curve_is_smoothed_for_its_panel() -> None:
    """As the options ask, beside the numbers as they are; a short one, or with no smoothing, is not."""
    run = Snapshot("a", "running", 9, curves=(curve("loss"), curve("loss/short", NUMBERS[:FEW_POINTS])))
    long, short = panels(run, ViewOptions(smoothing=0.9))["loss"]
    assert (long.smooth, long.mean, short.smooth) == (smoothed(NUMBERS, 0.9), NUMBERS, None)
    assert [each.smooth for each in panels(run, ViewOptions(smoothing=0.0))["loss"]] == [None, None]


def test_the_last_number_is_the_one_that_was_logged() -> None:
    """And the last mean where a curve does not say."""
    assert curve("loss", [1.0, 2.0]).last == 2.0
    assert Curve("loss", [9], [1.5], [1.0], [2.0], (), newest=2.0).last == 2.0


@pytest.mark.parametrize("name", ["val_loss", "loss/test", "valAcc", "Validation loss", "eval"])
def test_a_validations_metric_says_so_in_its_name(name: str) -> None:
    """As a word of its own."""
    assert is_validation(name)


@pytest.mark.parametrize("name", ["loss", "value_loss", "latest_loss", "invalid"])
def test_other_metrics_are_of_training(name: str) -> None:
    """Though their names hold the letters of such a word."""
    assert not is_validation(name)
