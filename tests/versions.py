"""Which torch is installed, for tests of what only some releases of it can do."""

from importlib.metadata import version

import pytest

TORCH = tuple(int(number) for number in version("torch").split(".")[:2])

# On a CPU: before torch 2.6 fully_shard is private, and there it asks a CPU's stream for an event.
HAS_FULLY_SHARD = TORCH > (2, 6)
needs_fully_shard = pytest.mark.skipif(not HAS_FULLY_SHARD, reason="torch 2.6 cannot run fully_shard on a CPU")
needs_dtensor = pytest.mark.skipif(TORCH < (2, 5), reason="DTensor is private before torch 2.5")
