"""The strict layer: what has two readings is refused, each time for the reason that the row states."""

import contextlib
import copy
import json
import operator
import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kits import tokens as kit

from providers.jwt import jws
from providers.jwt.strict_json import Malformed, _plain, _read_slowly, freeze, read_object

RSA = ("RS256", "RS384", "RS512")


def segments(token: str) -> jws.Segments:
    found = jws.split(token)
    assert found is not None
    return found


GOOD = kit.encode(kit.claims())
H, P, S = GOOD.split(".")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "abc.def",
        f"{H}.{P}",
        f"{H}.{P}.",
        f".{P}.{S}",
        f"{H}..{S}",
        f"{GOOD}.x",
        f"{GOOD}.x.y",
        f" {GOOD}",
        f"{GOOD} ",
        f"{GOOD}\n",
        f"{GOOD}\t",
        f"\t{GOOD}",
        f"{H}.{P}.{S}=",
        f"{H}=.{P}.{S}",
        f"{H}.{P}==.{S}",
        f"{H}.{P}+.{S}",
        f"{H}.{P}/.{S}",
        f"{H}.{P}\x00.{S}",
        f"{H}.{P}é.{S}",
        f"{H}.{P}%3D.{S}",
        "v2.public.abcdef",
        json.dumps({"protected": H, "payload": P, "signature": S}),
        f"{H}.{'A' * 20_000}.{S}",
        "77u/e30.e30.e30",
        "gp_0123456789",
        "ak_0123",
        "mt_0.1.2",
        "oat_0",
        H + "\u2024" + P + "." + S,
    ],
)
def test_not_shaped_like_a_jwt(text: str) -> None:
    assert jws.split(text) is None


def test_a_good_token_is_read_whole() -> None:
    found = segments(GOOD)
    assert (found.header, found.payload, found.signature) == (H, P, S)
    assert jws.HeaderReader(RSA).read(found.header).kid == "k1"
    assert jws.unverified_issuer(jws.decode(P)) == kit.ISSUER
    assert jws.claims(jws.decode(P))["sub"] == "user_1"


@pytest.mark.parametrize("segment", ["A", "AAAAA", "AB", "AAB", "A_", "AA_"])
def test_what_is_not_canonical_is_refused(segment: str) -> None:
    with pytest.raises(Malformed, match="not canonical base64url"):
        jws.decode(segment)


@given(st.binary(min_size=1, max_size=60))
def test_every_byte_text_has_exactly_one_spelling(raw: bytes) -> None:
    text = kit.b64(raw)
    assert jws.decode(text) == raw
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    same = []
    for last in alphabet:
        with contextlib.suppress(Malformed):
            same += [last] if jws.decode(text[:-1] + last) == raw else []
    assert same == [text[-1]]


HEADERS = [
    *[
        ({"alg": alg}, "alg is not allowed")
        for alg in ("none", "None", "nOnE", "", "HS256", "HS512", "PS256", "ES256", "EdDSA", "rs256")
    ],
    *[({"alg": alg}, "alg is not allowed") for alg in (None, ["RS256"], 1, True, {"a": 1}, kit.DROP)],
    *[
        ({"typ": typ}, "typ is not allowed")
        for typ in ("jwt", "", None, "at+jwt", "application/at+jwt", 1, ["JWT"], "JWT ")
    ],
    *[({"kid": kid}, "kid is not a string of 1 to 255 characters") for kid in ("", None, 1, ["k1"], True, {}, "k" * 256)],
    *[({"crit": crit}, "crit in the header is refused") for crit in (["exp"], [], "b64", ["b64"], None)],
    ({"b64": False}, "b64 in the header is refused"),
    ({"b64": True}, "b64 in the header is refused"),
    ({"b64": False, "crit": ["b64"]}, "crit in the header is refused"),
    ({"enc": "A256GCM"}, "enc in the header is refused"),
    ({"zip": "DEF"}, "zip in the header is refused"),
]


@pytest.mark.parametrize(("members", "detail"), HEADERS)
def test_header_refused(members: dict, detail: str) -> None:
    with pytest.raises(Malformed) as caught:
        jws.HeaderReader(RSA).read(kit.b64(json.dumps(kit.header(**members)).encode()))
    assert caught.value.detail == detail


