"""Evidence: all that the rules know of a run, reduced, bounded in memory, and kept up to date."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tracer.log.ranks import State
from tracer.log.run import OWN_METRICS, Run, own_metrics_since
from tracer.log.schema import slices_among
from viewer.reduce.cells import Integers
from viewer.reduce.depth import listed
from viewer.reduce.history import History
from viewer.reduce.metrics import ACCURACY, LOSS, is_share, is_validation, panel_of
from viewer.reduce.modules import ModuleHistory, ModuleTables
from viewer.reduce.param_history import ParamHistory, ParamTables
from viewer.reduce.rank_history import RankHistory, RankTables
from viewer.snapshot import Batch, Curve

# Of each kind of event of a rank so many are kept.
_EVENTS = 1000
_LARGEST_SIZE = 1 << 48


@dataclass(frozen=True)
class Param:
    """A parameter as ``run.json`` describes it; one that joined later has no shape."""

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
    trainable: bool = True


@dataclass(frozen=True)
class Event:
    """A row of the table ``events``."""

    step: int
    rank: int
    kind: str
    param: str | None
    detail: str


@dataclass(frozen=True)
class Discarded:
    """Backwards with numbers that were not finite, whose gradients no update used.

    Attributes:
        first_step: The step before whose update the first one came.
        last_step: Likewise the last.
        backwards: How many there were.
        params: The parameters whose gradients were not finite, as they were first seen.
    """

    first_step: int
    last_step: int
    backwards: int
    params: tuple[str, ...]


@dataclass(frozen=True)
class Moment:
    """Something that happened in one step, which is among some steps: the first in which the log has it.

    Attributes:
        first: The first of these steps.
        last: The last of them.
        metric: The metric that was not finite, if it is about one.
        param: Else the parameter whose gradient or value it is about.
        beyond: What the gradient's magnitude was larger than; None where a number was not finite.
    """

    first: int
    last: int
    metric: str | None = None
    param: str | None = None
    beyond: float | None = None


def _unknown(moment: Moment) -> tuple[Batch, ...]:
    return ()


@dataclass(frozen=True)
class Evidence:
    """A run at one moment, for the rules. Immutable.

    Attributes:
        state: Whether it goes on.
        tables: Every parameter over the run; None before the first row.
        ranks: Every rank over the run; None of one rank.
        modules: The outputs of every module over the run; None where none are recorded.
        curves: The metrics.
        events: What happened to the trace.
        discarded: The backwards with bad numbers that the loop threw away.
        described: The parameters as ``run.json`` describes them, by name.
        dropped: How many rows could not be written, as far as is known.
        reasons: The exceptions that ended ranks.
        silent: The ranks that neither closed nor live.
        problems: What could not be read.
        complete: False while a closed run's last rows are still to arrive.
        own_metrics: The names of the metrics that the trace writes itself; others are the user's.
        loss: A regular expression: the metrics that are losses; "" for those with a word for it in their name.
        accuracy: Likewise, accuracies.
        batches: Looks up in the log which batches a moment was.
    """

    state: State = "running"
    tables: ParamTables | None = None
    ranks: RankTables | None = None
    modules: ModuleTables | None = None
    curves: tuple[Curve, ...] = ()
    events: tuple[Event, ...] = ()
    discarded: Discarded | None = None
    described: Mapping[str, Param] = field(default_factory=dict)
    dropped: int = 0
    reasons: tuple[str, ...] = ()
    silent: tuple[int, ...] = ()
    problems: tuple[str, ...] = ()
    complete: bool = True
    own_metrics: frozenset[str] = frozenset(name for names in OWN_METRICS.values() for name in names)
    loss: str = ""
    accuracy: str = ""
    batches: Callable[[Moment], tuple[Batch, ...]] = _unknown

    @property
    def last_step(self) -> int:
        """The last step of any row; 0 before the first."""
        steps = [curve.step[-1] for curve in self.curves if len(curve.step)]
        if self.tables is not None:
            steps.append(int(self.tables.ends.max()))
        return max(steps, default=0)

    @property
    def ended(self) -> bool:
        """Whether nothing more is to be expected: it has closed, or was killed."""
        return self.complete if self.state == "closed" else self.state == "stopped" and bool(self.silent)

    @cached_property
    def whole(self) -> "Evidence":
        """The same without slices of parameters, which most rules do not ask for."""
        tables = self.tables
        return self if tables is None or tables.whole.all() else replace(self, tables=tables.only(tables.whole))

    @cached_property
    def params(self) -> list[Param]:
        """The parameters in the order of the tables."""
        names = () if self.tables is None else self.tables.params
        return [self.described.get(name, Param(name)) for name in names]

    @cached_property
    def weights(self) -> npt.NDArray[np.bool_]:
        """Mask of the parameters that are weights of layers: of two dimensions at least, and trained."""
        return np.array([param.trainable and len(param.shape) > 1 for param in self.params], np.bool_)

    @cached_property
    def backward(self) -> Integers:
        """The parameters' numbers in the order in which gradients arrive: the model's turned round, unless recorded."""
        names = [param.name for param in self.params]
        recorded = next((event.detail for event in self.events if event.kind == "order"), "[]")
        place = {name: at for at, name in enumerate(listed(recorded))}
        order = sorted(range(len(names)), key=lambda number: (place.get(names[number], len(place)), -number))
        return np.array(order, np.int64)

    @property
    def losses(self) -> list[Curve]:
        """The metrics that are a training's loss."""
        return [curve for curve in self._of(LOSS) if not is_validation(curve.name)]

    @property
    def validation_losses(self) -> list[Curve]:
        """The metrics that are a validation's loss."""
        return [curve for curve in self._of(LOSS) if is_validation(curve.name)]

    @property
    def accuracies(self) -> list[Curve]:
        """The metrics that are an accuracy, of training or validation: of anything but a share chance says nothing."""
        return [curve for curve in self._of(ACCURACY) if is_share(curve)]

    def _of(self, panel: str) -> list[Curve]:
        return [curve for curve in self.curves if panel_of(curve.name, self.loss, self.accuracy) == panel]

    def own(self, name: str) -> Curve | None:
        """The metric of this name that the trace has written itself."""
        return next((curve for curve in self.curves if curve.name == name and name in self.own_metrics), None)


