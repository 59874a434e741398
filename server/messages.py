"""Words for messages: a text in one line, an error in one line, and the nearest known name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Final

LONGEST: Final = 500
"""How many characters of a text from elsewhere a message includes by default."""
# Up to the last `@`: a password that is not percent-encoded may have `@` and `/` in it, and is then what the text is about.
_CREDENTIALS: Final = re.compile(r"://(?:[^/\s:]*:\S*|[^/\s@]*)@")


def one_line(text: object, most: int = LONGEST) -> str:
    """Returns a text from elsewhere, such as an exception's, as one line of at most `most` characters.

    Blanks are collapsed, user and password of a URL are hidden, and what a terminal could obey is escaped (`\\x1b`).
    """
    words = _CREDENTIALS.sub("://***@", " ".join(str(text).split()))
    shown = "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in words[: most + 1])
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def error_line(error: BaseException) -> str:
    """Returns the type and the text of an error in one line, as `one_line` has it."""
    return f"{type(error).__name__}: {one_line(error)}".removesuffix(": ")


def nearest_name(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Returns the known name that was probably meant by `word`, or None.

    Case, and which of `-`, `_`, `.` and blank is between words, do not count. A word that is only the beginning or the end
    of one name, as `cache` is of `cache_seconds`, means that name. `cutoff` is the least similarity, 0 to 1
    (`difflib.SequenceMatcher.ratio`).
    """
    names: dict[str, str] = {}
    for name in known:
        names.setdefault(_plain(name), name)
    plain = _plain(word)
    longer = [name for name in names if plain and (name.startswith(f"{plain}_") or name.endswith(f"_{plain}"))]
    close = difflib.get_close_matches(plain, names, n=1, cutoff=cutoff)
    if len(longer) == 1 and plain not in names:
        close = longer
    return names[close[0]] if close else None


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]+", "_", name.strip().lower())