@pytest.mark.parametrize(
    "members",
    [
        {"typ": kit.DROP},
        {"kid": kit.DROP},
        {"kid": "../../dev/null"},
        {"kid": "' OR 1=1"},
        {"kid": "%00"},
        {"kid": "http://x"},
        {"jku": "http://127.0.0.1:1/"},
        {"x5u": "http://127.0.0.1:1/"},
        {"jwk": {"kty": "oct"}},
        {"x5c": ["x"]},
        {"oiat": 1},
        {"alg": "RS512"},
        {"cty": "JWT"},
    ],
)
def test_header_accepted(members: dict) -> None:
    wanted = kit.header(**members)
    got = jws.HeaderReader(RSA).read(kit.b64(json.dumps(wanted).encode()))
    assert got.kid == wanted.get("kid")
    assert dict(got.members) == wanted


BYTES = [
    (b"[]", "is not a JSON object"),
    (b'"x"', "is not a JSON object"),
    (b"null", "is not a JSON object"),
    (b"1", "is not a JSON object"),
    (b"true", "is not a JSON object"),
    (b"", "is not JSON"),
    (b"{", "is not JSON"),
    (b"{}{}", "is not JSON"),
    (b"{'a':1}", "is not JSON"),
    (b'{"a":1,}', "is not JSON"),
    (b'{"a":01}', "is not JSON"),
    (b'{"a":+1}', "is not JSON"),
    (b'{"a":"\n"}', "is not JSON"),
    (b"\xef\xbb\xbf{}", "starts with a byte order mark"),
    ('{"a":1}'.encode("utf-16"), "is not UTF-8"),
    ('{"a":1}'.encode("utf-16-le"), "is not JSON"),
    (b'{"a":"\xff"}', "is not UTF-8"),
    (b'{"a":"\xed\xa0\x80"}', "is not UTF-8"),
    (b'{"a":"\xc0\x80"}', "is not UTF-8"),
    (b'{"a":"\\ud800"}', "holds half a character"),
    (b'{"\\udfff":1}', "holds half a character"),
    (b'{"a":[{"b":"\\udc00\\ud800"}]}', "holds half a character"),
    (b'{"a":1,"a":1}', "has duplicate members"),
    (b'{"a":1,"\\u0061":2}', "has duplicate members"),
    (b'{"o":{"x":[{"a":1,"a":2}]}}', "has duplicate members"),
    (b'{"alg":"none","alg":"RS256"}', "has duplicate members"),
    (b'{"a":NaN}', "holds NaN or Infinity"),
    (b'{"a":Infinity}', "holds NaN or Infinity"),
    (b'{"a":-Infinity}', "holds NaN or Infinity"),
    (b'{"a":1e400}', "holds too large a number"),
    (b'{"a":' + b"9" * 5000 + b"}", "holds too large a number"),
    (b'{"a":' + b"9" * 4301 + b"}", "holds too large a number"),
    (b'{"a":' + b"[" * 100_000, "is not JSON"),
    (b'{"a":' + b"[" * 33 + b"]" * 33 + b"}", "is nested too deeply"),
    (b'{"a":' * 33 + b"1" + b"}" * 33, "is nested too deeply"),
    (b'{"a":' + b"[" * 500 + b'"\\ud83d"' + b"]" * 500 + b"}", "holds half a character"),
]


@pytest.mark.parametrize(("raw", "detail"), BYTES)
def test_json_refused(raw: bytes, detail: str) -> None:
    with pytest.raises(Malformed) as caught:
        read_object(raw, "payload")
    assert caught.value.detail == f"the payload {detail}"


@pytest.mark.parametrize(
    "raw",
    [
        b"{}",
        b' {"a" : 1}\n',
        b'{"a":"\\ud83d\\ude00"}',
        b'{"a":{"x":1},"b":{"x":1}}',
        b'{"a":' + b"[" * 31 + b"]" * 31 + b"}",
        b'{"a":[' + b"[]," * 200 + b"[]]}",
        b'{"a":1.5e3,"b":-1,"c":null}',
    ],
)
def test_json_accepted(raw: bytes) -> None:
    assert read_object(raw, "payload") == json.loads(raw)


