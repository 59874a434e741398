"""The conformance kit on the built-in providers, and on providers that are broken on purpose: each check finds its fault."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web
from kits import oidc as oidc_kit

from providers.api_key.key_format import make
from providers.api_key.provider import ApiKeyProvider
from providers.clerk.provider import ClerkProvider
from providers.clerk.settings import TABLE
from providers.oidc.provider import OidcProvider
from providers.stub import StubProvider
from server import CredentialRejected, Identity, Unavailable
from server.testing.clerk import LoopbackClerk
from server.testing.provider import ProviderContract
from server.testing.stage import ProviderCase
from tests.conftest import BAD_CREDENTIALS, KEYS, ROBOT_A, stub

Case = ProviderCase
OTHERS = [{"Authorization": "Basic YWxpY2U6YWxpY2U="}, {"Authorization": ""}, {"Authorization": "Bearer"}]


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


# Built-in providers -----------------------------------------------------------------------------------------------------------------


class TestStub(ProviderContract):
    @pytest.fixture
    def provider_case(self) -> Case:
        bad = [headers for name, headers in BAD_CREDENTIALS.items() if name.startswith("stub")]
        known = [stub("alice"), stub("bob", org_id="org_b", org_role="org:admin")]
        return Case(factory=StubProvider, settings={}, known=known, bad=bad, not_mine=[*OTHERS, ROBOT_A, bearer("a.b.c")])


class TestStaticKeys(ProviderContract):
    @pytest.fixture
    def provider_case(self) -> Case:
        bad = [headers for name, headers in BAD_CREDENTIALS.items() if "key" in name]
        known = [ROBOT_A, bearer(ROBOT_A["X-API-Key"])]
        settings = {"keys": KEYS, "scopes": ()}
        return Case(
            factory=ApiKeyProvider, settings=settings, known=known, bad=bad, not_mine=[*OTHERS, bearer("a.b.c")], query=Keys().query
        )


class Keys:
    """The database, as the API key provider queries it."""

    def __init__(self, **known: str) -> None:
        self.known = {hashlib.sha256(key.encode()).digest(): user for user, key in known.items()}
        self.seconds, self.down = 0.0, False

    async def query(self, function: str, *args: Any) -> list[Mapping[str, Any]]:
        await asyncio.sleep(self.seconds)
        if self.down:
            raise Unavailable("the database is away")
        if function == "key_owner_ended":
            return [{"ended": False, "read_at": datetime.now(UTC), "member": False, "role": None, "permissions": None}]
        user = self.known.get(args[0]) if function == "key_by_hash" else None
        if user is None:
            return []
        nothing = ("org_id", "org_role", "org_permissions", "scopes", "expires_at", "revoked_at", "until")
        now = datetime.now(UTC)
        return [{**dict.fromkeys(nothing), "id": f"of_{user}", "user_id": user, "created_at": now, "ended": False, "read_at": now,
                 "depends_on": [], "watched": [f"user:{user}"]}]  # fmt: skip

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self.down = True
        yield
        self.down = False

    @asynccontextmanager
    async def slow(self) -> AsyncIterator[None]:
        self.seconds = 0.6
        yield
        self.seconds = 0.0


class TestManagedKeys(ProviderContract):
    @pytest.fixture
    def provider_case(self) -> Case:
        alice, bob = make("test").text, make("test").text
        keys = Keys(alice=alice, bob=bob)
        return Case(
            factory=ApiKeyProvider, settings={"keys": (), "scopes": ()}, known=[{"X-API-Key": alice}, bearer(bob)],
            bad=[bearer(make("test").text)], not_mine=OTHERS, outage=keys.outage, slow=keys.slow, query=keys.query,
        )  # fmt: skip


@pytest.fixture
async def clerk() -> AsyncIterator[LoopbackClerk]:
    async with LoopbackClerk() as one:
        yield one


def settings_of(clerk: LoopbackClerk) -> dict[str, Any]:
    given = {key.removeprefix("clerk."): value for key, value in clerk.settings().items() if key.startswith("clerk.")}
    return {key: setting.default for key, setting in TABLE.items()} | given


class TestClerkSessions(ProviderContract):
    @pytest.fixture
    def provider_case(self, clerk: LoopbackClerk) -> Case:
        @asynccontextmanager
        async def outage() -> AsyncIterator[None]:
            await clerk.__aexit__()
            yield

        alice, bob = clerk.token("user_alice", org_id="org_a"), clerk.token("user_bob")
        late, other = clerk.token(now=time.time() - 9000), clerk.token(azp="https://evil.example")
        return Case(
            name="clerk", factory=ClerkProvider, settings=settings_of(clerk), known=[bearer(alice), clerk.cookies(bob)],
            bad=[bearer(late), bearer(other), bearer(alice[:-6] + "AAAAAA")], not_mine=[*OTHERS[:1], ROBOT_A], outage=outage,
            secrets=[clerk.secret_key],
        )  # fmt: skip


class TestClerkMachines(ProviderContract):
    @pytest.fixture
    def provider_case(self, clerk: LoopbackClerk) -> Case:
        @asynccontextmanager
        async def mode(word: str) -> AsyncIterator[None]:
            clerk.mode, clerk.slow_seconds = word, 0.6
            yield
            clerk.mode = "ok"

        known = [bearer(clerk.machine_token("user_alice")), bearer(clerk.machine_token("user_bob", "oauth_token"))]
        return Case(
            name="clerk", factory=ClerkProvider, settings=settings_of(clerk), known=known, bad=[bearer("ak_" + "0" * 48)],
            outage=lambda: mode("500"), slow=lambda: mode("slow"), secrets=[clerk.secret_key],
        )  # fmt: skip


class TestOidc(ProviderContract):
    @pytest.fixture
    async def provider_case(self) -> AsyncIterator[Case]:
        async with oidc_kit.serve() as issuer:

            @asynccontextmanager
            async def outage() -> AsyncIterator[None]:
                issuer.status = 503
                yield
                issuer.status = 200

            settings = {"issuers": [{"issuer": issuer.url, "audience": oidc_kit.AUDIENCE}]}
            alice = issuer.token()
            yield Case(
                name="oidc", factory=OidcProvider, settings=settings, known=[bearer(alice), bearer(issuer.token(sub="bob"))],
                bad=[bearer(issuer.token(exp=1)), bearer(alice[:-6] + "AAAAAA")],
                not_mine=[*OTHERS, bearer(issuer.token(iss="https://other.example")), bearer("opaque")], outage=outage,
            )  # fmt: skip


# A good one, and all the ways to spoil it --------------------------------------------------------------------------------


class Service:
    """The service that the providers below ask."""

    def __init__(self) -> None:
        self.down, self.seconds = False, 0.0

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        self.down = True
        yield
        self.down = False

    @asynccontextmanager
    async def slow(self) -> AsyncIterator[None]:
        self.seconds = 0.6
        yield
        self.seconds = 0.0


class Good:
    """Takes `good_<user>_<something long>`, and asks its service."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.service: Service = settings["service"]
        self.secret: str = settings["secret"]

    async def authenticate(self, request: web.Request) -> Any:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token.startswith("good_"):
            return await self.not_mine(token)
        if token.startswith("good_bad"):
            return await self.refuse(token)
        await self.ask()
        return self.identity(token)

    async def ask(self) -> None:
        await asyncio.sleep(self.service.seconds)
        if self.service.down:
            raise Unavailable("the service is down")

    async def not_mine(self, token: str) -> Any:
        return None

    async def refuse(self, token: str) -> Any:
        raise CredentialRejected("credential-rejected", "no such token")

    def identity(self, token: str) -> Any:
        return Identity(provider="good", user_id=token.split("_")[1])


