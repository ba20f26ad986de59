"""How long tests of promises go on, and what they saw: ``make torture`` goes on for longer, and prints a table."""

import os
from collections import Counter
from collections.abc import Iterator

# Set by `make torture`; 0 in `make test`.
FACTOR = int(os.environ.get("GRADWATCH_TORTURE", "0"))

# What was counted, by promise and test.
SEEN: dict[tuple[str, str], Counter[str]] = {}


def often(quick: int, torture: int) -> int:
    """How often to do something: so often in `make test`, and so often in `make torture`, where the factor is 10."""
    return max(1, torture * FACTOR // 10) if FACTOR else quick


def table() -> Iterator[str]:
    """A line for each test that counted something: its promise, its name, its counts."""
    rows = [("promise", "test", "figures of this run")]
    for (promise, test), counts in sorted(SEEN.items()):
        figures = ", ".join(f"{what.replace('_', ' ')}: {count:,}" for what, count in counts.items())
        rows.append((promise, test, figures))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for promise, test, figures in rows:
        yield f"{promise:<{widths[0]}}  {test:<{widths[1]}}  {figures}"
