"""The RealWorld backend ("Conduit"): users, profiles, articles, comments and tags."""

import time
from contextlib import nullcontext

import jwt

from server import CredentialRejected, Identity, Setting, hookimpl

from .articles import routes as articles
from .models import Errors
from .users import routes as users


class Tokens:
    """The provider of `Authorization: Token ...`, a signed token that names a user."""

    def __init__(self, settings):
        scheme = {"type": "apiKey", "in": "header", "name": "Authorization", "x-gatepost-token-types": ["session_token"]}
        self.reads, self.security_schemes, self._secret = ("Authorization",), {"token": scheme}, settings["secret"] or ""
        if len(self._secret) < 32:
            raise ValueError("conduit.secret (CONDUIT_SECRET): 32 characters or more")

    async def authenticate(self, request):
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "token":
            return None
        try:
            claims = jwt.decode(token, self._secret, ["HS256"], issuer="conduit", options={"require": ["sub", "exp", "iat"]})
        except jwt.InvalidTokenError as error:
            expired = isinstance(error, jwt.ExpiredSignatureError)
            raise CredentialRejected("token-expired" if expired else "credential-rejected") from None
        return Identity(provider="conduit", user_id=claims["sub"], claims=claims)

    def issue(self, user_id):
        now = int(time.time())
        return jwt.encode({"iss": "conduit", "sub": user_id, "iat": now, "exp": now + 86_400}, self._secret, "HS256")


@hookimpl
def register_settings():
    return {"secret": Setting(env="CONDUIT_SECRET", secret=True, help="signs the tokens: 32 characters or more")}


@hookimpl
def register_providers():
    return {"conduit": Tokens}


@hookimpl
def register_handlers():
    return [*users, *articles]


@hookimpl
def register_services(settings, house):
    return {"house": nullcontext(house), "tokens": nullcontext(Tokens(settings))}


@hookimpl
def register_error_body():
    def shape(error) -> Errors:
        fields = {one["field"]: [one["message"]] for one in error.fields}
        return Errors(errors=fields or {"body": [error.detail or error.reason or error.error]})

    return shape
