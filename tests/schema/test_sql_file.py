"""How files of SQL are read and split, and what is refused in them: by itself, and beside what Postgres makes of the same text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from server.schema.migrate import schema_text
from server.schema.sql_file import NO_TRANSACTION, SqlFile, read_file, split
from server.settings.setting import ConfigError


def lines(text: str) -> list[int]:
    return [statement.line for statement in split(text)]


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("", []),
        (" ;; \n;", []),
        ("-- nothing; at all\n/* nor /* here; */ ; */", []),
        ("SELECT 1", [1]),
        ("SELECT 1;\n\nSELECT 2;", [1, 3]),
        ("-- one\n\nSELECT ';' AS a; SELECT \";\" FROM b", [3, 3]),
        ("SELECT 'it''s; one', E'an \\' escaped; one';\nSELECT 2", [1, 2]),
        ("SELECT e'\\\\'; SELECT 2", [1, 1]),
        ("DO $$ BEGIN a; b; END $$;\nDO $do$ x; $$ y; $do$;\nSELECT 3", [1, 2, 3]),
        ("SELECT a$b$c; SELECT $1; SELECT 'x'", [1, 1, 1]),
        ("CREATE RULE r AS ON INSERT TO t DO ALSO (DELETE FROM a; DELETE FROM b);\nSELECT 2", [1, 2]),
        ("CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 1 END; END;\nSELECT 2", [1, 2]),
        ("CREATE OR REPLACE PROCEDURE p() BEGIN ATOMIC SELECT 1; END; SELECT 2", [1, 1]),
        ("SELECT 'never closed; and so on", [1]),
        ("SELECT $$ never; closed", [1]),
        ("SELECT 1 /* never; closed", [1]),
        ("SELECT größe, \"Größe; 2\" FROM tafel;\nSELECT 2", [1, 2]),
    ],
)
def test_a_text_is_split_as_psql_splits_it(text: str, begins: list[int]) -> None:
    assert lines(text) == begins


def test_nothing_of_a_text_is_lost() -> None:
    """Our own schema, in pieces and put together again, but for the comments between statements."""
    text, found = schema_text(), split(schema_text())
    at = 0
    for statement in found:
        at = text.index(statement.text, at)
        assert text.count("\n", 0, at) + 1 == statement.line
        at += len(statement.text)
    assert len(found) > 100


async def test_the_servers_own_schema_runs_in_pieces(postgres: Any) -> None:
    name = await postgres.create_database("gp_pieces")
    async with postgres.as_admin(name) as admin, admin.transaction():
        await admin.execute("SELECT set_config('gatepost.serving_role', $1, true)", postgres.serving_role)
        for statement in split(schema_text()):
            await admin.execute(statement.text)
        assert await admin.fetchval("SELECT to_regclass('audit_log') IS NOT NULL")
    await postgres.drop_database(name)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT 1;\n\\i more.sql", "line 2: \\i is a command of psql"),
        ("\\connect other", "line 1: \\connect is a command of psql"),
        ("COPY t (a) FROM stdin;\n1\n\\.\n", "is a command of psql"),
        ("COPY t (a) FROM STDIN;", "line 1: COPY with stdin or stdout needs psql"),
        ("SELECT 1;\nBEGIN;\nSELECT 2;\nCOMMIT;", "line 2: BEGIN is not allowed"),
        ("SELECT 1; commit", "line 1: COMMIT is not allowed"),
        ("START TRANSACTION", "START is not allowed"),
        ("/* x */ END;", "END is not allowed"),
        ("ROLLBACK;", "ROLLBACK is not allowed"),
        ("ABORT", "ABORT is not allowed"),
        ("PREPARE TRANSACTION 'x'", "PREPARE is not allowed"),
        ("CREATE INDEX CONCURRENTLY i ON t (a)", f"move it into a file whose first line is `{NO_TRANSACTION}`"),
        ("DROP INDEX CONCURRENTLY i", "CONCURRENTLY cannot run in a transaction"),
        ("VACUUM t", "VACUUM cannot run in a transaction"),
        (f"{NO_TRANSACTION}\nCREATE TABLE t (a int)", "line 2: CREATE TABLE needs a transaction"),
        (f"{NO_TRANSACTION}\nGRANT SELECT ON t TO x", "line 2: GRANT SELECT needs a transaction"),
        ("-- gatepost: no-transaction\nSELECT 1", "line 1: the only marker is `-- gatepost: no transaction`"),
        (f"{NO_TRANSACTION}\nCREATE UNIQUE INDEX i ON t (a); BEGIN", "line 2: BEGIN is not allowed"),
    ],
)
def test_what_migrate_cannot_run_is_refused_with_its_line(sql: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        SqlFile("001_a.sql", sql).statements()
    assert str(refused.value).startswith("migrate: 001_a.sql, line ")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "sql",
    [
        "SAVEPOINT s; ROLLBACK TO SAVEPOINT s; RELEASE s",
        "PREPARE p AS SELECT 1",
        "CREATE TABLE t (\"commit\" text, begin_at date); COMMENT ON TABLE t IS E'back\\\\slash \\n'",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY v",
        f"{NO_TRANSACTION}\nSET lock_timeout = '3s'; CREATE INDEX CONCURRENTLY i ON t (a); DROP INDEX CONCURRENTLY j; VACUUM t",
        f"{NO_TRANSACTION}  \nUPDATE t SET a = 1 WHERE id < 10; ALTER TABLE p DETACH PARTITION q CONCURRENTLY",
        "SELECT 1;  -- gatepost: no transaction is what this says",
    ],
)
def test_what_migrate_can_run(sql: str) -> None:
    assert SqlFile("001_a.sql", sql).statements()


def test_a_file_is_the_same_with_other_line_ends_and_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.sql").write_bytes("SELECT 'ä';\n\nSELECT 2;\n".encode())
    (tmp_path / "b.sql").write_bytes("\ufeffSELECT 'ä';\r\n\r\nSELECT 2;\r\n".encode())
    one, other = read_file(tmp_path / "a.sql"), read_file(tmp_path / "b.sql")
    assert (one.text, one.checksum) == (other.text, other.checksum)
    assert SqlFile("x", f"{NO_TRANSACTION}\nSELECT 1").in_transaction is False


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("SELECT 'ä';".encode("latin-1"), "line 1 is not UTF-8"),
        ("SELECT 1;\nSELECT 2;".encode("utf-16"), "line 1 is not UTF-8"),
        (b"SELECT 1;\n\nSELECT '\0';", "line 3 has a NUL character"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.sql"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        read_file(path)
    assert str(refused.value).startswith(f"--schema {path}: ")
    assert message in str(refused.value)
