"""What tests of reading share."""

import pytest

from viewer.read.follow import Follower


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is read in a batch of its own, as those of a long run are."""
    monkeypatch.setattr(Follower, "batch_bytes", 1)
