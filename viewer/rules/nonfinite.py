"""Rules on NaN and infinity: one finding for an event, and the cause that the evidence speaks for.

What comes first decides, since each thing explains those after it: weights that were bad from the beginning, updates
that were too large, gradients that grew, a dtype that ends early, an update, the loss and its data, and a backward.
"""

from dataclasses import dataclass

import numpy as np

from viewer.dtypes import RANGES
from viewer.rules.evidence import Evidence, Moment
from viewer.rules.first_nonfinite import FirstNonFinite, first_nonfinite
from viewer.rules.rule import Case, Limits, Threshold, rule
from viewer.rules.values import layers_of, usual_size
from viewer.snapshot import Number, Severity

# A training may well reach an end below this.
_SMALL_END = 1e5


@dataclass(frozen=True)
class _Verdict:
    """What an event came from.

    Attributes:
        cause: In one word.
        title: In a few words.
        sentence: With the numbers that decided.
        advice: What to look at.
        number: The parameter that it is about, if it is about one.
        since: The step since which it led there, where findings of other kinds saw it, too.
    """

    cause: str
    title: str
    sentence: str
    advice: str
    number: int | None = None
    since: int | None = None


@rule(
    "nonfinite",
    title="{title}",
    severity=Severity.ERROR,
    sentence="{sentence}{slices}{ranks}{reach}.",
    grown=Threshold(
        100, "before it a gradient's largest element rose to so many times its own median", "as for exploding.factor"
    ),
    ran=Threshold(
        10,
        "or values rose to so many times theirs, and are as large as exploding_weight.largest says",
        "values of a training that goes well hardly double",
    ),
    steps=Threshold(5, "a bad start shows in so many steps", "later, updates have had their part in it"),
)
def nonfinite(evidence: Evidence, limits: Limits) -> list[Case]:
    """The first NaN or infinity: what it came from, where it was, and what it reached.

    Where a scaler skips steps, gradients may overflow. Where the loop throws bad batches away, nothing was harmed.
    """
    event = first_nonfinite(evidence)
    if event is None:
        return []
    verdict = _verdict(event, limits)
    numbers: dict[str, Number] = {"cause": verdict.cause, "what": event.what}
    if event.place is not None:
        numbers["first_nonfinite"] = event.name
    if verdict.since is not None:
        numbers["since"] = verdict.since
    if event.metric is not None:
        numbers["metric"] = event.metric.name
    if event.known_loss or event.metric is not None:
        numbers["loss_finite"] = event.metric is None
    if event.what != "value" and event.forward is not None and event.forward.module is not None:
        numbers["module"] = event.forward.module
    names = [param.name for param in event.evidence.params]
    front = event.place if verdict.number is None else verdict.number
    params = [names[number] for number in event.reached]
    if event.place is not None:
        numbers |= {"at_once": event.at_once, "reached": len(params), "parameters": len(names)}
    if front is not None:
        params = [names[front], *(name for name in params if name != names[front])]
    slices, among = _slices(evidence, event)
    params[1:1] = slices
    words = {
        "title": verdict.title,
        "sentence": verdict.sentence,
        "slices": among,
        "ranks": _ranks(event),
        "reach": _reach(event),
    }
    if event.ranks:
        numbers["rank"] = event.ranks[0]
    first, last = next(iter(params), None), event.last_step
    moment = Moment(event.step, event.step, None if event.metric is None else event.metric.name, event.name)
    case = Case(first, event.step, last, numbers, tuple(params), words=words, advice=verdict.advice, moment=moment)
    return [case]


def _verdict(event: FirstNonFinite, limits: Limits) -> _Verdict:
    """What the event came from: the first explanation that the evidence speaks for."""
    of_the_past = (
        _loaded(event)
        or _initialised(event, limits)
        or _overflowed(event, limits)
        or _blown_up(event, limits)
        or _by_an_update(event)
        if event.has_past
        else None
    )
    return of_the_past or _of_nothing(event) or _from_forward(event) or _from_loss(event) or _from_backward(event)


