from __future__ import annotations

import asyncio
import socket
import stat
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from making import until

from aegis_daemon.transports import unix_relay
from aegis_daemon.transports.unix_relay import Peer, UnixRelay

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def dropped(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def test_one_users_unfinished_greetings_take_no_room_from_anothers(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unix_relay, "GREETINGS", 3)
    monkeypatch.setattr(unix_relay, "GREETING_BYTES", 1 << 18)
    uid = 1
    monkeypatch.setattr(unix_relay, "peer_of", lambda connection: Peer(uid, None))

    async def play() -> None:
        nonlocal uid
        path = tmp_path / "s"
        relay = UnixRelay(asyncio.get_running_loop(), path, accepts=lambda peer: True, on_attach=lambda attached: None)
        relay.open()
        made: list[socket.socket] = []

        async def come() -> socket.socket:
            connection = socket.socket(socket.AF_UNIX)
            made.append(connection)
            connection.setblocking(False)
            connection.connect(str(path))
            await asyncio.sleep(0.05)
            return connection

        for _ in range(3):
            assert not dropped(await come())
        assert dropped(await come())
        uid = 2
        other = await come()
        assert not dropped(other)
        for connection in made[:3]:
            for _ in range(4):
                try:
                    connection.send((1 << 20).to_bytes(4, "big") + b"x" * (1 << 15))
                except OSError:
                    break
                await asyncio.sleep(0.02)
        await until(lambda: dropped(made[2]))
        assert not dropped(made[0])
        assert not dropped(other)
        relay.close()
        for connection in made:
            connection.close()

    run(play())


def test_a_file_in_the_sockets_place_is_not_removed(run: Run, tmp_path: Path) -> None:
    async def play() -> None:
        precious, link = tmp_path / "precious", tmp_path / "link"
        precious.write_text("x", encoding="ascii")
        link.symlink_to(precious)
        for path in (precious, link):
            relay = UnixRelay(
                asyncio.get_running_loop(), path, accepts=lambda peer: True, on_attach=lambda attached: None
            )
            with pytest.raises(FileExistsError):
                relay.open()
        assert precious.read_text(encoding="ascii") == "x"
        assert link.is_symlink()

    run(play())


def test_the_sockets_mode_follows_the_configuration(run: Run, tmp_path: Path) -> None:
    async def play() -> None:
        path = tmp_path / "s"
        relay = UnixRelay(asyncio.get_running_loop(), path, accepts=lambda peer: True, on_attach=lambda attached: None)
        relay.open()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        relay.set_mode(0o666)
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        relay.close()

    run(play())
