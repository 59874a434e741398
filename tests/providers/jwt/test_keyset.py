"""The key set: floods, rotation, outages, cold starts and odd members, with a clock of the test's own."""

import asyncio
import json
import logging

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from kits import tokens as kit

from providers.jwt.jwk import OddKey, from_jwk, from_pem
from providers.jwt.jwks import BURST, REFILL, KeySet, StaticKeys
from server import Unavailable

RSA = ("RS256", "RS384", "RS512")
K1, K2 = kit.rsa_key("k1"), kit.rsa_key("k2")


class Source:
    """Where a set is fetched from, the clock, and the sleeping of the background task."""

    def __init__(self, *members, **options):
        self.members, self.fetches, self.now, self.fail, self.raw = list(members), 0, 1000.0, False, None
        self.gate = asyncio.Event()
        self.gate.set()
        self.sleeps: list[float] = []
        self.wake = asyncio.Semaphore(0)
        self.keys = KeySet(
            self.fetch, name="the set", clock=lambda: self.now, sleep=self.sleep, **{"algorithms": RSA, **options}
        )

    async def fetch(self) -> bytes:
        self.fetches += 1
        await self.gate.wait()
        if self.fail:
            raise Unavailable("it is down")
        return self.raw if self.raw is not None else json.dumps({"keys": self.members}).encode()

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        await self.wake.acquire()

    async def tick(self) -> None:
        """Let the background task refresh once."""
        before = len(self.sleeps)
        self.wake.release()
        while len(self.sleeps) == before:
            await asyncio.sleep(0)


@pytest.fixture
async def source():
    made = Source(kit.jwk(K1, "k1"))
    await made.keys.open()
    yield made
    await made.keys.close()


async def test_open_fetches_once_and_a_known_kid_never_again(source) -> None:
    for _ in range(100):
        assert (await source.keys.find("k1")).kid == "k1"
    assert source.fetches == 1
    assert source.keys.not_ready() is None


async def outcome(source: Source, kid: str) -> str:
    """`here`, `no such key`, or the seconds of the 503."""
    try:
        return "here" if await source.keys.find(kid) else "no such key"
    except Unavailable as outage:
        return f"503 {outage.retry_after}"


async def test_5000_forged_kids_at_once_cost_one_fetch(source) -> None:
    answers = await asyncio.gather(*(source.keys.find(f"forged{n}") for n in range(5000)))
    assert answers == [None] * 5000
    assert source.fetches == 2
    assert await outcome(source, "k1") == "here"


async def test_5000_forged_kids_one_after_the_other_cost_the_budget(source) -> None:
    answers = [await outcome(source, f"forged{n}") for n in range(5000)]
    assert answers == ["no such key"] * BURST + ["503 15"] * (5000 - BURST)
    assert source.fetches == 1 + BURST


async def test_forged_kids_over_time_cost_one_fetch_in_fifteen_seconds(source) -> None:
    for step in range(120):
        source.now = 1000.0 + step
        await outcome(source, f"forged{step}")
    assert source.fetches == 1 + BURST + 7
    source.now += BURST * REFILL
    assert [await outcome(source, f"late{n}") for n in range(BURST + 1)] == ["no such key"] * BURST + ["503 15"]


async def test_a_key_without_overlap_is_found_at_once_after_forged_kids(source) -> None:
    for number in range(BURST - 1):
        assert await outcome(source, f"forged{number}") == "no such key"
        source.now += 0.1
    source.members = [kit.jwk(K2, "k2")]
    assert await outcome(source, "k2") == "here"
    assert await outcome(source, "k1") == "no such key"
    assert source.fetches == 1 + BURST


async def test_beyond_the_budget_a_new_key_is_a_503_with_the_true_time(source) -> None:
    for number in range(BURST):
        await outcome(source, f"forged{number}")
    source.members = [kit.jwk(K2, "k2")]
    source.now += 4.5
    assert await outcome(source, "k2") == "503 11"
    source.now += 10.5
    assert await outcome(source, "k2") == "here"


async def test_the_background_may_come_sooner_than_the_budget(source) -> None:
    source.now += 290
    for number in range(BURST):
        await outcome(source, f"forged{number}")
    assert await outcome(source, "new") == "503 10"


async def test_a_fetch_from_before_the_rotation_proves_no_absence(source) -> None:
    """The new key is shown while a forged kid's fetch is in progress, which the service has answered already."""
    source.gate.clear()
    old = source.raw = json.dumps({"keys": source.members}).encode()
    forged = asyncio.create_task(source.keys.find("forged"))
    await asyncio.sleep(0)
    fresh = asyncio.create_task(source.keys.find("k2"))
    await asyncio.sleep(0)
    first = source.keys._fetch

    async def later() -> bytes:
        source.members, source.raw = [kit.jwk(K2, "k2")], None
        return await first()

    source.keys._fetch = later
    assert source.raw is old
    source.gate.set()
    assert await forged is None
    assert (await fresh).kid == "k2"
    assert source.fetches == 1 + 2


