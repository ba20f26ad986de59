"""Metrics, prepared for the figure and the terminal alike."""

import math
from collections.abc import Sequence

import pytest

from viewer.options import ViewOptions
from viewer.reduce.metrics import (
    FEW_POINTS,
    MetricPanel,
    chosen,
    is_batch,
    is_validation,
    only_chosen,
    panel_of,
    panels,
    smoothed,
)
from viewer.snapshot import Curve, Snapshot

NUMBERS = [float(number % 7) for number in range(FEW_POINTS + 1)]


def curve(name: str, numbers: list[float] = NUMBERS) -> Curve:
    """A metric without a NaN."""
    return Curve(name, range(len(numbers)), numbers, numbers, numbers, ())


def run_of(*curves: str | Curve) -> Snapshot:
    """A run with these metrics."""
    return Snapshot(
        "a", "running", 9, curves=tuple(each if isinstance(each, Curve) else curve(each) for each in curves)
    )


def names_in(panel: MetricPanel) -> list[str]:
    """The names of the metrics of the only run."""
    (curves,) = panel.curves
    return [each.name for each in curves]


@pytest.mark.parametrize(
    "name",
    [
        "loss",
        "train/loss",
        "val_loss",
        "Loss/train",
        "trainLoss",
        "valloss",
        "GANLoss",
        "losses",
        "loss_epoch",
        "scaled_loss",
    ],
)
def test_a_word_for_loss_makes_a_loss(name: str) -> None:
    """Wherever it stands, and however words are parted."""
    assert panel_of(name) == "loss"


@pytest.mark.parametrize(
    "name", ["acc", "acc1", "accuracy@5", "valAcc", "top1", "Top-5", "top_1", "binary_accuracy", "testacc"]
)
def test_a_word_for_accuracy_makes_an_accuracy(name: str) -> None:
    """Likewise."""
    assert panel_of(name) == "accuracy"


@pytest.mark.parametrize(
    "name",
    [
        *("loss_scale", "lossScaler", "loss/weight", "aux_loss_coef", "gloss", "lossless"),
        *("accum_steps", "account", "accelerator_memory", "acceptance", "laptop1", "top1_error", "stop5", "top", "lr"),
    ],
)
def test_letters_of_another_word_make_neither(name: str) -> None:
    """Nor does what only belongs to a loss, as its scale."""
    assert panel_of(name) is None


def test_the_user_says_otherwise() -> None:
    """A regular expression decides alone which metrics are losses, or accuracies, whatever their words and numbers."""
    main, further = panels(
        [run_of("cost", "nll", "score", "acc", "loss")], ViewOptions(loss="nll", accuracy="^(score|nll)")
    )
    assert [names_in(panel) for panel in main] == [["nll"], ["score"]]
    assert [names_in(panel) for panel in further] == [["cost"], ["acc"], ["loss"]]


@pytest.mark.parametrize("number", [-0.5, 100.5, 131_072.0])
def test_what_is_no_share_is_no_accuracy(number: float) -> None:
    """Neither as it is nor per cent; the numbers of one run are enough."""
    runs = [run_of(curve("acc", [number, math.nan])), run_of(curve("acc", [0.5]), curve("top1", [99.5]))]
    (_, accuracy), (further,) = panels(runs, ViewOptions())
    assert [[each.name for each in of_run] for of_run in accuracy.curves] == [[], ["top1"]]
    assert [[each.name for each in of_run] for of_run in further.curves] == [["acc"], ["acc"]]


def test_further_metrics_are_grouped_by_prefix_with_validation_beside_training() -> None:
    """A panel for each name; a prefix that only one name has makes no group."""
    names = ("val/f1", "train/f1", "sys/cpu", "lr", "sys/ram", "alone/x", "val_map", "map", "gpu.0", "gpu.1")
    main, further = panels([run_of(*names)], ViewOptions())
    assert [panel.empty for panel in main] == [True, True]
    assert [(panel.group, panel.name, names_in(panel)) for panel in further] == [
        ("metrics", "f1", ["train/f1", "val/f1"]),
        ("metrics", "lr", ["lr"]),
        ("metrics", "map", ["map", "val_map"]),
        ("metrics", "alone/x", ["alone/x"]),
        ("gpu", "0", ["gpu.0"]),
        ("gpu", "1", ["gpu.1"]),
        ("sys", "cpu", ["sys/cpu"]),
        ("sys", "ram", ["sys/ram"]),
    ]
    assert further[-1].title == "sys/ram"


