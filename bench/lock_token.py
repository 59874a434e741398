"""A new token, check by check. Part of locks.py."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

from inproc import Step, cheapest
from issuer import ISSUER, PARTY
from stage import Stage

from providers.clerk import session
from providers.clerk.settings import ClerkSettings
from providers.jwt import jwk as keys
from providers.jwt import jws
from providers.jwt.bearer import digest_of
from providers.jwt.cache import TokenCache, Verified
from server import Identity


async def checks(stage: Stage, tokens: Sequence[str]) -> list[dict[str, Any]]:
    """What each of the provider's steps takes, in CPU microseconds, in the order in which it takes them."""
    settings = ClerkSettings.read({"jwt_key": stage.issuer.pem, "issuer": [ISSUER], "authorized_parties": [PARTY]})
    key, reader, now = keys.from_pem(stage.issuer.pem), jws.HeaderReader(keys.RSA), time.time()
    segments = [split for token in tokens if (split := jws.split(token)) is not None]
    for one in segments:
        reader.remember(one.header, reader.read(one.header))
    messages = [(f"{one.header}.{one.payload}".encode(), jws.decode(one.signature)) for one in segments]
    payloads = [jws.decode(one.payload) for one in segments]
    members = reader.read(segments[0].header).members
    known = [session.identity(members, jws.claims(raw), settings, now)[0] for raw in payloads]
    cache, digests = TokenCache[Identity](), [digest_of(token) for token in tokens]
    steps = {
        "its SHA-256, and that it is not remembered": _each(lambda token: cache.get(digest_of(token), 0, now), tokens),
        "its shape: three segments of one alphabet": _each(jws.split, tokens),
        "its header, which earlier tokens had": _each(lambda one: reader.read(one.header), segments),
        "the signature's bytes, in the one canonical spelling": _each(lambda one: jws.decode(one.signature), segments),
        "the signature, by PyJWT and cryptography": _each(lambda one: key.verify("RS256", *one), messages),
        "the payload's bytes, in the one canonical spelling": _each(lambda one: jws.decode(one.payload), segments),
        "JSON that can mean one thing only": _each(jws.claims, payloads),
        "… the claims, each checked, and the identity": _each(
            lambda raw: session.identity(members, jws.claims(raw), settings, now), payloads
        ),
        "remembering it": _each(lambda both: cache.put(both[0], 1, Verified(both[1], 0, now)), list(zip(digests, known, strict=True))),
        "nothing": _each(lambda token: None, tokens),
    }  # fmt: skip
    us = {name: values[0] for name, values in (await cheapest(steps, stage.args.repetitions, len(tokens))).items()}
    nothing = us.pop("nothing")
    found = {name: value - nothing for name, value in us.items()}
    found["… the claims, each checked, and the identity"] -= found["JSON that can mean one thing only"]
    return [{"check": name.removeprefix("… "), "us": value} for name, value in found.items()]


def _each(work: Callable[[Any], Any], inputs: Sequence[Any]) -> Step:
    """A step that does the work with the next input each time."""
    turn = itertools.cycle(inputs)

    async def step() -> None:
        work(next(turn))

    return step
