"""Which warnings are errors in tests: every one, but for what a library has deprecated and calls itself."""

import warnings

# As in pyproject.toml, which holds while modules are imported.
_OTHERS = r"(?!tracer|viewer|tests|benchmarks)"


def make_errors() -> None:
    """Let warnings raise from now on, within ``warnings.catch_warnings``.

    A library may call what another one, or itself, has deprecated: torch 2.4 in checkpoints, torch 2.13 in its
    compiler, an old typer what a new click will drop. A call of ours is told by its module, and fails.
    """
    warnings.simplefilter("error")
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category, module=_OTHERS)
    # Torch 2.11 says so once a process, of the first sparse tensor that it makes, for whomever.
    warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
