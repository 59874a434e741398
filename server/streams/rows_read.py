"""Parses what Postgres returned for the ids of changed rows: the rows that a scope sees."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from ..http.answers import Rows
from ..http.pagination import LARGEST_LIMIT
from ..http.row_json import RowJson

BYTES: Final = 262_144
"""Once its rows have this many bytes, a statement returns one more row and stops."""
_UNIT: Final = 1024


class _Found(msgspec.Struct):
    id: str
    row: msgspec.Raw


_found: Final = msgspec.json.Decoder(_Found)


class Read(NamedTuple):
    """The rows that the scope sees, by id, and the ids that were not reached because earlier rows were too large."""

    rows: dict[str, RowJson]
    rest: frozenset[str]


NOTHING: Final = Read({}, frozenset())


def parse(ids: list[str], rows: Rows) -> Read:
    """Returns the rows by id. The statement stops at BYTES (server.database.statements), so it may not reach the last ids."""
    most = BYTES // _UNIT + LARGEST_LIMIT + 1
    found: dict[str, RowJson] = {}
    units = 0
    for one in rows.separate():
        parsed = _found.decode(one)
        found[parsed.id] = RowJson(bytes(parsed.row).decode())
        units += min(len(one.encode()) // _UNIT, most - 1) + 1
    if units <= most or not found:
        return Read(found, frozenset())
    last = next(reversed(found))
    return Read(found, frozenset(ids[ids.index(last) + 1 :]))


def _parse_one(id: str, text: str) -> Read:
    return Read({id: RowJson(text)}, frozenset()) if text else NOTHING


def parse_each(asked: list[dict[str, None]], texts: list[str], *, single: bool) -> list[Read]:
    """Returns the rows of each scope, which asked for these ids. Scopes that got the same text share the parsed result."""
    made: dict[tuple[str, str], Read] = {}
    reads = []
    for several, text in zip(asked, texts, strict=True):
        ids = list(several)
        key = (text, ids[0] if single else "\0".join(ids))
        if (read := made.get(key)) is None:
            made[key] = read = _parse_one(ids[0], text) if single else parse(ids, Rows(text))
        reads.append(read)
    return reads
