"""``python -m viewer``: the same as the command ``viewer``."""

import sys

from viewer import refuse_a_stranger

if __name__ == "__main__":
    try:
        refuse_a_stranger()
    except ImportError as error:
        sys.exit(f"viewer: {error}")
    from viewer.cli import main

    main()
