"""Serves the OpenAPI document and a page to read and try it, with every file that the page needs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Final

from aiohttp import hdrs, web

from server import BadRequest, access_table, answer, describe, hookimpl, openapi_document, public

routes = web.RouteTableDef()

_FOLDER: Final = Path(__file__).parent / "assets"
_TYPES: Final = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
FILES: Final = ("swagger-ui-bundle.js", "swagger-ui.css", "live.js", "page.js", "page.css", "icon.svg")
"""The files of the folder that are served; the licences beside them come with the package and are not served."""
ONLY_IN_DEVELOPMENT: Final = "access.js"
ACCESS: Final = "access.json"
_LISTS: Final = ("permission", "scope", "feature", "plan")

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Only scripts and styles from this server, none inline; the page can send requests to this server and no other."""
_AGAIN: Final = "no-cache"  # cached, and revalidated with its ETag
_FOREVER: Final = "public, max-age=31536000, immutable"  # RFC 8246: the URL holds the version


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is sent. `content` is shared by all responses; a file is mapped into memory."""

    content: memoryview
    content_type: str
    etag: str

    @property
    def version(self) -> str:
        """The query value in the page's links: changed content has a new URL."""
        return self.etag.strip('"')


def asset(content: bytes, content_type: str) -> Asset:
    """Returns an Asset with a strong entity tag: 16 hexadecimal digits of the content's SHA-256."""
    return Asset(memoryview(content), content_type, _tag(hashlib.sha256(content).hexdigest()))


def _read(name: str) -> Asset:
    with (_FOLDER / name).open("rb") as file:
        # Not from the mapping: that would make all of it resident, in a process that may never serve the page.
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Asset(memoryview(mmap(file.fileno(), 0, access=ACCESS_READ)), _TYPES[Path(name).suffix], _tag(digest))


def _tag(digest: str) -> str:
    return f'"{digest[:16]}"'


def page_of(assets: Mapping[str, Asset]) -> Asset:
    """Returns the HTML page, with the versions of its files in its links."""
    text = (_FOLDER / "page.html").read_text("utf-8")
    if ONLY_IN_DEVELOPMENT in assets:
        last = '  <script src="docs/page.js"></script>'
        text = text.replace(last, f'  <script src="docs/{ONLY_IN_DEVELOPMENT}"></script>\n{last}')
    for name, one in assets.items():
        text = text.replace(f'"docs/{name}"', f'"docs/{name}?v={one.version}"')
    return asset(text.encode(), "text/html; charset=utf-8")


_ASSETS: Final = {name: _read(name) for name in FILES}
_PAGE: Final = page_of(_ASSETS)
_DEVELOPMENT_ASSETS: Final = _ASSETS | {ONLY_IN_DEVELOPMENT: _read(ONLY_IN_DEVELOPMENT)}
_DEVELOPMENT_PAGE: Final = page_of(_DEVELOPMENT_ASSETS)


def sent(request: web.Request, what: Asset, keep: str) -> web.Response:
    """Returns 200 with the asset, or 304 if If-None-Match matches its ETag (RFC 9110 13.1.2). `keep` is the Cache-Control."""
    headers = {
        "Content-Type": what.content_type,
        "Content-Security-Policy": POLICY,
        "Cache-Control": keep,
        "ETag": what.etag,
    }
    if _known(request, what.etag):
        return web.Response(status=304, headers=headers)
    return answer(what.content, headers=headers)


def _known(request: web.Request, etag: str) -> bool:
    lines = request.headers.getall(hdrs.IF_NONE_MATCH, ())
    tags = {tag.strip().removeprefix("W/") for line in lines for tag in line.split(",")}
    return etag in tags or "*" in tags


@routes.get("/api/public/openapi.json")
@public
@describe(
    answers={200: dict[str, Any], 304: None},
    headers=["ETag", "Cache-Control"],
    summary="This document",
    operation_id="get_openapi_document",
)
async def document(request: web.Request) -> web.Response:
    made = openapi_document(request)
    return sent(request, Asset(memoryview(made.json), "application/json", made.etag), _AGAIN)


@routes.get("/api/public/docs")
@public
@describe(
    answers={200: str, 304: None},
    headers=["ETag", "Cache-Control"],
    content_type="text/html",
    summary="A page to read this document and to try it",
    operation_id="get_docs_page",
)
async def docs(request: web.Request) -> web.Response:
    return sent(request, _PAGE if access_table(request) is None else _DEVELOPMENT_PAGE, _AGAIN)


@routes.get("/api/public/docs/{file}")
@public
@describe(
    answers={200: str, 304: None},
    refusals={404: "The page has no such file."},
    headers=["ETag", "Cache-Control"],
    content_type="*/*",
    summary="A file of the page",
    operation_id="get_docs_file",
)
async def docs_file(request: web.Request) -> web.Response:
    """Serves one file of a fixed list: the requested name never becomes a file system path."""
    name, answers = request.match_info["file"], access_table(request)
    if name == ACCESS and answers is not None:
        return answer(_answers_to(request, answers), headers={"Cache-Control": "no-store"})
    found = (_ASSETS if answers is None else _DEVELOPMENT_ASSETS).get(name)
    if found is None:
        raise web.HTTPNotFound
    return sent(request, found, _FOREVER if request.query_string == f"v={found.version}" else _AGAIN)


def _answers_to(request: web.Request, usual: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Who may call what, for the page in development: of the caller that the query describes, else of the usual ones."""
    given = {name: request.query.getall(name) if name in _LISTS else value for name, value in request.query.items()}
    try:
        return access_table(request, given) or [] if given else usual
    except ValueError as error:
        raise BadRequest(detail=str(error)) from None


@hookimpl
def register_handlers() -> web.RouteTableDef:
    return routes
