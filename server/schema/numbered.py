"""Numbered SQL files of a product (`001_todos.sql`): reads their folder, and compares it with the record of those applied."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..settings.setting import ConfigError
from .sql_file import SqlFile, read_file

RECORD: Final = "public.gatepost_files"
"""The table in which `migrate` records the files that it has applied. Only the owner can read and write it."""

_NAME: Final = re.compile(r"([0-9]{3,18})_[A-Za-z0-9_-]+\.sql", re.ASCII)
_FORM: Final = "001_name.sql (three digits or more, then letters, digits, _ and -)"
_COLUMNS: Final = {"number", "name", "checksum", "applied_at"}
# Every right that default privileges gave to another role is taken away: what this table says must be the owner's word.
_CREATE: Final = f"""
CREATE TABLE {RECORD} (
    number     bigint      PRIMARY KEY,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE {RECORD} IS 'The SQL files that migrate --schema has applied. Written by migrate alone.';
DO $do$
DECLARE
    holder text;
BEGIN
    FOR holder IN SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END
                    FROM pg_class, aclexplode(relacl) WHERE pg_class.oid = '{RECORD}'::regclass AND grantee <> relowner LOOP
        EXECUTE format('REVOKE ALL ON {RECORD} FROM %s', holder);
    END LOOP;
END $do$;
"""  # noqa: S608 - a name of our own


class Numbered(NamedTuple):
    """A file of the folder: its number, its name, and its contents."""

    number: int
    name: str
    file: SqlFile


class Applied(NamedTuple):
    """A file that was applied, as recorded."""

    number: int
    name: str
    checksum: str
    applied_at: datetime


def read_folder(folder: Path) -> list[Numbered]:
    """Returns the SQL files of `folder` in the order of their numbers, without those that begin with a dot.

    Raises ConfigError for a folder that cannot be read or has no SQL file, a name of another form, and a repeated number.
    """
    try:
        names = sorted(path.name for path in folder.iterdir() if path.suffix.lower() == ".sql" and path.name[0] != ".")
    except OSError as error:
        raise ConfigError(f"--schema {folder}: cannot be read ({error.strerror})") from error
    if not names:
        raise ConfigError(f"--schema {folder}: no SQL file is in this folder; the first is named like {_FORM}")
    found: dict[int, Numbered] = {}
    for name in names:
        form = _NAME.fullmatch(name)
        if form is None:
            raise ConfigError(f"--schema {folder}: {name!r} is not named like {_FORM}")
        if not (folder / name).is_file():
            raise ConfigError(f"--schema {folder}: {name} is not a file that can be read")
        one = Numbered(int(form[1]), name, read_file(folder / name, name))
        if one.number in found:
            raise ConfigError(f"--schema {folder}: {found[one.number].name} and {name} have the same number")
        found[one.number] = one
    return [found[number] for number in sorted(found)]


def pending(folder: Path, files: Sequence[Numbered], applied: Iterable[Applied]) -> list[Numbered]:
    """Returns the files that are still to be applied, in order.

    Raises ConfigError if an applied file was edited, renamed or removed, or if a new one has a number below an applied one's.
    """
    here = {one.number: one for one in files}
    last: Applied | None = None
    for one in applied:
        if trouble := _trouble(one, here):
            raise ConfigError(f"migrate: {folder}: {trouble}")
        last = one if last is None or one.number > last.number else last
        del here[one.number]
    new = [here[number] for number in sorted(here)]
    if last is not None and new and new[0].number < last.number:
        raise ConfigError(
            f"migrate: {folder}: {new[0].name} is new, but {last.name} was applied before it: give it a number above "
            f"{last.number}"
        )
    return new


def _trouble(one: Applied, here: Mapping[int, Numbered]) -> str | None:
    """Why the folder does not agree with the record of one applied file, or None."""
    when = f"was applied on {one.applied_at:%Y-%m-%d}"
    if one.number not in here:
        return f"{one.name} {when} and is missing: restore it; an applied file must stay"
    file = here[one.number]
    if file.name != one.name:
        return f"{one.name} {when} and is now {file.name}: give it its name back, and a new file a new number"
    if file.file.checksum != one.checksum:
        return f"{one.name} was edited after it {when}: restore it, and write the change as a new file"
    return None


async def applied(connection: Any) -> list[Applied]:
    """Returns the record of this database, in the order of the numbers. Raises ConfigError if another table has its name."""
    if not await _exists(connection):
        return []
    rows = await connection.fetch(f"SELECT number, name, checksum, applied_at FROM {RECORD} ORDER BY number")  # noqa: S608
    return [Applied(*row) for row in rows]


async def create_record(connection: Any) -> None:
    """Create the table of the record unless it exists. Raises ConfigError if another table has its name."""
    if not await _exists(connection):
        await connection.execute(_CREATE)


async def record(connection: Any, one: Numbered) -> None:
    """Record that a file was applied, in the transaction of this connection."""
    await connection.execute(
        f"INSERT INTO {RECORD} (number, name, checksum) VALUES ($1, $2, $3)",  # noqa: S608
        *(one.number, one.name, one.file.checksum),
    )


async def _exists(connection: Any) -> bool:
    rows = await connection.fetch(
        "SELECT relkind = 'r' AND pg_has_role(relowner, 'USAGE'), array(SELECT attname::text FROM pg_attribute"
        " WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) FROM pg_class c WHERE c.oid = to_regclass($1)",
        RECORD,
    )
    if rows and not (rows[0][0] and set(rows[0][1]) >= _COLUMNS):
        raise ConfigError(f"migrate: {RECORD} is not the table that migrate creates, or not this owner's: rename or drop it")
    return bool(rows)