async def test_the_tokens_of_a_key_that_left_cost_a_fetch_in_half_a_minute(source) -> None:
    source.members = [kit.jwk(K2, "k2")]
    await source.tick()
    assert [await outcome(source, "k1") for _ in range(1000)] == ["no such key"] * 1000
    assert source.fetches == 2
    source.now += 31
    source.members.append(kit.jwk(K1, "k1"))  # taken back
    assert await outcome(source, "k1") == "here"


async def test_a_key_that_cannot_be_used_costs_no_fetch_either(source) -> None:
    source.members.append(odd(use="enc"))
    await source.tick()
    assert [await outcome(source, "odd") for _ in range(1000)] == ["no such key"] * 1000
    assert source.fetches == 2


async def test_a_key_that_left_is_a_503_where_the_set_is_too_old(source) -> None:
    source.members = [kit.jwk(K2, "k2")]
    await source.tick()
    source.fail, source.now = True, 1000.0 + 90_000
    assert (await outcome(source, "k1"))[:3] == "503"


async def test_a_service_that_asks_for_time_gets_it(source) -> None:
    async def busy() -> bytes:
        source.fetches += 1
        raise Unavailable("it answered 429", retry_after=120)

    fine, source.keys._fetch = source.keys._fetch, busy
    assert await outcome(source, "k2") == "503 120"
    source.now += 30
    assert [await outcome(source, f"k{n}") for n in range(2, 100)] == ["503 90"] * 98
    assert source.fetches == 2
    assert await outcome(source, "k1") == "here"
    source.keys._fetch, source.members = fine, [kit.jwk(K2, "k2")]
    await source.tick()  # the background waits too
    assert source.fetches == 2
    assert source.sleeps == [300, 90]
    source.now += 90
    assert await outcome(source, "k2") == "here"


async def test_a_service_cannot_delay_the_next_fetch_beyond_a_refresh(source) -> None:
    async def busy() -> bytes:
        raise Unavailable("it answered 503", retry_after=10**9)

    source.keys._fetch = busy
    assert await outcome(source, "k2") == "503 300"


async def test_no_kid_is_no_key_and_no_fetch(source) -> None:
    assert await source.keys.find(None) is None
    assert source.fetches == 1


async def test_a_caller_that_goes_away_does_not_end_the_fetch_of_the_others(source) -> None:
    source.gate.clear()
    source.members.append(kit.jwk(K2, "k2"))
    one, other = (asyncio.create_task(source.keys.find("k2")) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.sleep(0)
    source.gate.set()
    assert (await other).kid == "k2"
    assert one.cancelled()
    assert source.fetches == 2


async def test_rotation_in_is_found_at_once_and_rotation_out_at_the_next_refresh(source) -> None:
    source.members = [kit.jwk(K1, "k1"), kit.jwk(K2, "k2")]
    assert (await source.keys.find("k2")).kid == "k2"
    assert source.keys.generation() == 0
    source.members = [kit.jwk(K2, "k2")]
    await source.tick()
    assert source.keys.get("k1") is None
    assert source.keys.generation() == 1


async def test_the_same_kid_with_another_key_is_a_key_that_left(source) -> None:
    source.members = [kit.jwk(K2, "k1")]
    await source.tick()
    assert source.keys.generation() == 1


async def test_the_background_refreshes_every_five_minutes_and_sooner_in_an_outage(source) -> None:
    await source.tick()
    source.fail = True
    await source.tick()
    source.fail = False
    await source.tick()
    assert source.sleeps == [300, 300, 30, 300]


async def test_an_outage_keeps_the_keys_up_to_the_bound_and_is_never_a_401(source) -> None:
    source.fail = True
    source.now += 60
    with pytest.raises(Unavailable, match="it is down"):
        await source.keys.find("new")
    for _ in range(100):
        with pytest.raises(Unavailable):
            await source.keys.find("new")
    assert source.fetches == 1 + BURST
    source.now = 1000.0 + 86_399
    assert (await source.keys.find("k1")).kid == "k1"
    assert source.keys.not_ready() is None
    source.now = 1000.0 + 86_400
    assert source.keys.get("k1") is None
    with pytest.raises(Unavailable):
        await source.keys.find("k1")
    assert source.keys.not_ready() == "the set: it is down"
    assert source.keys.generation() == 1


async def test_after_an_outage_everything_is_as_before(source) -> None:
    source.fail = True
    await source.tick()
    source.fail = False
    await source.tick()
    assert await source.keys.find("new") is None
    assert source.keys.generation() == 0


async def test_cold_and_unreachable_is_503_and_not_ready_and_heals() -> None:
    source = Source(kit.jwk(K1, "k1"))
    source.fail = True
    await source.keys.open()
    assert source.keys.not_ready() == "the set: it is down"
    results = await asyncio.gather(*(source.keys.find("k1") for _ in range(500)), return_exceptions=True)
    assert {type(result) for result in results} == {Unavailable}
    assert source.fetches == 2
    assert source.sleeps == [5]
    source.fail = False
    await source.tick()
    assert source.keys.get("k1").kid == "k1"
    assert source.keys.not_ready() is None
    await source.keys.close()


async def test_before_open_nothing_is_ready() -> None:
    source = Source(kit.jwk(K1, "k1"))
    assert source.keys.not_ready() == "the set: the keys have not been fetched yet"
    assert source.keys.get("k1") is None


async def test_close_ends_the_refresh_and_a_fetch_under_way() -> None:
    source = Source(kit.jwk(K1, "k1"))
    await source.keys.open()
    source.gate.clear()
    waiting = asyncio.create_task(source.keys.find("x"))
    await asyncio.sleep(0)
    await source.keys.close()
    with pytest.raises(Unavailable):  # it was never told
        await asyncio.wait_for(waiting, 1)
    assert source.fetches == 2
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"keys":{}}',
        b'{"keys":[]}',
        b'{"keys":[],"keys":[]}',
        b'{"keys":[{"kty":"oct"}]}',
        b"\xff",
    ],
)
async def test_an_answer_that_is_no_key_set_counts_as_an_outage(source, raw: bytes) -> None:
    source.raw = raw
    await source.tick()
    assert source.keys.get("k1") is not None
    source.now += 31
    with pytest.raises(Unavailable, match="key set"):
        await source.keys.find("new")