def _loaded(event: FirstNonFinite) -> _Verdict | None:
    place, tables = event.place, event.evidence.tables
    if event.what != "value" or place is None or tables is None or tables.first_step[place] != event.step:
        return None
    name = event.name
    return _Verdict(
        "loaded",
        f"{name} began as NaN or infinity",
        f"{name} held NaN or infinity in its first row, at step {event.step:,}: no update made it so",
        "Look at where these weights come from: the checkpoint (torch.isfinite(tensor).all() of each), or their "
        "initialisation.",
    )


def _initialised(event: FirstNonFinite, limits: Limits) -> _Verdict | None:
    params, size = event.evidence.params, event.began
    usual = np.array([usual_size(param) for param in params])
    large = np.flatnonzero(layers_of(event.evidence) & (size > limits["badly_scaled.factor"] * usual))
    if not len(large) or event.steps_before >= limits["steps"]:
        return None
    number = int(large[(size / usual)[large].argmax()])
    name = params[number].name
    return _Verdict(
        "initialisation",
        f"{name} began too large",
        f"{name} began with elements up to {size[number]:.3g}, where its shape asks for about {usual[number]:.2g}; "
        f"{event.symptom}",
        "Initialise after He (torch.nn.init.kaiming_normal_) for ReLU, after Xavier (xavier_uniform_) for tanh.",
        number,
        event.step,
    )


def _overflowed(event: FirstNonFinite, limits: Limits) -> _Verdict | None:
    """Of a dtype with a small end: where gradients came close to it, or nothing else explains the event."""
    params = [event.evidence.params[event.place]] if event.place is not None else event.evidence.params
    ends = {dtype: held.largest for dtype, held in RANGES.items() if held.largest < _SMALL_END}
    dtype = next((param.dtype for param in params if param.trainable and param.dtype in ends), None)
    if dtype is None or event.what == "value":
        return None
    end, reached = ends[dtype], event.gradients_before.largest
    if reached <= end / 2 ** limits["overflow.bits"] and _blown_up(event, limits) is not None:
        return None
    in_forward = event.metric is not None or (event.forward is not None and event.forward.module is not None)
    where = "forward" if in_forward else "backward"
    return _Verdict(
        "overflow",
        f"{dtype} overflowed in the {where}",
        f"{_capital(event.symptom)}, while all values were finite, and gradients had reached {reached:.3g}: the "
        f"numbers of {dtype} end at {end:,.0f}, and in the {where} one was larger{_seen_where(event)}",
        "Use bfloat16, or autocast with a GradScaler; scale inputs and loss down. If that does not help, look at the "
        "batch of this step.",
        since=event.gradients_before.first_rise(limits["grown"], event.step),
    )


def _blown_up(event: FirstNonFinite, limits: Limits) -> _Verdict | None:
    """Values or gradients grew before: by updates that were large while gradients were not yet, or by gradients."""
    evidence, params, step = event.evidence, event.evidence.params, event.step
    gradients, values = event.gradients_before, event.values_before
    least = limits["exploding_weight.largest"]
    ran = (values.factor > limits["ran"]) & (values.last > np.maximum(least, least * event.began))
    grown = np.flatnonzero(gradients.factor > limits["grown"])
    if evidence.tables is None or not (ran.any() or len(grown)):
        return None
    since = gradients.first_rise(limits["grown"], step)
    updates = np.where(layers_of(evidence), evidence.tables.update[evidence.tables.begins <= since], np.nan)
    shares = np.nanmax(updates, axis=0, initial=0.0)
    number = int(shares.argmax())
    if shares[number] > limits["update_large.share"] or not len(grown):
        name = params[number].name
        return _Verdict(
            "learning rate",
            f"Updates of {name} were too large",
            f"Updates were too large: {name} moved by {shares[number]:,.3g} times its size in a step, and its values, "
            f"{event.began[number]:.3g} at first, reached {values.last[number]:.3g}; then {event.symptom}",
            "Lower the learning rate or warm it up, clip gradients, and see whether zero_grad() is called.",
            number,
            since,
        )
    number = int(grown[gradients.since[grown].argmin()])
    name = params[number].name
    return _Verdict(
        "exploding",
        f"The gradient of {name} exploded",
        f"Gradients exploded: since step {since:,}, that of {name} first, to {gradients.factor[number]:,.3g} times its "
        f"median; then {event.symptom}",
        "Clip gradients (torch.nn.utils.clip_grad_norm_), lower the learning rate or warm it up, and check the scale "
        "of inputs and targets.",
        number,
        since,
    )


