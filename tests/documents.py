"""What README and the documentation hold: their texts, blocks of code, and whole programs."""

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.warm import warm

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *(page for page in (ROOT / "docs").rglob("*.md") if not {"_made", "_site"} & {*page.parts})]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in sorted(PAGES)}
# Where commands are that a shell finds.
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
# A comment in front of a block, which no reader sees, says why no test runs it.
_BLOCK = re.compile(r"(?:^ *<!-- not run: ([^\n]+) -->\n)?^ *```(\w+)\n(.*?)^ *```$", flags=re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A block of code.

    Attributes:
        page: The page's path.
        language: What it is written in.
        code: Its lines.
        name: The file that it is, of a whole program: its first line says so.
        unrun: Why no test runs it; "" if one does.
    """

    page: str
    language: str
    code: str
    name: str
    unrun: str


def _blocks() -> Iterator[Block]:
    for page, text in TEXTS.items():
        for unrun, language, code in _BLOCK.findall(text):
            program = re.match(r" *# (\w+\.py)\n", code)
            yield Block(page, language, textwrap.dedent(code), program[1] if program else "", unrun)


BLOCKS = tuple(_blocks())


def blocks(language: str, page: str | None = None) -> list[Block]:
    """All blocks of a language, or those of one page."""
    return [block for block in BLOCKS if block.language == language and page in (None, block.page)]


def programs(page: str) -> list[Block]:
    """The whole programs of a page."""
    return [block for block in blocks("python", page) if block.name]


def run_programs(page: str, folder: Path) -> None:
    """Run the programs of a page in a folder, one after the other; each has to end without an error."""
    for program in programs(page):
        (folder / program.name).write_text(program.code, encoding="utf-8")
        runner: tuple[str, ...] = ()
        if "init_process_group" in program.code:
            runner = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--no-python", *warm())
        elif program.name.startswith("test_"):
            runner = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
        done = subprocess.run(
            [*warm(), *runner, program.name],
            cwd=folder,
            env=os.environ | {"PATH": PATH},
            # For one that waits for Enter.
            input="\n",
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
