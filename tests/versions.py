"""Which torch and NumPy are installed, for tests of what only some releases of them can do."""

from importlib.metadata import version

import pytest

TORCH = tuple(int(number) for number in version("torch").split(".")[:2])
HAS_FULLY_SHARD = TORCH > (2, 6)

needs_fully_shard = pytest.mark.skipif(
    not HAS_FULLY_SHARD, reason="fully_shard is private before torch 2.6, and there it fails on a CPU"
)
needs_dtensor = pytest.mark.skipif(TORCH < (2, 5), reason="DTensor is private before torch 2.5")
needs_numpy_2 = pytest.mark.skipif(
    int(version("numpy").split(".")[0]) < 2, reason="NumPy 1 rounds otherwise: the counts are those of NumPy 2"
)