async def test_an_exception_of_another_kind_is_named_by_its_type_alone(source, caplog) -> None:
    async def explode() -> bytes:
        raise RuntimeError("sk_live_SECRET")

    source.keys._fetch = explode
    await source.tick()
    assert "RuntimeError" in caplog.text
    assert "SECRET" not in caplog.text


def odd(**members):
    return kit.jwk(kit.rsa_key("odd"), **{"kid": "odd", **members})


ODD = [
    ("a text", "it is not an object"),
    ({"kty": "oct", "k": "c2VjcmV0", "kid": "odd"}, "it is symmetric"),
    (odd(use="enc"), "its use is not sig"),
    (odd(use=["sig"]), "its use is not sig"),
    (odd(key_ops=["encrypt"]), "its key_ops do not hold verify"),
    (odd(key_ops="verify"), "its key_ops do not hold verify"),
    (odd(alg="PS256"), "its type or its alg is not one that is allowed here"),
    (odd(alg="HS256"), "its type or its alg is not one that is allowed here"),
    (odd(alg=["RS256"]), "its type or its alg is not one that is allowed here"),
    (odd(kty="EC"), "its type or its alg is not one that is allowed here"),
    (odd(kty=["RSA"]), "its type or its alg is not one that is allowed here"),
    (odd(d="AQAB"), "its private half was published"),
    (odd(p="AQAB"), "its private half was published"),
    (odd(n=None), "it is malformed"),
    (odd(n=5), "it is malformed"),
    (odd(n="!!"), "it is malformed"),
    (odd(e=""), "it is malformed"),
    (odd(e="Aw"), "its exponent is not an odd number from 65537 to 2**32"),
    (odd(e="AQAA"), None),
    (odd(e="AQ"), None),
    (odd(kid=7), "its kid is not a string of 1 to 255 characters"),
    (odd(kid=""), "its kid is not a string of 1 to 255 characters"),
    (odd(kid=None), "it has no kid"),
    (kit.jwk(kit.rsa_key("small", 1024), "odd"), "it has 1024 bits, not 2048 to 8192"),
    (kit.jwk(ec.generate_private_key(ec.SECP256R1()), "odd"), "its type or its alg is not one that is allowed here"),
    (kit.jwk(ed25519.Ed25519PrivateKey.generate(), "odd"), "its type or its alg is not one that is allowed here"),
]


@pytest.mark.parametrize(("member", "why"), ODD)
async def test_an_odd_member_is_skipped_alone_with_one_line(member, why, caplog) -> None:
    caplog.set_level(logging.WARNING)
    source = Source(member, kit.jwk(K1, "k1"))
    await source.keys.open()
    assert source.keys.get("k1") is not None
    assert source.keys.get("odd") is None
    await source.tick()
    lines = [record.message for record in caplog.records]
    assert len(lines) == 1
    assert why is None or lines[0].endswith(f"is not used: {why}")
    await source.keys.close()


