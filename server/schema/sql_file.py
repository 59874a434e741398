"""Reads a file of SQL, splits it into statements, and refuses what `migrate` cannot run, with its line."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from ..settings.setting import ConfigError

NO_TRANSACTION: Final = "-- gatepost: no transaction"
"""The first line of a file whose statements run one by one, outside a transaction."""

_MARKER: Final = "-- gatepost:"
_TOKEN: Final = re.compile(
    r"""
      (?P<space>\s++ | --[^\n]*+)
    | (?P<comment>/\*)
    | (?P<dollar>\$(?:[^\W\d]\w*+)?\$)
    | (?P<text>[eE]'(?:[^'\\]++|\\.|'')*+'?+ | '(?:[^']++|'')*+'?+ | "(?:[^"]++|"")*+"?+)
    | (?P<word>[^\W\d][\w$]*+)
    | (?P<number>\d[\w.]*+)
    | (?P<other>.)
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_MARK: Final = re.compile(r"/\*|\*/")
_CONTROL: Final = frozenset({"BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT"})
# What such a file may contain, by how a statement begins: indexes and upkeep, changes of rows in portions, and settings.
_ALONE: Final = re.compile(
    r"(CREATE (UNIQUE )?INDEX|DROP INDEX|REINDEX|VACUUM|ANALYZE|INSERT|UPDATE|DELETE|CALL|SET|RESET|SELECT"
    r"|ALTER TABLE .*(DETACH PARTITION|VALIDATE CONSTRAINT)|ALTER INDEX|REFRESH)\b"
)


class Statement(NamedTuple):
    """One statement of a file: its text, the line on which it begins (from 1), and its words outside quotes in upper case."""

    text: str
    line: int
    words: tuple[str, ...]


class SqlFile(NamedTuple):
    """A file of SQL: its name for messages, and its text without a byte order mark and with line feeds alone."""

    name: str
    text: str

    @property
    def checksum(self) -> str:
        """The SHA-256 of the text in hexadecimal; the same whatever line ends the file has."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def in_transaction(self) -> bool:
        """Whether the file runs in one transaction, which is the rule."""
        return self.text.partition("\n")[0].rstrip() != NO_TRANSACTION

    def statements(self) -> list[Statement]:
        """Returns the statements in their order. Raises ConfigError, naming the line, for one that `migrate` cannot run."""
        first = self.text.partition("\n")[0].rstrip()
        if first.startswith(_MARKER) and first != NO_TRANSACTION:
            raise ConfigError(f"migrate: {self.name}, line 1: the only marker is `{NO_TRANSACTION}`")
        found = split(self.text, self.name)
        for statement in found:
            if trouble := _trouble(statement, self.in_transaction):
                raise ConfigError(f"migrate: {self.name}, line {statement.line}: {trouble}")
        return found


def read_file(path: Path, name: str | None = None) -> SqlFile:
    """Returns the file at `path`. Raises ConfigError if it cannot be read or is not UTF-8."""
    try:
        given = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--schema {path}: cannot be read ({error.strerror})") from error
    try:
        text = given.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = given.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"--schema {path}: line {line} is not UTF-8; save the file as UTF-8") from error
    if "\0" in text:
        raise ConfigError(f"--schema {path}: line {text.count(chr(10), 0, text.index(chr(0))) + 1} has a NUL character")
    return SqlFile(name or str(path), text.replace("\r\n", "\n"))


def split(text: str, name: str = "") -> list[Statement]:
    """Returns the statements of `text`, as psql would split it: not within quotes, comments, parentheses and function bodies.

    Raises ConfigError for a command of psql. What is not closed is left to Postgres, which says where it begins.
    """
    ends = [match.start() for match in re.finditer("\n", text)]
    found, words, begins = [], list[str](), -1
    parentheses = body = 0
    for kind, start, end in _tokens(text):
        if begins < 0:
            begins = start
        if kind == "word":
            words.append(text[start:end].upper())
            body = body if parentheses else _body(words, body)
        elif text[start] == "\\":
            command, line = text[start:].split(None, 1)[0], bisect_left(ends, start) + 1
            raise ConfigError(f"migrate: {name}, line {line}: {command} is a command of psql; the file must contain SQL only")
        elif kind == "other" and text[start] in "()":
            parentheses = max(0, parentheses + (1 if text[start] == "(" else -1))
        elif text[start] == ";" and not parentheses and not body:
            if words:
                found.append(Statement(text[begins:end], bisect_left(ends, begins) + 1, tuple(words)))
            words, begins = [], -1
    if begins >= 0:
        found.append(Statement(text[begins:], bisect_left(ends, begins) + 1, tuple(words)))
    return found


def _tokens(text: str) -> Iterator[tuple[str, int, int]]:
    """The tokens of `text` without spaces and comments: (kind, start, end)."""
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        assert token is not None
        kind, end = token.lastgroup or "other", token.end()
        if kind == "comment":
            end = _end_of_comment(text, at)
        elif kind == "dollar":
            closing = text.find(token[0], end)
            end = len(text) if closing < 0 else closing + len(token[0])
        if kind not in ("space", "comment"):
            yield kind, at, end
        at = end


def _end_of_comment(text: str, at: int) -> int:
    """Where the comment that begins at `at` ends; comments of SQL nest."""
    depth = 0
    for mark in _COMMENT_MARK.finditer(text, at):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return mark.end()
    return len(text)


def _body(words: list[str], depth: int) -> int:
    """How deep in a function's body (BEGIN ATOMIC … END) the statement is after its last word."""
    made = words[1:2] if words[1:3] != ["OR", "REPLACE"] else words[3:4]
    if words[0] != "CREATE" or made not in (["FUNCTION"], ["PROCEDURE"]):
        return depth
    if words[-1] == "BEGIN":
        return depth + 1
    if words[-1] == "CASE" and depth:
        return depth + 1
    return max(0, depth - 1) if words[-1] == "END" else depth


def _trouble(statement: Statement, in_transaction: bool) -> str | None:
    """Why `migrate` cannot run the statement, or None."""
    words = statement.words
    first = words[0] if words else ""
    if (first in _CONTROL and not (first == "ROLLBACK" and "TO" in words)) or words[:2] == ("PREPARE", "TRANSACTION"):
        return f"{first} is not allowed: each file is one transaction, which migrate begins and commits"
    if first == "COPY" and {"STDIN", "STDOUT"} & set(words):
        return "COPY with stdin or stdout needs psql: write INSERT"
    if in_transaction and (("CONCURRENTLY" in words and first in ("CREATE", "DROP", "REINDEX", "ALTER")) or first == "VACUUM"):
        what = "CONCURRENTLY" if "CONCURRENTLY" in words else first
        return f"{what} cannot run in a transaction: move it into a file whose first line is `{NO_TRANSACTION}`"
    if not in_transaction and not _ALONE.match(" ".join(words)):
        return f"{' '.join(words[:2]) or 'this'} needs a transaction: move it into a file without `{NO_TRANSACTION}`"
    return None
