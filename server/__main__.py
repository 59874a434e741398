"""`python -m server`: serve, or one of the other commands.

Before this runs, the package has checked that its dependencies are installed (server/installation.py). If they are not, one
line says how to install them.
"""

from __future__ import annotations

import sys


def main(arguments: list[str] | None = None) -> int:
    """Run one command line (default: this process's). Returns the exit status: 0, 1, or 2 for a mistake in the settings."""
    from .commands import run

    return run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
