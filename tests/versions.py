"""Which torch is installed, for tests of what only some releases of it can do."""

from importlib.metadata import version

import pytest

TORCH = tuple(int(number) for number in version("torch").split(".")[:2])

needs_fully_shard = pytest.mark.skipif(TORCH < (2, 6), reason="fully_shard is private before torch 2.6")