def case_of(factory: Any) -> Case:
    service = Service()
    return Case(
        factory=factory, settings={"service": service, "secret": "a-secret-of-the-settings"},
        known=[bearer("good_alice_0123456789abcdef"), bearer("good_bob_0123456789abcdef")],
        bad=[bearer("good_bad_0123456789abcdef")], not_mine=[bearer("other")], outage=service.outage, slow=service.slow,
        secrets=["a-secret-of-the-settings"],
    )  # fmt: skip


class TestGood(ProviderContract):
    @pytest.fixture
    def provider_case(self) -> Case:
        return case_of(Good)


BROKEN: list[tuple[str, type[Good], str]] = []


def broken(check: str, message: str) -> Any:
    """This provider must fail this check with this message."""

    def note(provider: type[Good]) -> type[Good]:
        BROKEN.append((check, provider, message))
        return provider

    return note


@broken("a_known_caller_is_an_identity", "got dict")
class GivesADictionary(Good):
    def identity(self, token: str) -> Any:
        return {"user_id": "alice"}


@broken("a_known_caller_is_an_identity", "got None the second time")
class ForgetsTheSecondTime(Good):
    asked = False

    def identity(self, token: str) -> Any:
        self.asked, again = True, self.asked
        return None if again else super().identity(token)


