"""A witness has each newest checkpoint once, in order, and what it has stays as it is."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
import pytest

from aegis_daemon.audit import keys
from aegis_daemon.audit.checkpoint import write_note
from aegis_daemon.config.schema import Audit
from aegis_daemon.daemon import shipping
from aegis_daemon.exports import witness_file, witness_http
from aegis_daemon.exports.cursor import Cursors
from aegis_daemon.exports.job import Job, Target
from aegis_daemon.exports.one_witness import Pusher
from aegis_daemon.exports.pace import News
from aegis_daemon.exports.ship import WITNESSES, doubt_of, witness_of
from aegis_daemon.exports.sink import Trouble, Witness

ORIGIN = "aegis/default/0123456789abcdef"
SECRET = "s3cr3t-token"


def note(size: int) -> str:
    return f"{ORIGIN}\n{size}\nroot\n\n— {ORIGIN} sig{size}\n"


class Store:
    """The newest checkpoint of a log."""

    def __init__(self) -> None:
        self.size = 0
        self.again = ""

    def checkpoint(self) -> tuple[str, int, str] | None:
        return (ORIGIN, self.size, note(self.size) + self.again) if self.size else None


class Flaky(Witness):
    def __init__(self) -> None:
        self.has: list[str] = []
        self.fails = False

    async def push(self, origin: str, size: int, note: str) -> None:
        if self.fails:
            raise Trouble("no")
        self.has.append(note)


def pusher(at: Path, store: Store, witness: Witness, said: list[str]) -> Pusher:
    cursors = Cursors(at / "exports.db")
    target = Target("w", "file", {})
    return Pusher(target, store, cursors, News(), said.append, witness=witness)  # type: ignore[arg-type]


async def test_the_newest_checkpoint_is_pushed_once_and_again_when_it_is_signed_again(tmp_path: Path) -> None:
    store, witness, said = Store(), Flaky(), []  # type: ignore[var-annotated]
    push = pusher(tmp_path, store, witness, said)
    assert await push.step() is False
    store.size = 10
    assert [await push.step(), await push.step()] == [True, False]
    store.size = 30
    witness.fails = True
    with pytest.raises(Trouble):
        await push.step()
    witness.fails = False
    assert await push.step() is True
    store.again = "later"
    assert [await push.step(), await push.step()] == [True, False]
    assert witness.has == [note(10), note(30), note(30) + "later"]
    later = pusher(tmp_path, store, witness, said)
    assert await later.step() is False
    assert said[-1] == "witness w at 30 ok"


async def test_what_the_key_did_not_sign_reaches_no_witness(tmp_path: Path) -> None:
    store, witness, said = Store(), Flaky(), []  # type: ignore[var-annotated]
    doubts = ["it was not signed", "it was not signed", ""]
    push = pusher(tmp_path, store, witness, said)
    push._doubt = lambda origin, size, note: doubts.pop(0)
    store.size = 10
    for _ in range(2):
        with pytest.raises(Trouble, match="it was not signed"):
            await push.step()
    assert witness.has == []
    assert await push.step() is True
    assert witness.has == [note(10)]


async def test_what_is_signed_while_the_last_checkpoint_is_on_its_way_is_pushed_before_the_end(tmp_path: Path) -> None:
    class Slow(Flaky):
        async def push(self, origin: str, size: int, note: str) -> None:
            await super().push(origin, size, note)
            store.size = 30
            push._news.end()

    async def at_once(seconds: float) -> None:
        return None

    store, witness = Store(), Slow()
    push = pusher(tmp_path, store, witness, [])
    push._sleep = at_once
    store.size = 10
    await push.run()
    assert witness.has == [note(10), note(30)]


def test_the_daemon_names_what_looks_at_a_checkpoint(tmp_path: Path) -> None:
    audit = Audit.model_validate({"witnesses": {"w": {"type": "file", "path": "/w"}}})
    made = shipping.job(audit, tmp_path / "a.db", tmp_path / "e.db", key_file=tmp_path / "audit.key")
    doubt = doubt_of(msgspec.convert(made, Job))
    assert doubt is not None
    signer = keys.Signer(keys.load_or_make(tmp_path / "audit.key"))
    text = f"{ORIGIN}\n7\n{'A' * 43}=\n"
    assert doubt(ORIGIN, 7, write_note(text, [signer.sign(ORIGIN, text)])) == ""
    other = keys.Signer(b"\x02" * 32)
    assert "was not signed" in doubt(ORIGIN, 7, write_note(text, [other.sign(ORIGIN, text)]))


async def test_a_file_is_only_added_to(tmp_path: Path) -> None:
    path = tmp_path / "witness"
    path.write_text("before\n")
    path.chmod(0o200)
    witness = witness_of(Target("w", "file", {"path": str(path)}))
    for size in (1, 2):
        await witness.push(ORIGIN, size, note(size))
    path.chmod(0o600)
    assert path.read_text() == f"before\n{note(1)}\n{note(2)}\n"


async def test_half_a_checkpoint_gets_a_line_end_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "witness"
    path.write_text(f"{note(1)}\n{note(2)[:40]}")
    witness = witness_of(Target("w", "file", {"path": str(path)}))
    await witness.push(ORIGIN, 2, note(2))
    await witness.push(ORIGIN, 3, note(3))
    assert path.read_text() == f"{note(1)}\n{note(2)[:40]}\n{note(2)}\n{note(3)}\n"


async def test_a_fifo_reaches_whoever_reads_it_and_is_trouble_where_nobody_does(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    witness = witness_file.make(witness_file.Settings(str(path)))
    with pytest.raises(Trouble, match="nobody reads"):
        await witness.push(ORIGIN, 1, note(1))
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        await witness.push(ORIGIN, 1, note(1))
        assert os.read(fd, 4096).decode() == note(1) + "\n"
    finally:
        os.close(fd)


async def test_a_link_and_a_missing_directory_are_trouble(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    for name, why in (("link", "it is a link"), ("no/where", "no such file")):
        with pytest.raises(Trouble, match=why):
            await witness_file.make(witness_file.Settings(str(tmp_path / name))).push(ORIGIN, 1, note(1))
    assert not (tmp_path / "target").exists()


class Place:
    """A server that keeps what is posted, or answers as it is told to."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str, str, str]] = []
        self.status = 201
        place = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                place.got.append((self.path, self.headers["Content-Type"], self.headers["Authorization"] or "", body))
                self.send_response(place.status)
                self.send_header("Location", "http://127.0.0.1:9/")
                self.send_header("Retry-After", "7")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keep?k=v"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.close()