def test_more_losses_than_a_handful_have_panels_of_their_own() -> None:
    """The loss itself stays, and training and validation of a name stay together."""
    names = [f"{part}/{name}loss" for part in ("train", "val") for name in ("a_", "b_", "c_d_", "e_f_", "")]
    (loss, _), further = panels([run_of(*names)], ViewOptions())
    assert names_in(loss) == ["train/a_loss", "train/b_loss", "train/loss", "val/a_loss", "val/b_loss", "val/loss"]
    assert [names_in(panel) for panel in further] == [
        ["train/c_d_loss", "val/c_d_loss"],
        ["train/e_f_loss", "val/e_f_loss"],
    ]


def test_metrics_are_switched_on_and_off() -> None:
    """By regular expressions of their names; empty panels that nothing can fill are gone."""
    run = run_of("loss", "val_loss", "lr", "sys/cpu")
    assert chosen([run], ViewOptions()) == ["loss", "val_loss", "lr", "sys/cpu"]
    assert chosen([run], ViewOptions(metrics="l", hide="val|^lr$")) == ["loss"]
    (loss,), further = panels([run], ViewOptions(metrics="l", hide="val|^lr$"))
    assert (names_in(loss), further) == (["loss"], [])
    assert panels([run], ViewOptions(hide="loss|lr"))[0] == []
    assert [curve.name for (run,) in [only_chosen([run], ViewOptions(hide="o"))] for curve in run.curves] == [
        "lr",
        "sys/cpu",
    ]


def test_a_long_curve_is_smoothed_for_its_panel() -> None:
    """As the options ask, beside the numbers as they are; a short one, or with no smoothing, is not."""
    runs = [run_of("loss", curve("loss/short", NUMBERS[:FEW_POINTS]))]

    def losses(smoothing: float) -> Sequence[Curve]:
        (loss, _), _ = panels(runs, ViewOptions(smoothing=smoothing))
        return loss.curves[0]

    long, short = losses(0.9)
    assert (long.smooth, long.mean, short.smooth) == (smoothed(NUMBERS, 0.9), NUMBERS, None)
    assert [each.smooth for each in losses(0.0)] == [None, None]


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


def test_a_learning_rate_holds_until_the_next_one() -> None:
    """It is written where it changes: in between, and since, it is drawn as it is, and never smoothed."""
    rate = Curve("lr", [0, 5, 6], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3], (), [10.0, 15.0, 16.0])
    snapshot = Snapshot("run", "running", 9, (rate,), last_time=19.0)
    _, (panel,) = panels([snapshot], ViewOptions())
    (((shown,),),) = (panel.curves,)
    assert list(zip(shown.step, shown.mean, shown.time, strict=True)) == [
        *((0, 0.1, 10.0), (4, 0.1, 15.0)),
        (5, 0.2, 15.0),
        *((6, 0.3, 16.0), (9, 0.3, 19.0)),
    ]
    assert (shown.smooth, shown.last) == (None, 0.3)
    for name in ("lr", "lr/group1", "lr/2", "lr/2/group0"):
        alone = Snapshot("run", "closed", 7, (Curve(name, [0], [0.1], [0.1], [0.1], ()),))
        (((held,),),) = (panels([alone], ViewOptions())[1][0].curves,)
        assert (list(held.step), list(held.mean)) == ([0, 7], [0.1, 0.1])


@pytest.mark.parametrize(
    "name", ["batch", "train/batch", "train_batch", "batch_idx", "epoch.batch", "sampleId", "sample_hash"]
)
def test_an_index_is_known_by_its_last_words(name: str) -> None:
    """It tells which batch a step was."""
    assert is_batch(name)


@pytest.mark.parametrize(
    "name",
    [
        "batch_size",
        "batch_loss",
        "loss/batch",
        "val/batch",
        "batches",
        "samples_per_second",
        "batch/time",
        "batch_acc",
        "x",
    ],
)
def test_a_measure_of_a_batch_is_no_index(name: str) -> None:
    """Neither is a validation's, nor a count."""
    assert not is_batch(name)
