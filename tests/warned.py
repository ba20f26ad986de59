"""Which warnings are errors in tests: every one, but for what a library says of itself."""

import warnings

# As in pyproject.toml, which holds while modules are imported.
_OTHERS = r"(?!tracer|viewer|tests|benchmarks)"
_OF_TORCH = (
    # Torch 2.11, once a process, of the first sparse tensor that it makes, for whomever.
    "Sparse invariant checks are implicitly disabled",
    # Its compiler, on the one Python that it does not like.
    "Guards may run slower on Python 3.13.0",
)


def make_errors() -> None:
    """Let warnings raise from now on, within ``warnings.catch_warnings``."""
    warnings.simplefilter("error")
    ignore_others()


def ignore_others() -> None:
    """Ignore what a library says of itself, whatever the filter for other warnings.

    It may call what another one, or itself, has deprecated: torch 2.4 in checkpoints, torch 2.13 in its compiler, an
    old typer what a new click will drop. A call of ours is told by its module.
    """
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, module=_OTHERS)
    for words in _OF_TORCH:
        warnings.filterwarnings("ignore", words)
