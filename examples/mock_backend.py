"""A backend to try Aegis with: five tools over Streamable HTTP, and an address that collects approval webhooks.

    python examples/mock_backend.py [PORT]        9100; the tools are at /mcp, the last webhook at /webhook

Uses the official SDK, which comes with Aegis. It forgets everything when it ends.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from mcp.server.mcpserver import MCPServer
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

server = MCPServer("mock", version="1")
posts: list[str] = []
webhooks: list[dict[str, Any]] = []


@server.tool()
def echo(text: str) -> str:
    """Give a text back."""
    return text


@server.tool()
def get_weather(city: str) -> str:
    """Weather of a city."""
    return f"{city}: 21 degrees, clear"


@server.tool()
def list_posts() -> str:
    """Published posts."""
    return ", ".join(posts) or "no posts"


@server.tool()
def publish_post(title: str) -> str:
    """Publish a post for everybody to read."""
    posts.append(title)
    return f"published: {title}"


@server.tool()
def admin_reset() -> str:
    """Delete all posts."""
    posts.clear()
    return "everything is gone"


@server.custom_route("/health", methods=["GET"])
async def health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


@server.custom_route("/webhook", methods=["GET", "POST"])
async def webhook(request: Request) -> Response:
    """What Aegis posts when a call waits for a person; GET shows the last."""
    if request.method == "POST":
        webhooks.append(await request.json())
        return Response(status_code=204)
    return JSONResponse(webhooks[-1] if webhooks else None)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9100
    uvicorn.run(server.streamable_http_app(), host="127.0.0.1", port=port, log_level="warning")