def _by_an_update(event: FirstNonFinite) -> _Verdict | None:
    if event.what != "value":
        return None
    return _Verdict(
        "update",
        f"An update made {event.name} NaN or infinite",
        f"{event.name} became NaN or infinite before step {event.step:,}, by an update, while {event.calm}",
        "Look at the optimizer: its learning rate, eps and state, and at what else writes to the parameters.",
    )


def _of_nothing(event: FirstNonFinite) -> _Verdict | None:
    """The loss is not finite, and all gradients of its step are."""
    tables = event.evidence.tables
    seen = tables is not None and bool(((tables.begins <= event.step) & (event.step <= tables.ends)).any())
    if event.metric is None or event.what != "loss" or not seen or event.evidence.own("skipped") is not None:
        return None
    return _Verdict(
        "empty",
        f"{event.metric.name} is NaN, and no gradient is",
        f"{event.metric.name} became NaN or infinite at step {event.step:,}, while all gradients of this step were "
        "finite: nothing of this number went into the training",
        "Look for a mean over nothing: an empty batch, or a mask that selects none. Or what is logged is not what is "
        "trained.",
    )


def _seen_where(event: FirstNonFinite) -> str:
    """Words for where the outputs of modules say that it was, if they do."""
    forward = event.forward
    if forward is None:
        return ""
    if forward.module is not None:
        return f": first in the output of {forward.name}"
    in_loss = event.metric is not None and event.sees_outputs
    return f": in the loss, since the outputs of all {forward.recorded} recorded modules were finite" * in_loss


def _from_forward(event: FirstNonFinite) -> _Verdict | None:
    """An output of a module is not finite, though all values are: of the first module it is the input's doing."""
    forward = event.forward
    if event.what == "value" or forward is None or forward.module is None:
        return None
    name, found = forward.name, f"{_capital(event.symptom)}, and so did the output of {forward.name}"
    if forward.at_input:
        return _Verdict(
            "input",
            f"The input of {name} is NaN or infinite",
            f"{found}, the first module that is recorded, while {event.calm}: its input held NaN or infinity, or "
            "numbers so large that they overflowed",
            "Look at the inputs of this step's batch (torch.isfinite(x).all()), and at what loads and scales them. "
            "trace.log(batch=index) keeps which batch it was.",
        )
    return _Verdict(
        "forward",
        f"The output of {name} is NaN or infinite",
        f"{found}, while those of the modules that ran before it were finite, and {event.calm}: it began there, or "
        "in what is computed between them",
        "Look at what this module does: sqrt, log, a power, a division by 0, an exponential of a large number, a mean "
        "over nothing. In half precision or autocast, outputs may overflow: see how large those before it are (max).",
    )


def _from_loss(event: FirstNonFinite) -> _Verdict | None:
    if event.metric is None:
        return None
    if event.forward is not None and event.sees_outputs:
        return _Verdict(
            "loss",
            f"{event.metric.name} is NaN or infinite, and no output is",
            f"{event.metric.name} became NaN or infinite at step {event.step:,}, while all values and the outputs of "
            f"all {event.forward.recorded} recorded modules were finite: look at the loss function and its labels",
            "Check the labels (torch.isfinite(y).all()), and what the loss divides by or takes the log or root of, as "
            "of a probability of exactly 0: cross_entropy takes a stable log of logits. trace.log(batch=index) keeps "
            "which batch it was.",
        )
    return _Verdict(
        "data",
        f"{event.metric.name} is NaN or infinite",
        f"{event.metric.name} became NaN or infinite at step {event.step:,}, while {event.calm}: look at the batch of "
        "this step",
        "Check its inputs and labels (torch.isfinite(x).all()), and what the loss divides by or takes the log or root "
        "of. trace.log(batch=index) keeps which batch it was; activations=True shows whether the model's outputs are "
        "finite. With autocast, float16 may have overflowed in the forward.",
    )


