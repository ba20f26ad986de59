"""The command ``gradwatch``, and what a stranger reads where something else stands in the way of an import."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import gradwatch_says
from tests.logs import close_run, metrics, new_run, publish_next


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A process in a folder whose own modules come first, as in a user's project."""
    return subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["info", "run"], 0, "status"),
        (["check", "run"], 0, "1 warning"),
        (["view", "run", "--text"], 0, "loss"),
        (["runs", "."], 0, "run"),
        (["view", "--nothing"], 2, "--nothing"),
    ],
)
def test_every_command_is_a_command_of_gradwatch(tmp_path: Path, words: list[str], code: int, said: str) -> None:
    """It does what ``tracer`` and ``viewer`` do, with their exit codes."""
    path = new_run(tmp_path / "run")
    publish_next(path, "metrics", metrics(range(3), [3.0, 2.0, 1.0]))
    close_run(path)
    done = gradwatch_says(tmp_path, *words)
    assert (done.returncode, said in done.stdout + done.stderr) == (code, True), done


def test_its_help_names_every_command(tmp_path: Path) -> None:
    """Those of both sides, each with what it does."""
    done = gradwatch_says(tmp_path, "--help")
    first_words = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    of_tracer = {"demo", "doctor", "bench", "runs", "info", "verify", "export", "merge"}
    assert first_words == of_tracer | {"view", "check", "diff"}
    assert done.returncode == 0


def test_attach_without_torch_is_one_sentence(tmp_path: Path) -> None:
    """PyTorch is no dependency: a user who has none is told what is missing, and how to get it."""
    code = "import sys; sys.modules['torch'] = None\nimport tracer\ntracer.attach"
    *_, last = run(tmp_path, "-c", code).stderr.splitlines()
    assert last == "ModuleNotFoundError: tracer.attach needs PyTorch, which is not installed here: pip install torch"


def test_a_users_own_tracer_is_named_by_the_viewer(tmp_path: Path) -> None:
    """Where a file ``tracer.py`` of the user hides ours, the error says which file it is."""
    (tmp_path / "tracer.py").write_text("")
    words = f"{tmp_path}/tracer.py is imported in place of gradwatch's tracer: give it another name"
    *_, last = run(tmp_path, "-c", "import viewer; viewer.show").stderr.splitlines()
    assert last == f"ImportError: {words}"
    done = run(tmp_path, "-m", "viewer", "run")
    assert (done.returncode, done.stderr) == (1, f"viewer: {words}\n")