@broken("a_credential_of_another_provider_is_none", "CredentialRejected, not None")
class RefusesEverybody(Good):
    async def not_mine(self, token: str) -> Any:
        raise CredentialRejected


@broken("a_bad_credential_is_rejected_with_a_slug", "got None")
class LeavesTheBadToOthers(Good):
    async def refuse(self, token: str) -> Any:
        return None


@broken("a_bad_credential_is_rejected_with_a_slug", "is not a slug")
class SaysWhyInProse(Good):
    async def refuse(self, token: str) -> Any:
        raise CredentialRejected("No such token!")


@broken("an_outage_is_unavailable", "None, not Unavailable")
class LeavesAnOutageToOthers(Good):
    async def authenticate(self, request: web.Request) -> Any:
        with suppress(Unavailable):
            return await super().authenticate(request)


@broken("an_outage_is_unavailable", "CredentialRejected, not Unavailable")
class RefusesInAnOutage(Good):
    async def ask(self) -> None:
        if self.service.down:
            raise CredentialRejected


@broken("an_outage_is_unavailable", "ConnectionError, not Unavailable")
class LetsAnOutageThrough(Good):
    async def ask(self) -> None:
        if self.service.down:
            raise ConnectionError


@broken("a_cancelled_call_leaves_it_usable", "swallows its cancellation")
class SwallowsItsCancellation(Good):
    async def ask(self) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(0.05)


@broken("a_cancelled_call_leaves_it_usable", "a known caller got Unavailable")
class StaysBusy(Good):
    busy = False

    async def ask(self) -> None:
        if self.busy:
            raise Unavailable("somebody asks already")
        self.busy = True
        await super().ask()
        self.busy = False


@broken("it_answers_within_the_time_out", "the answer is None")
class TakesSlownessForNotMine(Good):
    async def authenticate(self, request: web.Request) -> Any:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                return await super().authenticate(request)


@broken("it_answers_within_the_time_out", "keeps running after its time-out")
class CannotBeStopped(Good):
    async def ask(self) -> None:
        for _ in range(30 if self.service.seconds else 0):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.1)


@broken("it_never_blocks_the_event_loop", "was blocked")
class BlocksWhileItWaits(Good):
    async def ask(self) -> None:
        time.sleep(self.service.seconds)


@broken("it_never_blocks_the_event_loop", "was blocked")
class BlocksWhenItOpens(Good):
    async def open(self, house: Any) -> None:
        time.sleep(self.service.seconds)


@broken("no_credential_is_shown", "is shown in")
class ShowsItsSecret(Good):
    def __repr__(self) -> str:
        return f"Provider({self.__dict__})"


@broken("no_credential_is_shown", "is shown in")
class LogsTheToken(Good):
    def identity(self, token: str) -> Any:
        logging.getLogger("good").debug("asked", extra={"fields": {"token": token}})
        return super().identity(token)


@broken("no_credential_is_shown", "is shown in")
class QuotesTheToken(Good):
    async def refuse(self, token: str) -> Any:
        raise CredentialRejected("credential-rejected", f"{token} is not known")


@broken("no_credential_is_shown", "is shown in")
class NamesTheCallerByTheToken(Good):
    def identity(self, token: str) -> Any:
        return Identity(provider="good", user_id=token)


@broken("many_callers_at_once", "do not get their own answers")
class KeepsTheTokenToItself(Good):
    async def authenticate(self, request: web.Request) -> Any:
        self.token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        await asyncio.sleep(0.05)
        return self.identity(self.token)


@broken("it_opens_and_closes", "runs on after close")
class LeavesATaskBehind(Good):
    async def open(self, house: Any) -> None:
        self.task = asyncio.create_task(asyncio.sleep(3600))


