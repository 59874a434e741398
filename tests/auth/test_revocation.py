"""Sign-out that takes effect at once: the set in memory, its feed, and what a stale feed means."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server import Identity, Unavailable
from server.auth.revocation import SUBJECT, Revocations
from server.auth.revocation_feed import Feed
from server.testing.clerk import LoopbackClerk


def identity(**more: Any) -> Identity:
    words = {"provider": "clerk", "token_type": "session_token", "user_id": "user_1", "session_id": "sess_1", "org_id": "org_1",
             "org_role": "org:admin", "issued_at": 100.0}  # fmt: skip
    return Identity(**{**words, **more})


class Moment:
    """A row's timestamp."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def timestamp(self) -> float:
        return self.seconds


def revoked(kind: str, subject: str, before: float | None) -> Revocations:
    known = Revocations(max_staleness=10, clock=lambda: 1000.0)
    moment = None if before is None else Moment(before)
    known.replace([{"kind": kind, "subject": subject, "issued_before": moment, "expires_at": Moment(9e9)}], 1000.0)
    return known


@pytest.mark.parametrize(
    ("kind", "subject", "before", "denied"),
    [
        ("session", "sess_1", None, True),
        ("session", "sess_1", 50, True),
        ("session", "sess_2", None, False),
        ("user", "user_1", None, True),
        ("user", "user_1", 100, True),
        ("user", "user_1", 99, False),
        ("user", "user_2", None, False),
        ("organization", "org_1", 100, True),
        ("organization", "org_1", 99, False),
        ("membership", "user_1 org_1", 100, True),
        ("membership", "user_1 org_1", 99, False),
        ("membership", "user_1 org_2", None, False),
        ("membership", "user_2 org_1", None, False),
        ("role", "org:admin", 100, True),
        ("role", "org:member", 100, False),
        ("key", "user_1", None, False),
    ],
)
def test_who_is_denied(kind: str, subject: str, before: float | None, denied: bool) -> None:
    assert revoked(kind, subject, before).denies(identity()) is denied


@pytest.mark.parametrize(("role", "denied"), [("admin", True), ("org:org:admin", True), ("org:", False), ("Admin", False), (None, False)])
def test_a_role_is_denied_however_the_credential_writes_it(role: str | None, denied: bool) -> None:
    assert revoked("role", "org:admin", 100).denies(identity(org_role=role)) is denied


@pytest.mark.parametrize(
    ("kind", "subject", "before", "denied"),
    [
        ("user", "support_1", None, True),
        ("user", "support_1", 100, True),
        ("user", "support_1", 99, False),
        ("user", "user_1", 100, True),
        ("user", "support_2", None, False),
        ("membership", "support_1 org_1", None, False),  # the session acts with the user's membership
    ],
)
def test_an_impersonation_ends_with_either_of_the_two(kind: str, subject: str, before: float | None, denied: bool) -> None:
    for more in ({}, {"org_id": None}):
        assert revoked(kind, subject, before).denies(identity(impersonator="support_1", **more)) is denied


@pytest.mark.parametrize(("kind", "subject"), [("user", "user_1"), ("membership", "user_1 org_1"), ("role", "org:admin")])
def test_a_credential_of_unknown_age_is_denied_by_any_revocation(kind: str, subject: str) -> None:
    assert revoked(kind, subject, 1).denies(identity(issued_at=None))


def test_a_stale_feed_is_an_outage_for_what_an_issuer_signs_out_and_not_for_others() -> None:
    now = itertools.chain([5.0], itertools.repeat(15.5))
    known = Revocations(max_staleness=10, clock=lambda: next(now))
    known.replace([], 5.0)
    assert known.denies(identity()) is False
    with pytest.raises(Unavailable):
        known.denies(identity())
    with pytest.raises(Unavailable):
        known.denies(identity(token_type="access_token"))
    assert known.denies(identity(token_type="clerk_api_key")) is False


@pytest.mark.parametrize(("kind", "before", "session", "denied"), [
    ("subject", 100, None, True), ("subject", 99, None, False), ("subject", 100, "sess_9", False), ("user", 100, "sess_9", True),
    ("user", 99, None, False),
])  # fmt: skip
def test_an_access_token_whose_subject_is_not_its_user(kind: str, before: float, session: str | None, denied: bool) -> None:
    for token_type, expected in (("access_token", denied), ("api_key", False)):
        caller = identity(token_type=token_type, user_id="uid_1", session_id=session)
        caller.derived[SUBJECT] = "sub_1"
        assert revoked(kind, "sub_1", before).denies(caller) is expected


