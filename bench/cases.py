"""The cases that run.py measures: which bytes are sent, what must come back, and what the cost is held against."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from issuer import Issuer, garbage, request, user
from stats import Ratio, ratio
from writes import UNAUDITED

from providers.api_key.key_format import Key

VERIFY = "one RSA-2048 verification"


class Case(NamedTuple):
    """`against` is the same case of the bare server (`limit`) or of Gatepost without its audit, or another case of Gatepost's.

    With `base` the cost is what this case costs more than that one, in units of one bare RSA-2048 verification.
    """

    path: str
    credential: str
    expect: str
    against: str = "limit"
    base: str | None = None
    body: bytes = b""  # of a POST

    @property
    def servers(self) -> list[str]:
        """Those that it is measured on."""
        return [self.against, "gatepost"] if self.against in ("limit", UNAUDITED) else ["gatepost"]


ROW = b'{"name": "item 1", "payload": {"kind": "note", "n": 1, "done": false, "tags": ["a", "b"]}}'
CASES: Mapping[str, Case] = {
    "data": Case("/api/data", "token", "200"),
    "me": Case("/api/me", "token", "200"),
    "no token": Case("/api/data", "nobody", "401"),
    "health": Case("/api/health", "nobody", "200"),
    "post": Case("/api/data", "writer", "201", body=ROW),
    "audit of a post": Case("/api/data", "writer", "201", UNAUDITED, body=ROW),
    "static key": Case("/api/me", "static", "200", "me"),
    "managed key": Case("/api/me", "managed", "200", "me"),
    "new token": Case("/api/me", "new", "200", VERIFY, "me"),
    "forged token": Case("/api/me", "forged", "401", VERIFY, "no token"),
    "garbage": Case("/api/me", "garbage", "401", VERIFY, "no token"),
}


def needed(names: Sequence[str]) -> list[str]:
    """These cases, and before them those that they are held against."""
    wanted = {other for name in names for other in (name, CASES[name].against, CASES[name].base)}
    return [name for name in CASES if name in wanted]


class Requests:
    """The bytes of each case, made once; those of `new token` anew for each round."""

    def __init__(self, issuer: Issuer, users: int, static: Sequence[Key], managed: Sequence[Key], new: int) -> None:
        self._issuer, self._new, self.users = issuer, new, users
        self._shown: dict[str, list[dict[str, Any]]] = {
            "token": [{"token": issuer.token(n), "number": n} for n in range(users)],
            # Users of their own, so that the pages of the others stay as they are.
            "writer": [{"token": issuer.token(n), "number": n} for n in range(users, users + 100)],
            "nobody": [{}],
            "static": [{"key": key.text, "number": n} for n, key in enumerate(static)],
            "managed": [{"key": key.text, "number": n} for n, key in enumerate(managed)],
            "forged": [{"token": issuer.forged(n), "number": n} for n in range(users)],
            "garbage": [{"token": garbage(n)} for n in range(users)],
        }

    def of(self, name: str) -> list[bytes]:
        case = CASES[name]
        if case.credential == "new":
            return [request(case.path, self._issuer.token(n), n) for n in range(self._new)]
        return [request(case.path, body=case.body, **shown) for shown in self._shown[case.credential]]


def verify_answers(port: int, requests: Requests, cases: Sequence[str], rows: int, locked: bool) -> None:
    """Right answers come before speed. Raises AssertionError for a wrong one; `locked`: this one knows its callers."""
    for name in cases:
        case, sent = CASES[name], requests.of(name)
        if not locked and "limit" not in case.servers:
            continue
        for number in sorted({0, len(sent) // 2, len(sent) - 1}):
            status, body = exchange(port, sent[number])
            assert str(status) == case.expect, (name, status, body[:200])
            if case.body:
                _check_written(json.loads(body), user(requests.users + number))
            elif name == "data":
                _check_rows(json.loads(body), user(number), rows)
            elif case.path == "/api/me" and case.expect == "200":
                assert json.loads(body)["user_id"] == user(number), (name, body[:200])
            elif case.expect == "401" and locked:
                assert set(json.loads(body)) == {"error", "reason"}, (name, body[:200])


def _check_rows(got: list[dict[str, Any]], owner: str, rows: int) -> None:
    assert len(got) == rows, len(got)
    assert {row["user_id"] for row in got} == {owner}, owner
    assert all(isinstance(row["payload"], dict) and len(row) == 7 for row in got), got[0]
    assert [row["created_at"] for row in got] == sorted((row["created_at"] for row in got), reverse=True), (
        "not the newest first"
    )


def _check_written(row: dict[str, Any], owner: str) -> None:
    assert {name: row[name] for name in ("name", "payload")} == json.loads(ROW), row
    assert (row["user_id"], len(row)) == (owner, 7), row


def exchange(port: int, sent: bytes) -> tuple[int, bytes]:
    """Send these bytes on a connection of their own; status and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.connect()
    assert connection.sock is not None
    connection.sock.sendall(sent)
    answer = http.client.HTTPResponse(connection.sock, method="GET")
    answer.begin()
    body = answer.read()
    connection.close()
    return answer.status, body


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Ratio]]:
    """By case the ratios `server`, `both` (server and Postgres) and `p99`, or `verify`; medians over the rounds."""
    at = {(row["case"], row["server"], row["round"]): row for row in rows}
    rounds = sorted({row["round"] for row in rows})
    found: dict[str, dict[str, Ratio]] = {}
    for name, case in CASES.items():
        if (name, "gatepost", rounds[0]) not in at:
            continue
        ours = [at[name, "gatepost", round] for round in rounds]
        if case.base is not None:
            bases = [at[case.base, "gatepost", round] for round in rounds]
            pairs = [(o["server_us"] - b["server_us"], o["verify_us"]) for o, b in zip(ours, bases, strict=True)]
            found[name] = {"verify": ratio(pairs)}
            continue
        reference = (name, case.against) if case.against in case.servers else (case.against, "gatepost")
        theirs = [at[*reference, round] for round in rounds]
        both = [(_both(o), _both(t)) for o, t in zip(ours, theirs, strict=True)]
        found[name] = {
            "server": ratio((o["server_us"], t["server_us"]) for o, t in zip(ours, theirs, strict=True)),
            **({"both": ratio(both)} if both[0][0] == both[0][0] else {}),  # NaN: Postgres is on another machine
            "p99": ratio((o["p99_ms"], t["p99_ms"]) for o, t in zip(ours, theirs, strict=True)),
        }
    return found


def _both(row: Mapping[str, Any]) -> float:
    return float(row["server_us"] + row["postgres_us"])
