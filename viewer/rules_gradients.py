"""Rules on gradients: not finite, exploding, vanishing, dead, unused, spikes."""

import numpy as np

from viewer.evidence import Evidence
from viewer.rule import Finding, Limits, Severity, longest, named, titled
from viewer.tracks import Courses, Floats


def nonfinite(evidence: Evidence, limits: Limits) -> list[Finding]:
    """The first NaN or infinity, in whose value or gradient it was, and whom it reached.

    Where a scaler skips steps, gradients may overflow: only what reaches a value counts.
    """
    courses = evidence.courses
    if courses is None:
        return []
    scaled = evidence.curve("skipped") is not None
    # What is not trained and never was finite, as a mask, was made so.
    frozen = np.array([not param.trainable for param in evidence.params], np.bool_)
    values = np.where(frozen & (courses.first_bad_value == courses.first_step), -1, courses.first_bad_value)
    gradients = np.full_like(values, -1) if scaled else courses.first_bad_grad
    both = np.concatenate([values, gradients])
    if not (both >= 0).any():
        return []
    step = int(both[both >= 0].min())
    # A value that was changed to NaN by the update before makes all gradients NaN: it is the cause.
    what, place = ("value", np.flatnonzero(values == step))
    if not len(place):
        what = "gradient"
        place = np.array([number for number in evidence.backward if gradients[number] == step])
    first = evidence.params[place[0]].name
    reached = np.flatnonzero((values >= 0) | (gradients >= 0))
    at_once = np.flatnonzero((values == step) | (gradients == step))
    bad_loss = min((min(curve.nonfinite) for curve in evidence.losses if curve.nonfinite), default=None)
    finite_loss = bad_loss is None or bad_loss > step
    others = len(at_once) - 1
    also = f"{others} other parameters in the same step, " if others else "no other parameter in the same step, "
    cause = (
        "before the step's forward, so the update before it made it so"
        if what == "value"
        else "the first of its backward"
        if finite_loss
        else "and so was the loss already"
    )
    return [
        Finding(
            "nonfinite",
            f"NaN or infinity in the {what} of {first}",
            Severity.ERROR,
            first,
            step,
            evidence.last_step,
            f"The {what} of {first} became NaN or infinite at step {step:,}, {cause}; {also}"
            f"{len(reached) - 1} others until the end.",
            "Lower the learning rate, clip gradients, look for a division by zero, log or sqrt of 0 in what uses this "
            "parameter; in half precision use a GradScaler or bfloat16.",
            {
                "what": what,
                "loss_finite": finite_loss,
                "at_once": len(at_once),
                "reached": len(reached),
                "parameters": len(courses.params),
            },
            tuple(courses.params[number] for number in [place[0], *(n for n in reached if n != place[0])]),
        )
    ]