def _described(param: Mapping[str, Any]) -> Param:
    """A parameter as ``run.json`` describes it, whoever wrote that."""
    shape = param.get("shape")
    known = isinstance(shape, list) and all(isinstance(size, int) and 0 <= size < _LARGEST_SIZE for size in shape)
    dtype, trainable = str(param.get("dtype", "float32")), bool(param.get("trainable", True))
    return Param(param["name"], tuple(shape) if known and shape else (), dtype, trainable)


class Record:
    """Keeps of a run's rows what the rules need, bounded in memory.

    Args:
        run: The run.

    Attributes:
        tables: The tables that it takes rows of.
    """

    tables: tuple[str, ...] = ("events", "metrics", "extremes", "discarded", "activations")

    def __init__(self, run: Run) -> None:
        self._described = {param["name"]: _described(param) for param in run.info["params"]}
        self._own_metrics = set(run.own_metrics)
        stride = max(run.info["settings"].get(name) or 1 for name in ("every", "fold"))
        self._params = ParamHistory(run.names, width=stride)
        self._metrics = History()
        self._ranks = RankHistory()
        self._modules = ModuleHistory(width=stride)
        self._events: list[Event] = []
        self._counts: Counter[tuple[str, int]] = Counter()
        self._discarded: Discarded | None = None

    def absorb(self, table: str, rows: pl.LazyFrame) -> None:
        """Take in rows of one of the tables."""
        if table == "events":
            self._absorb_events(rows)
        elif table == "metrics":
            self._metrics.absorb("metrics", rows)
            self._ranks.absorb_metrics(rows)
        elif table == "discarded":
            self._absorb_discarded(rows)
        elif table == "activations":
            self._modules.absorb(rows)
        else:
            self._params.absorb(rows, self._ranks.absorb_extremes)

    def _absorb_events(self, rows: pl.LazyFrame) -> None:
        for row in rows.select("step", "rank", "kind", "param", "detail").collect().iter_rows():
            event = Event(*row)
            if event.kind in ("resumed", "adopted"):
                self._own_metrics.update(own_metrics_since(event.detail))
            self._counts[event.kind, event.rank] += 1
            if self._counts[event.kind, event.rank] <= _EVENTS:
                self._events.append(event)

    def _absorb_discarded(self, rows: pl.LazyFrame) -> None:
        """Count backwards, whose rows bear one time each."""
        bad = ~(pl.col("grad_min").is_finite() & pl.col("grad_max").is_finite()).fill_null(True)
        frame = rows.select("step", "rank", "time", pl.col("param").cast(pl.String), bad=bad).collect()
        if frame.is_empty():
            return
        before = self._discarded or Discarded(frame["step"][0], 0, 0, ())
        names = frame.filter("bad")["param"].unique(maintain_order=True).to_list()
        # What is bad in a slice is bad in its parameter.
        slices = slices_among(names)
        params = [name for name in names if name not in slices]
        self._discarded = Discarded(
            min(before.first_step, int(frame["step"].min())),  # type: ignore[arg-type]
            max(before.last_step, int(frame["step"].max())),  # type: ignore[arg-type]
            before.backwards + frame.n_unique(["rank", "time"]),
            tuple(dict.fromkeys((*before.params, *params))),
        )

    def evidence(self, **how: Any) -> Evidence:
        """Give all that is known now.

        Args:
            **how: How the run is, as the attributes of ``Evidence``.
        """
        tables = self._params.tables()
        return Evidence(
            tables=tables if len(tables.ends) else None,
            ranks=self._ranks.tables(),
            modules=self._modules.tables(),
            curves=tuple(self._metrics.curves()),
            events=tuple(self._events),
            discarded=self._discarded,
            described=self._described,
            own_metrics=frozenset(self._own_metrics),
            **how,
        )
