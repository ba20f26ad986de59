"""The command ``gradwatch``: every command under one name, where ``tracer`` or ``viewer`` is another program's already.

It lies beside the two packages, since neither side's command knows of the other's.
"""

import sys
from collections.abc import Sequence

import typer

import tracer.cli
import viewer.cli
from tracer.log.text import print_anything

# The first words that the command `viewer` is to read, in place of the first one here.
_VIEWER = {"view": [], "check": ["check"], "diff": ["diff"]}
_HELP = """Usage: gradwatch COMMAND [ARGUMENTS]

Commands of the viewer, which `viewer` has, too:
  view     draw runs as they grow: a window, a page, a terminal, a file
  check    say what went wrong in runs
  diff     say where two runs part

Commands of the tracer, which `tracer` has, too:
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first word names, with the other words.

    Args:
        arguments: All words; by default those that this process was started with.

    Raises:
        SystemExit: always, with that command's exit code.
    """
    command, *words = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in _VIEWER:
        viewer.cli.main([*_VIEWER[command], *words], "gradwatch view" if command == "view" else "gradwatch")
    elif command in ("--help", "-h"):
        print_anything()
        # As the other commands, it ends without a traceback where nobody reads on: typer sees to that.
        app = typer.Typer(add_completion=False)
        app.command()(_print_help)
        app([])
    else:
        tracer.cli.main([command, *words], "gradwatch")


def _print_help() -> None:
    print(_HELP + "\n".join(f"  {name:<8} {does}" for name, does in tracer.cli.commands()))


if __name__ == "__main__":
    main()
