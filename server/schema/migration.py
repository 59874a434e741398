"""One run of `migrate`: the server's schema, then a product's own files; an unsafe result is rolled back, not committed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..settings.setting import ConfigError
from .connection_mistakes import OWNER_URL, connected
from .migrate import LOCK, mark_in
from .numbered import Numbered, applied, create_record, pending, read_folder
from .own_files import OwnFiles, failed, one_per_line
from .plan import schema_plan
from .safety import problems, ungranted
from .sql_file import SqlFile, read_file

# Held during a whole run. Not LOCK, which each transaction of a run takes for itself.
_RUN_LOCK: Final = LOCK + 1
_POLL_SECONDS: Final = 0.2
_AS_OWNER: Final = " as its owner"


class Own(NamedTuple):
    """What one `--schema` names: a file that is run each time, or a folder of numbered files."""

    path: Path
    file: SqlFile | None
    folder: tuple[Numbered, ...]


@dataclass(slots=True)
class Outcome:
    """What a run has done, or (a dry run) would do, and what remains.

    by_hand    sentences for the operator
    applied    the numbered files applied, by name
    unsafe     what makes the database unsafe to serve from, and did so before the run
    ungranted  the tables that the serving role cannot use although their policies are for it, with the statement to run
    """

    by_hand: list[str] = field(default_factory=list)
    applied: list[str] = field(default_factory=list)
    unsafe: list[str] = field(default_factory=list)
    ungranted: list[str] = field(default_factory=list)


def read_own(paths: Sequence[Path]) -> list[Own]:
    """Reads what `--schema` names, before any connection is opened. Raises ConfigError for what cannot be read or run."""
    own = [Own(path, None, tuple(read_folder(path))) if path.is_dir() else Own(path, read_file(path), ()) for path in paths]
    folders = [str(one.path) for one in own if one.file is None]
    if len(folders) > 1:
        raise ConfigError(f"--schema: only one folder of numbered files can be applied, not {' and '.join(folders)}")
    for one in own:
        if one.file is not None:
            one.file.statements()
    return own


class Migration:
    """A run on one database, as its owner."""

    def __init__(
        self, connect: Mapping[str, Any], serving_role: str, progress: Callable[[str], None], wait: float = 0.0
    ) -> None:
        """`connect`: asyncpg's arguments for the owner; `progress` is called with a sentence for each step.

        A database that cannot be reached is waited for, at most `wait` seconds.
        """
        self._wait = wait
        # Behind a pooler a prepared statement may belong to another connection; and a file may deallocate them all.
        self._connect, self._role = {**connect, "statement_cache_size": 0}, serving_role
        self._progress = progress

    async def run(self, own: Sequence[Own], *, schema: Callable[[Any], Any] | None) -> Outcome:
        """Apply it all. `schema(connection)` migrates the server's schema and returns what is to be done by hand; None: it is
        up to date. Raises ConfigError, StartFailed, Unavailable; files that were applied before the failure stay.
        """
        outcome = Outcome()
        async with self._alone(), connected(self._connect, OWNER_URL, _AS_OWNER) as connection:
            if schema is not None:
                outcome.by_hand = await self._schema(connection, schema)
            files = OwnFiles(connection, self._role, self._judge)
            for number, one in enumerate(own, 1):
                if len(own) > 1:
                    self._progress(f"{one.path} ({number} of {len(own)})")
                if one.file is not None:
                    await files.run(one.file)
                else:
                    await self._folder(connection, files, one, outcome.applied)
            outcome.unsafe = await files.problems()
            outcome.ungranted = await ungranted(connection, self._role)
        return outcome

    async def plan(self, own: Sequence[Own]) -> list[str]:
        """Returns what `run` would do, a sentence each, and changes nothing. Raises ConfigError as `run` would."""
        async with connected(self._connect, OWNER_URL, _AS_OWNER) as connection:
            lines = [await schema_plan(connection, self._role)]
            for one in own:
                if one.file is not None:
                    lines.append(f"{one.path}: would be run, as each time")
                else:
                    new = pending(one.path, one.folder, await applied(connection))
                    lines += [f"{one.path / next_.name}: would be applied" for next_ in _runnable(new)]
                    if not new:
                        lines.append(f"{one.path}: all {len(one.folder)} files are applied")
        return lines

    async def _schema(self, connection: Any, schema: Callable[[Any], Any]) -> list[str]:
        try:
            return await self._schema_in_transaction(connection, schema)
        except ConfigError:
            raise
        except Exception as error:
            raise failed("Gatepost's own schema", error, is_ours=True) from None

    async def _schema_in_transaction(self, connection: Any, schema: Callable[[Any], Any]) -> list[str]:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
            # A database that no server has served from yet must be safe as a whole; later, no less safe than before.
            migrated = await mark_in(connection) is not None
            there = await connection.fetchval("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", self._role)
            known = await self._judge(connection) if migrated and there else []
            todo: list[str] = await schema(connection)
            if new := [line for line in await self._judge(connection) if line not in known]:
                raise ConfigError(one_per_line("migrate: not safe to serve from, rolled back", new))
        return todo

    async def _folder(self, connection: Any, files: OwnFiles, one: Own, names: list[str]) -> None:
        async with connection.transaction():
            await create_record(connection)
        for next_ in _runnable(pending(one.path, one.folder, await applied(connection))):
            self._progress(str(one.path / next_.name))
            await files.run(next_.file, next_)
            names.append(next_.name)

    async def _judge(self, connection: Any) -> list[str]:
        return await problems(connection, self._role)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Hold the lock of a run; wait while another run has it.

        Neither the holder nor one that waits keeps a snapshot: the run may build an index concurrently, which waits for every
        transaction that has one.
        """
        async with connected(self._connect, OWNER_URL, _AS_OWNER, wait=self._wait) as holder:
            told = False
            while not await _take_run_lock(holder):
                if not told:
                    self._progress("another migrate is running; waiting for its end")
                told = True
                await asyncio.sleep(_POLL_SECONDS)
            yield


async def _take_run_lock(holder: Any) -> bool:
    """Take the lock of a run in a transaction, which stays open; False, without a transaction, while another run has it."""
    await holder.execute("BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0")
    taken = bool((await holder.fetch("SELECT pg_try_advisory_xact_lock($1)", _RUN_LOCK))[0][0])
    await holder.execute("SELECT" if taken else "ROLLBACK")  # closes the portal, and with it its snapshot
    return taken


def _runnable(files: Sequence[Numbered]) -> Sequence[Numbered]:
    """The same files. Raises ConfigError for a statement in any of them that cannot be run, before the first one runs."""
    for one in files:
        one.file.statements()
    return files
