"""Log lines: what they contain, and what they never contain."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from server.app import build
from server.http.errors import Unavailable
from server.settings.setting import ConfigError
from server.settings.sources import Settings
from server.telemetry.decisions import DenialLog
from server.telemetry.log import LOG, log_failure, log_tracebacks, start_logging
from tests.conftest import ALICE, Serve, _Sweep


@pytest.fixture
def fresh() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level, LOG.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    LOG.setLevel(before[2])


def test_a_line_for_machines_is_one_json_object(fresh: None, capfd: pytest.CaptureFixture[str]) -> None:
    start_logging("json")
    LOG.info("denied", extra={"fields": {"request_id": "abc", "seconds": 0.25, "note": "two\nlines"}})
    (line,) = capfd.readouterr().err.splitlines()
    told = json.loads(line)
    assert told.pop("time").endswith("Z")
    assert told == {"level": "info", "logger": "gatepost", "event": "denied", "request_id": "abc", "seconds": 0.25, "note": "two\nlines"}


def test_a_line_for_people_is_one_line(fresh: None, capfd: pytest.CaptureFixture[str]) -> None:
    start_logging("human")
    LOG.info("denied", extra={"fields": {"request_id": "abc", "note": "two\nlines"}})
    (line,) = capfd.readouterr().err.splitlines()
    assert "denied" in line
    assert "request_id=abc" in line
    assert "\\n" in line


@pytest.mark.parametrize("format", ["json", "human"])
def test_the_text_of_an_exception_is_never_logged(format: str, fresh: None, capfd: pytest.CaptureFixture[str]) -> None:
    start_logging(format)
    secret = "Bearer canary"
    try:
        raise ValueError(secret)
    except ValueError as error:
        log_failure("handler failed", error, request_id="abc")
        logging.getLogger("aiohttp.server").exception("Error handling request from %s", secret)
        logging.getLogger("asyncio").error("in a library", exc_info=sys.exc_info())
    said = capfd.readouterr().err
    assert "canary" not in said
    assert said.count("ValueError") == 3


@pytest.mark.parametrize("format", ["json", "human"])
async def test_what_asyncio_knows_of_a_task_or_a_callback_is_not_logged(format: str, fresh: None, capfd: pytest.CaptureFixture[str]) -> None:
    start_logging(format)

    async def fail() -> None:
        raise RuntimeError("canary")

    def refuse(what: str) -> None:
        raise RuntimeError(what)

    asyncio.create_task(fail())  # noqa: RUF006 - nobody waits for it, which is the point
    asyncio.get_running_loop().call_soon(refuse, "canary")
    await asyncio.sleep(0.01)
    gc.collect()
    said = capfd.readouterr().err
    assert "canary" not in said
    assert "Task exception was never retrieved" in said
    assert "Exception in callback" in said
    assert said.count("RuntimeError") == 2


async def test_every_request_has_a_line_where_that_is_asked_for(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client = await serve({"log.requests": True})
    got = await client.get("/api/me", ALICE)
    await client.get("/api/health")
    await client.get("/api/me")
    await client.get("/api/invoices", ALICE)
    lines = [(record.getMessage(), record.fields) for record in caplog.records if hasattr(record, "fields")]  # type: ignore[attr-defined]
    told = [(event, fields["route"], fields["outcome"]) for event, fields in lines if "route" in fields]
    assert told == [
        ("request", "/api/me", "200"), ("request", "/api/health", "200"), ("denied", "/api/me", "unauthorized"),
        ("denied", "/api/invoices", "forbidden"),
    ]  # fmt: skip
    me = next(fields for event, fields in lines if event == "request")
    assert me["request_id"] == got.headers["X-Request-Id"]
    assert (me["provider"], me["user_id"], me["org_id"], me["method"]) == ("stub", "alice", "org_a", "GET")
    assert me["seconds"] > 0


async def test_requests_that_are_let_in_make_no_line_by_default(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client = await serve()
    assert (await client.get("/api/me", ALICE)).status == 200
    assert not [record for record in caplog.records if record.getMessage() in ("request", "denied")]


def test_the_format_follows_the_environment() -> None:
    production = {"env": "production", "database.url": "postgresql://x/y"}
    assert Settings(environ={}, given=production).log_format == "json"
    assert Settings(environ={}, given=production | {"log.format": "human"}).log_format == "human"
    assert Settings(environ={}).log_format == "human"
    with pytest.raises(ConfigError, match="log.format"):
        Settings(environ={}, given={"log.format": "xml"})


@pytest.mark.parametrize("said", ["Bearer abcdefgh", "gp_0123456789", "eyJhbGciOiJSUzI1NiJ9.eyJzdWIi.x", "sk_live_x", "postgresql://app:secret@host/x", "a canary"])
def test_the_sweep_after_every_test_sees_a_secret(said: str) -> None:
    sweep = _Sweep()
    for record in (logging.makeLogRecord({"name": "gatepost", "msg": f"x {said}"}), logging.makeLogRecord({"name": "gatepost.x", "msg": "x", "fields": {"y": [said]}})):
        sweep.emit(record)
    assert len(sweep.found) == 2


@pytest.mark.parametrize(("known", "status", "bound"), [(False, 401, 20), (True, 429, 20), (True, 403, 100), (True, 404, 100)])
def test_lines_of_denials_are_bounded_and_the_rest_is_counted(
    known: bool, status: int, bound: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gatepost")
    now = [0.0]
    log = DenialLog(clock=lambda: now[0])
    assert sum(log.hears(known=known, status=status) for _ in range(1000)) == bound
    assert not caplog.records
    now[0] = 1.5
    assert log.hears(known=known, status=status)
    assert [(record.getMessage(), record.fields) for record in caplog.records] == [("more were denied", {"count": 1000 - bound})]  # type: ignore[attr-defined]
    now[0] = 2.5
    assert log.hears(known=known, status=status)
    assert len(caplog.records) == 1  # nothing was left out in between


@pytest.mark.parametrize("format", ["json", "human"])
def test_in_development_the_traceback_is_logged(format: str, fresh: None, capfd: pytest.CaptureFixture[str]) -> None:
    start_logging(format)
    log_tracebacks(True)
    try:
        try:
            raise KeyError("the inner one")
        except KeyError as error:
            raise ValueError("what the handler\x1b[31m says") from error
    except ValueError as error:
        log_failure("handler failed", error, request_id="abc")
        log_failure("handler failed", ValueError("x" * 100_000), request_id="abc")
    finally:
        log_tracebacks(False)
    said = capfd.readouterr().err
    assert len(said) < 40_000
    if format == "json":
        said = json.loads(said.splitlines()[0])["exception"]
    assert "the inner one" in said
    assert "what the handler\\x1b[31m says" in said
    assert "\x1b[31m says" not in said
    assert "test_in_development_the_traceback_is_logged" in said


def test_an_outage_that_says_why_has_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    log_tracebacks(True)
    try:
        for cause in (None, OSError("below")):
            try:
                raise Unavailable("the issuer is away") from cause
            except Unavailable as error:
                log_failure("unavailable", error, why=str(error))
    finally:
        log_tracebacks(False)
    assert ["exception" in record.fields for record in caplog.records] == [False, True]  # type: ignore[attr-defined]
    assert [record.fields["why"] for record in caplog.records] == ["the issuer is away"] * 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(("env", "logged"), [("development", True), ("test", False), ("production", False)])
async def test_only_in_development(env: str, logged: bool, caplog: pytest.LogCaptureFixture, tmp_path: Any) -> None:
    given = {"env": env, "database.url": "postgresql://x/y", "providers": ["api_key"], "data_folder": str(tmp_path)}
    build(Settings(environ={}, given=given))
    try:
        raise ValueError("the text")
    except ValueError as error:
        log_failure("handler failed", error)
    finally:
        log_tracebacks(False)
    (record,) = [one for one in caplog.records if one.getMessage() == "handler failed"]
    assert ("the text" in str(vars(record))) is logged


def test_an_exception_may_have_a_text_for_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Explained(Exception):
        log_text = "what is wrong"

    log_failure("handler failed", Explained("a secret"), request_id="abc")
    (record,) = caplog.records
    assert record.fields["why"] == "what is wrong"  # type: ignore[attr-defined]
    assert "a secret" not in str(vars(record))
