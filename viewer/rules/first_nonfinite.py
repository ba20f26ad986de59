"""What is known of the first NaN or infinity of a run: where it was, what it reached, and what was finite before."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from viewer.reduce.cells import Floats
from viewer.reduce.param_history import ParamTables
from viewer.rules.evidence import Evidence
from viewer.rules.values import first_size
from viewer.snapshot import Curve
from viewer.words import MODEL


@dataclass(frozen=True)
class FirstNonFinite:
    """The first step with a number that is not finite.

    Attributes:
        evidence: The run.
        step: That step.
        values: Of each parameter the first step whose value is not finite; -1 for none.
        gradients: Likewise, the gradient.
        metric: The loss that is not finite by then; None where none is.
        known_loss: Whether a loss of the step has been read; live, its rows may come before it.
    """

    evidence: Evidence
    step: int
    values: npt.NDArray[np.int64]
    gradients: npt.NDArray[np.int64]
    metric: Curve | None
    known_loss: bool

    @property
    def what(self) -> str:
        """What is named: a value, since one that an update has spoilt spoils all gradients; a gradient; or the loss."""
        if (self.values == self.step).any():
            return "value"
        return "gradient" if (self.gradients == self.step).any() else "loss"

    @property
    def place(self) -> int | None:
        """The number of the parameter that is named, if any is: of several gradients the one that arrived first."""
        if self.what == "value":
            return int(np.flatnonzero(self.values == self.step)[0])
        return next((int(each) for each in self.evidence.backward if self.gradients[each] == self.step), None)

    @cached_property
    def reached(self) -> list[int]:
        """The parameters that have been reached since, the one that is named in front."""
        both = np.stack([self.values, self.gradients])
        numbers = np.flatnonzero((both >= 0).any(axis=0)).tolist() if both.size else []
        return sorted(numbers, key=lambda number: number != self.place)

    @property
    def at_once(self) -> int:
        """How many were reached in the step itself."""
        return int(((self.values == self.step) | (self.gradients == self.step)).sum())

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks on which it was in the step itself, if it was not on all of them."""
        tables = self.evidence.ranks
        if tables is None or self.what == "loss":
            return ()
        first = [rank for rank, step in zip(tables.ranks, tables.first_bad, strict=True) if step == self.step]
        return tuple(first) if len(first) < len(tables.ranks) else ()

    @property
    def last_step(self) -> int:
        """The last step in which any of what was reached, or the loss, was not finite."""
        tables = self.evidence.tables
        last = [max(curve.nonfinite) for curve in self.evidence.losses if curve.nonfinite]
        if tables is not None and self.reached:
            scaled = self.evidence.own("skipped") is not None
            bad_rows = tables.bad_values if scaled else tables.bad_values + tables.bad_grads
            last.append(int(tables.ends[bad_rows[:, self.reached].any(axis=1)].max()))
        return max(self.step, *last)

    @cached_property
    def forward(self) -> "Forward | None":
        """What the outputs of modules say of the step; None where there are none."""
        tables = self.evidence.modules
        if tables is None:
            return None
        bad = np.flatnonzero(tables.first_bad == self.step)
        if len(bad):
            return Forward(tables.modules[bad[0]], bad[0] == 0, len(tables.modules))
        # Of one that was not finite before, as in a mask or a batch that was thrown away, nobody knows how it was now.
        known = tables.measured(self.step) and not ((tables.first_bad >= 0) & (tables.first_bad < self.step)).any()
        return Forward(None, False, len(tables.modules)) if known else None

    @property
    def sees_outputs(self) -> bool:
        """Whether the recorded modules reach to the model's output: the model itself, or its last layer, is one."""
        modules, order = self.evidence.modules, self.evidence.backward
        last = self.evidence.params[order[0]].name.rpartition(".")[0] if len(order) else ""
        return modules is not None and not {"", last}.isdisjoint(modules.modules)

    @property
    def name(self) -> str:
        """The name of the parameter that is named."""
        return "" if self.place is None else self.evidence.params[self.place].name

    @property
    def symptom(self) -> str:
        """What became NaN or infinite, as a clause."""
        what = f"the {self.what} of {self.name}" if self.place is not None else ""
        if self.metric is not None and self.what != "value":
            what = f"{self.metric.name}, and {what}," if what else self.metric.name
        return f"{what} became NaN or infinite at step {self.step:,}"

    @property
    def has_past(self) -> bool:
        """Whether there are rows of the step, or of any before it."""
        return self.evidence.tables is not None and bool((self.evidence.tables.begins <= self.step).any())

    @property
    def _tables(self) -> ParamTables:
        assert self.evidence.tables is not None
        return self.evidence.tables

    @property
    def steps_before(self) -> int:
        """How many steps the run has had until then."""
        return self.step - int(self._tables.begins[0])

    @cached_property
    def began(self) -> Floats:
        """How large each parameter's values were at first."""
        return first_size(self._tables)

    @cached_property
    def values_before(self) -> "Past":
        """The values, up to the step: they are those before its update."""
        return Past.of(self._tables, self.step + 1, self._tables.size, self._tables.size)

    @cached_property
    def gradients_before(self) -> "Past":
        """The gradients of the steps before."""
        return Past.of(self._tables, self.step, self._tables.grad_high, self._tables.grad_mean)

    @property
    def calm(self) -> str:
        """How values and gradients were, if nothing of them explains the event, as a clause."""
        if not self.has_past:
            return "no row of an earlier step says how values and gradients were"
        known = self._tables.grads[self._tables.begins < self.step].any()
        largest = f"gradients calm ({self.gradients_before.largest:.3g} at most)"
        gradients = largest if known else "no gradient was known before"
        return f"all values were finite and {gradients}"


