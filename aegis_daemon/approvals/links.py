"""A link stands for one action on one exact call until it expires, and only who has the key can make or change one.

Pure: keys and times are arguments. That a link works once is the desk's doing, which takes one decision for a ticket.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import struct
from typing import Final, Literal
from urllib.parse import urlencode

import msgspec

from aegis_daemon.approvals.ticket import Ticket

Action = Literal["approve", "reject"]
PATH: Final = "/callback/approval"
TOKEN_MAX: Final = 128
"""Characters in the longest token that is looked at; ours have 98."""

_VERSION: Final = 1
_HEAD = struct.Struct(">Bq32s")  # version, expiry in seconds since the epoch, what it is bound to


class Bound(msgspec.Struct, frozen=True):
    """What a token that was made with the key speaks of: see `binding`; `expires` is in seconds since the epoch."""

    binding: bytes
    expires: int


def binding(ticket: Ticket) -> bytes:
    """The call that a ticket is about, in 32 bytes: its digest, and its own id, so that no two tickets share links."""
    return hashlib.sha256(_joined(ticket.call_id.encode(), ticket.digest.encode())).digest()


def make(key: bytes, id: str, action: str, bound: Bound) -> str:
    """A token: base64url (RFC 4648 §5) of version, expiry, binding, and HMAC-SHA256 (RFC 2104) over all and the id."""
    head = _HEAD.pack(_VERSION, bound.expires, bound.binding)
    return _text(head + _mac(key, id, action, head))


def read(key: bytes, id: str, action: str, token: str) -> Bound | None:
    """What the token says, or None where it was not made with this key for this id and action. Looks at no clock."""
    if len(token) > TOKEN_MAX:
        return None
    try:
        data = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError:
        return None
    if _text(data) != token:  # the decoder skips what it does not know; one token has one spelling
        return None
    head, mac = data[: _HEAD.size], data[_HEAD.size :]
    if len(head) != _HEAD.size or not hmac.compare_digest(mac, _mac(key, id, action, head)):
        return None
    version, expires, bound = _HEAD.unpack(head)
    return Bound(bound, expires) if version == _VERSION else None


def code(key: bytes, bound: bytes) -> str:
    """Six digits that only the message shows, for pages that ask for them (`approval.confirm: code`)."""
    mac = hmac.digest(key, _joined(b"aegis approval code", bound), "sha256")
    return f"{int.from_bytes(mac[:8], 'big') % 1_000_000:06d}"


def proof(key: bytes, bound: bytes) -> str:
    """16 url-safe characters that an answer from a chat repeats; the message about this very ticket carries them."""
    return _text(hmac.digest(key, _joined(b"aegis approval answer", bound), "sha256")[:12])


def url(key: bytes, base: str, ticket: Ticket, action: Action) -> str:
    """The link for one action. `base` is `approval.callback_base_url`."""
    bound = Bound(binding(ticket), int(ticket.expires))
    query = urlencode({"id": ticket.id, "action": action, "token": make(key, ticket.id, action, bound)})
    return f"{base.rstrip('/')}{PATH}?{query}"


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _mac(key: bytes, id: str, action: str, head: bytes) -> bytes:
    text = _joined(b"aegis approval link", id.encode("utf-8", "surrogatepass"), action.encode(), head)
    return hmac.digest(key, text, "sha256")


def _joined(*parts: bytes) -> bytes:
    """Each part behind its length, so that no two lists of parts are one text."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)
