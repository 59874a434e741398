"""What the official collection does not ask: strangers, other people's rows, and passwords."""

from pathlib import Path

import pytest

pytest_plugins = ["server.testing"]
PUBLIC = ["/api/users", "/api/users/login", "/api/profiles/:username", "/api/articles", "/api/articles/:slug"]
PUBLIC += ["/api/articles/:slug/comments", "/api/tags"]
DRAGONS = {"title": "How to train your dragon", "description": "Ever wonder?", "body": "Very carefully.", "tagList": ["b", "a"]}


@pytest.fixture(scope="session")
def gatepost_schema():
    return [(Path(__file__).parent.parent / "schema.sql").read_text("utf-8")]


@pytest.fixture
def gatepost_settings():
    providers = ["conduit", "stub"]
    return {"plugins": ["module:conduit"], "providers": providers, "public_routes": PUBLIC, "conduit.secret": "s" * 32}


@pytest.fixture
async def ask(client_as):
    client = await client_as(None)

    async def asked(method, path, token=None, **data):
        headers = {"Authorization": f"Token {token}"} if token else {}
        async with client.request(method, f"/api{path}", headers=headers, json=data or None) as got:
            return got.status, await got.json() if got.status != 204 else None

    return asked


async def signed_up(ask, name):
    user = {"email": f"{name}@example.com", "username": name, "password": "correct horse"}
    status, made = await ask("POST", "/users", user=user)
    assert status == 200, made
    return made["user"]["token"]


async def test_anyone_reads_and_only_the_author_writes(ask):
    ann, ben = await signed_up(ask, "ann"), await signed_up(ask, "ben")
    status, made = await ask("POST", "/articles", ann, article=DRAGONS)
    article = made["article"]
    assert (status, article["tagList"], article["author"]["username"]) == (201, ["a", "b"], "ann")
    path = f"/articles/{article['slug']}"
    assert (await ask("GET", path))[1]["article"]["favorited"] is False
    assert (await ask("POST", f"{path}/favorite", ben))[1]["article"]["favoritesCount"] == 1
    assert (await ask("GET", path, ben))[1]["article"]["favorited"] is True
    assert (await ask("GET", path, ann))[1]["article"]["favorited"] is False
    assert (await ask("PUT", path, ben, article={"body": "Mine."}))[0] == 404
    assert (await ask("DELETE", path, ben))[0] == 404
    assert (await ask("POST", "/articles", None, article=DRAGONS))[0] == 401
    status, said = await ask("POST", f"{path}/comments", ben, comment={"body": "Thank you!"})
    assert (await ask("DELETE", f"{path}/comments/{said['comment']['id']}", ann))[0] == 404
    assert (await ask("DELETE", f"{path}/comments/{said['comment']['id']}", ben))[0] == 204
    assert (await ask("DELETE", path, ann))[0] == 204


async def test_the_feed_has_the_articles_of_followed_authors(ask):
    cat, dan = await signed_up(ask, "cat"), await signed_up(ask, "dan")
    await ask("POST", "/articles", cat, article=DRAGONS)
    assert (await ask("GET", "/articles/feed", dan))[1]["articlesCount"] == 0
    assert (await ask("POST", "/profiles/cat/follow", dan))[1]["profile"]["following"] is True
    assert (await ask("GET", "/articles/feed", dan))[1]["articlesCount"] == 1
    assert (await ask("GET", "/articles?author=cat&limit=1"))[1]["articles"][0]["author"]["following"] is False
    assert (await ask("POST", "/profiles/nobody/follow", dan))[0] == 404


async def test_signing_in(ask):
    await signed_up(ask, "eve")
    shown = {"email": "eve@example.com", "password": "correct horse"}
    assert (await ask("POST", "/users/login", user=shown))[1]["user"]["username"] == "eve"
    for wrong in (shown | {"password": "battery staple"}, shown | {"email": "nobody@example.com"}):
        assert await ask("POST", "/users/login", user=wrong) == (422, {"errors": {"body": ["no such address and password"]}})
    assert (await ask("POST", "/users", user=shown | {"username": "eve2"}))[0] == 409
    assert (await ask("GET", "/user", "not-a-token"))[0] == 401
    assert (await ask("GET", "/articles", "not-a-token"))[0] == 401, "a bad credential is refused on public pages, too"


async def test_errors_have_realworlds_form(ask):
    assert await ask("POST", "/users", user={"email": "x@example.com", "username": "x"}) == (
        422,
        {"errors": {"user.password": ["Field required"]}},
    )
    assert (await ask("GET", "/articles?limit=0"))[1]["errors"].keys() == {"limit"}