def exploding(evidence: Evidence, limits: Limits) -> list[Finding]:
    """Gradients that rise far above their own running median and stay there, or are huge."""
    courses = evidence.courses
    if courses is None:
        return []
    found: dict[int, tuple[int, int, float]] = {}
    # What is below the gradients that the model began with harms nobody.
    begun = np.nanmax(courses.grad_high[: max(1, len(courses.ends) // 10)], initial=0.0)
    with np.errstate(invalid="ignore"):
        lowest = np.fmin.accumulate(courses.grad_mean, axis=0)
        risen = courses.grad_high[1:] > np.maximum(limits["exploding.factor"] * lowest[:-1], 10 * begun)
    for number in np.flatnonzero(risen.any(axis=0)).tolist():
        rise = _rise(courses, number, limits, 10 * begun)
        if rise is not None:
            found[number] = rise
    huge = np.nanmax(courses.grad_high, axis=0, initial=0.0) > limits["exploding.largest"]
    for number in set(np.flatnonzero(huge).tolist()) - found.keys():
        over = np.flatnonzero(courses.grad_high[:, number] > limits["exploding.largest"])
        found[number] = int(over[0]), int(over[-1]), float("nan")
    if not found:
        return []
    numbers = sorted(found, key=lambda number: (found[number][0], number))
    first, names = numbers[0], [courses.params[number] for number in numbers]
    last = max(found[number][1] for number in numbers)
    largest = float(np.nanmax(courses.grad_high[:, numbers]))
    factor = found[first][2]
    lasting = last == len(courses.ends) - 1 or courses.bad_grads[last + 1 :].any() or courses.bad_values.any()
    against = f", {factor:,.0f} times its median until then" if factor > 0 else ""
    own = float(np.nanmax(courses.grad_high[:, first]))
    return [
        Finding(
            "exploding",
            titled("Gradients explode", names),
            Severity.ERROR if lasting and factor > 0 else Severity.WARNING,
            names[0],
            int(courses.begins[found[first][0]]),
            int(courses.ends[last]),
            f"Gradients explode ({named(names)}): that of {names[0]} reached {own:.3g}{against}.",
            "Lower the learning rate, warm it up, or clip gradients (torch.nn.utils.clip_grad_norm_); check the scale "
            "of inputs and targets.",
            {"largest": largest, "factor": factor if factor > 0 else 0.0, "parameters": len(names)},
            tuple(names),
        )
    ]


def _rise(courses: Courses, number: int, limits: Limits, least: float) -> tuple[int, int, float] | None:
    """The first and last bin in which a gradient stayed above its median before, and how far."""
    high, mean = courses.grad_high[:, number], courses.grad_mean[:, number]
    rows = courses.grads[:, number] / max(1, courses.ranks)
    there = np.flatnonzero(mean > 0)
    for at, place in enumerate(there):
        if at < 2:
            continue
        before = float(np.median(mean[there[:at]]))
        if not high[place] > max(limits["exploding.factor"] * before, least):
            continue
        above = there[at:][mean[there[at:]] > limits["exploding.factor"] / 10 * before]
        # Up to the first bin in which it was down again.
        until = next((i for i, (a, b) in enumerate(zip(there[at:], above, strict=False)) if a != b), len(above))
        if not until:
            continue
        last = int(above[until - 1])
        spoilt = courses.bad_grads[place:, number].any() or courses.bad_values[place:, number].any()
        if rows[place : last + 1].sum() >= limits["exploding.rows"] or spoilt:
            return int(place), last, float(np.nanmax(high[place : last + 1]) / before)
    return None


def vanishing(evidence: Evidence, limits: Limits) -> list[Finding]:
    """The gradients of the layers nearest to the input are a tiny share of those nearest to the loss, for long.

    It is their share that counts: where a loss has converged, all gradients are small.
    """
    courses = evidence.courses
    if courses is None:
        return []
    trained = evidence.weights & (np.nan_to_num(courses.grad_mean).max(axis=0) > 0)
    depth = np.array([number for number in evidence.backward[::-1] if trained[number]], np.int64)
    if len(depth) < limits["vanishing.layers"]:
        return []
    third = len(depth) // 3
    early, late = (_typical(courses.grad_mean[:, part]) for part in (depth[:third], depth[-third:]))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = early / late
    rows = courses.grads[:, depth].max(axis=1, keepdims=True)
    stretch = longest((share < limits["vanishing.threshold"])[:, None], rows, courses.ranks)
    lasted, all_rows = stretch.rows[0], rows.sum() / max(1, courses.ranks)
    if lasted < limits["vanishing.rows"] or lasted < all_rows / 2:
        return []
    first, last = int(stretch.first[0]), int(stretch.last[0])
    typical = float(np.exp(np.nanmean(np.log(share[first : last + 1]))))
    names = [courses.params[number] for number in depth[:third]]
    return [
        Finding(
            "vanishing",
            titled("Gradients vanish", names),
            Severity.WARNING,
            names[0],
            int(courses.begins[first]),
            int(courses.ends[last]),
            f"Gradients vanish towards the input: those of the first {third} of {len(depth)} layers ({names[0]} …) are "
            f"{typical:.1g} times those of the last {third}, so that the first hardly learn.",
            "Use ReLU or GELU instead of sigmoid or tanh, residual connections, normalisation layers, He or Xavier "
            "initialisation.",
            {"share": typical, "layers": len(depth), "rows": float(lasted)},
            tuple(names),
        )
    ]


def _typical(means: Floats) -> Floats:
    """The median over parameters, NaN where none has a gradient that is not 0."""
    found = np.full(len(means), np.nan)
    some = (means > 0).any(axis=1)
    found[some] = np.nanmedian(means[some], axis=1)
    return found


def dead(evidence: Evidence, limits: Limits) -> list[Finding]:
    """Gradients that are exactly zero for long, while those of other parameters are not."""
    courses = evidence.courses
    if courses is None:
        return []
    # Where all are zero, the loss is flat: nothing can be said of one.
    alive = (courses.grad_high > 0).any(axis=1, keepdims=True)
    silent = (courses.zeros == courses.grads) & (courses.grads > 0) & alive
    stretch = longest(silent, courses.grads, courses.ranks)
    numbers = np.flatnonzero(stretch.rows >= limits["dead.rows"])
    if not len(numbers):
        return []
    numbers = numbers[np.argsort(stretch.first[numbers], kind="stable")]
    names = [courses.params[number] for number in numbers]
    first, last = int(stretch.first[numbers].min()), int(stretch.last[numbers].max())
    weights = evidence.weights
    most = 2 * weights[numbers].sum() >= max(1, weights.sum())
    going_on = "still is" if last == len(courses.ends) - 1 else f"was until step {courses.ends[last]:,}"
    return [
        Finding(
            "dead",
            titled("Dead", names),
            Severity.ERROR if most else Severity.WARNING,
            names[0],
            int(courses.begins[first]),
            int(courses.ends[last]),
            f"Dead: the gradient of {named(names)} has been exactly 0 for {stretch.rows[numbers].max():,.0f} measured "
            f"steps, and {going_on}: nothing is learnt there.",
            "Look for ReLUs that are never active (a large negative bias, a learning rate too large: try LeakyReLU or "
            "GELU), for weights that are all zero behind it, for a detach(), for a loss that it has no part in.",
            {"rows": float(stretch.rows[numbers].max()), "parameters": len(names)},
            tuple(names),
        )
    ]


def unused(evidence: Evidence, limits: Limits) -> list[Finding]:
    """Parameters that are to be trained and never had a gradient, while others did."""
    courses = evidence.courses
    if courses is None:
        return []
    frozen = {event.param for event in evidence.events if event.kind in ("frozen", "failed", "removed")}
    measured = courses.grads.max(axis=1).sum() / max(1, courses.ranks)
    names = [
        param.name
        for param, grads in zip(evidence.params, courses.grads.sum(axis=0), strict=True)
        if grads == 0 and param.trainable and 0 not in param.shape and param.name not in frozen
    ]
    if not names or measured < limits["unused.rows"]:
        return []
    return [
        Finding(
            "unused",
            titled("Never a gradient", names),
            Severity.WARNING,
            names[0],
            int(courses.begins[0]),
            evidence.last_step,
            f"Never a gradient in {measured:,.0f} measured steps: {named(names)}. The loss does not depend on it.",
            "Use its module in forward, leave it out of the model, or freeze it with requires_grad_(False).",
            {"rows": float(measured), "parameters": len(names)},
            tuple(names),
        )
    ]


def spike(evidence: Evidence, limits: Limits) -> list[Finding]:
    """Isolated steps whose gradient is far outside of what it is around them."""
    courses = evidence.courses
    if courses is None or len(courses.ends) < 3:
        return []
    begun = np.nanmax(courses.grad_high[: max(1, len(courses.ends) // 10)], initial=0.0)
    band = np.maximum(courses.grad_mean[:-2], courses.grad_mean[2:])
    with np.errstate(invalid="ignore"):
        factor = courses.grad_high[1:-1] / band
        # What is below the gradients that the model began with is no news: a converged run's band is narrow.
        far = (factor > limits["spike.factor"]) & (courses.grad_high[1:-1] > begun)
    if not far.any():
        return []
    bins = np.flatnonzero(far.any(axis=1))
    at, number = np.unravel_index(np.nanargmax(np.where(far, factor, np.nan)), far.shape)
    numbers = np.flatnonzero(far.any(axis=0))
    name, worst = courses.params[number], float(factor[at, number])
    where = _within(courses, int(at) + 1)
    return [
        Finding(
            "spike",
            f"Gradient spikes: {name}",
            Severity.NOTE,
            name,
            int(courses.begins[bins[0] + 1]),
            int(courses.ends[bins[-1] + 1]),
            f"The gradient spikes {len(bins)} times; most in {name} {where}: {worst:,.0f} times what it is around it.",
            "Look at the batch of that step for an outlier or a broken example; clip gradients.",
            {"times": len(bins), "factor": worst, "step": int(courses.ends[at + 1]), "parameters": len(numbers)},
            tuple(courses.params[n] for n in numbers),
        )
    ]


def _within(courses: Courses, place: int) -> str:
    """Where a bin is, in words."""
    begin, end = courses.begins[place], courses.ends[place]
    return f"at step {begin:,}" if begin == end else f"between steps {begin:,} and {end:,}"
