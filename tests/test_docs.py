"""What the README and the documentation show is run here, or read as Python or the command does."""

import ast
import inspect
import itertools
import re
import shlex
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest
import typer
from PIL import Image, ImageSequence

import tracer
import tracer.cli
import viewer.cli
import viewer.diff.report
import viewer.surfaces.check
from tests.documents import BLOCKS, README, ROOT, TEXTS, blocks, programs, run_programs
from tests.halves import first_of
from tests.logs import close_run, extremes, metrics, new_run, publish_next
from tracer.log.store import Local as Path

# Those to polars, which come before those to other engines.
QUESTIONS = list(itertools.takewhile(lambda block: "duckdb" not in block.code, blocks("python", "docs/queries.md")))
FRAMEWORKS = "docs/frameworks/"
LONGEST_PROGRAM = 40


@pytest.fixture
def recipe_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run at the path that the page names: the second of three steps is NaN, one parameter is dead."""
    monkeypatch.chdir(tmp_path)
    run = new_run(tmp_path / "runs" / "demo", ["conv1.weight", "fc.bias"], config={"lr": 0.1})
    low, high = [-5.0, 0.0, -1.0, 0.0, float("nan"), 0.0], [1.0, 0.0, 3.0, 0.0, float("nan"), 0.0]
    publish_next(run, "extremes", extremes(range(3), ["conv1.weight", "fc.bias"], {"grad_min": low, "grad_max": high}))
    publish_next(run, "metrics", metrics(range(3), [2.0, 1.0, 0.5]))
    close_run(run, 2)


@pytest.mark.usefixtures("recipe_run")
def test_every_question_to_the_log_runs_and_answers() -> None:
    """Each gives what its comment says, of a run made for it."""
    names: dict[str, object] = {}
    answers = []
    for block in QUESTIONS:
        *statements, last = ast.parse(block.code).body
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
    for command in ("demo", "doctor", "bench", "runs", "info", "verify", "merge", "export"):
        assert f"tracer {command}" in text
    assert "viewer RUN" in text


def test_the_readme_is_short() -> None:
    """A stranger reads it in some minutes; everything else is a page of the documentation."""
    assert len(TEXTS["README.md"]) <= 9_000


def test_every_picture_of_a_page_is_there_and_says_what_it_shows() -> None:
    """Each is a file of the repository, and has words for those who do not see it."""
    for page, text in TEXTS.items():
        for words, file in re.findall(r"!\[(.*?)\]\((.*?)\)", text):
            assert words, f"{page}: {file}"
            assert (ROOT / page).parent.joinpath(file).is_file(), f"{page}: {file}"


def test_the_film_of_the_page_is_short_and_small() -> None:
    """Eight to fifteen seconds, of which the last picture has three; it loads at once, and a repository keeps it."""
    path = ROOT / "docs" / "page.webp"
    assert path.stat().st_size < 600_000
    with Image.open(path) as film:
        shown = [frame.info["duration"] for frame in ImageSequence.Iterator(film) if frame.load()]
    assert 8_000 <= sum(shown) <= 15_000
    assert shown[-1] == 3_000


def test_every_test_that_a_page_names_is_there() -> None:
    """The tables of what works name tests by file and function, and each of them exists."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", "".join(TEXTS.values()))
    assert len(named) > 30
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{test}"


def test_every_how_to_has_a_program_that_is_short_enough_to_be_copied() -> None:
    """The pages that the index lists as such, and one for each framework; that of questions is a program in pieces."""
    index = TEXTS["docs/index.md"].partition(":caption: How to")[2].partition("```")[0]
    listed = [f"docs/{name}.md" for name in index.split()[2:]]
    pages = {*listed, *(page for page in TEXTS if page.startswith(FRAMEWORKS))}
    for page in sorted(pages - {"docs/frameworks/index.md", "docs/queries.md"}):
        assert programs(page), page
    for block in BLOCKS:
        assert not block.name or block.code.count("\n") <= LONGEST_PROGRAM, f"{block.page}: {block.name}"


@pytest.mark.parametrize(
    "page", first_of(sorted({block.page for block in BLOCKS if block.name and not block.page.startswith(FRAMEWORKS)}))
)
def test_the_programs_of_a_page_run(page: str, tmp_path: Path) -> None:
    """One after the other, in an empty folder, each without an error; tests/integrations runs those of frameworks."""
    run_programs(page, tmp_path)


def test_every_block_of_python_is_right_as_far_as_it_goes() -> None:
    """It is Python, what it imports of ours is there, and ``attach`` takes the arguments that it is given."""
    takes = set(inspect.signature(tracer.attach).parameters)
    for block in blocks("python"):
        page = block.page
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tracer":
                assert node.attr in tracer.__all__, f"{page}: tracer.{node.attr}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("tracer.attach", "Gradwatch"):
                given = {keyword.arg for keyword in node.keywords if keyword.arg}
                assert given <= takes | {"val"}, f"{page}: attach takes no {given - takes}"


_APPS = {
    "viewer": viewer.cli.app,
    "viewer check": viewer.surfaces.check.app,
    "viewer diff": viewer.diff.report.app,
    "tracer": tracer.cli.app,
}


def _calls(line: str) -> Iterator[list[str]]:
    """The calls of our commands in a line of a shell, also in what it quotes for another one."""
    words = shlex.split(line, comments=True)
    for word in words:
        if " " in word:
            yield from _calls(word)
    for joined, call in itertools.groupby(words, lambda word: word in ("&&", "||", "|")):
        first, *others = call
        if first in _APPS and not joined:
            yield [first, *others]


def test_every_command_line_is_one_that_the_command_takes() -> None:
    """Of each line in a console, the command reads its words, and knows every option."""
    read = 0
    for block in blocks("console"):
        for line in re.findall(r"^\$ (.*)", block.code, flags=re.MULTILINE):
            for program, *words in _calls(line):
                name = " ".join([program, *words[:1]])
                app, words = (_APPS[name], words[1:]) if name in _APPS else (_APPS[program], words)
                command: Any = typer.main.get_command(app)
                if program == "tracer":
                    command, words = command.commands[words[0]], words[1:]
                try:
                    command.make_context(program, [*words]).close()
                except Exception as error:
                    raise AssertionError(f"{block.page}: {line}: {error}") from error
                read += 1
    assert read > 30
