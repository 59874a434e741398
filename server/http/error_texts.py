"""Cuts the texts of an error, and the list of its invalid fields, to what is sent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

LONGEST_DETAIL: Final = 1000
"""How many characters of a `detail` are sent."""
MOST_FIELDS: Final = 100
"""How many invalid fields an error lists."""
LONGEST_FIELD: Final = 200
"""How many characters of a field's path, and of its message, an error includes."""
# Control characters but the tab and the line feed, the separators of lines that other languages know, and lone surrogates.
_UNPRINTABLE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def plain_text(text: object) -> str:
    """The text as a `detail` may have it: without control characters, at most LONGEST_DETAIL characters."""
    cut = str(text)[: LONGEST_DETAIL + 1]
    return _UNPRINTABLE.sub(" ", cut if len(cut) <= LONGEST_DETAIL else cut[: LONGEST_DETAIL - 1] + "…")


def bounded(fields: Iterable[Mapping[str, str]]) -> list[dict[str, str]]:
    """The first MOST_FIELDS of the fields, their texts cut at LONGEST_FIELD characters."""
    kept: list[dict[str, str]] = []
    for one in fields:
        if len(kept) == MOST_FIELDS:
            break
        kept.append({name: str(text)[:LONGEST_FIELD] for name, text in one.items()})
    return kept