async def test_a_kid_that_two_usable_keys_share_is_not_used() -> None:
    source = Source(kit.jwk(K1, "k1"), kit.jwk(K2, "k1"), kit.jwk(K2, "k2"))
    await source.keys.open()
    assert source.keys.get("k1") is None
    assert source.keys.get("k2") is not None
    await source.keys.close()


async def test_the_same_key_twice_is_one_key() -> None:
    source = Source(kit.jwk(K1, "k1"), kit.jwk(K1, "k1", x5t="another member"), kit.jwk(K2, "k2"))
    await source.keys.open()
    assert source.keys.get("k1") is not None
    assert source.keys.get("k2") is not None
    await source.keys.close()
    # Another key between or after the two is still not chosen from.
    for order in ((K1, K2, K1), (K1, K1, K2), (K2, K1, K1)):
        source = Source(*(kit.jwk(one, "k1") for one in order), kit.jwk(K2, "k2"))
        await source.keys.open()
        assert source.keys.get("k1") is None
        await source.keys.close()


def test_a_key_serves_its_own_algorithms_alone() -> None:
    key = from_jwk(kit.jwk(K1, "k1", alg="RS256"), RSA)
    signatures = {alg: kit.sign(K1, b"message", alg) for alg in ("RS256", "RS384", "PS256")}
    assert key.verify("RS256", b"message", signatures["RS256"])
    assert not key.verify("RS256", b"message", signatures["PS256"])
    assert not key.verify("RS384", b"message", signatures["RS384"])
    assert not key.verify("none", b"message", b"")
    every = from_jwk(kit.jwk(K1, "k1"), RSA)
    assert every.verify("RS384", b"message", signatures["RS384"])
    assert not every.verify("PS256", b"message", signatures["PS256"])


@pytest.mark.parametrize("signature", [b"", b"\0" * 256, b"\xff" * 256, b"x" * 255, b"x" * 257])
def test_garbage_signatures_are_false_and_never_an_exception(signature: bytes) -> None:
    assert not from_jwk(kit.jwk(K1, "k1"), RSA).verify("RS256", b"message", signature)
    assert not from_jwk(kit.jwk(ec.generate_private_key(ec.SECP256R1())), ["ES256"]).verify("ES256", b"m", signature)
    assert not from_jwk(kit.jwk(ed25519.Ed25519PrivateKey.generate()), ["EdDSA"]).verify("EdDSA", b"m", signature)


def test_elliptic_curves_for_those_who_allow_them() -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(OddKey):
        from_jwk(kit.jwk(key), ["ES256"])
    assert set(from_jwk(kit.jwk(key), ["ES256", "ES384"]).verifiers) == {"ES384"}


def spoiled() -> list[str]:
    whole = kit.pem(K1)
    inner = "".join(whole.splitlines()[1:-1])
    return [
        whole,
        whole.replace("\n", "\\n"),
        whole.replace("\n", "\\r\\n"),
        whole.replace("\n", " "),
        inner,
        whole.strip(),
        f"\n\n{whole}\n",
        whole.replace("\n", "\r\n"),
        whole.replace("\n", ""),
        kit.pem(kit.rsa_key("big", 4096)),
    ]


@pytest.mark.parametrize("text", spoiled())
def test_pem_in_every_shape_that_environments_give_it(text: str) -> None:
    signer = kit.rsa_key("big", 4096) if len(text) > 600 else K1
    keys = StaticKeys(from_pem(text))
    for kid in (None, "k1", "any"):
        assert keys.get(kid).verify("RS256", b"m", kit.sign(signer, b"m"))


def test_pem_refused_without_a_word_of_it() -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    private = K1.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    bare = "".join(private.splitlines()[1:-1])
    curve = kit.pem(ec.generate_private_key(ec.SECP256R1()))
    for text in (
        "",
        "x",
        "SECRETSECRET",
        private,
        bare,
        curve,
        kit.pem(kit.rsa_key("small", 1024)),
        kit.pem(K1) * 2,
        kit.pem(K1)[:-60],
    ):
        with pytest.raises(ValueError, match=r"^must be") as caught:
            from_pem(text)
        assert caught.value.__cause__ is None
        assert not text or text[30:50] not in str(caught.value) or len(text) < 50


async def test_a_bound_static_key_knows_its_kid() -> None:
    keys = StaticKeys(from_pem(kit.pem(K1)), kid="mine")
    assert keys.get("mine") is not None
    assert await keys.find("other") is None
    assert keys.get(None) is None