@dataclass(frozen=True)
class Forward:
    """Where in a step's forward an output was not finite, of those that are recorded.

    Attributes:
        module: The module that ran first of those whose output became NaN or infinite in the step; None for none.
        at_input: Whether no other module ran before it.
        recorded: How many modules are recorded.
    """

    module: str | None
    at_input: bool
    recorded: int

    @property
    def name(self) -> str:
        """The module in words."""
        return self.module or MODEL


@dataclass(frozen=True)
class Past:
    """What was finite until an event.

    Attributes:
        last: Of each parameter the largest number in the last two bins.
        usual: The median of the bins before them, or what it began with.
        since: The step since which it has been ten times as large.
    """

    last: Floats
    usual: Floats
    since: npt.NDArray[np.int64]

    @property
    def factor(self) -> Floats:
        """How many times its median each parameter's last number is; 0 where nothing is known."""
        known = (self.usual > 0) & (self.last > 0)
        return np.divide(self.last, self.usual, where=known, out=np.zeros(len(known)))

    @property
    def largest(self) -> float:
        """The largest number of any parameter."""
        return float(self.last.max(initial=0.0))

    def first_rise(self, factor: float, otherwise: int) -> int:
        """The step in which the first of those that have risen so far began to."""
        return int(np.min(self.since[self.factor > factor], initial=otherwise))

    @classmethod
    def of(cls, tables: ParamTables, step: int, largest: Floats, typical: Floats) -> "Past":
        """Of the largest and the typical number of each bin and parameter, in the bins that begin before a step."""
        until = int((tables.begins < step).sum())
        if not until:
            nothing = np.zeros(len(tables.params))
            return cls(nothing, nothing, np.full(len(nothing), step))
        begins, largest, typical = tables.begins[:until], largest[:until], typical[:until]
        last = np.nanmax(largest[-2:], axis=0, initial=0.0)
        usual = _medians(typical[: max(1, until - 2)])
        calm = ~(largest > 10 * usual)
        # The bin after the last calm one.
        risen = np.where(calm.any(axis=0), until - calm[::-1].argmax(axis=0), 0)
        return cls(last, usual, np.append(begins, step)[risen])


def _medians(numbers: Floats) -> Floats:
    """The median of each column, without NaN; 0 where there is nothing else."""
    known = ~np.isnan(numbers).all(axis=0)
    medians = np.zeros(numbers.shape[1])
    medians[known] = np.nanmedian(numbers[:, known], axis=0)
    return medians


def first_nonfinite(evidence: Evidence) -> FirstNonFinite | None:
    """The first NaN or infinity that is more than a batch which was thrown away; None without any.

    Where a scaler skips steps, gradients may overflow: only values and losses count.
    """
    evidence = evidence.whole
    tables = evidence.tables
    values = gradients = np.zeros(0, np.int64)
    if tables is not None:
        # What is not trained and never was finite, as a mask, was made so.
        frozen = np.array([not param.trainable for param in evidence.params], np.bool_)
        values = np.where(frozen & (tables.first_bad_value == tables.first_step), -1, tables.first_bad_value)
        scaled = evidence.own("skipped") is not None
        gradients = np.full_like(values, -1) if scaled else tables.first_bad_grad
    thrown = evidence.discarded
    spoilt = [curve for curve in evidence.losses if curve.nonfinite]
    if thrown is not None:
        spoilt = [each for each in spoilt if not thrown.first_step <= min(each.nonfinite) <= thrown.last_step]
    steps = [step for step in (*values.tolist(), *gradients.tolist()) if step >= 0]
    steps += [min(curve.nonfinite) for curve in spoilt]
    if not steps:
        return None
    step = min(steps)
    metric = next((curve for curve in evidence.losses if min(curve.nonfinite, default=step + 1) <= step), None)
    known = any(curve.step[-1] >= step for curve in evidence.losses if len(curve.step))
    return FirstNonFinite(evidence, step, values, gradients, metric, known)
