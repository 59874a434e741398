"""The conformance kit for authors of providers: a fixture, and a class whose tests check a provider against its contract.

    pytest_plugins = ["server.testing_provider"]                            # in conftest.py
    class TestAcme(ProviderContract):                                       # in a test file
        @pytest.fixture
        def provider_case(self):
            return ProviderCase(
                factory=AcmeProvider, settings={"url": "..."},
                known=[{"Authorization": "Bearer acme_good"}], bad=[{"Authorization": "Bearer acme_bad"}],
                not_mine=[{"Authorization": "Bearer other"}], outage=service.down, slow=service.slow,
            )

Requests are real ones over loopback. Tests that need `outage` or `slow` are skipped if the case has none.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final, cast

import pytest

from ..auth.identity import Identity
from ..auth.rejected import CredentialRejected
from ..gate.deadline import within
from ..http.errors import Unavailable
from .live import LiveContract
from .recall import RecallContract
from .stage import Headers, Opened, ProviderCase, opened
from .watch import Pulse, alarm, credentials_in, foreign_tasks, words_of

__all__ = ["ProviderCase", "ProviderContract"]

_SLUG: Final = re.compile(r"[a-z]+(?:-[a-z]+){0,6}\Z")
CALLERS: Final = 50
TURNS: Final = 8


@pytest.fixture
def provider_case() -> ProviderCase:
    """The provider under test. Override it."""
    pytest.fail("define the fixture provider_case: see server.testing_provider", pytrace=False)


class ProviderContract(RecallContract, LiveContract):
    """The tests. Inherit it in a class whose name begins with `Test` and that has a fixture `provider_case`."""

    pytestmark = pytest.mark.asyncio

    async def test_a_known_caller_is_an_identity(self, provider_case: ProviderCase) -> None:
        """Also the second time, when the answer may come from a cache."""
        assert provider_case.known, "the case has no known caller"
        async with opened(provider_case) as provider:
            for headers in provider_case.known:
                first, second = await provider.answer(headers), await provider.answer(headers)
                assert isinstance(first, Identity), f"a known caller got {_name(first)}, not an Identity"
                assert isinstance(second, Identity), f"a known caller got {_name(second)} the second time"
                assert _who(first) == _who(second), "the same credential is another identity the second time"

    async def test_a_credential_of_another_provider_is_none(self, provider_case: ProviderCase) -> None:
        async with opened(provider_case) as provider:
            for headers in [{}, *provider_case.not_mine]:
                got = await provider.answer(headers)
                assert got is None, f"{_shown(headers)}: another provider's, and the answer is {_name(got)}, not None"

    async def test_a_bad_credential_is_rejected_with_a_slug(self, provider_case: ProviderCase) -> None:
        assert provider_case.bad, "the case has no bad credential"
        async with opened(provider_case) as provider:
            for headers in provider_case.bad:
                got = await provider.answer(headers)
                assert isinstance(got, CredentialRejected), f"a bad credential got {_name(got)}, not CredentialRejected"
                assert _SLUG.match(str(got.reason)), f"the reason {got.reason!r} is not a slug (lower-case words, hyphens)"

    async def test_an_outage_is_unavailable(self, provider_case: ProviderCase) -> None:
        """Neither a refusal nor None, which would ask the next provider; and the server starts all the same."""
        if provider_case.outage is None:
            pytest.skip("the case has no outage")
        async with provider_case.outage(), opened(provider_case) as provider:
            for headers in provider_case.known:
                got = await provider.answer(headers)
                assert isinstance(got, Unavailable), f"in an outage the answer is {_name(got)}, not Unavailable"

    async def test_a_cancelled_call_leaves_it_usable(self, provider_case: ProviderCase) -> None:
        headers = provider_case.known[0]
        for turns in range(TURNS):
            async with opened(provider_case) as provider:
                await _cancelled(provider, headers, turns)
                _usable(await provider.answer(headers))
        if provider_case.slow is not None:
            async with opened(provider_case) as provider:
                async with provider_case.slow():
                    await _cancelled(provider, headers, TURNS, 0.05)
                _usable(await provider.answer(headers))

    async def test_it_answers_within_the_time_out(self, provider_case: ProviderCase) -> None:
        """A healthy service: at once. A slow one: in time, or the call can be cancelled; it must not return None by mistake."""
        async with opened(provider_case) as provider:
            for headers in [{}, *provider_case.not_mine, *provider_case.bad, *provider_case.known]:
                got, ended = await _bounded(provider, headers, provider_case.seconds)
                assert ended, "it keeps running after its time-out"
                assert not isinstance(got, TimeoutError), "it takes longer than its time-out"
        if provider_case.slow is not None:
            async with provider_case.slow(), opened(provider_case) as provider:
                for headers in provider_case.known:
                    got, ended = await _bounded(provider, headers, 0.2)
                    assert ended, "it keeps running after its time-out"
                    allowed = Identity | Unavailable | TimeoutError
                    assert isinstance(got, allowed), f"from a slow service, and the answer is {_name(got)}"

    async def test_it_never_blocks_the_event_loop(self, provider_case: ProviderCase) -> None:
        """Compares the turns of the loop with those of a thread: a blocked loop falls behind, a slow machine slows both."""
        slow = provider_case.slow
        with alarm(15):
            async with opened(provider_case) as provider, Pulse() as pulse:
                for headers in [{}, *provider_case.not_mine, *provider_case.bad, *provider_case.known]:
                    await provider.answer(headers)
            if slow is not None:
                async with slow(), Pulse() as slow_pulse, opened(provider_case) as provider:
                    await provider.answer(provider_case.known[0])
                pulse.longest = max(pulse.longest, slow_pulse.longest)
        assert pulse.longest < pulse.most, f"the event loop was blocked for {pulse.longest} beats of {pulse.every} s"

    async def test_no_credential_is_shown(self, provider_case: ProviderCase, caplog: pytest.LogCaptureFixture) -> None:
        """Not in a repr, an exception, a reason for /readyz, or the logs at level DEBUG."""
        case = provider_case
        secrets = {*case.secrets, *(one for headers in [*case.known, *case.bad] for one in credentials_in(headers))}
        texts: list[str] = []
        caplog.set_level("DEBUG")
        async with opened(case) as provider:
            for headers in [*case.known, *case.bad]:
                texts += words_of(await provider.answer(headers))
            texts += provider.words()
        if case.outage is not None:
            async with case.outage(), opened(case) as provider:
                texts += words_of(await provider.answer(case.known[0]))
                texts += provider.words()
        texts += [f"{record.getMessage()} {record.__dict__!r} {record.exc_text}" for record in caplog.records]
        shown = [text for text in [*texts, caplog.text] if any(secret in text for secret in secrets)]
        # The message does not quote the text: a failing test's output must not show a credential either.
        assert not shown, f"a credential or secret is shown in {len(shown)} text(s): a repr, an exception or a log line"

    async def test_many_callers_at_once(self, provider_case: ProviderCase) -> None:
        async with opened(provider_case) as alone:
            expected = [_who(await alone.answer(headers)) for headers in provider_case.known]
        number = len(expected)
        async with opened(provider_case) as provider:
            callers = (provider.answer(provider_case.known[at % number]) for at in range(CALLERS))
            got = [_who(one) for one in await asyncio.gather(*callers)]
        assert got == [expected[at % number] for at in range(CALLERS)], "simultaneous callers do not get their own answers"

    async def test_it_opens_and_closes(self, provider_case: ProviderCase) -> None:
        """Once each, also in an outage; no task of the provider runs on afterwards."""
        before = asyncio.all_tasks()
        async with opened(provider_case) as provider:
            await provider.answer(provider_case.known[0])
        if provider_case.outage is not None:
            async with provider_case.outage(), opened(provider_case):
                pass
        for _ in range(50):
            if not foreign_tasks(before):
                break
            await asyncio.sleep(0.01)
        assert not foreign_tasks(before), "a task of the provider runs on after close()"


def _name(got: object) -> str:
    return "None" if got is None else type(got).__name__


def _shown(headers: Headers) -> str:
    return f"a request with {', '.join(headers)}" if headers else "a request without credentials"


def _who(got: object) -> tuple[Any, ...]:
    assert isinstance(got, Identity), f"a known caller got {_name(got)}, not an Identity"
    return got.provider, got.token_type, got.user_id, got.org_id, got.org_role, got.key_id


def _usable(got: object) -> None:
    assert isinstance(got, Identity), f"after a cancelled call a known caller got {_name(got)}"


async def _cancelled(provider: Opened, headers: Headers, turns: int, seconds: float = 0) -> None:
    """Ask, and cancel after `turns` turns of the loop, which take `seconds` in total."""
    async with provider.request(headers) as request:
        task = asyncio.ensure_future(cast("Any", provider.authenticate(request)))
        for _ in range(turns):
            await asyncio.sleep(seconds / turns)
        waiting = task.cancel()
        done, _pending = await asyncio.wait({task}, timeout=2)
        assert done, "it keeps running after it was cancelled"
        assert task.cancelled() or not waiting, "it swallows its cancellation"


async def _bounded(provider: Opened, headers: Headers, seconds: float) -> tuple[object, bool]:
    """(the answer, within a time-out as the server sets it; whether the call ended)."""
    async with provider.request(headers) as request:
        task = asyncio.ensure_future(within(seconds, provider.authenticate(request)))
        done, _pending = await asyncio.wait({task}, timeout=seconds + 2)
        if not done:
            task.cancel()
            return None, False
        return task.exception() or task.result(), True
