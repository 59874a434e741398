"""A real browser: headless Chromium, driven by its DevTools protocol over a WebSocket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse, WSMsgType

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-default-apps", "--disable-extensions", "--mute-audio",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-port=0", "--remote-allow-origins=*",
)  # fmt: skip


class Tab:
    """One page. It notes every request, every line of the console, and every error of the page."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket = socket
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._reader = asyncio.create_task(self._read())
        self.requests: list[str] = []
        self.answers: dict[str, int] = {}
        self.complaints: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol; its result."""
        number = len(self._waiting) + 1
        self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        async with asyncio.timeout(30):
            return await self._waiting[number]

    async def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        got = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in got, got["exceptionDetails"]
        return got["result"].get("value")

    async def until(self, script: str, seconds: float = 60) -> Any:
        """The value of the expression once it is true."""
        try:
            async with asyncio.timeout(seconds):
                while not (value := await self.run(f"((it) => it instanceof Node ? true : it)({script})")):
                    await asyncio.sleep(0.05)
                return value
        except TimeoutError:
            raise AssertionError(f"never true: {script}; {self.complaints}") from None

    async def click(self, selector: str) -> None:
        """Wait for the first element that the selector names, and click it."""
        await self.until(f"document.querySelector({json.dumps(selector)})")
        await self.run(f"document.querySelector({json.dumps(selector)}).click()")

    async def type(self, selector: str, text: str) -> None:
        """Put the focus there and type, as a keyboard does."""
        await self.until(f"document.querySelector({json.dumps(selector)})")
        await self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.call("Input.insertText", text=text)

    async def picture(self, file: Path) -> None:
        """A PNG of what is seen."""
        got = await self.call("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(got["data"]))

    async def open(self, url: str, width: int = 1280, height: int = 900) -> None:
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            await self.call(f"{domain}.enable")
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        await self.call("Page.navigate", url=url)

    async def close(self) -> None:
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        await self._socket.close()

    async def _read(self) -> None:
        async for message in self._socket:
            if message.type is not WSMsgType.TEXT:
                continue
            told = json.loads(message.data)
            if "id" in told:
                waiting = self._waiting[told["id"]]
                if not waiting.done():
                    if "error" in told:
                        waiting.set_exception(AssertionError(told["error"]))
                    else:
                        waiting.set_result(told["result"])
            else:
                self._note(told["method"], told["params"])

    def _note(self, method: str, params: dict[str, Any]) -> None:
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Network.responseReceived":
                self.answers[params["response"]["url"]] = params["response"]["status"]
            case "Network.loadingFailed" if not params.get("canceled"):
                self.complaints.append(f"loading failed: {params}")
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.complaints.append(f"console.{params['type']}: {params['args']}")
            case "Runtime.exceptionThrown":
                self.complaints.append(f"exception: {params['exceptionDetails']}")
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.complaints.append(f"log: {params['entry']}")
            case "Audits.issueAdded" if params["issue"]["code"] == "ContentSecurityPolicyIssue":
                self.complaints.append(f"policy: {params['issue']}")


@asynccontextmanager
async def browser() -> AsyncIterator[Tab]:
    """A browser of its own with one blank tab; it and its folder are gone afterwards."""
    assert CHROMIUM is not None
    folder = tempfile.mkdtemp(prefix="gatepost-chromium-")
    flags = [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else []), f"--user-data-dir={folder}", "about:blank"]
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, *flags, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True
    )
    try:
        port = await _port(Path(folder), process)
        async with ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as got:
                (target,) = [one for one in await got.json(content_type=None) if one["type"] == "page"]
            socket = await session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
            tab = Tab(socket)
            try:
                yield tab
            finally:
                await tab.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), 10)
        except TimeoutError:
            process.kill()
            await process.wait()
        shutil.rmtree(folder, ignore_errors=True)


async def _port(folder: Path, process: asyncio.subprocess.Process) -> int:
    """The port that the browser has taken; it writes it into its folder."""
    async with asyncio.timeout(60):
        while process.returncode is None:
            with contextlib.suppress(OSError, ValueError, IndexError):
                return int((folder / "DevToolsActivePort").read_text().splitlines()[0])
            await asyncio.sleep(0.05)
    raise AssertionError(f"chromium ended with status {process.returncode}")
