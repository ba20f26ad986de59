"""Metrics as every surface shows them: in which panel, of training or validation, and how smoothed."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from viewer.options import ViewOptions, matching
from viewer.snapshot import Curve, Snapshot

LOSS, ACCURACY, FURTHER = "loss", "accuracy", "metrics"
# A curve of so few points is not smoothed, and each of them gets a marker.
FEW_POINTS = 30
# More curves than a handful could not be told apart in one panel: others have panels of their own.
_HANDFUL = 6
# The words of a name, also of one as "trainLoss".
_WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_OF = "(?:train|val|valid|test|eval)?"
_LOSS_WORD = re.compile(f"{_OF}loss(?:es)?")
_ACCURACY_WORD = re.compile(f"{_OF}(?:accs?|accuracy|accuracies)")
# What follows the word: "loss_scale" is none, while "scaled_loss" is one.
_NO_LOSS = re.compile("scal(?:e|er|es|ing)|weights?|coef[a-z]*|factor|ratio|count|norm|lr|time")
_NO_ACCURACY = frozenset({"err", "error", "errors"})
# A word of its own, as in "val_loss" and "loss/test", but not in "value_loss" and "latest_loss".
_VALIDATION = re.compile(r"(?<![A-Za-z])(?i:val|valid|validation|test|eval)(?![a-z])")
_PART = re.compile(r"(?<![A-Za-z])(?i:train|training|val|valid|validation|test|eval)(?![a-z])")
_BETWEEN = " /_.:-"
# The last part of a name that tells which batch it was, in words: "batch", "sample_ids".
_INDEX = re.compile("(?:batch|sample)(?: (?:index|idx|indices|ids?|number|hash))?")
# The names under which a trace writes learning rates.
_RATE = re.compile(r"lr(/\d+)?(/group\d+)?$")
_PREFIX = re.compile("([^/]+)/|([^.0-9][^.]*)[.]")


@dataclass(frozen=True)
class MetricPanel:
    """Metrics that are drawn into one panel.

    Attributes:
        name: What it shows: ``LOSS``, ``ACCURACY``, or what the names of its metrics have in common.
        group: The prefix of these names, ``FURTHER`` for those that have none in common with others.
        curves: The curves of each run.
    """

    name: str
    group: str
    curves: tuple[tuple[Curve, ...], ...]

    @property
    def title(self) -> str:
        """Its name, with its prefix."""
        return self.name if self.group in (self.name, FURTHER) else f"{self.group}/{self.name}"

    @property
    def empty(self) -> bool:
        """Whether nothing of it was logged."""
        return not any(self.curves)


def is_validation(name: str) -> bool:
    """Whether a metric's name says that it is of validation."""
    return _VALIDATION.search(name) is not None


def is_batch(name: str) -> bool:
    """Whether a metric tells which batch a step of the training was, and is no measure of it.

    The last part of its name is ``batch`` or ``sample``, or one of these with ``index``, ``idx``, ``indices``, ``id``,
    ``ids``, ``number`` or ``hash``, as in ``train/batch`` and ``sampleIdx``.
    """
    if is_validation(name) or panel_of(name) is not None:
        return False
    last = re.split("[/.]", _stem(name))[-1]
    return _INDEX.fullmatch(" ".join(_WORD.findall(last)).lower()) is not None


def is_share(curve: Curve) -> bool:
    """Whether a metric's numbers can be a share of something, as they are or per cent."""
    numbers = [number for number in (*curve.low, *curve.high) if math.isfinite(number)]
    return not numbers or (min(numbers) >= 0 and max(numbers) <= 100)


