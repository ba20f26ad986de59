"""The matrix: the tests on each PyTorch, each Python and the oldest libraries that are supported; ``make matrix``.

Each session makes an environment, installs what ``make dist`` built, runs its part of the tests, and deletes the
environment, since one with PyTorch takes gigabytes. What it saw stays in ``.nox/seen/``, from which the session
``table`` writes docs/matrix.md.
"""

import re
import shutil
import tomllib
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import nox

nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = True

# Where PyTorch has changed what the tracer touches, and the newest.
TORCHES = ("2.4", "2.6", "2.9", "2.11", "2.13", "2.14", "2.15")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
# Compiled steps of torch 2.4 need setuptools, which it does not ask for.
TOOLS = ("pytest>=8.4", "pytest-xdist>=3.8", "hypothesis>=6.100", "setuptools>=70")
SEEN = Path(".nox/seen")
# With PyTorch from the one, without from the other, so that both are tested.
SDIST, WHEEL = (str(next(iter(Path("dist").glob(kind)), kind)) for kind in ("*.tar.gz", "*.whl"))

# fmt: off
CORE = [
    *(
        f"tracer/test_{name}.py"
        for name in (
            "torch", "clock", "hooks", "batch", "steps", "loops", "discarded", "every", "rows", "rearm", "trace", "amp",
            "adopted_scalers", "applied", "dtypes", "extremes", "statistics", "activations", "units", "compiled",
            "notebook", "parameters", "unregistered", "engines", "graphs", "wrappers", "torchscript", "sharded_metrics",
            "gone", "interrupts", "paths", "texts", "warn", "rates", "untrained", "update", "slices",
        )
    ),
    *(f"distributed/test_{name}.py" for name in ("ddp", "fsdp", "tensor_parallel")),
    "test_pandas.py",
]
"""What depends on PyTorch: hooks, steps, loops, mixed precision, dtypes, statistics, compilers, ranks."""

LOG_AND_VIEWER = [
    *(f"tracer/log/test_{name}.py" for name in ("schema", "parts", "read", "run", "system")),
    *(f"viewer/test_{name}.py" for name in ("options", "words", "cli", "ratio")),
    "viewer/read", "viewer/reduce", "viewer/rules/test_findings.py", "viewer/draw", "viewer/diff/test_diff.py",
    *(f"viewer/surfaces/test_{name}.py" for name in ("check", "noticed", "screen", "files", "terminal")),
]
"""What needs no PyTorch: the log and the viewer."""
# fmt: on

QUICK = ("-m", "not slow or smoke")
"""As ``make test`` runs them."""


def _run(session: nox.Session, name: str, tests: list[str], *more: str) -> None:
    """Run tests where only the installed packages can be imported, keep what they saw, and delete the environment."""
    place = Path(session.virtualenv.location, "tree")
    for needed in ("tests", "docs"):
        shutil.copytree(needed, place / needed)
    for needed in ("pyproject.toml", "README.md"):
        shutil.copy(needed, place)
    files = [f"tests/{path}" for path in tests]
    options = ("-q", "-n", "3", "--dist", "loadfile", "--no-loadscope-reorder", *more)
    seen = SEEN.absolute() / f"{name}.xml"
    try:
        with session.chdir(place):
            session.run("python", "-m", "pytest", *files, *options, f"--junitxml={seen}")
    finally:
        shutil.rmtree(session.virtualenv.location)


def _dependencies(extra: str = "") -> list[str]:
    """What the package needs, with the lowest versions that are supported, and what an extra adds."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else [])]


@nox.session(python="3.11")
@nox.parametrize("torch", [nox.param(release, id=release) for release in TORCHES])
def torch(session: nox.Session, torch: str) -> None:
    """The core on a release of PyTorch."""
    session.install(f"torch=={torch}.*", SDIST, *TOOLS)
    _run(session, f"PyTorch {torch}", CORE)


@nox.session(python=PYTHONS)
def python(session: nox.Session) -> None:
    """The core, the log and the viewer, as far as ``make test`` runs them, on a release of Python."""
    session.install("torch", SDIST, *TOOLS)
    _run(session, f"Python {session.python}", [*CORE, *LOG_AND_VIEWER], *QUICK)


@nox.session(python="3.11")
def floors(session: nox.Session) -> None:
    """The log and the viewer, as far as ``make test`` runs them, with the oldest libraries and without PyTorch."""
    session.install("--resolution", "lowest-direct", *_dependencies(), *TOOLS)
    session.install("--no-deps", WHEEL)
    _run(session, "Oldest libraries", LOG_AND_VIEWER, *QUICK)


@nox.session(python="3.11", name="floors-torch")
def floors_torch(session: nox.Session) -> None:
    """Everything of the matrix with the oldest of every library, PyTorch too."""
    session.install("--resolution", "lowest-direct", *_dependencies("torch"), *TOOLS)
    session.install("--no-deps", WHEEL)
    _run(session, "Oldest libraries and PyTorch", [*CORE, *LOG_AND_VIEWER])


@nox.session(venv_backend="none")
def table(session: nox.Session) -> None:
    """Write what each session saw into docs/matrix.md, whichever were run since the folder .nox was deleted."""
    page = Path("docs/matrix.md")
    above, begin, _ = page.read_text(encoding="utf-8").partition("<!-- the table -->\n")
    rows = ["| with | passed | failed | skipped |", "| --- | --- | --- | --- |"]
    rows += [_row(file) for file in sorted(SEEN.glob("*.xml"), key=_version)]
    page.write_text(above + begin + "\n".join(rows) + "\n", encoding="utf-8")


def _version(file: Path) -> tuple[str, tuple[int, ...]]:
    """By which a session is sorted: what it is of, and the release as numbers."""
    return file.stem.rstrip("0123456789."), tuple(map(int, re.findall(r"\d+", file.stem)))


def _row(file: Path) -> str:
    """A line of the table: how many tests ended how, and why some were skipped."""
    cases = list(ET.parse(file).iter("testcase"))  # noqa: S314
    failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
    skips = Counter(skip.get("message", "") for case in cases if (skip := case.find("skipped")) is not None)
    reasons = "; ".join(f"{count}: {reason}" for reason, count in skips.most_common())
    return f"| {file.stem} | {len(cases) - failed - skips.total()} | {failed} | {reasons or 0} |"
