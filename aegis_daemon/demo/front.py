"""What a person is shown to type over HTTP is, byte for byte, what the tour itself sends there."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any, Final

import msgspec

from aegis_daemon.config.paths import Paths

JSON_TYPE: Final = "application/json"


class Answer(msgspec.Struct, frozen=True):
    """An answer of the HTTP front: its status, and its body as JSON."""

    status: int
    body: Any

    @property
    def code(self) -> int | None:
        """The code of the JSON-RPC error, None where it is none."""
        found = self.body.get("error") if isinstance(self.body, dict) else None
        return found["code"] if isinstance(found, dict) else None


class Request(msgspec.Struct, frozen=True):
    """One request. `key`: the file of the credential that it shows; `patience`: how long its client waits, seconds."""

    address: str
    """host and port"""
    path: str
    body: Mapping[str, Any] | None = None
    method: str = "POST"
    headers: Mapping[str, str] = {}
    key: str = ""
    patience: int | None = None

    @property
    def curl(self) -> str:
        """One line for a shell."""
        words = ["curl", "-sS"]
        if self.patience is not None:
            words += ["-m", str(self.patience)]
        if self.method == "POST" and self.body is None:
            words += ["-X", "POST"]
        words.append(f"http://{self.address}{self.path}")
        line = shlex.join(words)
        if self.key:
            # The credential stays in its file: neither a terminal's memory nor a picture of it gets to know it.
            line += f' -H "Authorization: Bearer $(cat {shlex.quote(self.key)})"'
        for name, value in self._sent().items():
            line += f" -H {shlex.quote(f'{name}: {value}')}"
        if self.body is not None:
            line += f" -d {shlex.quote(self._text())}"
        return line

    def send(self, timeout: float) -> Answer | None:
        """Sends it; None where no answer came within `timeout` seconds. Raises `OSError`, `ValueError`."""
        headers = dict(self._sent())
        if self.key:
            with open(self.key, encoding="utf-8") as file:
                headers["Authorization"] = f"Bearer {file.read().strip()}"
        host, _, port = self.address.rpartition(":")
        connection = HTTPConnection(host, int(port), timeout=timeout)
        try:
            connection.request(self.method, self.path, self._text() if self.body is not None else None, headers)
            answer = connection.getresponse()
            return Answer(answer.status, json.loads(answer.read()))
        except TimeoutError:
            return None
        except HTTPException as error:
            raise ValueError(f"no answer of HTTP came from `{self.address}`: {error!r}") from error
        finally:
            connection.close()

    def _sent(self) -> Mapping[str, str]:
        return {**({"Content-Type": JSON_TYPE} if self.body is not None else {}), **self.headers}

    def _text(self) -> str:
        return json.dumps(self.body, separators=(",", ":"))


def of_agent(address: str, agent: str, method: str, params: Mapping[str, Any], patience: int | None = None) -> Request:
    """A request of an agent, as one object of JSON; one that may wait long is not answered by a stream of events."""
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    headers = {"Accept": JSON_TYPE} if patience is not None else {}
    return Request(address, f"/agents/{agent}/mcp", body, headers=headers, patience=patience)


def approving(address: str, id: str, paths: Paths) -> Request:
    """A person's yes to a ticket."""
    return Request(address, f"/api/v1/approvals/{id}/approve", key=paths.approver_key)


def logged(address: str, limit: int) -> Request:
    """The newest calls of the log."""
    return Request(address, f"/api/v1/audit/logs?limit={limit}", method="GET")


def health(address: str) -> Request:
    """Whether all is well."""
    return Request(address, "/health", method="GET")
