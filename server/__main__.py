"""`python -m server`: serve, or one of the other commands. Only the standard library is imported before it is clear
that the rest is there: without its dependencies the server says in one line how to install them."""

from __future__ import annotations

import sys

NEEDED = ("aiohttp", "asyncpg", "jwt", "cryptography", "pluggy", "pydantic", "msgspec")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status: 0, 1, or 2 for a mistake in the configuration."""
    missing = _missing()
    if missing:
        print(
            f"gatepost: not installed here: {', '.join(missing)}. Run `make install`, or `pip install -e '.[dev]'` in a virtual"
            " environment, and use its python.",
            file=sys.stderr,
        )
        return 2
    from server.commands import run

    return run(sys.argv[1:] if arguments is None else arguments)


def _missing() -> list[str]:
    from importlib.util import find_spec

    return [name for name in NEEDED if find_spec(name) is None]


if __name__ == "__main__":
    sys.exit(main())
