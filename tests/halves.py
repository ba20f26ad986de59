"""Of many cases alike, `make test` runs the first, and `make test-all` runs each."""

from collections.abc import Iterable
from typing import Any

import pytest


def first_of(cases: Iterable[Any]) -> list[Any]:
    """The cases of a test, all slow but the first."""
    first, *others = cases
    return [first, *(_marked(case, pytest.mark.slow) for case in others)]


def smoke_of(cases: Iterable[Any]) -> list[Any]:
    """The cases of a test in a slow file, the first a smoke test."""
    first, *others = cases
    return [_marked(first, pytest.mark.smoke), *others]


def _marked(case: Any, mark: pytest.MarkDecorator) -> Any:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=mark)
