"""``python -m viewer``: the same as the command ``viewer``."""

from viewer.cli import main

if __name__ == "__main__":
    main()
