"""Scripts of the benchmarks still run. At their smallest, what they print says nothing of a cost."""

import subprocess
import sys
from pathlib import Path

import pytest

import benchmarks

_FOLDER = Path(benchmarks.__file__).parent
# By script: what makes it small, and the title of its table.
SMALLEST = {
    "hotpath": ("--rounds 8 --model MLP", "MLP, 14 parameters"),
    "overhead": ("--rounds 8 --model MLP", "MLP, 14 parameters"),
    "peers": ("--seconds 0.1 --model MLP", "MLP, 14 parameters"),
}
LEFT_TO_A_RELEASE = {"gpu", "idle", "log", "scan", "statistics", "viewer"}
"""The first needs a GPU. The others take four minutes together, at their smallest."""

pytestmark = pytest.mark.slow


def test_no_script_is_forgotten() -> None:
    """Each script is run here, or a release alone runs it."""
    scripts = {file.stem for file in _FOLDER.glob("*.py") if "__main__" in file.read_text(encoding="utf-8")}
    assert scripts == SMALLEST.keys() | LEFT_TO_A_RELEASE


@pytest.mark.parametrize("script", SMALLEST)
def test_a_script_prints_its_table(script: str) -> None:
    """A script ends well, and has printed a table."""
    options, title = SMALLEST[script]
    command = [sys.executable, "-m", f"benchmarks.{script}", *options.split()]
    done = subprocess.run(command, cwd=_FOLDER.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, title in done.stdout) == (0, True), done.stdout + done.stderr
