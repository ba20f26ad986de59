"""The site: ``make docs`` builds it into docs/_site. What commands say of themselves is written into docs/_made."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
MADE = DOCS / "_made"
sys.path.insert(0, str(DOCS.parent))

project = "gradwatch"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "gradwatch"
html_copy_source = False
html_show_copyright = False
exclude_patterns = ["_made", "_site"]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

_COMMANDS = {
    "viewer": [[], ["check"], ["diff"]],
    "tracer": [[], *([name] for name in ("demo", "doctor", "bench", "runs", "info", "verify", "merge"))],
}


def _said(*words: str) -> str:
    """What a command prints, in a terminal of 100 columns."""
    plain = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(DOCS.parent)}
    call = [sys.executable, "-m", *words]
    return subprocess.run(call, env=plain, cwd=DOCS, capture_output=True, text=True, check=True).stdout


def _commands() -> str:
    """Every command's own help."""
    pages = []
    for module, commands in _COMMANDS.items():
        for words in commands:
            name = " ".join([module, *words])
            pages.append(f"## {name}\n\n```text\n{_said(f'{module}.cli', *words, '--help').rstrip()}\n```\n")
    return "\n".join(pages)


def _thresholds() -> str:
    """Every threshold of every rule, from ``viewer check --rules --json``."""
    rows = ["| threshold | default | meaning | where it comes from |", "| --- | --- | --- | --- |"]
    rows += [
        f"| `{each['name']}` | {each['default']:g} | {each['meaning']} | {each['source']} |"
        for each in json.loads(_said("viewer", "check", "--rules", "--json"))
    ]
    return "\n".join(rows)


def _make(_: Any) -> None:
    MADE.mkdir(exist_ok=True)
    (MADE / "commands.md").write_text(_commands(), encoding="utf-8")
    (MADE / "thresholds.md").write_text(_thresholds(), encoding="utf-8")


def setup(app: Any) -> None:
    """Write what is made before Sphinx reads it."""
    app.connect("builder-inited", _make)
