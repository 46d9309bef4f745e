"""A real shim as a subprocess, and a small daemon in the test's own hands that keeps the ledger's promises."""

from __future__ import annotations

import array
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aegis_shim import hello, ledger

SHIM = Path(hello.__file__).with_name("__main__.py")
BOUND_S = 60.0


def until(true: Callable[[], object], bound: float = BOUND_S) -> None:
    """Waits for what no descriptor tells."""
    deadline = time.monotonic() + bound
    while not true():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def readable(fd: int, bound: float = BOUND_S) -> bool:
    return bool(select.select([fd], [], [], bound)[0])


class Client:
    """An agent: runs the shim, writes frames to it and reads what comes back."""

    def __init__(
        self,
        home: Path,
        *words: str,
        way: str = "",
        sockets: bool = False,
        command: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
    ) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("AEGIS_", "XDG_"))}
        environment |= {"AEGIS_HOME": str(home), "MARK": "from-the-agent", **(env or {})}
        if way:
            environment["AEGIS_WAY"] = way
        if sockets:  # as Node and Bun do it
            ours_in, theirs_in = socket.socketpair()
            ours_out, theirs_out = socket.socketpair()
            stdin, self.stdin = theirs_in.detach(), ours_in.detach()
            stdout, self.stdout = theirs_out.detach(), ours_out.detach()
        else:
            stdin, self.stdin = os.pipe()
            self.stdout, stdout = os.pipe()
        self.process = subprocess.Popen(
            [*(command or (sys.executable, "-I", "-S", str(SHIM))), *words],
            stdin=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=environment,
        )
        os.close(stdin)
        os.close(stdout)
        self._got = b""

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            assert select.select([], [self.stdin], [], BOUND_S)[1], "the shim takes no more input"
            view = view[os.write(self.stdin, view[:4096]) :]

    def ask(self, request_id: Any, method: str = "tools/call", **more: Any) -> bytes:
        """Writes a request; its line."""
        line = json.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, **more}).encode() + b"\n"
        self.write(line)
        return line

    def line(self) -> bytes:
        while b"\n" not in self._got:
            assert readable(self.stdout), f"no answer; so far {self._got[:200]!r}"
            chunk = os.read(self.stdout, 1 << 16)
            assert chunk, f"the shim's stdout ended; so far {self._got[:200]!r}"
            self._got += chunk
        line, _, self._got = self._got.partition(b"\n")
        return line

    def frame(self) -> Any:
        return json.loads(self.line())

    def rest(self) -> bytes:
        """Everything up to the end of the shim's stdout."""
        while readable(self.stdout):
            chunk = os.read(self.stdout, 1 << 16)
            if not chunk:
                got, self._got = self._got, b""
                return got
            self._got += chunk
        raise AssertionError("the shim's stdout never ended")

    def end_input(self) -> None:
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def stop_reading(self) -> None:
        if self.stdout >= 0:
            os.close(self.stdout)
            self.stdout = -1

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def status(self) -> int:
        return self.process.wait(BOUND_S)

    def stderr(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def close(self) -> None:
        self.end_input()
        self.stop_reading()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(BOUND_S)
        assert self.process.stderr is not None
        self.process.stderr.close()


class Session:
    """What the daemon has of one shim."""

    def __init__(self, link: socket.socket) -> None:
        self.link = link
        link.settimeout(BOUND_S)
        data, ancillary, _, _ = link.recvmsg(65536, socket.CMSG_SPACE(4 * hello.FDS))
        fds = array.array("i")
        for _, kind, payload in ancillary:
            assert kind == socket.SCM_RIGHTS
            fds.frombytes(payload)
        while not hello.expected(data) or len(data) < hello.expected(data):
            more = link.recv(65536)
            assert more, "the shim left before it had greeted"
            data += more
        self.hello = hello.decode(data)
        self.client_in, self.client_out, self.stderr, self.ledger = self.fds = list(fds)
        self.map = mmap.mmap(self.ledger, ledger.SIZE)
        assert self.map[:8] == ledger.MAGIC
        os.set_blocking(self.client_in, False)
        os.set_blocking(self.client_out, False)
        self.place = self._number(ledger.IN_POS_AT)
        self.consumed = self._number(ledger.CONSUMED_AT)

    def _number(self, at: int) -> int:
        return int.from_bytes(self.map[at : at + 8], "little")

    def ok(self) -> Session:
        self.say(hello.say_ok("session-1", self.hello.way))
        return self

    def say(self, line: bytes) -> None:
        self.link.sendall(line)

    def input(self) -> bytes:
        """What lies unconsumed in the ledger."""
        return self.map[self.place : self.map.find(b"\0", self.place)]

    def read(self) -> bool:
        """Reads once into the ledger; False at the end of input."""
        assert readable(self.client_in), "the client's input never came"
        end = self.place + len(self.input())
        with memoryview(self.map) as view:
            return os.readv(self.client_in, [view[end : end + 65536]]) > 0

    def line(self, consume: bool = True) -> bytes:
        """The next frame."""
        while b"\n" not in self.input():
            assert self.read(), "the client's input ended"
        line = self.input().partition(b"\n")[0]
        if consume:
            self.consume(len(line) + 1)
        return line

    def consume(self, size: int) -> None:
        was, self.place, self.consumed = self.place, self.place + size, self.consumed + size
        self.map[ledger.IN_POS_AT : ledger.IN_POS_AT + 8] = self.place.to_bytes(8, "little")
        self.map[ledger.CONSUMED_AT : ledger.CONSUMED_AT + 8] = self.consumed.to_bytes(8, "little")
        self.map[was : was + size] = bytes(size)

    def slot(self, index: int, request_id: bytes, state: int, end: int | None = None) -> None:
        at = ledger.SLOTS_AT + index * ledger.SLOT_SIZE
        self.map[at + ledger.SLOT_ID : at + ledger.SLOT_ID + len(request_id)] = request_id
        self.map[at + ledger.SLOT_ID_LEN] = len(request_id)
        stop = self.consumed if end is None else end
        self.map[at + ledger.SLOT_END : at + ledger.SLOT_END + 8] = stop.to_bytes(8, "little")
        self.map[at] = state

    def open(self) -> int:
        return sum(self.map[ledger.SLOTS_AT + index * ledger.SLOT_SIZE] != ledger.FREE for index in range(ledger.SLOTS))

    def half(self, torn: bool) -> None:
        self.map[ledger.HALF_AT] = torn

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            assert select.select([], [self.client_out], [], BOUND_S)[1], "the client takes no more"
            view = view[os.write(self.client_out, view) :]

    def left(self) -> bool:
        """Whether the shim has ended the session."""
        try:
            return self.link.recv(1) == b""
        except ConnectionResetError:  # it left before it had read everything
            return True

    def drop(self) -> None:
        """As a kill does it: every descriptor goes, and nothing is said."""
        self.map.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []
        self.link.close()

    def exit(self, code: int) -> None:
        self.say(hello.say_exit(code))
        self.drop()


class Daemon:
    """Listens; the test accepts sessions and plays the daemon."""

    def __init__(self, home: Path) -> None:
        self.path = home / "aegis.sock"
        self.path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(64)
        self.listener.settimeout(BOUND_S)
        self.sessions: list[Session] = []

    def accept(self) -> Session:
        """A session that has greeted and waits for its answer."""
        session = Session(self.listener.accept()[0])
        self.sessions.append(session)
        return session

    def close(self) -> None:
        """Killed: the socket's file stays."""
        self.listener.close()
        for session in self.sessions:
            if session.fds:
                session.drop()
