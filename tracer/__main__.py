"""``python -m tracer``: the same as the command ``tracer``."""

from tracer.cli import main

if __name__ == "__main__":
    main()
