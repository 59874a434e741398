"""The cache of verified tokens: bounded, never past `exp`, and empty as soon as a key is gone."""

from aiohttp.test_utils import make_mocked_request

from providers.jwt.bearer import digest_in, digest_of, keep_digest
from providers.jwt.cache import TokenCache, Verified


def test_kept_under_a_hash_and_within_its_times() -> None:
    cache: TokenCache[str] = TokenCache()
    cache.put(digest_of("secret-token"), 0, Verified("me", 100, 160))
    assert [cache.get(digest_of("secret-token"), 0, now) for now in (99.9, 100, 159.9)] == [None, "me", "me"]
    assert cache.get(digest_of("secret-tokeN"), 0, 120) is None
    assert "secret-token" not in repr(vars(cache))


def test_a_clock_that_jumps_back_and_forth() -> None:
    cache: TokenCache[str] = TokenCache()
    cache.put(digest_of("t"), 0, Verified("me", 100, 160))
    assert cache.get(digest_of("t"), 0, 50) is None
    assert cache.get(digest_of("t"), 0, 130) == "me"
    assert cache.get(digest_of("t"), 0, 160) is None
    assert cache.get(digest_of("t"), 0, 130) is None  # once past exp it was dropped for good
    assert len(cache) == 0


def test_the_oldest_goes_first() -> None:
    cache: TokenCache[int] = TokenCache(limit=100)
    for number in range(1000):
        cache.put(digest_of(str(number)), 0, Verified(number, 0, 10))
    assert len(cache) == 100
    assert cache.get(digest_of("899"), 0, 1) is None
    assert cache.get(digest_of("900"), 0, 1) == 900


def test_another_generation_empties_it_whichever_way_it_is_seen() -> None:
    cache: TokenCache[str] = TokenCache()
    cache.put(digest_of("t"), 0, Verified("me", 0, 10))
    assert cache.get(digest_of("t"), 1, 1) is None
    cache.put(digest_of("t"), 1, Verified("me", 0, 10))
    cache.put(digest_of("u"), 2, Verified("me", 0, 10))
    assert (cache.get(digest_of("t"), 2, 1), cache.get(digest_of("u"), 2, 1)) == (None, "me")


def test_a_miss_that_is_counted_later_drops_what_has_expired() -> None:
    cache: TokenCache[str] = TokenCache()
    cache.put(digest_of("t"), 0, Verified("me", 0, 10))
    assert cache.recall(digest_of("t"), 0, 10) is None
    cache.miss(digest_of("t"))
    assert (len(cache), cache.hits, cache.misses) == (0, 0, 1)
    cache.miss(digest_of("t"))
    assert cache.misses == 2


def test_any_text_can_be_looked_up() -> None:
    assert TokenCache().get(digest_of("\udc80\x00é"), 0, 1) is None


def test_a_digest_that_is_kept_with_a_request_stands_for_its_own_token_alone() -> None:
    request = make_mocked_request("GET", "/")
    assert digest_in(request, "t") == (digest_of("t"), None)
    keep_digest(request, "t", b"kept", "provider")
    assert digest_in(request, "T") == (digest_of("T"), None), "another token: nobody has looked for it"
    keep_digest(request, "t", b"kept", "provider")
    assert digest_in(request, "t") == (b"kept", "provider")
    assert digest_in(request, "t") == (digest_of("t"), None)
    assert not dict(request)  # nothing of a token is left for a handler, or for who logs a request
