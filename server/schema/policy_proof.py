"""Proves from its text that a policy shows no row, and allows no write, when there is no caller.

The text is what Postgres prints of a policy (`pg_get_expr`): every operation in parentheses, names quoted where needed. Without
a caller each of the settings is NULL. A comparison with NULL is not true, whatever the row has; AND, OR, COALESCE(…, false),
EXISTS and IN pass that on. What is not understood counts as not proven: the verdict never depends on the rows of a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_CALLER: Final = "\x00"  # one setting of the caller, in a form that is NULL without one
_SETTING: Final = re.compile(r"NULLIF\(current_setting\('gatepost\.(?:user_id|org_id|admin_org_id)'::text, true\), ''::text\)")
_WRAPPED: Final = re.compile(
    r"\( SELECT \x00(?: AS \"?\w+\"?)?\)|(?<![\w\"])\(\x00\)|\x00::(?:\"[^\"]+\"|[\w.]+)(?: varying)?(?:\(\d+\))?(?:\[\])?"
)
_TOKEN: Final = re.compile(
    r"\x00|E?'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|::|[\w$.]+(?:\.\"(?:[^\"]|\"\")*\")*|[-+*/<>=~!@#%^&|`?]+|[^\s]"
)
_OPERATOR: Final = re.compile(r"[-+*/<>=~!@#%^&|`?]+\Z")
_OPEN, _CLOSE = "([", ")]"
# What a subquery may not have for its WHERE to decide whether it has rows: an aggregate has one row from none.
_OTHER_ROWS: Final = frozenset({"UNION", "INTERSECT", "EXCEPT", "GROUP", "HAVING", "WITH", "VALUES"})
_AFTER_WHERE: Final = frozenset({"ORDER", "LIMIT", "OFFSET", "FETCH", "FOR", "WINDOW"})


def needs_caller(expression: str) -> bool:
    """Whether this policy's expression is never true without a caller, as far as its text proves it."""
    text, before = _SETTING.sub(_CALLER, expression), ""
    while text != before:
        text, before = _WRAPPED.sub(_CALLER, text), text
    try:
        return _never_true(_TOKEN.findall(text))
    except RecursionError:  # hundreds of operations inside each other
        return False


def _never_true(tokens: list[str]) -> bool:
    tokens = _bare(tokens)
    for word, enough in (("OR", all), ("AND", any)):
        parts = list(_split(tokens, word))
        if len(parts) > 1:
            return enough(_never_true(part) for part in parts)
    if tokens == ["false"] or tokens == [_CALLER, "IS", "NOT", "NULL"]:
        return True
    if tokens[1:2] == ["("] and len(_inside(tokens[1:])) == len(tokens) - 3:
        if tokens[0] == "COALESCE":
            *tried, last = _split(tokens[2:-1], ",")
            return _bare(last) == ["false"] and all(_never_true(one) for one in tried)
        if tokens[0] == "EXISTS":
            return _has_no_rows(tokens[2:-1])
    return _has_empty_set(tokens) or _compares_with_caller(tokens)


def _has_empty_set(tokens: list[str]) -> bool:
    """`x IN (SELECT … WHERE …)`, `x = ANY (ARRAY[caller, caller])`: nothing is in a set without rows, or of NULLs alone."""
    outside = list(_outside(tokens))
    if not outside or outside[-1][1] not in ("IN", "ANY") or "NOT" in (token for _, token in outside):
        return False
    at = outside[-1][0]
    members = _inside(tokens[at + 1 :])
    if len(members) != len(tokens) - at - 3:
        return False
    if members[:2] == ["ARRAY", "["]:
        return all(_bare(one) == [_CALLER] for one in _split(_inside(members[1:]), ","))
    return _has_no_rows(members)


def _compares_with_caller(tokens: list[str]) -> bool:
    """`caller = x`, `x = caller`, `caller = ANY (x)`, `x @> ARRAY[caller]`: operators yield NULL, or false, for a NULL."""
    if len(tokens) < 3:
        return False
    if tokens[0] == _CALLER and _OPERATOR.match(tokens[1]):
        return tokens[2] != "ALL" and _is_operand(tokens[2:])
    if tokens[-1] == _CALLER and _OPERATOR.match(tokens[-2]):
        return _is_operand(tokens[:-2])
    for operator, side in (("@>", 1), ("<@", 0)):
        parts = list(_split(tokens, operator))
        if len(parts) == 2 and parts[side][:2] == ["ARRAY", "["]:
            return any(_bare(one) == [_CALLER] for one in _split(_inside(parts[side][1:]), ","))
    return False


def _is_operand(tokens: list[str]) -> bool:
    """Whether these tokens are one operand: no operator and no keyword of a predicate outside parentheses."""
    return not any(_OPERATOR.match(token) or token in ("IS", "NOT", "IN", "COLLATE") for _, token in _outside(tokens))


def _has_no_rows(query: list[str]) -> bool:
    """Whether a subquery, without its parentheses, has no row where its WHERE is never true, which it must be."""
    outside = [token for _, token in _outside(query)]
    if query[:1] != ["SELECT"] or _OTHER_ROWS & set(outside) or "FROM" not in outside or "WHERE" not in outside:
        return False
    places = {token: at for at, token in _outside(query) if token in ("FROM", "WHERE")}
    if "(" in query[: places["FROM"]]:  # a function in the select list may be an aggregate
        return False
    rest = query[places["WHERE"] + 1 :]
    end = next((at for at, token in _outside(rest) if token in _AFTER_WHERE), len(rest))
    return _never_true(rest[:end])


def _outside(tokens: list[str]) -> Iterator[tuple[int, str]]:
    """(position, token) of every token that is not within parentheses or brackets."""
    depth = 0
    for at, token in enumerate(tokens):
        if token in _CLOSE:
            depth -= 1
        elif depth == 0 and token not in _OPEN:
            yield at, token
        if token in _OPEN:
            depth += 1


def _split(tokens: list[str], word: str) -> Iterator[list[str]]:
    start = 0
    for at in [at for at, token in _outside(tokens) if token == word]:
        yield tokens[start:at]
        start = at + 1
    yield tokens[start:]


def _inside(tokens: list[str]) -> list[str]:
    """What is between the first token, which opens, and the one that closes it."""
    depth = 0
    for at, token in enumerate(tokens):
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0:
            return tokens[1:at]
    return tokens


def _bare(tokens: list[str]) -> list[str]:
    """Without the parentheses around all of it."""
    while tokens[:1] == ["("] and len(_inside(tokens)) == len(tokens) - 2:
        tokens = tokens[1:-1]
    return tokens
