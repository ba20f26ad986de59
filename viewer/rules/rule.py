"""Parts that rules share: their declaration, what they decide, and how long something lasted.

A rule is a function below its declaration, ``@rule(…)``. From ``(evidence, limits)`` it decides on cases, which become
findings in the declared words. It reads nothing else, changes nothing, and costs the same however long the run is.
A rule on parameters, ``@param_rule(…)``, gets ``(evidence, tables, limits)``, and is asked once there are rows. It sees
slices of parameters only if it asks for them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps

import numpy as np
import numpy.typing as npt

from viewer.reduce.cells import Floats, Integers
from viewer.reduce.modules import ModuleTables
from viewer.reduce.param_history import ParamTables
from viewer.rules.evidence import Evidence, Moment
from viewer.snapshot import Batch, Finding, Number, Severity

# So many batches are said.
_BATCHES = 4

# The thresholds by name; a rule finds its own by their short names, too.
Limits = Mapping[str, float]


@dataclass(frozen=True)
class Threshold:
    """A number that decides whether there is a finding.

    Attributes:
        default: The number, unless a user gives another.
        meaning: What it says.
        source: Where it comes from, or why it is not another one.
    """

    default: float
    meaning: str
    source: str


@dataclass(frozen=True)
class Case:
    """A case of what a rule looks for.

    Attributes:
        param: The parameter, or the first of several; None where it is none's.
        first_step: Where it began.
        last_step: Where it was seen last.
        numbers: Those that decided.
        params: All parameters that have it.
        severity: How bad it is, where that is not as declared.
        words: What else the title and the sentence say.
        steps: Each step where it happened, of what happens at single steps.
        advice: What to do about it, where that is not as declared.
        noun: What ``params`` are: parameters, or slices of some.
        moment: The step of which the batch is said.
    """

    param: str | None
    first_step: int
    last_step: int
    numbers: Mapping[str, Number] = field(default_factory=dict)
    params: tuple[str, ...] = ()
    severity: Severity | None = None
    words: Mapping[str, object] = field(default_factory=dict)
    steps: tuple[int, ...] = ()
    advice: str = ""
    noun: str = "parameter"
    moment: Moment | None = None


Decide = Callable[[Evidence, Limits], list[Case]]
DecideOnParams = Callable[[Evidence, ParamTables, Limits], list[Case]]


@dataclass(frozen=True)
class Rule:
    """A rule: what its findings say, and the function that decides whether there are any.

    Title and sentence have placeholders: the names of a case's numbers and words; ``{first}``, the parameter in front,
    ``{others}``, which says that there are more, and ``{params}``, which counts them; ``{first_step}``; and the
    thresholds, as ``{limits[rows]}``.

    Attributes:
        kind: Which illness, in one word, with which the names of its thresholds begin.
        title: What it is in a few words.
        severity: How bad it is, unless a case says otherwise.
        sentence: What it is.
        advice: What people usually try.
        thresholds: By their short names.
        decide: The function.
        on_params: Whether it is on parameters, which are the likely cause of what others see.
    """

    kind: str
    title: str
    severity: Severity
    sentence: str
    advice: str
    thresholds: Mapping[str, Threshold]
    decide: Decide
    on_params: bool

    def findings(self, evidence: Evidence, limits: Limits) -> list[Finding]:
        """The findings of a run, with every rule's thresholds given."""
        limits = {**limits, **{name: limits[f"{self.kind}.{name}"] for name in self.thresholds}}
        return [
            self._finding(case, limits, () if case.moment is None else evidence.batches(case.moment))
            for case in self.decide(evidence, limits)
        ]

    def _finding(self, case: Case, limits: Limits, batches: Sequence[Batch]) -> Finding:
        several = len(case.params) > 1
        words = {
            **case.numbers,
            "first": case.param,
            "others": " and others" if several else "",
            "params": f"{len(case.params)} {case.noun}s, first {case.param}" if several else case.param,
            "first_step": case.first_step,
            "limits": limits,
            **case.words,
        }
        return Finding(
            kind=self.kind,
            title=self.title.format_map(words),
            severity=case.severity or self.severity,
            param=case.param,
            first_step=case.first_step,
            last_step=case.last_step,
            sentence=_with_batches(self.sentence.format_map(words), batches),
            advice=case.advice or self.advice,
            numbers=case.numbers,
            params=case.params,
            steps=case.steps,
            batches=tuple(batches),
        )


def _with_batches(sentence: str, batches: Sequence[Batch]) -> str:
    """A sentence that says which batches its step was: behind the step, or at the end where it does not name it."""
    if not batches:
        return sentence
    step, words = f"step {batches[0].step:,}", _in_words(batches)
    before, named, after = sentence.partition(step)
    return f"{before}{step} ({words}){after}" if named else f"{sentence} {step.capitalize()} was {words}."


