"""Texts from elsewhere in messages, and the nearest known name."""

import pytest

from server.messages import error_line, nearest_name, one_line


@pytest.mark.parametrize(("text", "line"), [
    ("a\n  b\r\n\tc", "a b c"),
    ("no \x1b[31mred\x07", "no \\x1b[31mred\\x07"),
    ("right\u202eleft \ud800", "right\\u202eleft \\ud800"),
    ("postgres://me:secret@db/x failed", "postgres://***@db/x failed"),
    ("amqp://me:se/cr@et@db/x failed", "amqp://***@db/x failed"),
    ("amqp://me@acme.org:secret@db/x failed", "amqp://***@db/x failed"),
    ("redis://secret@db failed", "redis://***@db failed"),
    ("see https://acme.org/@scope/x", "see https://acme.org/@scope/x"),
    ("", ""),
])  # fmt: skip
def test_a_text_is_one_line_that_a_terminal_does_not_obey(text: str, line: str) -> None:
    assert one_line(text) == line


def test_a_text_is_cut() -> None:
    assert one_line("x" * 501) == "x" * 499 + "…"
    assert one_line("x" * 500) == "x" * 500
    assert len(one_line("\x00" * 10_000, 200)) == 200


def test_an_error_without_a_text_is_its_type() -> None:
    assert error_line(ValueError()) == "ValueError"
    assert error_line(ValueError("a\nb")) == "ValueError: a b"


@pytest.mark.parametrize(("word", "name"), [
    ("prot", "port"), ("PORT", "port"), ("database-url", "database.url"), ("databse.url", "database.url"), ("database", "database.url"), ("xyz", None), ("", None),
])  # fmt: skip
def test_the_nearest_name(word: str, name: str | None) -> None:
    assert nearest_name(word, ("host", "port", "database.url")) == name
