"""Rules on metrics, which users log: loss and accuracy."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from viewer.reduce.cells import Floats
from viewer.reduce.metrics import is_validation
from viewer.rules import gradients, nonfinite
from viewer.rules.evidence import Evidence
from viewer.rules.rule import Case, Limits, Threshold, rule
from viewer.snapshot import Curve, Number, Severity


@rule(
    "loss_flat",
    title="{metric} does not fall",
    severity=Severity.WARNING,
    sentence="{metric} does not fall: {begun:.4g} at the beginning, {now:.4g} lately.",
    advice="Try to learn ten examples by heart first; see whether gradients vanish or are dead, or zero_grad() is "
    "missing; change the learning rate by factors of ten.",
    steps=Threshold(
        200, "the loss has been logged for so many steps", "after so many, a training that learns shows it"
    ),
    share=Threshold(
        0.98,
        "and still is above this share of what it began with, and was up to loss_diverging.factor times it meanwhile",
        "two per cent may be noise",
    ),
)
def loss_flat(evidence: Evidence, limits: Limits) -> list[Case]:
    """A loss that is no lower after many steps than at the beginning, and has not been far above it for long.

    One that came down again does fall: that of a value begins near 0, and rises with the first rewards.
    """
    curve = _main(evidence.losses)
    if curve is None or _span(curve) < limits["steps"]:
        return []
    means = _finite(curve.mean)
    if len(means) < 8 or not means.any():
        return []
    begun, now = float(np.median(means[: max(1, len(means) // 10)])), float(np.median(means[-(len(means) // 4) :]))
    highest = max(np.median(part) for part in np.array_split(means, 8))
    if not (now > limits["share"] * begun > 0 and highest <= limits["loss_diverging.factor"] * begun):
        return []
    return [_case(curve, int(curve.step[0]), begun=begun, now=now)]


@rule(
    "loss_diverging",
    title="{metric} diverges",
    # A loss may rise with its targets, as those of a value do.
    severity=Severity.WARNING,
    sentence="{metric} diverges: {begun:.4g} at the beginning, {now:.4g} lately, above {limits[factor]:g} times the "
    "beginning since step {first_step:,}.",
    advice="Lower the learning rate, warm it up, clip gradients.",
    factor=Threshold(2, "the loss ends above so many times what it began with", "more than the noise of batches"),
    steps=Threshold(20, "after it has been logged for so many steps", "a few steps prove nothing"),
)
def loss_diverging(evidence: Evidence, limits: Limits) -> list[Case]:
    """A loss that ends far above what it began with: an error where gradients explode meanwhile, or are not finite."""
    curve = _main(evidence.losses)
    if curve is None or _span(curve) < limits["steps"]:
        return []
    means = np.array(curve.mean)
    numbers = _finite(means)
    if len(numbers) < 4:
        return []
    tenth = max(2, len(numbers) // 10)
    begun, now, least = float(np.median(numbers[:tenth])), float(np.median(numbers[-tenth:])), float(numbers.min())
    # Of a loss below zero no multiple says anything.
    if least <= 0 or now <= limits["factor"] * begun:
        return []
    below = np.flatnonzero(means <= limits["factor"] * begun)
    first = int(curve.step[min(int(below[-1]) + 1, len(means) - 1)])
    causes = (*gradients.exploding.findings(evidence, limits), *nonfinite.nonfinite.findings(evidence, limits))
    worse = any(cause.last_step >= first and cause.severity is Severity.ERROR for cause in causes)
    severity = Severity.ERROR if worse else None
    return [_case(curve, first, severity, begun=begun, now=now, least=least)]


@rule(
    "overfitting",
    title="Overfitting: {metric} rises",
    severity=Severity.WARNING,
    sentence="Overfitting since about step {first_step:,}: {metric} was {best:.4g} there, is {now:.4g} now, while "
    "{trained} fell from {train_before:.4g} to {train_now:.4g}.",
    advice="Stop there (early stopping), use more or augmented data, weight decay, dropout, or a smaller model; see "
    "whether labels are right.",
    factor=Threshold(
        1.3,
        "the validation's loss is so many times its least, while that of training falls",
        "the least one is noisy where a validation set is small",
    ),
    numbers=Threshold(5, "of so many logged numbers at least", "as for overfitting.factor"),
)
def overfitting(evidence: Evidence, limits: Limits) -> list[Case]:
    """A validation loss that rises while that of training falls."""
    train, validation = _main(evidence.losses), _main(evidence.validation_losses)
    if train is None or validation is None or len(validation.step) < limits["numbers"]:
        return []
    means, trained = np.array(validation.mean), _finite(train.mean)
    if not np.isfinite(means).all() or means.min() <= 0 or not len(trained):
        return []
    place = int(means.argmin())
    step, best, now = int(validation.step[place]), float(means[place]), float(np.median(means[-3:]))
    before, lately = _around(train, step), float(np.median(trained[-max(1, len(trained) // 10) :]))
    if len(means) - place <= 3 or now <= limits["factor"] * best or not lately < before:
        return []
    words = {"trained": train.name}
    return [_case(validation, step, words=words, best=best, now=now, train_before=before, train_now=lately)]


@rule(
    "at_chance",
    title="{metric} is stuck at chance",
    severity=Severity.WARNING,
    sentence="{metric} is stuck at chance: {lately:.3g} lately, and guessing one of {classes} classes gives "
    "{chance:.3g}.",
    advice="See whether labels belong to their inputs, whether inputs reach the model as they should, and whether "
    "gradients vanish or are dead.",
    factor=Threshold(
        1.3,
        "an accuracy stays below so many times that of guessing; of few classes, below a smaller multiple",
        "more than the noise of batches",
    ),
    steps=Threshold(200, "for so many steps", "as for loss_flat.steps"),
)
def at_chance(evidence: Evidence, limits: Limits) -> list[Case]:
    """An accuracy that is no better than guessing after many steps."""
    classes = _classes(evidence)
    cases = []
    for curve in evidence.accuracies:
        if classes < 2 or is_validation(curve.name) or _span(curve) < limits["steps"]:
            continue
        means = _finite(curve.mean)
        if len(means) < 8:
            continue
        # Some log per cent.
        chance = (100 if means.max() > 1 else 1) / classes
        later = float(means[len(means) // 2 :].mean())
        least = chance + (limits["factor"] - 1) * min(chance, 0.2 * chance * classes)
        # One that has been better was not stuck: it was lost again, for which other findings say why.
        best = max(part.mean() for part in np.array_split(means, 8))
        if later <= least and best <= 1.5 * least:
            words = {"classes": classes}
            cases.append(_case(curve, int(curve.step[0]), words=words, lately=later, chance=chance))
    return cases


def _case(
    curve: Curve,
    first: int,
    severity: Severity | None = None,
    words: Mapping[str, object] | None = None,
    **numbers: Number,
) -> Case:
    numbers = {"metric": curve.name, **numbers}
    return Case(None, first, int(curve.step[-1]), numbers, severity=severity, words=words or {})


def _main(curves: Sequence[Curve]) -> Curve | None:
    """The loss itself: of several, as in a GAN, the one that is called so; none where no name says which."""
    if len(curves) == 1:
        return curves[0]
    words = {"", "train", "training", "val", "valid", "validation", "test", "eval", "total"}
    for curve in curves:
        if set(re.split(r"[ /_.-]+", curve.name.lower())) - words == {"loss"}:
            return curve
    return None


def _span(curve: Curve) -> int:
    """Number of steps, about, that a metric has been logged for."""
    return int(curve.step[-1]) - int(curve.step[0]) + 1 if len(curve.step) else 0


def _finite(means: Sequence[float] | Floats) -> Floats:
    numbers = np.array(means, np.float64)
    return numbers[np.isfinite(numbers)]


def _around(curve: Curve, step: int) -> float:
    """A curve's typical height near a step."""
    place = int(np.searchsorted(np.array(curve.step), step))
    width = max(1, len(curve.step) // 20)
    numbers = _finite(curve.mean[max(0, place - width) : place + width + 1])
    return float(np.median(numbers)) if len(numbers) else float("nan")


def _classes(evidence: Evidence) -> int:
    """Number of outputs of the last layer; 0 where that is unknown."""
    params = evidence.params
    last = next((params[number] for number in evidence.backward if params[number].shape), None)
    return last.shape[0] if last is not None else 0
