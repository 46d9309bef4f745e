"""The management socket answers only our own user and root, one JSON line each, and nobody can hold it up.

It is 0600 from the instant it exists; the kernel says who connects. In the isolated tier root makes it for one group of
people besides (`admins`), whose members are asked for again here. A peer that sends nothing, too much, or something
else, or that does not read, is dropped after a bound (`Bounds`). Agents' frames never come here.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import select
import socket
import stat
import struct
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final, cast

import msgspec
from pydantic_core import to_json

from aegis_daemon.config.load import ConfigFaults
from aegis_daemon.manage import ancestry, api
from aegis_daemon.transports.unix_relay import Peer, peer_of

_log = logging.getLogger("aegis.manage")
_SO_PEERPIDFD: Final = 77
_SO_PEERGROUPS: Final = 59


class Bounds(msgspec.Struct, frozen=True):
    """How much one peer may ask for: bytes of a request, seconds for each step, peers at a time."""

    request: int = 64 * 1024
    read_s: float = 10.0
    write_s: float = 10.0
    answer_s: float = 60.0
    close_s: float = 2.0
    peers: int = 64


class ManageServer:
    """Serves `HANDLERS` on one socket."""

    def __init__(
        self,
        governor: api.Governor,
        path: str | Path,
        bounds: Bounds | None = None,
        given: socket.socket | None = None,
        admins: int | None = None,
    ) -> None:
        """`given` is a socket that listens at `path` already, and outlives us; `admins` is a group."""
        self._governor = governor
        self._given = given
        self._admins = admins
        self._path = str(path)
        self._bounds = bounds or Bounds()
        self._server: asyncio.Server | None = None
        self._inode: tuple[int, int] | None = None
        self._peers: dict[asyncio.Task[Any], bool] = {}
        self._closing = False

    async def start(self) -> None:
        """Listens. The caller holds the daemon's lock, so a socket in the way is a dead daemon's.

        :raises OSError: something else is in the way, or the path cannot be bound.
        """
        listener = self._given or listen(self._path)
        try:
            found = os.stat(self._path)
            if self._given is None:
                self._inode = (found.st_dev, found.st_ino)
            self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=self._bounds.request)
        except BaseException:
            listener.close()
            raise

    async def close(self) -> None:
        """Takes no more peers, lets answers under way be sent for a short while, ends streams. Idempotent."""
        self._closing = True
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        try:
            found = os.stat(self._path)
            if (found.st_dev, found.st_ino) == self._inode:
                os.unlink(self._path)
        except OSError:
            pass
        me = asyncio.current_task()
        peers = {task: busy for task, busy in self._peers.items() if task is not me}
        for task, busy in peers.items():
            if not busy:
                task.cancel()
        if peers:
            _, late = await asyncio.wait(peers, timeout=self._bounds.close_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=self._bounds.close_s)

    # --- one peer -------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._peers[task] = False
        held: list[int] = []
        try:
            try:
                caller = _caller(cast(socket.socket, writer.get_extra_info("socket")), held, self._admins)
                if len(self._peers) > self._bounds.peers:
                    raise api.Refusal("too many clients are connected", "close some and repeat", code="busy")
            except api.Refusal as refusal:
                await self._send(writer, _error(refusal))
                return
            while not self._closing and await self._turn(reader, writer, caller, task):
                self._peers[task] = False
        except (TimeoutError, ConnectionError):
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()  # only `close` cancels, and it waits for nothing but this
        finally:
            del self._peers[task]
            for fd in held:
                os.close(fd)
            writer.close()
            await self._gone(writer)

    async def _turn(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, caller: api.Caller, task: asyncio.Task[Any]
    ) -> bool:
        """One request; False where the conversation is over."""
        bounds = self._bounds
        try:
            async with asyncio.timeout(bounds.read_s):
                line = await reader.readline()
        except ValueError:
            too_long = api.BadRequest(f"the request is longer than {bounds.request} bytes", code="too_large")
            await self._send(writer, _error(too_long))
            return False
        if not line.endswith(b"\n"):
            if line and not line.startswith(b"{"):
                line += b"\n"  # an HTTP client that sent no line end is told what this is, too
            else:
                return False
        self._peers[task] = True
        try:
            begun = api.call(self._governor, caller, line.strip())
            if isinstance(begun, AsyncIterator):
                self._peers[task] = False
                await self._stream(begun, reader, writer)
                return False
            async with asyncio.timeout(bounds.answer_s):
                answer = b'{"ok":true,"data":' + to_json(await begun) + b"}\n"
        except api.BadRequest as refusal:
            await self._send(writer, _error(refusal))
            return False
        except (api.Refusal, ConfigFaults, TimeoutError) as refused:
            answer = _error(_as_refusal(refused))
        except Exception:
            _log.exception("a management request failed")
            fault = api.Refusal("the daemon could not do it", "see `aegis logs` for the cause", code="internal")
            answer = _error(fault)
        await self._send(writer, answer)
        return True

    async def _stream(
        self, events: AsyncIterator[Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Events until the peer leaves (or says anything at all), or reads too slowly."""
        gone = asyncio.ensure_future(reader.read(1))
        coming: asyncio.Future[Any] | None = None
        try:
            while True:
                coming = asyncio.ensure_future(_next(events))
                await asyncio.wait((gone, coming), return_when=asyncio.FIRST_COMPLETED)
                if gone.done() or self._closing:
                    return
                event = coming.result()
                if event is None:
                    return
                await self._send(writer, b'{"ok":true,"event":' + to_json(event) + b"}\n")
        except (TimeoutError, ConnectionError):
            writer.transport.abort()
        except api.Refusal as refusal:
            await self._send(writer, _error(refusal))
        except Exception:
            _log.exception("a management stream failed")
            fault = api.Refusal("the daemon could not go on", "see `aegis logs` for the cause", code="internal")
            await self._send(writer, _error(fault))
        finally:
            await _cancel(gone, coming)
            close: Callable[[], Any] | None = getattr(events, "aclose", None)
            if close is not None:
                await close()

    async def _gone(self, writer: asyncio.StreamWriter) -> None:
        """Waits until the last bytes are out, or gives them up."""
        try:
            async with asyncio.timeout(self._bounds.write_s):
                await writer.wait_closed()
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()

    async def _send(self, writer: asyncio.StreamWriter, line: bytes) -> None:
        writer.write(line)
        async with asyncio.timeout(self._bounds.write_s):
            await writer.drain()


