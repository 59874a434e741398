"""A coverage-guided fuzzer on the strict token layer; run by hand, no part of the tests.

    .venv/bin/pip install atheris && .venv/bin/python tests/promises/fuzz/fuzz_tokens.py -max_total_time=60

It drives `providers.jwt.strict`, `providers.jwt.strict_json` and `providers.clerk.cookies.parse` with bytes that atheris bends
towards code that no input has reached. A finding is an exception other than Malformed, or one of the promises below broken.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

try:
    import atheris
except ImportError:
    sys.exit("atheris is not installed (pip install atheris)")

with atheris.instrument_imports(include=["providers"]):
    from providers.clerk import cookies
    from providers.jwt import jws, strict_json
    from providers.jwt.strict_json import Malformed

READER = jws.HeaderReader({"RS256", "ES256"})
NAMES = frozenset({"__session", "__client_uat"})


def token(text: str) -> None:
    """A text is shaped like a JWT or not; its segments have one spelling; its header and claims are read, or Malformed."""
    found = jws.split(text)
    if found is None:
        return
    for segment in found:
        try:
            raw = jws.decode(segment)
        except Malformed:
            continue
        assert base64.urlsafe_b64encode(raw).rstrip(b"=").decode() == segment, "a second spelling"
    for read in (lambda: READER.read(found.header), lambda: jws.unverified_issuer(jws.decode(found.payload)), lambda: jws.claims(jws.decode(found.payload))):
        try:
            read()
        except Malformed:
            continue


def document(raw: bytes) -> None:
    """The quick reading and the careful one agree with each other and with the standard library; there is one reading or none."""
    try:
        slow: Any = strict_json._read_slowly(raw, "payload")
    except Malformed:
        slow = None
    try:
        quick: Any = strict_json.read_object(raw, "payload")
    except Malformed:
        quick = None
    assert quick == slow, "two readings"
    if quick is None:
        return
    assert quick == json.loads(raw)
    for name in ("exp", "iat", ""):
        try:
            when = jws.numeric_date(quick, name)
        except Malformed:
            continue
        assert when is None or (math.isfinite(when) and 0 <= when <= jws.MAX_DATE)
    # Who chooses the verifier by `iss` must see the `iss` that is verified.
    assert jws.unverified_issuer(raw) == quick.get("iss")
    strict_json.freeze(quick)


def header(raw: bytes) -> None:
    """A header that is taken has an allowed alg and nothing that changes what is signed."""
    try:
        read = READER.read(base64.urlsafe_b64encode(raw).rstrip(b"=").decode())
    except Malformed:
        return
    assert read.alg in ("RS256", "ES256")
    assert not {"crit", "b64", "enc", "zip"} & read.members.keys()
    assert read.kid is None or 0 < len(read.kid) <= 255


def cookie(text: str) -> None:
    """Whatever the cookies, the answer has our names alone."""
    try:
        found = cookies.parse([text, text[::-1]], NAMES)
    except cookies.CredentialRejected:
        return
    assert found.keys() <= NAMES


def one_input(data: bytes) -> None:
    provider = atheris.FuzzedDataProvider(data)
    which = provider.ConsumeIntInRange(0, 4)
    rest = provider.ConsumeBytes(len(data))
    if which == 0:
        token(rest.decode("latin-1"))
    elif which == 1:
        document(rest)
    elif which == 2:
        header(rest)
    elif which == 3:
        cookie(rest.decode("utf-8", "surrogateescape"))
    else:  # bytes that are a token's segments
        parts = rest.split(b"\x00", 2)
        token(".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (b"{" + parts[0], *parts[1:])))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
