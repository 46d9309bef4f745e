"""A webhook of anybody's gets seed A's eight fields, and a signature (Standard Webhooks) where a secret is set.

Receivers written for seed A read on as before: no field is renamed and none is added, but for `code` where
`approval.confirm: code` asks for one, without which nobody could decide. A test (`aegis notify test`) is `event: test`.
What servers changed is `event: tools_changed`, and what is wrong with Aegis itself `event: alarm`, both with
`backend_id`, `message`, `facts` and `url` beside the eight.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from datetime import UTC, datetime

import msgspec

from aegis_daemon.approvals.channels.notice import Notice, Post

_PREFIX = "whsec_"


class Generic:
    """`approval.generic`: `url`, and `secret`, either `whsec_` and base64 or any text.

    :raises ValueError: what follows `whsec_` is not base64.
    """

    name = "generic"

    def __init__(self, url: str, secret: str | None = None) -> None:
        self._url = url
        self._key = None if secret is None else key_of(secret)

    def post(self, notice: Notice, now: float) -> Post:
        """Standard Webhooks: the id stays the same over all tries, the time is that of this one."""
        fields = {
            "event": "test" if notice.test else "approval_request",
            "id": notice.id,
            "agent_id": notice.agent,
            "tool_name": notice.tool,
            "arguments": notice.arguments,
            "created_at": f"{datetime.fromtimestamp(notice.created, UTC):%Y-%m-%dT%H:%M:%SZ}",
            "approve_url": notice.approve_url,
            "reject_url": notice.reject_url,
        }
        more: dict[str, object] = {}
        if notice.headline:
            fields["event"] = "alarm" if notice.alarm else "tools_changed"
            more = {
                "backend_id": notice.backend,
                "message": notice.headline,
                "facts": notice.rows,
                "url": notice.look_url,
            }
        if notice.code:
            fields["code"] = notice.code
        body = msgspec.json.encode({**fields, **more})
        headers = {"content-type": "application/json"}
        if self._key is not None:
            headers |= signature(self._key, f"msg_{notice.call_id}", int(now), body)
        return Post(self._url, headers, body)

    def fault(self, status: int, body: bytes) -> str | None:
        """Any 2xx is a yes."""
        return None if 200 <= status < 300 else f"it answered {status}"

    def handle(self, body: bytes) -> str:
        """What was posted cannot be changed."""
        return ""

    def closing(self, notice: Notice, handle: str, how: str) -> Post | None:
        """As `handle` says."""
        return None


def configured(*, webhook_url: str | None = None, secret: str | None = None) -> Generic | None:
    """The channel of a section, None where it has no webhook."""
    return Generic(webhook_url, secret) if webhook_url else None


def key_of(secret: str) -> bytes:
    """The bytes to sign with. Raises `ValueError`."""
    if not secret.startswith(_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("what follows `whsec_` is not base64; copy the secret whole") from None


def signature(key: bytes, id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The three headers of Standard Webhooks 1.0.0: `v1,` and base64 of HMAC-SHA256 over `id.timestamp.body`."""
    mac = hmac.digest(key, f"{id}.{timestamp}.".encode() + body, "sha256")
    return {
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{base64.b64encode(mac).decode()}",
    }
