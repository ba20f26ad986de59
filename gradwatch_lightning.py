"""What Lightning loads in every trainer, wherever this is installed: a trace, if ``GRADWATCH`` names a path.

It lies outside of ``tracer``, and imports it only where it is asked for: a user's own ``tracer.py`` would hide it, and
then no trainer of that user would start.
"""

import os
from typing import Any


def callbacks() -> list[Any]:
    """The callbacks that are added to a trainer: ``GRADWATCH=runs/a python train.py`` needs no code."""
    if not (path := os.environ.get("GRADWATCH")):
        return []
    from tracer.integrations.lightning import Gradwatch

    return [Gradwatch(path)]
