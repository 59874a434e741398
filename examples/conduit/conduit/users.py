"""Accounts, profiles, and whom one follows."""

import asyncio
import hashlib
import hmac
import secrets

from aiohttp import web

from server import answer, body, caller_of, describe, limited, public, requires, scoped, service

from .models import ChangeUser, OneProfile, OneUser, SignIn, SignUp

routes = web.RouteTableDef()
USER = "SELECT l.*, p.username, p.bio, p.image FROM logins l JOIN profiles p USING (user_id)"
CHANGE = """WITH p AS (UPDATE profiles SET username = coalesce($2, username), bio = coalesce($3, bio),
                       image = coalesce($4, image) WHERE user_id = $1)
            UPDATE logins SET email = coalesce($5, email), password = coalesce($6, password) WHERE user_id = $1"""
PROFILE = """SELECT p.username, p.bio, p.image, EXISTS (SELECT FROM follows f WHERE f.user_id = $1 AND f.author = p.user_id)
             AS following FROM profiles p WHERE p.username = $2"""
FOLLOW = "INSERT INTO follows (user_id, author) SELECT $1, user_id FROM profiles WHERE username = $2 ON CONFLICT DO NOTHING"
UNFOLLOW = "DELETE FROM follows WHERE user_id = $1 AND author = (SELECT user_id FROM profiles WHERE username = $2)"


async def hashed(password, salt):
    made = await asyncio.to_thread(hashlib.scrypt, password.encode(), salt=salt.encode(), n=16_384, r=8, p=1)
    return f"{salt}:{made.hex()}"


def me(request):
    return getattr(caller_of(request), "user_id", None)


async def one(request, name, sql, *args, before="", status=200):
    """The response `{name: row}`, or a 404. `before` is run first, with the same arguments."""
    async with scoped(request) as db:
        if before:
            await db.execute(before, *args)
        row = await db.row(sql, *args)
    if row is None:
        raise web.HTTPNotFound
    return answer(f'{{"{name}": {row}}}', status)


def account(request, row):
    shown = {name: row[name] for name in ("email", "username", "bio", "image")}
    return answer({"user": {**shown, "token": service(request, "tokens").issue(row["user_id"])}})


@routes.post("/api/users")
@public
@limited(rate="20/minute")
@describe(body=SignUp, returns=OneUser, summary="Sign up")
async def sign_up(request):
    new, user_id = (await body(request, SignUp)).user, secrets.token_hex(12)
    password = await hashed(new.password, secrets.token_hex(16))
    async with service(request, "house").scoped(user_id=user_id, actor="job:sign-up") as db:  # who has no token yet
        await db.execute("INSERT INTO profiles (user_id, username) VALUES ($1, $2)", user_id, new.username)
        await db.execute("INSERT INTO logins (user_id, email, password) VALUES ($1, $2, $3)", user_id, new.email, password)
        return account(request, await db.fetchrow(f"{USER} WHERE l.user_id = $1", user_id))


@routes.post("/api/users/login")
@public
@limited(rate="20/minute")
@describe(body=SignIn, returns=OneUser, summary="Sign in")
async def sign_in(request):
    shown = (await body(request, SignIn)).user
    async with scoped(request) as db:
        await db.execute("SELECT set_config('conduit.email', $1, true)", shown.email)  # the policy shows this login alone
        found = await db.fetchrow(f"{USER} WHERE l.email = $1", shown.email)
    known = found["password"] if found else ":"  # an unknown address takes as long as a known one
    if not hmac.compare_digest(await hashed(shown.password, known.partition(":")[0]), known):
        raise web.HTTPUnprocessableEntity(text="no such address and password")
    return account(request, found)


@routes.get("/api/user")
@requires(user=True)
@describe(returns=OneUser, summary="Show the caller's account")
async def show_user(request):
    async with scoped(request) as db:
        return account(request, await db.fetchrow(f"{USER} WHERE l.user_id = $1", me(request)))


@routes.put("/api/user")
@requires(user=True)
@describe(body=ChangeUser, returns=OneUser, summary="Change the caller's account")
async def change_user(request):
    new = (await body(request, ChangeUser)).user
    password = await hashed(new.password, secrets.token_hex(16)) if new.password else None
    async with scoped(request) as db:
        await db.execute(CHANGE, me(request), new.username, new.bio, new.image, new.email, password)
    return await show_user(request)


@routes.get("/api/profiles/{username}")
@public(optional=True)
@describe(returns=OneProfile, summary="Show a profile")
async def show_profile(request):
    return await one(request, "profile", PROFILE, me(request), request.match_info["username"])


@routes.post("/api/profiles/{username}/follow")
@routes.delete("/api/profiles/{username}/follow")
@requires(user=True)
@describe(returns=OneProfile, summary="Follow an author (POST), or no longer (DELETE)")
async def follow(request):
    before = FOLLOW if request.method == "POST" else UNFOLLOW
    return await one(request, "profile", PROFILE, me(request), request.match_info["username"], before=before)
