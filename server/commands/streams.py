"""The standard streams and the working folder of a command, where they are closed, full or gone."""

from __future__ import annotations

import errno
import os
import sys

from ..settings.setting import ConfigError
from .colours import complaint


def prepare() -> None:
    """Give closed standard streams a place to write to. Raises ConfigError if the working folder does not exist any more."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ConfigError("the working folder does not exist any more: change to another one") from None


def report(error: OSError) -> int | None:
    """Print one line for a file that cannot be used, or a full or closed standard output; returns the exit status.

    None for any other error, which is not reported.
    """
    if isinstance(error.filename, str):
        print(complaint(f"{error.filename}: {error.strerror}"), file=sys.stderr)
        return 2
    if error.errno not in (errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EBADF):
        return None
    if error.errno != errno.EPIPE:  # a reader that stops early is not a mistake
        print(complaint(f"standard output: {error.strerror}"), file=sys.stderr)
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - the rest would fail again at the end
    return 1