def _in_words(batches: Sequence[Batch]) -> str:
    """The numbers of each name, with their ranks where these differ."""
    parts = []
    for name in dict.fromkeys(batch.name for batch in batches):
        own: dict[int, list[int]] = {}
        for batch in batches:
            if batch.name == name:
                own.setdefault(batch.rank, []).append(batch.value)
        alike = all(values == next(iter(own.values())) for values in own.values())
        said = own if not alike else dict([next(iter(own.items()))])
        numbers = [f"{value:,}{'' if alike else f' of rank {rank}'}" for rank in said for value in said[rank]]
        more = f" and {len(numbers) - _BATCHES:,} more" if len(numbers) > _BATCHES else ""
        parts.append(f"{name} {', '.join(numbers[:_BATCHES])}{more}")
    return "; ".join(parts)


def rule(
    kind: str, *, title: str, severity: Severity, sentence: str, advice: str = "", **thresholds: Threshold
) -> Callable[[Decide], Rule]:
    """Declare the rule that a function decides on; the arguments are attributes of ``Rule``."""
    return lambda decide: Rule(kind, title, severity, sentence, advice, thresholds, decide, on_params=False)


def param_rule(
    kind: str,
    *,
    title: str,
    severity: Severity,
    sentence: str,
    advice: str,
    slices: bool = False,
    **thresholds: Threshold,
) -> Callable[[DecideOnParams], Rule]:
    """Declare a rule on parameters, likewise; whether it is one on slices of parameters, too."""

    def declared(decide: DecideOnParams) -> Rule:
        @wraps(decide)
        def with_tables(evidence: Evidence, limits: Limits) -> list[Case]:
            evidence = evidence if slices else evidence.whole
            return [] if evidence.tables is None else decide(evidence, evidence.tables, limits)

        return Rule(kind, title, severity, sentence, advice, thresholds, with_tables, on_params=True)

    return declared


@dataclass(frozen=True)
class Stretch:
    """Longest stretch of bins in which something held, of each parameter or module.

    Attributes:
        steps: Its first step and its last one.
        rows: How many rows it has, those of all ranks at a step as one; 0 where it never held.
    """

    steps: tuple[Integers, Integers]
    rows: Floats


def longest(tables: ParamTables | ModuleTables, holds: npt.NDArray[np.bool_], rows: Floats) -> Stretch:
    """The longest stretch in which something held, bins without a row passed over.

    Args:
        tables: The tables whose bins they are.
        holds: Of shape (bins, parameters), or (bins, modules).
        rows: How many rows count in each cell.
    """
    count = rows.shape[1]
    first, best_first, best_last = (np.zeros(count, np.int64) for _ in range(3))
    run, best = np.zeros(count), np.zeros(count)
    for place, (held, weight) in enumerate(zip(holds, rows, strict=True)):
        first = np.where(held & (run == 0), place, first)
        run = np.where(held, run + weight, np.where(weight > 0, 0, run))
        longer = run > best
        best_first, best_last = np.where(longer, first, best_first), np.where(longer, place, best_last)
        best = np.where(longer, run, best)
    return Stretch((tables.begins[best_first], tables.ends[best_last]), best / tables.ranks)


def wholes_and_slices(tables: ParamTables, numbers: Integers) -> tuple[Integers, Integers]:
    """Part the numbers of parameters from those of slices; a slice is left out where its parameter is among them."""
    of_slices = numbers[~np.isin(tables.wholes[numbers], numbers)]
    return numbers[tables.whole[numbers]], of_slices


def cases_of(
    tables: ParamTables,
    numbers: Integers,
    steps: tuple[npt.ArrayLike, npt.ArrayLike],
    severity: Severity | None = None,
    words: Mapping[str, object] | None = None,
    advice: str = "",
    **decided: npt.ArrayLike,
) -> list[Case]:
    """One case of all parameters that have an illness, the one that had it first in front; none without any.

    Args:
        tables: The parameters' tables.
        numbers: The parameters that have it, or the slices.
        steps: The first and the last step, of each parameter or of all.
        severity: How bad it is, where that is not as declared.
        words: What else the title and the sentence say.
        advice: What to do about it, where that is not as declared.
        **decided: The numbers that decided, of each parameter or of all; those of the parameter in front are said.
    """
    if not len(numbers):
        return []
    shape = len(tables.params)
    begins, ends = (np.broadcast_to(step, shape)[numbers] for step in steps)
    numbers = numbers[np.argsort(begins, kind="stable")]
    names = tuple(tables.params[number] for number in numbers)
    front: dict[str, Number] = {name: np.broadcast_to(of, shape)[numbers[0]].item() for name, of in decided.items()}
    said = {**front, "parameters": len(np.unique(tables.wholes[numbers]))}
    noun = "parameter" if tables.whole[numbers[0]] else "slice"
    begin, end = int(begins.min()), int(ends.max())
    return [Case(names[0], begin, end, said, names, severity, words or {}, advice=advice, noun=noun)]