def test_beyond_the_bound_a_kept_entry_hides_no_revocation_that_was_dropped() -> None:
    """The older half of the entries becomes one rule, which holds for a subject with an entry of its own, too."""
    known = Revocations(max_staleness=10, clock=lambda: 1000.0, most=4)
    rows = [{"kind": "session", "subject": "sess_1", "issued_before": None, "expires_at": Moment(9e9)}]
    rows += [{"kind": "user", "subject": f"user_{number}", "issued_before": Moment(50), "expires_at": Moment(9e9)} for number in (4, 3, 2, 1)]
    known.add(rows, 1000.0, now=200.0)
    assert len(known) == 2, "the session's entry was dropped"
    for org_id in ("org_1", None):
        assert known.denies(identity(org_id=org_id, org_role=None))
        assert not known.denies(identity(org_id=org_id, org_role=None, issued_at=201.0, session_id="sess_new"))


def test_before_the_first_reading_no_session_passes() -> None:
    known = Revocations(max_staleness=10)
    assert known.age == math.inf
    with pytest.raises(Unavailable):
        known.denies(identity())


async def test_a_revocation_reaches_every_server_on_the_database(serve: Any, db: Any) -> None:
    """Two servers, one database: a session that both have accepted is refused by both once its row is there.

    A benchmark measures how soon. Here it must happen without any other event, and within the deadline.
    """
    async with LoopbackClerk() as clerk:
        clients = [await serve(clerk.settings()) for _ in range(2)]
        headers = {"Authorization": f"Bearer {clerk.token(sid='sess_gone')}"}
        for client in clients:
            assert (await client.get("/api/me", headers)).status == 200
        await db.rows(
            "INSERT INTO revocations (kind, subject, expires_at) VALUES ('session', 'sess_gone', now() + interval '1 hour')"
        )
        async with asyncio.timeout(10):
            for client in clients:
                while (answer := await client.get("/api/me", headers)).status == 200:
                    await asyncio.sleep(0.02)
                assert (answer.status, answer.json()["reason"]) == (401, "session-revoked")
        assert (await clients[0].get("/api/me", {"Authorization": f"Bearer {clerk.token(sid='sess_else')}"})).status == 200


async def test_a_feed_that_cannot_be_read_makes_sessions_a_503_and_recovers(
    serve: Any, db: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with LoopbackClerk() as clerk:
        client = await serve({**clerk.settings(), "revocation.max_staleness": 0.8})
        headers = {"Authorization": f"Bearer {clerk.token()}"}
        assert (await client.get("/api/me", headers)).status == 200
        await db.rows("ALTER TABLE revocations RENAME TO revocations_away")
        try:
            async with asyncio.timeout(10):
                while (await client.get("/api/me", headers)).status != 503:
                    await asyncio.sleep(0.05)
        finally:
            await db.rows("ALTER TABLE revocations_away RENAME TO revocations")
        async with asyncio.timeout(10):
            while (await client.get("/api/me", headers)).status != 200:
                await asyncio.sleep(0.05)
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("revocation feed")]
    assert told == ["revocation feed interrupted", "revocation feed resumed"], "an outage is one line, and its end another"


async def test_an_outage_in_the_moment_of_closing_does_not_hold_up_the_end(db: Any) -> None:
    """A connection attempt that fails at the moment of its cancellation raises its own error, and the cancellation is lost (Python 3.11)."""
    connected, opened, trying = 0, [], asyncio.Event()

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Any]:
        nonlocal connected
        connected += 1
        if connected > 1:
            trying.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if connected == 2:
                    raise Unavailable("refused") from None
                raise
        async with db.server.connected(db.server.serving_role, db.name) as connection:
            opened.append(connection)
            yield connection

    feed = Feed(Revocations(max_staleness=10), connect)
    await feed.open()
    opened[0].terminate()  # the next reading needs another connection, which does not come
    async with asyncio.timeout(60):
        await trying.wait()
    async with asyncio.timeout(5):
        await feed.close()
    assert connected >= 2
