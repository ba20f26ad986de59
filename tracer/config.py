"""A training's hyper-parameters, as run.json holds them: JSON's own values, and everything else by its repr."""

import json
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tracer.log.run import Run
from tracer.warn import encodable, warn

# run.json is read whole by everything that looks at a run.
_LARGEST_BYTES = 1 << 20
_LONGEST_REPR, _DEEPEST, _NAMED = 1000, 20, 5
# Larger integers are exact in Python alone.
_BEYOND_INTEGERS = 1 << 63


@dataclass(frozen=True)
class Config:
    """The hyper-parameters of a training.

    Attributes:
        values: What run.json holds of them.
        by_repr: The names of those that JSON has not: they stand there by their repr.
    """

    values: Mapping[str, Any]
    by_repr: tuple[str, ...]

    @classmethod
    def of(cls, given: object) -> "Config":
        """Take the argument ``config`` of ``attach``.

        Raises:
            TypeError: it is no mapping.
            ValueError: it is larger than 1 MiB.
        """
        if not isinstance(given, Mapping | None):
            raise TypeError(f"config={_repr(given)} must be a dict of hyper-parameters, such as vars(args)")
        by_repr: list[str] = []
        values = _values(given or {}, "", by_repr, ())
        size_bytes = len(json.dumps(values))
        if size_bytes > _LARGEST_BYTES:
            raise ValueError(
                f"config has {size_bytes:,} bytes as JSON, more than {_LARGEST_BYTES:,}: give hyper-parameters alone"
            )
        return cls(values, tuple(by_repr))

    def say_by_repr(self) -> None:
        """Warn of what stands by its repr."""
        if self.by_repr:
            warn(f"config holds what JSON has not, which is recorded by its repr: {_first(self.by_repr)}")

    def say_other(self, run: Run) -> None:
        """Warn if a run that goes on was begun with other hyper-parameters: run.json is written once."""
        known = run.config
        other = [name for name in {**known, **self.values} if known.get(name) != self.values.get(name)]
        if self.values and other:
            warn(
                f"{run.path} was begun with another config, which stays in its run.json; it differs in {_first(other)}"
            )


def _first(names: list[str] | tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _values(given: Mapping[Any, Any], prefix: str, by_repr: list[str], holders: tuple[int, ...]) -> dict[str, Any]:
    keys = {key: encodable(key) if isinstance(key, str) else _repr(key) for key in given}
    return {name: _value(given[key], f"{prefix}{name}", by_repr, holders) for key, name in keys.items()}


def _value(given: Any, name: str, by_repr: list[str], holders: tuple[int, ...]) -> Any:
    """A value as JSON has it; the names of those that it has not are added to ``by_repr``.

    Args:
        given: The value.
        name: Its name.
        by_repr: The names.
        holders: The ids of what the value stands in, as a list may hold itself.
    """
    if given is None or isinstance(given, bool):
        return given
    if isinstance(given, str):
        return encodable(given)
    # numpy's numbers, too. JSON has no NaN.
    if isinstance(given, numbers.Integral):
        if -_BEYOND_INTEGERS <= int(given) < _BEYOND_INTEGERS:
            return int(given)
    elif isinstance(given, numbers.Real) and math.isfinite(given):
        return float(given)
    if id(given) not in holders and len(holders) < _DEEPEST:
        within = *holders, id(given)
        if isinstance(given, Mapping):
            return _values(given, f"{name}.", by_repr, within)
        if isinstance(given, list | tuple):
            return [_value(item, f"{name}.{place}", by_repr, within) for place, item in enumerate(given)]
    by_repr.append(name)
    return _repr(given)


def _repr(given: object) -> str:
    try:
        text = encodable(repr(given))
    except Exception:
        # Whatever its class does.
        text = f"<{type(given).__name__}>"
    return text if len(text) <= _LONGEST_REPR else f"{text[:_LONGEST_REPR]}…"
