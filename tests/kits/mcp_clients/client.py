"""An agent with the Python SDK: the same as client.mjs. Runs in the virtual environment of .cache/agents, not in the tests'."""

import asyncio
import json
import sys
from typing import Any

import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client


async def main(given: dict[str, Any]) -> dict[str, Any]:
    async with (
        httpx2.AsyncClient(headers=given["headers"]) as http,
        Client(streamable_http_client(given["url"], http_client=http), mode=given["mode"]) as client,
    ):
        tools = (await client.list_tools()).tools
        results = []
        for name, arguments in given["calls"]:
            try:
                results.append(as_json(await client.call_tool(name, arguments)))
            except Exception as error:
                results.append({"raised": type(error).__name__, "message": str(error)})
        server = as_json(client.server_info) if client.server_info else None
        return {"version": client.protocol_version, "server": server, "tools": [as_json(tool) for tool in tools], "results": results}


def as_json(model: Any) -> Any:
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


print(json.dumps(asyncio.run(main(json.loads(sys.argv[1])))))