def _from_backward(event: FirstNonFinite) -> _Verdict:
    """A gradient is not finite; whether the loss was, is known or not."""
    title = f"NaN or infinity in the gradient of {event.name}"
    said = (
        f"The gradient of {event.name} became NaN or infinite at step {event.step:,}, the first of its backward, while"
    )
    if not event.known_loss:
        return _Verdict(
            "unknown",
            title,
            f"{said} {event.calm}; no loss of this step is known",
            "Log the loss: if it is NaN, look at the batch, at labels, and at a log or a division in the loss; if not, "
            "at the operation that follows this parameter. In half precision use a GradScaler or bfloat16.",
        )
    return _Verdict(
        "backward",
        title,
        f"{said} the loss was finite, {event.calm}",
        "Look at the operation that follows this parameter in the forward: sqrt, log, norm, a power or a division of "
        "exactly 0. torch.autograd.set_detect_anomaly(True) names its line.",
    )


def _capital(text: str) -> str:
    """A sentence begins so; the name of a metric or parameter stays as it is."""
    return text[0].upper() + text[1:] if text.startswith("the ") else text


def _slices(evidence: Evidence, event: FirstNonFinite) -> tuple[list[str], str]:
    """The slices of the parameter that is named in which it was, where it was not in all of them; and words for it."""
    tables = evidence.tables
    if tables is None or event.place is None:
        return [], ""
    bad = tables.first_bad_value if event.what == "value" else tables.first_bad_grad
    of_it = ~tables.whole & (tables.wholes == tables.params.index(event.name))
    names = [tables.params[number] for number in np.flatnonzero(of_it & (bad == event.step))]
    if not 0 < len(names) < of_it.sum():
        return [], ""
    which = names[0] if len(names) == 1 else f"{len(names)} of them, first {names[0]}"
    return names, f"; of its {of_it.sum()} slices, in {which}"


def _ranks(event: FirstNonFinite) -> str:
    """Words for the ranks on which it was first, where it was not on all of them."""
    if not event.ranks:
        return ""
    return f"; rank {event.ranks[0]} was the first" if len(event.ranks) == 1 else f"; {len(event.ranks)} ranks at first"


def _reach(event: FirstNonFinite) -> str:
    """Words for how many parameters were reached in the same step, and since."""
    reached, at_once = len(event.reached), event.at_once
    if not reached:
        return ""
    if event.metric is not None or event.place is None:
        with_it = f"{at_once} parameter{'s' * (at_once != 1)} with it, " if at_once else ""
        return f"; {with_it}{reached} by now"
    if reached == 1:
        return "; no other so far"
    others = f"{at_once - 1} other parameter{'s' * (at_once > 2)}" if at_once > 1 else "no other parameter"
    return f"; {others} with it, {reached - 1} by now"


@rule(
    "validation_nonfinite",
    title="{metric} is NaN or infinite",
    severity=Severity.WARNING,
    sentence="{metric} became NaN or infinite at step {first_step:,}, while the training went on.",
    advice="Look at the validation's data, for a mean over nothing, and for a log or a division by 0 in the metric.",
)
def validation_nonfinite(evidence: Evidence, limits: Limits) -> list[Case]:
    """A validation's loss that is not finite, though nothing of the training was until then."""
    event = first_nonfinite(evidence)
    # A validation after a step's update sees what the next step begins with.
    return [
        Case(None, min(curve.nonfinite), max(curve.nonfinite), {"metric": curve.name})
        for curve in evidence.validation_losses
        if curve.nonfinite and (event is None or min(curve.nonfinite) < event.step - 1)
    ]


@rule(
    "discarded",
    title="Bad batches thrown away",
    severity=Severity.WARNING,
    sentence="{backwards:,} {noun} gave NaN or infinity ({params}), and no update used {their} gradients.",
    advice="The loop skips such batches, so that the loss may not show them: see what is in them, and whether "
    'there are more and more. Their rows are in the table "discarded" of the log.',
)
def discarded(evidence: Evidence, limits: Limits) -> list[Case]:
    """Bad gradients that the loop noticed itself, and skipped."""
    thrown = evidence.discarded
    if thrown is None or not thrown.params:
        return []
    numbers, one = {"backwards": thrown.backwards}, thrown.backwards == 1
    words = {"noun": "backward" if one else "backwards", "their": "its" if one else "their"}
    return [Case(thrown.params[0], thrown.first_step, thrown.last_step, numbers, thrown.params, words=words)]