@lru_cache(maxsize=8192)
def panel_of(name: str, loss: str = "", accuracy: str = "") -> str | None:
    """Whether a metric is a ``LOSS`` or an ``ACCURACY``, by the words of its name; None for neither.

    Args:
        name: The metric's name.
        loss: A regular expression that decides which metrics are losses instead.
        accuracy: Likewise, of accuracies.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    if matching([name], loss) if loss else _is_loss(words):
        return LOSS
    return ACCURACY if (matching([name], accuracy) if accuracy else _is_accuracy(words)) else None


def _is_loss(words: Sequence[str]) -> bool:
    places = [place for place, word in enumerate(words) if _LOSS_WORD.fullmatch(word)]
    return bool(places) and not any(map(_NO_LOSS.fullmatch, words[places[0] :]))


def _is_accuracy(words: Sequence[str]) -> bool:
    top = any(word == "top" and after.isdigit() for word, after in itertools.pairwise(words))
    return (top or any(map(_ACCURACY_WORD.fullmatch, words))) and _NO_ACCURACY.isdisjoint(words)


def chosen(snapshots: Sequence[Snapshot], options: ViewOptions) -> list[str]:
    """The names of the metrics that are drawn."""
    names = list(dict.fromkeys(curve.name for snapshot in snapshots for curve in snapshot.curves))
    hidden = set(matching(names, options.hide)) if options.hide else set()
    return [name for name in matching(names, options.metrics) if name not in hidden]


def only_chosen(snapshots: Sequence[Snapshot], options: ViewOptions) -> list[Snapshot]:
    """The snapshots without the metrics that are not drawn."""
    names = set(chosen(snapshots, options))
    return [replace(run, curves=tuple(curve for curve in run.curves if curve.name in names)) for run in snapshots]


def panels(snapshots: Sequence[Snapshot], options: ViewOptions) -> tuple[list[MetricPanel], list[MetricPanel]]:
    """The panels of metrics, with the curves of each run, smoothed as the options ask.

    Returns:
        First loss and accuracy, and these also while they are empty, unless only some metrics are asked for. Then a
        panel for each further metric, of which validation stands beside training, in groups by prefix.
    """
    curves: dict[str, list[list[Curve]]] = {name: [[] for _ in snapshots] for name in chosen(snapshots, options)}
    for run, snapshot in enumerate(snapshots):
        for curve in snapshot.curves:
            if curve.name in curves:
                long = options.smoothing and len(curve.mean) > FEW_POINTS
                smooth = smoothed(curve.mean, options.smoothing) if long else None
                shown = held(curve, snapshot) if _RATE.match(curve.name) else replace(curve, smooth=smooth)
                curves[curve.name][run].append(shown)

    def panel(name: str, group: str, names: Sequence[str]) -> MetricPanel:
        of_runs = zip(*(curves[name] for name in names), strict=True) if names else ([] for _ in snapshots)
        return MetricPanel(name, group, tuple(tuple(c for of_name in of_run for c in of_name) for of_run in of_runs))

    named: dict[str, list[str]] = {LOSS: [], ACCURACY: []}
    further: list[str] = []
    for name, of_runs in curves.items():
        kind = panel_of(name, options.loss, options.accuracy)
        if kind == ACCURACY and not options.accuracy and not all(is_share(c) for of_run in of_runs for c in of_run):
            kind = None
        (further if kind is None else named[kind]).append(name)
    main = []
    for kind, names in named.items():
        kept = _handful(names)
        further += [name for name in names if name not in kept]
        if kept or not (options.metrics or options.hide):
            main.append(panel(kind, kind, kept))
    return main, [panel(*titled) for titled in _grouped(further)]


def held(curve: Curve, snapshot: Snapshot) -> Curve:
    """A learning rate, which the trace writes where it changes: it holds until the next change, at last until now."""
    if not len(curve.step):
        return curve
    ends = [*(step - 1 for step in curve.step[1:]), max(curve.step[-1], snapshot.last_step or 0)]
    times = [*curve.time, max(curve.time[-1], snapshot.last_time or 0.0)] if curve.time else [0.0] * (len(ends) + 1)
    points = []
    for at, end in enumerate(ends):
        points.append((curve.step[at], curve.mean[at], curve.low[at], curve.high[at], times[at]))
        if end > curve.step[at]:
            newest = curve.last if at == len(ends) - 1 else curve.mean[at]
            points.append((end, newest, newest, newest, times[at + 1]))
    step, mean, low, high, time = zip(*points, strict=True)
    return replace(curve, step=step, mean=mean, low=low, high=high, time=time if curve.time else ())


def _handful(names: Sequence[str]) -> list[str]:
    """As many names as one panel has room for, those of the fewest words first; training and validation together."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(_stem(name).lower(), []).append(name)
    kept: list[str] = []
    for stem in sorted(stems, key=lambda stem: len(_WORD.findall(stem))):
        if kept and len(kept) + len(stems[stem]) > _HANDFUL:
            break
        kept += stems[stem]
    return [name for name in names if name in kept]


def _grouped(names: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """A panel for each name, or for those of training and validation: its title, its group, and its names."""
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(_stem(name), []).append(name)
    groups: dict[str, list[str]] = {}
    for stem in stems:
        found = _PREFIX.match(stem)
        groups.setdefault(found[0] if found else "", []).append(stem)
    # A group of one would take the room of several.
    alone = [stems_of[0] for prefix, stems_of in groups.items() if prefix and len(stems_of) == 1]
    together = {"": [*groups.get("", []), *alone]} | {
        prefix: stems_of for prefix, stems_of in sorted(groups.items()) if prefix and len(stems_of) > 1
    }
    panels = []
    for prefix, stems_of in together.items():
        for stem in stems_of:
            title = stem if len(stems[stem]) > 1 or prefix else stems[stem][0]
            ordered = sorted(stems[stem], key=is_validation)
            panels.append((title.removeprefix(prefix), prefix.rstrip("/.") or FURTHER, ordered))
    return panels


def _stem(name: str) -> str:
    """A name without its word for training or validation."""
    found = _PART.search(name)
    if found is None:
        return name
    before, after = name[: found.start()], name[found.end() :]
    # Of what stood on both sides of the word, one is enough.
    rest = before + after.lstrip(_BETWEEN) if before else after
    return rest.strip(_BETWEEN) or name


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """An exponential moving average without the bias of its beginning, as TensorBoard draws it.

    What is not finite stands in its place and is not averaged, and a constant is left as it is; the formula is that of
    ``classicSmoothing`` in TensorBoard's ``line_chart_v2/data_transformer.ts``.

    Args:
        values: The numbers, in order.
        weight: How much of the average each number inherits: 0 for none, less than 1.
    """
    if len(set(values)) <= 1:
        return list(values)
    average, counted = 0.0, 0
    averages = []
    for value in values:
        if not math.isfinite(value):
            averages.append(value)
            continue
        average = average * weight + (1 - weight) * value
        counted += 1
        averages.append(average / (1 - weight**counted))
    return averages