async def test_a_url_gets_the_checkpoint_as_text(place: Place) -> None:
    await witness_of(Target("w", "http", {"url": place.url, "token": SECRET})).push(ORIGIN, 1, note(1))
    assert place.got == [("/keep?k=v", "text/plain; charset=utf-8", f"Bearer {SECRET}", note(1))]


@pytest.mark.parametrize("status", [302, 401, 409, 500, 503])
async def test_any_other_answer_is_trouble_and_tells_no_secret(place: Place, status: int) -> None:
    place.status = status
    with pytest.raises(Trouble, match=f"status {status}") as caught:
        await witness_http.make(witness_http.Settings(place.url, SECRET)).push(ORIGIN, 1, note(1))
    assert caught.value.after_s == 7
    assert SECRET not in str(caught.value)
    assert len(place.got) == 1


async def test_a_place_that_is_not_there_or_never_answers_is_trouble() -> None:
    silent = socket.create_server(("127.0.0.1", 0))
    port = silent.getsockname()[1]
    for url, why in ((f"http://127.0.0.1:{port}/", "did not answer"), ("http://127.0.0.1:9/", "cannot be reached")):
        with pytest.raises(Trouble, match=why):
            await witness_http.make(witness_http.Settings(url, timeout=0.2)).push(ORIGIN, 1, note(1))
    silent.close()


def test_every_type_can_be_made() -> None:
    assert set(WITNESSES) >= {"file", "http"}
