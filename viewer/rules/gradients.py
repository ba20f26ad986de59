"""Rules on gradients: not finite, exploding, vanishing, dead, unused, spikes."""

import numpy as np

from viewer.reduce.cells import Floats
from viewer.reduce.param_history import ParamTables as Courses
from viewer.rules.evidence import Evidence
from viewer.rules.rule import Limits, longest, on_params
from viewer.snapshot import Finding, Severity


def nonfinite(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """The first NaN or infinity, in whose value or gradient it was, and whom it reached.

    Where a scaler skips steps, gradients may overflow: only what reaches a value counts.
    """
    # What is not trained and never was finite, as a mask, was made so.
    frozen = np.array([not param.trainable for param in evidence.params], np.bool_)
    values = np.where(frozen & (courses.first_bad_value == courses.first_step), -1, courses.first_bad_value)
    scaled = evidence.curve("skipped") is not None
    gradients = np.full_like(values, -1) if scaled else courses.first_bad_grad
    both = np.stack([values, gradients])
    if not (both >= 0).any():
        return []
    step = int(both[both >= 0].min())
    finite_loss = not any(min(curve.nonfinite, default=step + 1) <= step for curve in evidence.losses)
    # Live, the rows of a step may come before its loss.
    known_loss = any(curve.step[-1] >= step for curve in evidence.losses if len(curve.step))
    bad_values = np.flatnonzero(values == step)
    # A value that was changed to NaN by the update before makes all gradients NaN: it is the cause.
    if len(bad_values):
        what, place = "value", bad_values[0]
        began = step == courses.first_step[place]
        cause = "its first" if began else "before the step's forward, so the update before it made it so"
    else:
        what, place = "gradient", next(number for number in evidence.backward if gradients[number] == step)
        cause = "and so was the loss already" if not finite_loss else "the first of its backward"
        cause += ", while the loss was finite" if finite_loss and known_loss else ""
    first = courses.params[place]
    reached = np.flatnonzero((both >= 0).any(axis=0))
    at_once = int((both == step).any(axis=0).sum())
    bad_rows = courses.bad_values if scaled else courses.bad_values + courses.bad_grads
    last = int(courses.ends[bad_rows[:, reached].any(axis=1)].max())
    with_it = f"{at_once - 1} other parameter{'s' * (at_once > 2)}" if at_once > 1 else "no other parameter"
    others = f"{with_it} with it, {len(reached) - 1} by now" if len(reached) > 1 else "no other so far"
    return [
        Finding(
            "nonfinite",
            f"NaN or infinity in the {what} of {first}",
            Severity.ERROR,
            first,
            step,
            last,
            f"The {what} of {first} became NaN or infinite at step {step:,}, {cause}; {others}.",
            "Lower the learning rate, clip gradients, look for a division by zero, log or sqrt of 0 in what uses this "
            "parameter; in half precision use a GradScaler (and tell tracer.attach of it) or bfloat16.",
            {
                "what": what,
                **({"loss_finite": finite_loss} if known_loss or not finite_loss else {}),
                "at_once": at_once,
                "reached": len(reached),
                "parameters": len(courses.params),
            },
            (first, *(courses.params[number] for number in reached if number != place)),
        )
    ]


def exploding(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """Gradients that rise far above their own running median and stay there, or are huge."""
    high = courses.grad_high
    huge = high > limits["exploding.largest"]
    first, last, factor = huge.argmax(axis=0), len(high) - 1 - huge[::-1].argmax(axis=0), np.zeros(high.shape[1])
    # What is below the gradients that the model began with harms nobody.
    least = 10 * _begun(courses)
    lowest = np.fmin.accumulate(courses.grad_mean, axis=0)
    risen = high[1:] > np.maximum(limits["exploding.factor"] * lowest[:-1], least)
    for number in np.flatnonzero(risen.any(axis=0)).tolist():
        rise = _rise(courses, number, limits, least)
        if rise is not None:
            first[number], last[number], factor[number] = rise
    numbers = np.flatnonzero(huge.any(axis=0) | (factor > 0))
    if not len(numbers):
        return []
    end = last[numbers].max()
    lasting = end == len(high) - 1 or courses.bad_grads[end + 1 :].any() or courses.bad_values.any()
    rose = factor[numbers[first[numbers].argmin()]] > 0
    return on_params(
        "exploding",
        "Gradients explode",
        Severity.ERROR if lasting and rose else Severity.WARNING,
        courses,
        numbers,
        (courses.begins[first], courses.ends[last]),
        f"that of {{first}} reached {{largest:.3g}}{', {factor:,.4g} times its median until then' if rose else ''}.",
        "Lower the learning rate, warm it up, or clip gradients (torch.nn.utils.clip_grad_norm_); check the scale of "
        "inputs and targets.",
        largest=np.nanmax(high, axis=0, initial=0.0),
        factor=factor,
    )


def _rise(courses: Courses, number: int, limits: Limits, least: float) -> tuple[int, int, float] | None:
    """The first and last bin in which a gradient stayed above its median before, and how far."""
    high, mean = courses.grad_high[:, number], courses.grad_mean[:, number]
    there = np.flatnonzero(mean > 0)
    # A median is no less than the least of its numbers, which is known sooner.
    lowest = np.minimum.accumulate(mean[there])[1:-1]
    for at in np.flatnonzero(high[there[2:]] > np.maximum(limits["exploding.factor"] * lowest, least)) + 2:
        place, before = there[at], float(np.median(mean[there[:at]]))
        down = there[at:][mean[there[at:]] <= limits["exploding.factor"] / 10 * before]
        if not high[place] > max(limits["exploding.factor"] * before, least) or place in down[:1]:
            continue
        last = int(there[np.searchsorted(there, down[0]) - 1] if len(down) else there[-1])
        spoilt = courses.bad_grads[place:, number].any() or courses.bad_values[place:, number].any()
        if spoilt or courses.grads[place : last + 1, number].sum() >= limits["exploding.rows"] * courses.ranks:
            return int(place), last, float(np.nanmax(high[place : last + 1]) / before)
    return None


def vanishing(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """The gradients of the layers nearest to the input are a tiny share of those nearest to the loss, for long.

    It is their share that counts: where a loss has converged, all gradients are small.
    """
    trained = evidence.weights & (courses.grad_mean > 0).any(axis=0)
    depth = np.array([number for number in evidence.backward[::-1] if trained[number]], np.int64)
    if len(depth) < limits["vanishing.layers"]:
        return []
    third = len(depth) // 3
    early, late = (_typical(courses.grad_mean[:, part]) for part in (depth[:third], depth[-third:]))
    share = early / late
    rows = courses.grads[:, depth].max(axis=1, keepdims=True)
    stretch = longest(courses, (share < limits["vanishing.threshold"])[:, None], rows)
    if stretch.rows[0] < max(limits["vanishing.rows"], rows.sum() / courses.ranks / 2):
        return []
    within = (courses.begins >= stretch.steps[0]) & (courses.ends <= stretch.steps[1])
    return on_params(
        "vanishing",
        "Gradients vanish",
        Severity.WARNING,
        courses,
        depth[:third],
        stretch.steps,
        f"towards the input, those of the first {third} of {len(depth)} layers are {{share:.1g}} times those of the "
        f"last {third}, so that the first hardly learn.",
        "Use ReLU or GELU instead of sigmoid or tanh, residual connections, normalisation layers, He or Xavier "
        "initialisation.",
        share=np.exp(np.nanmean(np.log(share[within]))),
        layers=len(depth),
        rows=stretch.rows[0],
    )


def _typical(means: Floats) -> Floats:
    """The median over parameters, NaN where none has a gradient that is not 0."""
    found = np.full(len(means), np.nan)
    some = (means > 0).any(axis=1)
    found[some] = np.nanmedian(means[some], axis=1)
    return found


def dead(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """Gradients that are exactly zero for long, while those of other parameters are not."""
    # Where all are zero, the loss is flat: nothing can be said of one.
    alive = (courses.grad_high > 0).any(axis=1, keepdims=True)
    stretch = longest(courses, (courses.zeros == courses.grads) & (courses.grads > 0) & alive, courses.grads)
    numbers = np.flatnonzero(stretch.rows >= limits["dead.rows"])
    most = 2 * evidence.weights[numbers].sum() >= max(1, evidence.weights.sum())
    last = stretch.steps[1][numbers].max(initial=0)
    return on_params(
        "dead",
        "Dead",
        Severity.ERROR if most else Severity.WARNING,
        courses,
        numbers,
        stretch.steps,
        "the gradient has been exactly 0 for {rows:,.0f} measured steps, and "
        f"{'still is' if last == courses.ends[-1] else f'was until step {last:,}'}: nothing is learnt there.",
        "Look for ReLUs that are never active (a large negative bias, a learning rate too large: try LeakyReLU or "
        "GELU), for weights that are all zero behind it, for a detach(), for a loss that it has no part in.",
        rows=stretch.rows,
    )


def unused(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """Parameters that are to be trained and never had a gradient, while others did."""
    named = {event.param for event in evidence.events if event.kind in ("frozen", "failed", "removed")}
    wanted = np.array([each.trainable and 0 not in each.shape and each.name not in named for each in evidence.params])
    # Since a parameter joined, so often others had a gradient.
    since = courses.rows.cumsum(axis=0) > 0
    measured = (courses.grads.max(axis=1, keepdims=True) * since).sum(axis=0) / courses.ranks
    holds = wanted & ~courses.grads.any(axis=0) & (measured >= limits["unused.rows"])
    return on_params(
        "unused",
        "Never a gradient",
        Severity.WARNING,
        courses,
        np.flatnonzero(holds),
        (courses.begins[0], evidence.last_step),
        "in {rows:,.0f} measured steps there was none, so the loss does not depend on it.",
        "Use its module in forward, leave it out of the model, or freeze it with requires_grad_(False).",
        rows=measured,
    )


def spike(evidence: Evidence, courses: Courses, limits: Limits) -> list[Finding]:
    """Isolated steps whose gradient is far outside of what it is around them."""
    if len(courses.ends) < 3:
        return []
    factor = courses.grad_high[1:-1] / np.maximum(courses.grad_mean[:-2], courses.grad_mean[2:])
    # What is below the gradients that the model began with is no news: a converged run's band is narrow.
    far = (factor > limits["spike.factor"]) & (courses.grad_high[1:-1] > _begun(courses))
    if not far.any():
        return []
    bins = np.flatnonzero(far.any(axis=1)) + 1
    at, number = np.unravel_index(np.where(far, factor, 0).argmax(), far.shape)
    name, worst = courses.params[number], float(factor[at, number])
    begin, end = courses.begins[at + 1], courses.ends[at + 1]
    where = f"at step {begin:,}" if begin == end else f"between steps {begin:,} and {end:,}"
    params = tuple(courses.params[number] for number in np.flatnonzero(far.any(axis=0)))
    return [
        Finding(
            "spike",
            f"Gradient spikes: {name}",
            Severity.NOTE,
            name,
            int(courses.begins[bins[0]]),
            int(courses.ends[bins[-1]]),
            f"Gradients spike ({len(bins)} times); most in {name} {where}: {worst:,.4g} times what it is around it.",
            "Look at the batch of that step for an outlier or a broken example; clip gradients.",
            {"times": len(bins), "factor": worst, "step": int(end), "parameters": len(params)},
            params,
        )
    ]


def _begun(courses: Courses) -> float:
    """The largest gradient of the run's first tenth."""
    return float(np.nanmax(courses.grad_high[: max(1, len(courses.ends) // 10)], initial=0.0))
