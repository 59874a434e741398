"""Reads a secret in a table of the settings: the member itself, or the file or environment variable that another one names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from .table_reader import Members

TEXT: Final = re.compile(r"[\x20-\x7e]+")  # RFC 6749 A.1 and A.2, RFC 9110 5.5


def names_of(name: str) -> tuple[str, str, str]:
    """Returns the members of which one may hold the secret `name`."""
    return name, f"{name}_file", f"{name}_env"


def read_secret(table: Members, name: str, *, required: bool = True) -> str | None:
    """Returns the secret, stripped; None if it is missing and not required. Raises ValueError, never with the secret."""
    given = [one for one in names_of(name) if one in table.given]
    if not given and not required:
        return None
    if len(given) != 1:
        raise table.mistake(name, f"is missing: set one of {', '.join(names_of(name))}" if not given else "is given twice")
    member = given[0]
    value = table.text(member)
    if member.endswith("_file") and value is not None:
        try:
            value = Path(value).read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise table.mistake(member, "names a file that cannot be read") from None
    elif member.endswith("_env") and value is not None:
        if value.startswith("GATEPOST_"):
            raise table.mistake(member, "must not begin with GATEPOST_: those are settings of the server's own")
        value = os.environ.get(value, "").strip()
    if not value or not TEXT.fullmatch(value):
        raise table.mistake(member, "holds no secret: one line of printable ASCII characters")
    return value