@pytest.mark.parametrize(
    "value", ["1", " 123 ", "٣", True, False, None, [], {}, 1e308, 2**63, 10**30, -1, -0.5, 2**40 + 1]
)
def test_not_a_time(value: object) -> None:
    with pytest.raises(Malformed, match=r"^exp is not a time$"):
        jws.numeric_date({"exp": value}, "exp")


def test_times() -> None:
    assert jws.numeric_date({}, "exp") is None
    assert [jws.numeric_date({"exp": v}, "exp") for v in (0, 1.5, 2**40)] == [0, 1.5, 2**40]


def test_only_remembered_headers_are_looked_up_and_the_memory_is_bounded() -> None:
    reader = jws.HeaderReader(RSA)
    first = reader.read(H)
    assert reader.read(H) is not first
    reader.remember(H, first)
    assert reader.read(H) is first
    for number in range(1000):
        reader.remember(str(number), first)
    assert len(reader._known) <= 256


@pytest.mark.parametrize("name", ["none", "HS256", "hs512"])
def test_a_reader_for_secrets_cannot_be_made(name: str) -> None:
    with pytest.raises(ValueError, match="public key"):
        jws.HeaderReader([name])


@pytest.mark.parametrize(
    "raw", [b"[]", b"{", b"\xef\xbb\xbf{}", b'{"iss":' + b"[" * 9000, b'{"iss":"\xff"}', b'{"iss":NaN}']
)
def test_the_unverified_issuer_of_garbage(raw: bytes) -> None:
    with pytest.raises(Malformed, match="payload"):
        jws.unverified_issuer(raw)


def test_frozen_all_the_way_down() -> None:
    value = freeze({"a": [1, {"b": []}], "o": {"x": {"y": 1}}})
    assert value["a"] == (1, {"b": ()})
    for spoil in (
        lambda: value.update(a=1), lambda: value["o"]["x"].update(y=2), lambda: value["a"].append(1), lambda: value.pop("a"),
        lambda: value.setdefault("z", 1), lambda: value.clear(), lambda: value.popitem(), lambda: operator.setitem(value, "a", 1),
        lambda: operator.delitem(value, "a"), lambda: operator.ior(value, {"a": 1}), lambda: setattr(value, "a", 1),
    ):  # fmt: skip
        with pytest.raises((AttributeError, TypeError)):
            spoil()
    assert value == {"a": (1, {"b": ()}), "o": {"x": {"y": 1}}}


def test_what_is_frozen_is_json_and_its_copies_are_not_frozen() -> None:
    value = freeze({"a": [1, {"b": []}], "o": {"x": {"y": 1}}})
    assert json.loads(json.dumps(value)) == json.loads(msgspec.json.encode(value)) == {"a": [1, {"b": []}], "o": {"x": {"y": 1}}}
    for copied in (copy.deepcopy(value), pickle.loads(pickle.dumps(value)), copy.copy(value), dict(value), value.copy(), value | {}):
        copied["a"] = 2
    deep = copy.deepcopy(value)
    deep["o"]["x"]["y"] = 2
    assert value["o"]["x"]["y"] == 1


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: f"e30.{kit.b64(raw)}.e30"))
def test_anything_is_read_or_malformed(text: str) -> None:
    found = jws.split(text)
    if found is not None:
        with contextlib.suppress(Malformed):
            jws.HeaderReader(RSA).read(found.header)
        for read in (jws.unverified_issuer, jws.claims):
            with contextlib.suppress(Malformed):
                read(jws.decode(found.payload))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4), st.booleans(), st.booleans())
def test_the_quick_and_the_careful_reading_agree(value: dict, compact: bool, ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only, separators=(",", ":") if compact else None).encode()
    assert read_object(raw, "payload") == _read_slowly(raw, "payload") == value


@pytest.mark.parametrize(("raw", "detail"), BYTES)
def test_the_quick_reading_takes_nothing_that_the_careful_one_refuses(raw: bytes, detail: str) -> None:
    assert _plain(raw) is None
