"""The format of managed keys: the parts, the checksum, and texts that are recognised as no key without a look-up."""

from __future__ import annotations

import hashlib
import math
import re
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from providers.api_key.key_format import PATTERN, checksum, digest_of, make, parse

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(("env", "word"), [("production", "live"), ("test", "test"), ("development", "test")])
def test_the_parts(env: str, word: str) -> None:
    key = make(env)
    brand, said, id, rest = key.text.split("_")
    assert (brand, said, id) == ("gp", word, key.id)
    assert (len(id), len(rest)) == (16, 43 + 6)
    assert 43 * math.log2(62) >= 256
    assert re.fullmatch(PATTERN, key.text)
    assert re.search(PATTERN, f'config = "{key.text}"') is not None
    assert parse(key.text) == key
    assert key.text not in repr(key)
    assert key.digest == digest_of(key.text) == hashlib.sha256(key.text.encode()).digest()


def test_a_rotated_key_keeps_its_id_and_nothing_else() -> None:
    key = make("test")
    again = make("test", key.id)
    assert again.id == key.id
    assert again.text != key.text
    assert again.text[:25] == key.text[:25]


def test_no_two_are_alike() -> None:
    keys = [make("test") for _ in range(2000)]
    assert len({key.id for key in keys}) == len({key.text[25:] for key in keys}) == 2000
    assert {char for key in keys for char in key.text[25:68]} == set(BASE62)


@pytest.mark.parametrize("text", ["", "gp_test_x", "123456789"])
def test_the_checksum_is_crc32_in_base62(text: str) -> None:
    number = 0
    for digit in checksum(text):
        number = number * 62 + BASE62.index(digit)
    assert number == zlib.crc32(text.encode())
    assert len(checksum(text)) == 6


def test_the_checksum_of_a_known_text() -> None:
    assert checksum("123456789") == "3jZRME"  # CRC32's check value, 0xCBF43926 = 3421780262


@given(st.integers(0, 73), st.sampled_from(BASE62 + "_-. \n"))
def test_one_wrong_character_is_noticed(place: int, char: str) -> None:
    text = KEY.text
    spoilt = text[:place] + char + text[place + 1 :]
    assert (parse(spoilt) is not None) == (spoilt == text)


KEY = make("test")
ODD = ["", "gp_", KEY.text[:-1], KEY.text + "0", KEY.text + "\n", " " + KEY.text, KEY.text.upper(), KEY.text.swapcase(),
       KEY.text.replace("gp_", "GP_"), KEY.text.replace("_test_", "_live_"), KEY.text.replace("_test_", "_prod_"), KEY.text * 2,
       KEY.text.replace("_", "-"), "eyJhbGciOiJIUzI1NiJ9.e30.x", KEY.text[:70] + "\x00" + KEY.text[71:], "gp_" + "a" * 10_000,
       KEY.text[:30] + "é" + KEY.text[31:], KEY.text[:30] + "٣" + KEY.text[31:]]  # fmt: skip


@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_what_only_looks_like_a_key(text: str) -> None:
    assert parse(text) is None
