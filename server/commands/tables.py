"""Show each table: whose rows, row-level security, policies, grants, audit, live changes, public rows."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json

from ..messages import nearest_name
from ..schema.connection_mistakes import DIRECT_URL, URL, connected
from ..schema.startup import StartFailed, beside_running_server
from ..schema.tables import Table, tables
from ..settings.setting import ConfigError
from ..settings.sources import Settings
from .columns import aligned

_HEAD = ("TABLE", "ROWS OF", "SECURITY", "POLICIES", "GRANTS", "AUDIT", "CHANGES", "PUBLIC ROWS")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this table in detail")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Print a line for each table, or the details of one, as the serving role's connection sees them. Returns 0.

    Raises ConfigError for a name that no table has, StartFailed where no server runs on the embedded Postgres.
    """
    found = asyncio.run(_look(settings, args.name))
    if args.name is None:
        print(json.dumps([dataclasses.asdict(table) for table in found]) if args.json else as_text(found))
        return 0
    print(json.dumps(dataclasses.asdict(found[0])) if args.json else details(found[0]))
    return 0


async def _look(settings: Settings, name: str | None) -> list[Table]:
    direct = settings.get("database.direct_url")
    url = direct or settings.get("database.url")
    connect = {"dsn": url} if url else beside_running_server(settings)
    if connect is None:
        raise StartFailed("no server is running on the embedded Postgres here; start it first, or set DATABASE_URL")
    async with connected(connect, DIRECT_URL if direct else URL) as connection:
        found = await tables(connection, name)
        if name is None:
            return found
        if len(found) > 1:
            raise ConfigError(f"tables: {name!r} is the name of several tables: {', '.join(table.name for table in found)}")
        if not found:
            names = [table.name for table in await tables(connection)]
            near = nearest_name(name, [*names, *(one.removeprefix("public.") for one in names)])
            raise ConfigError(f"tables: there is no table {name!r}" + (f"; did you mean {near!r}?" if near else ""))
    return found


def as_text(found: list[Table]) -> str:
    """The tables in aligned columns, a table per line."""
    return aligned([_HEAD, *(_cells(table) for table in found)])


def details(table: Table) -> str:
    """Everything about one table, a fact per line."""
    lines = [
        f"table:               {table.name}, owned by {table.owner}"
        + (f", {table.partitions} partition(s)" if table.partitions else ""),
        f"rows of:             {_rows_of(table)}",
        f"row-level security:  {table.security}",
        "policies:" + ("" if table.policies else "            none"),
    ]
    for policy in table.policies:
        lines.append(f"  {policy.name}: {_kind(policy.permissive)}{policy.command} to {', '.join(policy.roles)}")
        lines += [
            f"      {word} {_one_line(said)}" for word, said in (("USING", policy.using), ("WITH CHECK", policy.check)) if said
        ]
    lines.append("grants:" + ("" if table.grants else "              none"))
    for word, columns in table.grants.items():
        lines.append(f"  {word}" if columns is None else f"  {word} ({', '.join(columns)})")
    return "\n".join(
        [
            *lines,
            f"audit:               {_audit(table)}",
            f"changes:             {'yes' if table.changes else '-'}",
            f"public rows:         {table.public_rows or '-'}",
        ]
    )


def _cells(table: Table) -> tuple[str, ...]:
    grants = [word if columns is None else f"{word}({len(columns)})" for word, columns in table.grants.items()]
    return (
        table.name,
        _rows_of(table),
        table.security,
        " ".join(policy.name for policy in table.policies) or "-",
        " ".join(grants) or "-",
        "yes" if table.audit else "no",
        "yes" if table.changes else "-",
        table.public_rows or "-",
    )


def _rows_of(table: Table) -> str:
    if table.rows_of:
        return ", ".join(f"{tenant} ({column})" for tenant, column in table.rows_of.items())
    return "what its policies say" if table.policies else "-"


def _audit(table: Table) -> str:
    if table.audit is None:
        return "no"
    known = [f"{what}: {column}" for what, column in table.audit.items() if column]
    return "yes" + (f" ({', '.join(known)})" if known else "")


def _kind(permissive: bool) -> str:
    return "" if permissive else "restrictive, "


def _one_line(expression: str) -> str:
    return " ".join(expression.split())
