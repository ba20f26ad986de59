"""The learning rates of optimizers as metrics, whenever they change."""

import time
from collections.abc import Collection, Mapping

import torch
from torch.optim.optimizer import Optimizer

from tracer.items import Number, metric_value
from tracer.outbox import Outbox

# Who logs one of these has the learning rate among the metrics already.
_NAMES = frozenset({"lr", "learning_rate"})


class LearningRates:
    """Writes the metric ``lr`` at each update whose learning rate is another one than at the update before.

    Where the groups of an optimizer differ, there is one for each: ``lr/group0``, ``lr/group1``, … That of a second
    optimizer is ``lr/2``, and so on, in the order of their first updates. It waits for the next update: by then it is
    known whether the loop logs its learning rate itself.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        # What each optimizer's groups had at its last update.
        self._seen: dict[int, tuple[object, ...]] = {}
        self._waiting: tuple[int, int, Mapping[str, Number]] | None = None
        self._logged: set[str] = set()
        self._by_user = False

    def note_logged(self, names: Collection[str]) -> None:
        """The loop has logged metrics of these names."""
        if not self._logged.issuperset(names):
            self._logged.update(names)
            # A framework may have put a prefix before it, or the optimizer's name behind it.
            words = (word for name in names for word in name.lower().replace("-", "/").split("/"))
            self._by_user = self._by_user or not _NAMES.isdisjoint(words)

    def look(self, optimizer: Optimizer, step: int) -> None:
        """An optimizer has updated in this step."""
        if self._by_user:
            return
        if self._waiting is not None:
            self.flush()
        seen = tuple([_mark(group.get("lr")) for group in optimizer.param_groups])
        before = self._seen.get(id(optimizer), ())
        if seen != before:
            self._seen[id(optimizer)] = seen
            self._waiting = step, time.time_ns(), self._changed(optimizer, before, seen)

    def restore(self) -> None:
        """The training goes back to another step: what is written from now on is of another attempt."""
        self.flush()
        # What was said in the attempt that is given up counts no longer.
        self._seen = dict.fromkeys(self._seen, ())

    def flush(self) -> None:
        """Write what waits, unless the loop logs it itself."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not self._by_user:
            self._outbox.log(*waiting)

    def _changed(self, optimizer: Optimizer, before: tuple[object, ...], seen: tuple[object, ...]) -> dict[str, Number]:
        """The learning rates that have changed, by the names of their metrics."""
        place = list(self._seen).index(id(optimizer)) + 1
        name = "lr" if place == 1 else f"lr/{place}"
        rates = [group.get("lr") for group in optimizer.param_groups]
        if len(set(seen)) == 1:
            named = {name: rates[0]}
        else:
            apart = len(set(before)) > 1 and len(before) == len(seen)
            changed = [number for number, mark in enumerate(seen) if not apart or mark != before[number]]
            named = {f"{name}/group{number}": rates[number] for number in changed}
        numbers = {name: metric_value(name, rate) for name, rate in named.items() if rate is not None}
        return {name: number for name, number in numbers.items() if number is not None}


def _mark(rate: object) -> object:
    """What tells whether a learning rate has changed; of a tensor its number is not read, which on a GPU would wait."""
    return (id(rate), rate._version) if isinstance(rate, torch.Tensor) else rate
