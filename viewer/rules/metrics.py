"""Rules on what users log: loss and accuracy."""

import re
from collections.abc import Sequence

import numpy as np

from viewer.reduce.cells import Floats
from viewer.reduce.metrics import is_validation
from viewer.rules.evidence import Evidence
from viewer.rules.rule import Limits
from viewer.snapshot import Curve, Finding, Severity


def loss_nonfinite(evidence: Evidence, limits: Limits) -> list[Finding]:
    """A loss that was NaN or infinite."""
    return [
        _finding(
            "loss_nonfinite",
            f"{curve.name} is NaN or infinite",
            Severity.WARNING if is_validation(curve.name) else Severity.ERROR,
            curve,
            min(curve.nonfinite),
            f"{curve.name} became NaN or infinite at step {min(curve.nonfinite):,}.",
            "Look at the batch of that step, for a log or a division by 0 in the loss, and for gradients that "
            "exploded before it.",
        )
        for curve in (*evidence.losses, *evidence.validation_losses)
        if curve.nonfinite
    ]


def loss_flat(evidence: Evidence, limits: Limits) -> list[Finding]:
    """A loss that is no lower after many steps than at the beginning."""
    curve = _main(evidence.losses)
    if curve is None or _span(curve) < limits["loss_flat.steps"]:
        return []
    means = _finite(curve.mean)
    if len(means) < 8 or not means.any():
        return []
    begun, now = float(np.median(means[: max(1, len(means) // 10)])), float(np.median(means[-(len(means) // 4) :]))
    if not (now > limits["loss_flat.share"] * begun > 0 and now <= limits["loss_diverging.factor"] * begun):
        return []
    return [
        _finding(
            "loss_flat",
            f"{curve.name} does not fall",
            Severity.WARNING,
            curve,
            int(curve.step[0]),
            f"{curve.name} does not fall: {begun:.4g} at the beginning, {now:.4g} lately.",
            "Try to learn ten examples by heart first; see whether gradients vanish or are dead, or zero_grad() is "
            "missing; change the learning rate by factors of ten.",
            begun=begun,
            now=now,
        )
    ]


def loss_diverging(evidence: Evidence, limits: Limits) -> list[Finding]:
    """A loss that ends far above what it began with."""
    curve = _main(evidence.losses)
    if curve is None or _span(curve) < limits["loss_diverging.steps"]:
        return []
    means = np.array(curve.mean)
    there = np.flatnonzero(np.isfinite(means))
    if len(there) < 4:
        return []
    begun = float(np.median(means[there[: max(2, len(there) // 10)]]))
    now = float(np.median(means[there[-max(2, len(there) // 10) :]]))
    least = float(means[there].min())
    # Of a loss below zero no multiple says anything.
    if least <= 0 or now <= limits["loss_diverging.factor"] * begun:
        return []
    above = means > limits["loss_diverging.factor"] * begun
    below = np.flatnonzero(~above & np.isfinite(means))
    first = int(curve.step[min(int(below[-1]) + 1, len(means) - 1)])
    return [
        _finding(
            "loss_diverging",
            f"{curve.name} diverges",
            Severity.ERROR,
            curve,
            first,
            f"{curve.name} diverges: {begun:.4g} at the beginning, {now:.4g} lately, above "
            f"{limits['loss_diverging.factor']:g} times the beginning since step {first:,}.",
            "Lower the learning rate, warm it up, clip gradients.",
            begun=begun,
            now=now,
            least=least,
        )
    ]


def overfitting(evidence: Evidence, limits: Limits) -> list[Finding]:
    """A validation loss that rises while that of training falls."""
    train, validation = _main(evidence.losses), _main(evidence.validation_losses)
    if train is None or validation is None or len(validation.step) < limits["overfitting.numbers"]:
        return []
    means, trained = np.array(validation.mean), _finite(train.mean)
    if not np.isfinite(means).all() or means.min() <= 0 or not len(trained):
        return []
    best, now = int(means.argmin()), float(np.median(means[-3:]))
    step = int(validation.step[best])
    before, lately = _around(train, step), float(np.median(trained[-max(1, len(trained) // 10) :]))
    if len(means) - best <= 3 or now <= limits["overfitting.factor"] * means[best] or not lately < before:
        return []
    return [
        _finding(
            "overfitting",
            f"Overfitting: {validation.name} rises",
            Severity.WARNING,
            validation,
            step,
            f"Overfitting since about step {step:,}: {validation.name} was {means[best]:.4g} there, is {now:.4g} now, "
            f"while {train.name} fell from {before:.4g} to {lately:.4g}.",
            "Stop there (early stopping), use more or augmented data, weight decay, dropout, or a smaller model; see "
            "whether labels are right.",
            best=float(means[best]),
            now=now,
            train_before=before,
            train_now=lately,
        )
    ]


def at_chance(evidence: Evidence, limits: Limits) -> list[Finding]:
    """An accuracy that is no better than guessing after many steps."""
    classes = _classes(evidence)
    found = []
    for curve in evidence.accuracies:
        if classes < 2 or is_validation(curve.name) or _span(curve) < limits["at_chance.steps"]:
            continue
        means = _finite(curve.mean)
        if len(means) < 8:
            continue
        # Some log per cent.
        chance = (100 if means.max() > 1 else 1) / classes
        later = float(means[len(means) // 2 :].mean())
        least = chance + (limits["at_chance.factor"] - 1) * min(chance, 0.2 * chance * classes)
        # One that has been better was not stuck: it was lost again, for which other findings say why.
        best = max(part.mean() for part in np.array_split(means, 8))
        if later <= least and best <= 1.5 * least:
            found.append(
                _finding(
                    "at_chance",
                    f"{curve.name} is stuck at chance",
                    Severity.WARNING,
                    curve,
                    int(curve.step[0]),
                    f"{curve.name} is stuck at chance: {later:.3g} lately, and guessing one of {classes} classes gives "
                    f"{chance:.3g}.",
                    "See whether labels belong to their inputs, whether inputs reach the model as they should, and "
                    "whether gradients vanish or are dead.",
                    lately=later,
                    chance=chance,
                )
            )
    return found


def skipping(evidence: Evidence, limits: Limits) -> list[Finding]:
    """A scaler that skips step after step."""
    curve = evidence.curve("skipped")
    if curve is None or not len(curve.step):
        return []
    learnt = np.flatnonzero(~(np.array(curve.mean) >= 1))
    begun = int(learnt[-1]) + 1 if len(learnt) else 0
    if begun == len(curve.step):
        return []
    first = int(curve.step[begun])
    count = curve.step[-1] - (int(curve.step[begun - 1]) if begun else -1)
    if count < limits["skipping.steps"]:
        return []
    return [
        _finding(
            "skipping",
            "The scaler skips every step",
            Severity.ERROR,
            curve,
            first,
            f"The scaler has skipped every step since step {first:,}: gradients overflow at any scale, so nothing is "
            "learnt.",
            "Look for NaN in the forward: with a scaler, infinities are expected, and they end as the scale sinks.",
            skipped=int(count),
        )
    ]


def _finding(
    kind: str, title: str, severity: Severity, curve: Curve, first: int, sentence: str, advice: str, **numbers: float
) -> Finding:
    return Finding(
        kind, title, severity, None, first, int(curve.step[-1]), sentence, advice, {"metric": curve.name, **numbers}
    )


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
    """About how many steps a metric has been logged for."""
    return int(curve.step[-1]) - int(curve.step[0]) + 1 if len(curve.step) else 0


def _finite(means: Sequence[float]) -> Floats:
    numbers = np.array(means, np.float64)
    return numbers[np.isfinite(numbers)]


def _around(curve: Curve, step: int) -> float:
    """A curve's typical height near a step."""
    place = int(np.searchsorted(np.array(curve.step), step))
    width = max(1, len(curve.step) // 20)
    numbers = _finite(curve.mean[max(0, place - width) : place + width + 1])
    return float(np.median(numbers)) if len(numbers) else float("nan")


def _classes(evidence: Evidence) -> int:
    """How many outputs the last layer has; 0 where that is unknown."""
    params = evidence.params
    last = next((params[number] for number in evidence.backward if params[number].shape), None)
    return last.shape[0] if last is not None else 0
