"""Why no provider takes a credential: the log says it without the credential, and the response says nothing of it."""

from __future__ import annotations

import json
import logging

import pytest
from kits.tokens import b64

from tests.conftest import Serve

TAKEN = "no provider takes this kind of credential"


def unsigned(iss: object) -> str:
    return f"{b64(b'{}')}.{b64(json.dumps({'iss': iss, 'sub': 'hunter2'}).encode())}.x"


# The header -> the whole `detail` of the log line.
CASES = {
    "Basic aHVudGVyMjpodW50ZXIy": f"{TAKEN}: the scheme is Basic",
    "basic aHVudGVyMjpodW50ZXIy": f"{TAKEN}: the scheme is Basic",
    'Digest username="hunter2"': f"{TAKEN}: the scheme is Digest",
    "Token hunter2": f"{TAKEN}: the scheme is Token",
    "hunter2 hunter2": TAKEN,
    "hunter2": f"{TAKEN}: Authorization has one word; a token follows the word Bearer",
    "Bearer": f"{TAKEN}: Authorization has one word; a token follows the word Bearer",
    "Bearer hunter2": TAKEN,
    "Bearer hunter2.hunter2.hunter2": TAKEN,
    "Bearer a.b.c.d": TAKEN,
    f"Bearer {unsigned('https://idp.example/')}": f"{TAKEN}: the token names the issuer 'https://idp.example/', and no provider names an issuer",
    f"Bearer {unsigned(chr(10) + 'level=error')}": f"{TAKEN}: the token names the issuer '\\nlevel=error', and no provider names an issuer",
    f"Bearer {unsigned('x' * 201)}": TAKEN,
    f"Bearer {unsigned(7)}": TAKEN,
    f"Bearer {unsigned(None)}": TAKEN,
    f"Bearer {b64(b'{}')}.{b64(b'[' * 9000)}.x": TAKEN,
    f"Bearer {b64(b'{}')}.{b64(bytes(range(256)))}.x": TAKEN,
    f"Bearer {b64(b'{}')}.A.x": TAKEN,
    "Bearer é.é.é": TAKEN,
}


@pytest.mark.parametrize("header", CASES, ids=range(len(CASES)))
async def test_the_log_says_why(serve: Serve, caplog: pytest.LogCaptureFixture, header: str) -> None:
    caplog.set_level(logging.INFO, "gatepost")
    client = await serve({"providers": ["api_key"]})
    async with client.wire() as wire:
        await wire.send("GET /api/me", {"Authorization": header})
        status, headers, body = await wire.answer(30)
    assert (status, json.loads(body)) == (401, {"error": "Unauthorized", "reason": "credential-rejected"})
    (line,) = [one for one in caplog.records if one.getMessage() == "denied"]
    fields = line.fields  # type: ignore[attr-defined]
    assert (fields["request_id"], fields["reason"]) == (headers["x-request-id"], "credential-rejected")
    assert fields["detail"] == CASES[header]
    assert "hunter2" not in str(fields)
