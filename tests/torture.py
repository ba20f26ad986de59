"""How long tests of promises go on, and what they saw: ``make torture`` goes on for longer, and prints a table."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

# Set by `make torture`; 0 in `make test-all`.
FACTOR = int(os.environ.get("GRADWATCH_TORTURE", "0"))

# What the documentation promises in "Nothing is lost", by the tests that try to break it.
PROMISES = {
    "faults/test_untouched.py": "Training is untouched",
    "faults/test_failing_calls.py": "Nothing raises into training",
    "faults/test_kills.py": "A killed process loses at most one cadence",
    "faults/test_ends.py": "Normal ends lose nothing",
    "faults/test_disks.py": "A full, read-only, slow or vanished disk costs no row",
    "faults/test_children.py": "Children never write into the parent's log",
    "faults/test_many_ranks.py": "Ranks never collide",
    "distributed/test_nodes.py": "Ranks never collide",
    "faults/test_bytes.py": "Every flipped byte is found",
    "faults/test_concurrent.py": "Readers are exact",
    "remote/test_readers.py": "Readers are exact",
    "faults/test_soak.py": "A run of a million steps",
    "remote/test_outages.py": "An object store",
}
_SEEN: dict[str, Counter[str]] = {promise: Counter() for promise in PROMISES.values()}


def often(quick: int, torture: int) -> int:
    """How often to do something: in `make test-all`, and in `make torture`, where the factor is 10."""
    return max(1, torture * FACTOR // 10) if FACTOR else quick


def seen(file: Path) -> Counter[str]:
    """What the tests of a file's promise counted so far."""
    return _SEEN[PROMISES[file.relative_to(Path(__file__).parent).as_posix()]]


def table() -> Iterator[str]:
    """A line for each promise: what its tests counted."""
    width = max(map(len, _SEEN))
    yield f"{'promise':<{width}}  in this run"
    for promise, counts in _SEEN.items():
        figures = ", ".join(f"{what.replace('_', ' ')}: {count:,}" for what, count in counts.items())
        yield f"{promise:<{width}}  {figures or 'nothing was counted'}"
