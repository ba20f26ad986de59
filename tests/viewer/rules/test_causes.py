"""Real trainings that end in NaN, each of a known cause: one finding, which names it."""

import pytest

from tests.causes import CAUSES, Cause
from tests.halves import smoke_of
from tests.illnesses import judged
from tracer.log.store import Local as Path
from viewer.snapshot import Severity

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("cause", smoke_of(CAUSES), ids=lambda cause: cause.name)
def test_the_cause_is_named_and_the_event_is_one_finding(cause: Cause, tmp_path: Path) -> None:
    """Whatever else is not finite, or grew on the way, is part of its verdict; nothing is said besides, but notes."""
    _, found = judged(cause.run, tmp_path / "run")
    (event,) = [finding for finding in found if finding.severity is not Severity.NOTE]
    assert (event.kind, event.numbers.get("cause", "")) == (cause.kind, cause.cause)
    assert cause.says in event.sentence
    assert event.advice
    if cause.step is not None:
        assert event.first_step == cause.step
