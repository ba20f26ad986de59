"""The program on each framework's page, as a reader runs it, with the real framework; nothing is downloaded."""

import importlib.util
from pathlib import Path

import pytest

from tests.documents import BLOCKS, run_programs
from tracer import scan

pytestmark = pytest.mark.slow
# The names of the modules that are not called as their pages are.
MODULES = {"huggingface": "transformers"}
NAMES = sorted({Path(block.page).stem for block in BLOCKS if "/frameworks/" in block.page and block.name})


@pytest.mark.parametrize("name", NAMES)
def test_the_program_of_a_framework_runs_and_is_recorded(name: str, tmp_path: Path) -> None:
    """It ends without an error, and its run holds gradients and what the framework has logged."""
    module = MODULES.get(name, name)
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install -e '.[integrations]'")
    run_programs(f"docs/frameworks/{name}.md", tmp_path)
    run = tmp_path / "runs" / name
    assert scan(run).collect()["grad_max"].is_finite().any()
    assert scan(run, "metrics").collect().height
