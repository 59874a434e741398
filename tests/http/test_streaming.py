"""Which handlers stream is known from their code, at startup."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

import server
from server import describe, event_stream, limited, requires, signed_in, socket
from server.http.streaming import at_once, streams


async def direct(request: web.Request) -> Any:
    async with event_stream(request) as stream:
        return stream.response


async def by_module(request: web.Request) -> Any:
    async with server.socket(request) as ws:
        return ws


async def helper(request: web.Request) -> Any:
    return await direct(request)


async def within(request: web.Request) -> Any:
    async def inner() -> Any:
        async with socket(request) as ws:
            return ws

    return await inner()


def closure() -> Any:
    opens = event_stream

    async def handler(request: web.Request) -> Any:
        async with opens(request) as stream:
            return stream.response

    return handler


class Routes:
    async def live(self, request: web.Request) -> Any:
        async with event_stream(request) as stream:
            return stream.response

    async def other(self, request: web.Request) -> Any:
        return web.Response(text="event_stream")


@signed_in
@describe(events=dict)
async def described(request: web.Request) -> Any:
    return await elsewhere(request)


@describe(answers={101: None})
async def described_socket(request: web.Request) -> Any:
    return await elsewhere(request)


async def elsewhere(request: web.Request) -> Any:
    return web.Response(text="event_stream socket")


async def mutual(request: web.Request) -> Any:
    return await mutual_too(request)


async def mutual_too(request: web.Request) -> Any:
    return await mutual(request)


LIVE = [direct, signed_in(direct), limited(rate="1/minute")(requires(user=True)(helper)), by_module, helper, within, closure(), Routes().live,
        described, described_socket]  # fmt: skip
OTHERS = [elsewhere, signed_in(elsewhere), Routes().other, mutual, print, None, Routes]


@pytest.mark.parametrize("handler", LIVE, ids=lambda one: getattr(one, "__qualname__", str(one)))
def test_these_stream(handler: Any) -> None:
    assert streams(handler)


@pytest.mark.parametrize("handler", OTHERS, ids=lambda one: getattr(one, "__qualname__", str(one)))
def test_these_do_not(handler: Any) -> None:
    assert not streams(handler)


def test_a_coroutine_that_waits_is_not_run_at_once() -> None:
    with pytest.raises(RuntimeError, match="a coroutine waited that must not"):
        at_once(asyncio.sleep(0))
