"""What servers ask of the client through a hub: every request has an id of ours, and every answer finds its server."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import Any

import msgspec

from aegis_daemon.relay import merge
from aegis_daemon.relay.branch import Branch, Seat
from aegis_daemon.wire.errors import METHOD_NOT_FOUND
from aegis_daemon.wire.jsonrpc import Frame, Id, Kind, encode


class _Ask(msgspec.Struct, frozen=True):
    """`number` is its conversation's id, `token` the one that the server wants progress under."""

    branch: Branch
    number: int
    token: Id | None


class Asks:
    """The open requests of all servers of one session."""

    def __init__(self, names: merge.Names) -> None:
        self.names = names
        self._open: dict[int, _Ask] = {}
        self._ids = count(1)
        self._room = 64

    def asked(self, branch: Branch, value: dict[str, Any]) -> bytes | None:
        """The request as the client gets it; None where it is refused, which its server was told."""
        number, method, params = value["id"], value["method"], value.get("params", {})
        if method.startswith("tasks/"):  # of the client, which nobody could tell apart by server
            assert branch.talk is not None
            error = {"code": METHOD_NOT_FOUND, "message": "a client of several servers lets none of them at its tasks"}
            refused = {"jsonrpc": "2.0", "id": number, "error": error}
            branch.talk.hear(Frame(Kind.ANSWER, number, "", {}, refused))
            return None
        if len(self._open) >= self._room:
            self._open = {id: ask for id, ask in self._open.items() if _still_open(ask)}
            self._room = max(64, 2 * len(self._open))
        id = next(self._ids)
        meta = params.get("_meta")
        token = meta.get("progressToken") if type(meta) is dict else None
        self._open[id] = _Ask(branch, number, token if type(token) in (int, str) else None)
        if token is not None:  # two servers may have the same
            params = {**params, "_meta": {**meta, "progressToken": id}}
        params = merge.with_tasks(params, partial(self.names.known, branch.seat.name), about=True)
        return encode({**value, "id": id, **({"params": params} if params else {})})

    def answered(self, frame: Frame) -> bool:
        """An answer of the client; False where it is to no open request."""
        ask = self._open.pop(frame.id, None) if type(frame.id) is int else None
        if ask is None or ask.branch.talk is None:
            return False
        value = {**frame.value, "id": ask.number}
        if type(value.get("result")) is dict:
            value["result"] = merge.with_tasks(value["result"], partial(self._own, ask.branch.seat), about=True)
        ask.branch.talk.hear(msgspec.structs.replace(frame, id=ask.number, value=value, text=b""))
        return True

    def progress(self, frame: Frame) -> bool:
        """Progress of the client; False where it belongs to no open request."""
        token = frame.params.get("progressToken")
        ask = self._open.get(token) if type(token) is int else None
        if ask is None or ask.token is None or ask.branch.talk is None:
            return False
        ask.branch.talk.hear(with_param(frame, "progressToken", ask.token))
        return True

    def called_off(self, branch: Branch, value: dict[str, Any]) -> bytes | None:
        """A server's `notifications/cancelled` as the client gets it."""
        number = value["params"].get("requestId")
        for id, ask in self._open.items():
            if ask.branch is branch and ask.number == number:
                return encode({**value, "params": {**value["params"], "requestId": id}})
        return None

    def forget(self, branch: Branch) -> None:
        """Its conversation is over."""
        self._open = {id: ask for id, ask in self._open.items() if ask.branch is not branch}

    def _own(self, seat: Seat, task: str) -> str:
        """A task of this server as it knows it."""
        backend, own = self.names.find(task) or ("", task)
        return own if backend == seat.name else task


def with_param(frame: Frame, key: str, item: Any) -> Frame:
    """The same frame with one parameter changed, or without it (None)."""
    params = {**frame.params, key: item}
    if item is None:
        del params[key]
    value = {**frame.value, "params": params} if params or "params" in frame.value else frame.value
    return msgspec.structs.replace(frame, params=params, value=value, text=b"")


def _still_open(ask: _Ask) -> bool:
    return ask.branch.talk is not None and ask.branch.talk.to_client.peek(ask.number) is not None