@broken("it_opens_and_closes", "no attribute")
class ClosesOnlyWhatWasOpened(Good):
    async def open(self, house: Any) -> None:
        await self.ask()
        self.client = object()

    async def close(self) -> None:
        del self.client


class Remembering(Good):
    """The good one, which remembers the callers that it has verified."""

    reads: Any = ("Authorization",)

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self.proven: dict[str, Any] = {}

    async def authenticate(self, request: web.Request) -> Any:
        identity = await super().authenticate(request)
        if identity is not None:
            self.proven[request.headers["Authorization"]] = identity
        return identity

    def recall(self, request: web.Request) -> Any:
        return self.proven.get(request.headers.get("Authorization", ""))


class TestRemembering(ProviderContract):
    @pytest.fixture
    def provider_case(self) -> Case:
        return case_of(Remembering)


@broken("recall_never_contradicts_authenticate", "a bad credential is recalled as Identity")
class RecallsTheBad(Remembering):
    def recall(self, request: web.Request) -> Any:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.identity(token) if token.startswith("good_") else None


@broken("recall_never_contradicts_authenticate", "a bad credential is recalled as Identity")
class RemembersTheRefused(Remembering):
    async def refuse(self, token: str) -> Any:
        self.proven[f"Bearer {token}"] = self.identity(token)
        raise CredentialRejected


@broken("recall_never_contradicts_authenticate", "another identity than authenticate")
class RecallsTheLastOne(Remembering):
    def recall(self, request: web.Request) -> Any:
        known = "good_" in request.headers.get("Authorization", "") and "bad" not in request.headers["Authorization"]
        return next(iter(self.proven.values()), None) if known else None


@broken("recall_never_contradicts_authenticate", "another identity than authenticate")
class RecallsMoreRights(Remembering):
    def recall(self, request: web.Request) -> Any:
        found = super().recall(request)
        return found and Identity(provider="good", user_id=found.user_id, org_id="org_1", org_role="org:admin")


@broken("recall_never_contradicts_authenticate", "that provider is never asked")
class RecallRefusesOthers(Remembering):
    def recall(self, request: web.Request) -> Any:
        if "Authorization" in request.headers and "good_" not in request.headers["Authorization"]:
            raise CredentialRejected
        return super().recall(request)


@broken("recall_never_contradicts_authenticate", "a known caller is recalled as CredentialRejected")
class RecallRefusesTheUnproven(Remembering):
    def recall(self, request: web.Request) -> Any:
        found = super().recall(request)
        if found is None and "good_" in request.headers.get("Authorization", ""):
            raise CredentialRejected
        return found


@broken("recall_never_contradicts_authenticate", "recall raised KeyError")
class RecallRaises(Remembering):
    def recall(self, request: web.Request) -> Any:
        return self.proven[request.headers["Authorization"]]


@broken("recall_never_contradicts_authenticate", "recall is async")
class RecallIsAsync(Remembering):
    async def recall(self, request: web.Request) -> Any:
        return super().recall(request)


@broken("an_open_stream_can_be_checked_again", "recheck returns another caller")
class RechecksTheLastOne(Remembering):
    async def recheck(self, identity: Identity) -> Any:
        return Identity(provider="good", user_id="user_of_another")


@broken("an_open_stream_can_be_checked_again", "raises CredentialRejected")
class RechecksNothing(Remembering):
    async def recheck(self, identity: Identity) -> Any:
        raise CredentialRejected("key-revoked")


@broken("reads_names_the_headers_that_it_reads", "not in reads")
class ReadsAnotherHeader(Remembering):
    reads = ("X-Good",)


@broken("reads_names_the_headers_that_it_reads", "not a list of header names")
class ReadsAText(Remembering):
    reads = "Authorization"


@pytest.mark.parametrize(("check", "provider", "message"), BROKEN, ids=[provider.__name__ for _, provider, _ in BROKEN])
async def test_each_check_finds_its_fault(
    check: str, provider: type[Good], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = getattr(ProviderContract(), f"test_{check}")
    more = (caplog,) if check == "no_credential_is_shown" else ()
    with pytest.raises((AssertionError, AttributeError), match=message):
        await run(case_of(provider), *more)
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


def test_every_check_has_a_broken_provider() -> None:
    checks = {name.removeprefix("test_") for name in dir(ProviderContract) if name.startswith("test_")}
    assert {check for check, _, _ in BROKEN} == checks
