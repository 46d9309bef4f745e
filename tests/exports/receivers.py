"""Receivers that answer as the real ones are documented to, and break in the ways that the real ones do."""

from __future__ import annotations

import datetime
import gzip
import ipaddress
import json
import socket
import ssl
import threading
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

TOKEN = "12345678-1234-1234-1234-1234567890ab"


def certificate(at: Path) -> tuple[Path, Path]:
    """A self-signed certificate of 127.0.0.1 and localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    cert_path, key_path = at / "cert.pem", at / "key.pem"
    cert_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return cert_path, key_path


class Splunk:
    """A collector. `trouble` gives a status and code for a request, None to take it; `indexes` whether a batch is."""

    def __init__(self, *, ack: bool = False, tls: tuple[Path, Path] | None = None, most: int = 10_000_000) -> None:
        self.ack = ack
        self.most = most
        self.trouble: Callable[[int], tuple[int, int] | str | None] = lambda number: None
        self.indexes: Callable[[int], bool] = lambda id: True
        self.indexed: list[dict[str, Any]] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._waiting: dict[str, dict[int, list[dict[str, Any]]]] = {}
        self._lock = threading.Lock()
        self._ids = 0
        splunk = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                splunk._asked(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def uids(self) -> list[str]:
        return [one["fields"]["aegis_uid"] for one in self.indexed]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _asked(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        with self._lock:
            self.requests.append((request.path, dict(request.headers)))
            number = len(self.requests)
        found = self.trouble(number)
        if found == "hang up":
            request.close_connection = True
            return
        if found == "take and hang up":
            self._event(request, body)
            request.close_connection = True
            return
        if isinstance(found, tuple):
            status, answer = found[0], {"text": "no", "code": found[1]}
        else:
            status, answer = self._answer(request, body)
        data = json.dumps(answer).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _answer(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, Any]]:
        if "Authorization" not in request.headers:
            return 401, {"text": "Token is required", "code": 2}
        if request.headers["Authorization"] != f"Splunk {TOKEN}":
            return 403, {"text": "Invalid token", "code": 4}
        parts = urlsplit(request.path)
        if parts.path == "/services/collector/event":
            return self._event(request, body)
        if parts.path == "/services/collector/ack":
            return self._acks(parse_qs(parts.query).get("channel", [""])[0], json.loads(body)["acks"])
        return 404, {"text": "The requested URL was not found on this server.", "code": 404}

    def _event(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, Any]]:
        channel = request.headers.get("X-Splunk-Request-Channel", "")
        if self.ack:
            if not channel:
                return 400, {"text": "Data channel is missing", "code": 10}
            try:
                uuid.UUID(channel)
            except ValueError:
                return 400, {"text": "Invalid data channel", "code": 11}
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if len(body) > self.most:
            return 413, {"text": "too large", "code": 27}
        decoder = json.JSONDecoder()
        text, at, events = body.decode(), 0, []
        while at < len(text):
            if text[at].isspace():
                at += 1
                continue
            try:
                one, at = decoder.raw_decode(text, at)
            except ValueError:
                return 400, {"text": "Invalid data format", "code": 6, "invalid-event-number": len(events)}
            if not isinstance(one, dict) or "event" not in one:
                return 400, {"text": "Event field is required", "code": 12, "invalid-event-number": len(events)}
            if any(isinstance(value, dict | list) for value in one.get("fields", {}).values()):
                return 400, {"text": "Error in handling indexed fields", "code": 15}
            float(one["time"])
            events.append(one)
        if not events:
            return 400, {"text": "No data", "code": 5}
        answer: dict[str, Any] = {"text": "Success", "code": 0}
        with self._lock:
            if self.ack:
                self._waiting.setdefault(channel, {})[self._ids] = events
                answer["ackId"] = self._ids
                self._ids += 1
            else:
                self.indexed += events
        return 200, answer

    def _acks(self, channel: str, ids: list[int]) -> tuple[int, dict[str, Any]]:
        acks: dict[str, bool] = {}
        with self._lock:
            for id in ids:
                waiting = self._waiting.get(channel, {})
                acks[str(id)] = id in waiting and self.indexes(id)
                if acks[str(id)]:
                    self.indexed += waiting.pop(id)
        return 200, {"acks": acks}


class SyslogServer:
    """Takes messages over `udp`, `tcp` or `tls`; `takes` bytes at most of each TCP connection, which it then cuts."""

    def __init__(self, way: str, tls: tuple[Path, Path] | None = None) -> None:
        self.way = way
        self.messages: list[bytes] = []
        self.cut_after: int | None = None
        self.faults: list[str] = []
        self.connections: list[socket.socket] = []
        self._context: ssl.SSLContext | None = None
        if tls is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*tls)
        kind = socket.SOCK_DGRAM if way == "udp" else socket.SOCK_STREAM
        self._socket = socket.socket(socket.AF_INET, kind)
        self._socket.bind(("127.0.0.1", 0))
        if way != "udp":
            self._socket.listen(8)
        self.address = f"{way}://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._datagrams if way == "udp" else self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()
        for one in self.connections:
            one.close()

    def _datagrams(self) -> None:
        while True:
            try:
                data = self._socket.recv(1 << 16)
            except OSError:
                return
            if data:
                self.messages.append(data)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
            except ssl.SSLError:
                continue
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        """RFC 6587 octet counting, strictly: `MSG-LEN SP SYSLOG-MSG`."""
        rest, taken = b"", 0
        while True:
            try:
                data = connection.recv(1000)
            except OSError:
                return
            if not data:
                if rest:
                    self.faults.append(f"half a message: {rest[:40]!r}")
                return
            rest += data
            taken += len(data)
            while (at := rest.find(b" ")) > 0:
                if not rest[:at].isdigit() or rest[:1] == b"0":
                    self.faults.append(f"no length: {rest[:40]!r}")
                    return
                length = int(rest[:at])
                if len(rest) < at + 1 + length:
                    break
                self.messages.append(rest[at + 1 : at + 1 + length])
                rest = rest[at + 1 + length :]
            if self.cut_after is not None and taken >= self.cut_after:
                self.cut_after = None
                connection.close()
                return
