"""A store that speaks S3 as far as PUT goes: it believes nothing that is not signed, and keeps whole objects."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import ipaddress
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ACCESS, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"


class Bucket:
    """One bucket. `trouble` gives a status and code for a request, "silent" to say nothing, None to take it."""

    def __init__(self, name: str = "lake", region: str = "eu-central-1", tls: tuple[Path, Path] | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.trouble: Callable[[int], tuple[int, str] | str | None] = lambda number: None
        self.let_go = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                path = urlsplit(self.path).path
                _, found, key = path.split("/", 2)
                outer.puts.append(unquote(key))
                trouble = outer.trouble(len(outer.puts))
                if trouble == "silent":
                    outer.let_go.wait(20)
                    self.close_connection = True
                    return
                if isinstance(trouble, tuple):
                    self._say(*trouble)
                elif found != name:
                    self._say(404, "NoSuchBucket")
                elif (wrong := self._wrong(body, path)) is not None:
                    self._say(403, wrong)
                elif self.headers.get("If-None-Match") == "*" and unquote(key) in outer.objects:
                    self._say(412, "PreconditionFailed")
                else:
                    outer.objects[unquote(key)] = body
                    self._say(200, "")

            def _wrong(self, body: bytes, path: str) -> str | None:
                """AWS, "Signature Calculations for the Authorization Header"."""
                digest = hashlib.sha256(body)
                if self.headers["x-amz-content-sha256"] != digest.hexdigest():
                    return "XAmzContentSHA256Mismatch"
                if self.headers["x-amz-checksum-sha256"] != base64.b64encode(digest.digest()).decode():
                    return "BadDigest"
                how, _, rest = self.headers.get("Authorization", "").partition(" ")
                if how != "AWS4-HMAC-SHA256":
                    return "AccessDenied"
                parts = dict(part.strip().split("=", 1) for part in rest.split(","))
                access, day, where, service, end = parts["Credential"].split("/")
                if access != ACCESS:
                    return "InvalidAccessKeyId"
                if (where, service, end) != (region, "s3", "aws4_request"):
                    return "AuthorizationHeaderMalformed"
                named = parts["SignedHeaders"].split(";")
                headers = "".join(f"{one}:{self.headers[one].strip()}\n" for one in named)
                asked = "\n".join(["PUT", path, "", headers, parts["SignedHeaders"], digest.hexdigest()])
                scope = f"{day}/{where}/s3/aws4_request"
                told = hashlib.sha256(asked.encode()).hexdigest()
                text = "\n".join(["AWS4-HMAC-SHA256", self.headers["x-amz-date"], scope, told])
                key = f"AWS4{SECRET}".encode()
                for part in (day, where, "s3", "aws4_request", text):
                    key = hmac.new(key, part.encode(), hashlib.sha256).digest()
                return None if hmac.compare_digest(key.hex(), parts["Signature"]) else "SignatureDoesNotMatch"

            def _say(self, status: int, code: str) -> None:
                # As AWS does, it repeats what it was sent.
                told = self.headers.get("Authorization", "")
                text = f"<Error><Code>{code}</Code><StringToSign>{told}</StringToSign></Error>" if code else ""
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                if not code:
                    self.send_header("ETag", '"e"')
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        scheme = "https" if tls is not None else "http"
        self.url = f"{scheme}://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self.let_go.set()
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


def issued(at: Path) -> tuple[Path, Path, Path]:
    """An authority's certificate, one of 127.0.0.1 that it issued, and the key of that."""

    def named(name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def made(of: str, public: ec.EllipticCurvePublicKey, *, authority: bool) -> bytes:
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        return (
            x509.CertificateBuilder()
            .subject_name(named(of))
            .issuer_name(named("authority"))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .sign(issuer, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    now = datetime.datetime.now(datetime.UTC)
    issuer, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    paths = (at / "authority.pem", at / "bucket.pem", at / "bucket.key")
    paths[0].write_bytes(made("authority", issuer.public_key(), authority=True))
    paths[1].write_bytes(made("bucket", key.public_key(), authority=False))
    paths[2].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths
