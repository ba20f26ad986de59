"""Where hooks leave what they saw: a note, or the extremes themselves; notes are read at the end of their backward.

A hook runs with cold caches, and all that it does is slow. So it only notes that a gradient has come, and one loop
reads all that was noted, once the engine has run the backward's last hook. That is exact where nothing changes a
gradient in between. Each note tells: it holds which gradient it was, and how often it and the parameter had been
written to. A write through ``.data`` does not count as one. Therefore no gradient is read late before a whole backward
has been read both ways, with the same outcome; see ``Probation``.
"""

import torch

from tracer.extremes import flat
from tracer.items import GRADIENT, LOST, VALUE
from tracer.kernel import Places, Reducer

# The id of no backward, not even of what runs outside of one.
CLOSED = -2
# One measured step in so many is read both ways.
_STEPS_OF_TRUST = 64


class Direct:
    """Where a hook may write extremes itself, or note that they are to be read, in the backward of an open batch.

    Most parameters need two reductions and nothing else. The code for all other cases would take longer than these two.

    Attributes:
        value: Where the value's minimum and maximum go.
        gradient: Likewise, the gradient's.
        batch: The batch of the buffer that these lie in.
        index: The parameter's index there.
        reducer: What reads many of its dtype and device at once, if anything does.
    """

    __slots__ = (
        "__weakref__",
        "_contiguous",
        "_identity",
        "_version",
        "_writes",
        "batch",
        "gradient",
        "index",
        "reducer",
        "tensor",
        "value",
    )

    def __init__(
        self,
        tensor: torch.Tensor,
        value: Places,
        gradient: Places,
        batch: "Batch",
        index: int,
        reducer: Reducer | None = None,
    ) -> None:
        self.tensor = tensor
        self.value = value
        self.gradient = gradient
        self.batch = batch
        self.index = index
        self.reducer = reducer
        # Asked once: a gradient nearly always lies as its parameter does, and is copied where it does not.
        self._contiguous = tensor.is_contiguous()
        self._identity = self._writes = self._version = 0

    def note(self) -> None:
        """Note that a gradient has been accumulated.

        Raises:
            AttributeError: there is none.
        """
        # The gradient itself is not kept: where a backward fails for lack of memory, the loop may free it.
        gradient = self.tensor.grad
        self._identity, self._writes = id(gradient), gradient._version  # type: ignore[union-attr]
        self._version = self.tensor._version
        self.batch.notes.append(self)

    def reduce(self) -> None:
        """Write the gradient's extremes, and in a step's first backward the value's.

        Raises:
            Exception: the gradient is missing, sparse, of another dtype, or part of another graph.
        """
        present, index, tensor = self.batch.present, self.index, self.tensor
        gradient: torch.Tensor = tensor.grad  # type: ignore[assignment]
        if not present[index]:
            torch.aminmax(tensor if self._contiguous else flat(tensor), out=self.value)
        torch.aminmax(gradient if self._contiguous else flat(gradient), out=self.gradient)
        present[index] |= VALUE | GRADIENT

    @property
    def pairs(self) -> list[tuple[torch.Tensor, Places]]:
        """What ``reduce`` reads, and where its extremes go.

        Raises:
            ValueError: the gradient is missing, or it or the parameter is not what the places are for.
        """
        gradient = self.tensor.grad
        pairs = [(self.tensor, self.value)] if not self.batch.present[self.index] else []
        if gradient is None or any(
            tensor.dtype is not self.value[0].dtype or tensor.device != self.value[0].device
            for tensor in (self.tensor, gradient)
        ):
            raise ValueError
        return [*pairs, (gradient, self.gradient)]

    def lose(self) -> None:
        """Leave out what has changed since the note. A value that has been written to may not be read later, either."""
        if not self.batch.present[self.index]:
            if not self.written:
                torch.aminmax(flat(self.tensor), out=self.value)
            self.batch.present[self.index] = LOST if self.written else VALUE
        self.batch.present[self.index] &= ~GRADIENT

    @property
    def written(self) -> bool:
        """Whether the parameter has been written to since the note."""
        return self.tensor._version != self._version

    @property
    def changed(self) -> bool:
        """Whether ``reduce`` would read another gradient than was noted, or numbers that were written since."""
        gradient = self.tensor.grad
        if gradient is None or id(gradient) != self._identity or gradient._version != self._writes:
            return True
        return self.tensor._version != self._version and not self.batch.present[self.index]


class Batch:
    """What the hooks of one buffer have noted.

    Args:
        present: A byte for each parameter: its quantities that have been recorded.

    Attributes:
        present: Likewise.
        open_for: The id of the backward whose hooks may write into the buffer, or note; ``CLOSED`` for none.
        noting: Whether they note.
        notes: The parameters whose gradients have come, and have not been read.
    """

    def __init__(self, present: bytearray) -> None:
        self.present = present
        self.open_for = CLOSED
        self.noting = False
        self.notes: list[Direct] = []

    def read(self) -> tuple[list[Direct], list[Direct]]:
        """Read all that was noted; under ``torch.no_grad``, without a host sync.

        Returns:
            Those of which something is lost, since it has changed meanwhile, and those that two reductions do not do.
        """
        changed: list[Direct] = []
        others: list[Direct] = []
        at_once: dict[Reducer, list[Direct]] = {}
        # They are not forgotten before all are read: Ctrl-C may come, and a signal handler read them first.
        notes = self.notes.copy()
        for direct in notes:
            try:
                if direct.changed:
                    direct.lose()
                    changed.append(direct)
                elif direct.reducer is None:
                    direct.reduce()
                else:
                    at_once.setdefault(direct.reducer, []).append(direct)
            except Exception:
                others.append(direct)
        for reducer, many in at_once.items():
            try:
                reducer.reduce([pair for direct in many for pair in direct.pairs])
            except Exception:
                others += many
            else:
                for direct in many:
                    self.present[direct.index] |= VALUE | GRADIENT
        del self.notes[: len(notes)]
        return changed, others


class Probation:
    """Says how the gradients of a backward are read: at its end, if that has proved to be the same.

    Attributes:
        verifying: Whether this backward's are read both ways.
    """

    def __init__(self) -> None:
        self.verifying = False
        self._trusted = self._refused = False

    def begin(self, backward: int, measured: int) -> bool:
        """A backward begins, with this id, after so many measured steps: whether its gradients may be read at its end.

        Not where there is a process group: then a wrapper may reduce gradients over the ranks before the backward ends.
        """
        alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
        late = alone and backward >= 0 and not self._refused
        self.verifying = late and not (self._trusted and measured % _STEPS_OF_TRUST)
        return late

    def end(self, verified: bool) -> None:
        """All gradients of a backward that is verified have come: whether they are what they were when they came."""
        self.verifying, self._trusted, self._refused = False, verified, not verified

    def doubt(self) -> None:
        """A backward's end has not been seen: it raised, was compiled, or another one runs inside of it."""
        self.verifying = self._trusted = False

    def refuse(self) -> None:
        """Something has changed gradients or parameters before the end of a backward."""
        self._refused = True
