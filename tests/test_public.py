"""The packages as a stranger meets them: public names, what an import costs, and what may not be imported."""

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

import tracer
from tests.halves import first_of

HEAVY = {"matplotlib", "numpy", "polars", "pyarrow", "torch", "tornado", "watchdog"}


def imported(statement: str) -> set[str]:
    """The modules that a fresh interpreter imports for a statement."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", statement], capture_output=True, text=True, check=True
    )
    return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}


def test_the_public_names_are_these() -> None:
    """The surface does not grow by accident, and every name in it can be imported."""
    assert tracer.__all__ == [
        "BadPartWarning",
        "LogError",
        "Trace",
        "TracerWarning",
        "attach",
        "close",
        "doctor",
        "model_extremes",
        "model_stats",
        "overall_extremes",
        "runs",
        "scan",
    ]
    assert all(getattr(tracer, name).__name__ == name for name in tracer.__all__)
    assert set(tracer.__all__) <= set(dir(tracer))
    with pytest.raises(AttributeError, match="no attribute 'detach'"):
        tracer.detach  # noqa: B018


@pytest.mark.parametrize("package", ["tracer", "viewer"])
def test_importing_a_package_imports_nothing_heavy(package: str) -> None:
    """Torch, polars and pyarrow come with the first use of a name, not with the import."""
    assert not HEAVY & imported(f"import {package}")


@pytest.mark.parametrize("package", ["tracer", "viewer"])
def test_asking_a_command_for_help_imports_nothing_heavy(package: str) -> None:
    """``--help`` is answered at once: what reads, draws and serves comes with the first run that is opened."""
    modules = imported(f"import sys; sys.argv[1:] = ['--help']; from {package}.cli import main; main()")
    assert f"{package}.cli" in modules
    assert not HEAVY & modules


@pytest.mark.parametrize(
    "module", first_of(["viewer.surfaces.window", "viewer", "viewer.cli", "viewer.surfaces.files", "tracer.log.read"])
)
def test_the_watching_side_never_imports_torch(module: str) -> None:
    """Neither the viewer nor the log's readers bring torch in."""
    modules = imported(f"import {module}")
    assert module in modules
    assert "torch" not in modules


@pytest.mark.slow
def test_the_check_for_torch_can_fail() -> None:
    """The check above sees torch where it is imported."""
    assert "torch" in imported("import tracer; tracer.attach")


def test_scanning_needs_no_torch() -> None:
    """Analysing a log afterwards works where training libraries are slow to import, or missing."""
    assert "torch" not in imported("import tracer; tracer.scan")


def test_both_commands_are_installed() -> None:
    """The console scripts point to the two command lines."""
    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    assert scripts["tracer"] == "tracer.cli:main"
    assert scripts["viewer"] == "viewer.cli:main"
