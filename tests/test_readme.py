"""What the README shows is run here, so that a stranger can type it."""

import ast
import re

import polars as pl
import pytest

import tracer
from tests.logs import close_run, extremes, metrics, new_run, publish_next
from tracer.log.store import Local as Path

README = Path(__file__).parent.parent / "README.md"
RECIPES = README.read_text(encoding="utf-8").partition("## Ask the log")[2].partition("\n## ")[0]
BLOCKS = re.findall(r"```python\n(.*?)```", RECIPES, flags=re.DOTALL)


@pytest.fixture
def recipe_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run at the path that the README names: the second of three steps is NaN, one parameter is dead."""
    monkeypatch.chdir(tmp_path)
    run = new_run(tmp_path / "runs" / "demo", ["conv1.weight", "fc.bias"], config={"lr": 0.1})
    low, high = [-5.0, 0.0, -1.0, 0.0, float("nan"), 0.0], [1.0, 0.0, 3.0, 0.0, float("nan"), 0.0]
    publish_next(run, "extremes", extremes(range(3), ["conv1.weight", "fc.bias"], {"grad_min": low, "grad_max": high}))
    publish_next(run, "metrics", metrics(range(3), [2.0, 1.0, 0.5]))
    close_run(run, 2)


@pytest.mark.usefixtures("recipe_run")
def test_every_recipe_in_the_readme_runs_and_answers() -> None:
    """Each recipe gives what its comment says, of a run made for it."""
    names: dict[str, object] = {}
    answers = []
    for block in BLOCKS:
        *statements, last = ast.parse(block).body
        exec(ast.unparse(ast.Module(statements, [])), names)
        if isinstance(last, ast.Expr):
            answers.append(eval(ast.unparse(last), names))
        else:
            exec(ast.unparse(last), names)
    largest, one, overall, nonfinite, dead, runs, beside = answers
    assert all(isinstance(answer, pl.DataFrame) for answer in answers)
    assert largest.filter(pl.col("magnitude").is_finite()).row(0) == (0, "conv1.weight", 5.0)
    assert one["grad_min"].to_list()[:2] == [-5.0, -1.0]
    assert overall["grad_max"].is_nan().to_list() == [False, False, True]
    assert nonfinite.select("step", "param").rows() == [(2, "conv1.weight")]
    assert dead.rows() == [("fc.bias", True, False)]
    assert beside.select("step", "loss").rows() == [(0, 2.0), (1, 1.0), (2, 0.5)]
    assert runs.rows() == [("demo", 3, 0.5, 0.1)]


def test_the_readme_names_every_public_function_and_command() -> None:
    """Nothing that users can call is left for them to discover."""
    text = README.read_text(encoding="utf-8")
    for name in ("attach", "doctor", "scan", "model_extremes", "model_stats", "overall_extremes", "runs"):
        assert f"tracer.{name}" in text
        assert name in tracer.__all__
    for command in ("demo", "doctor", "bench", "runs", "info", "verify", "merge"):
        assert f"tracer {command}" in text
    assert "viewer RUN" in text


def test_every_test_that_the_readme_names_is_there() -> None:
    """The table of what works names tests by file and function, and each of them exists."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", README.read_text(encoding="utf-8"))
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in (README.parent / file).read_text(encoding="utf-8"), f"{file}::{test}"