def listen(path: str) -> socket.socket:
    """A socket at `path` that nobody but its owner could ever open. A dead daemon's is replaced, nothing else is.

    :raises OSError: the path is taken by something else, or cannot be bound.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "this is no socket; move it away", path)
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        listener.bind(path)
        listener.listen(64)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(mask)
    return listener


def permits(uid: int) -> frozenset[api.Permit]:
    """What a user may do: everything as our own user or root, nothing as anybody else."""
    return api.ALL if uid in (os.geteuid(), 0) else frozenset()


def _caller(connection: socket.socket, held: list[int], admins: int | None = None) -> api.Caller:
    """Who connected. Descriptors that must stay open as long as the peer go to `held`."""
    try:
        peer = peer_of(connection)
    except OSError:
        raise api.Forbidden("the system does not tell who connects") from None
    allowed = permits(peer.uid)
    if not allowed and admins is not None and admins in _groups(connection):
        allowed = api.ALL
    if not allowed:
        raise api.Forbidden(
            f"the daemon belongs to another user than uid {peer.uid}", "run `aegis` as the daemon's user, or as root"
        )
    return api.Caller(uid=peer.uid, pid=peer.pid, permits=allowed, present=_presence(connection, peer, held))


def _groups(connection: socket.socket) -> set[int]:
    """The groups of the process that connected, as the kernel knew them then; none where it does not tell."""
    if sys.platform != "linux":
        return set()
    _, _, own = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        listed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError:
        return {own}  # more than 256: a member by one of those has to come as another user
    return {own, *struct.unpack(f"{len(listed) // 4}I", listed)}


def _presence(connection: socket.socket, peer: Peer, held: list[int]) -> Callable[[], bool]:
    """Tells whether the process that connected still runs."""
    try:
        fd = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)  # Linux 6.5: the process itself, no mere number
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.EINVAL, errno.EOPNOTSUPP):
            return lambda: False  # it has been reaped already
    else:
        held.append(fd)
        ended = select.poll()
        ended.register(fd, select.POLLIN)
        return lambda: not ended.poll(0)
    pid = peer.pid
    first = None if pid is None else ancestry.system()(pid)

    def unchanged() -> bool:
        now = None if pid is None else ancestry.system()(pid)
        return first is not None and now is not None and first.same(now)

    return unchanged


async def _next(events: AsyncIterator[Any]) -> Any:
    return await anext(events, None)


async def _cancel(*futures: asyncio.Future[Any] | None) -> None:
    mine = [future for future in futures if future is not None]
    for future in mine:
        future.cancel()
    await asyncio.gather(*mine, return_exceptions=True)


def _as_refusal(refused: Exception) -> api.Refusal:
    if isinstance(refused, api.Refusal):
        return refused
    if isinstance(refused, ConfigFaults):
        faults = [msgspec.to_builtins(fault) for fault in refused.faults]
        hint = "the old configuration stays in force; mend the file and reload again"
        return api.Refusal(str(refused), hint, code="config_faults", faults=faults)
    return api.Refusal("the daemon took too long", "see `aegis status`, then repeat", code="timeout")


def _error(refusal: api.Refusal) -> bytes:
    error: dict[str, Any] = {"code": refusal.code, "message": refusal.message, "hint": refusal.hint}
    if refusal.faults:
        error["faults"] = refusal.faults
    return b'{"ok":false,"error":' + to_json(error) + b"}\n"
