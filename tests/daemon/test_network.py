"""Who is in over the network stays in for as long as today's rules would let them in with what they showed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2e.house import Home, until
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

CONFIG = """
server: {{listen: "127.0.0.1:0"}}
backends: {{files: {{command: cat}}}}
agents:
  bot: {{{bot}, backends: {{files: {{allowed: true}}}}}}
  other: {{backends: {{files: {{allowed: true}}}}}}
"""
TOKEN, ANOTHER = "0123456789abcdef", "fedcba9876543210"


@pytest.fixture
def home() -> Iterator[Home]:
    made = Home(CONFIG.format(bot=f"auth_token: {TOKEN}")).launch()
    yield made
    made.close()


def address(home: Home) -> str:
    return str(until(lambda: home.ask("status")["http"], "an address"))


def socket(home: Home, agent: str, token: str | None) -> ClientConnection:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    url = f"ws://{address(home)}/agents/{agent}/ws"
    return connect(url, subprotocols=["mcp"], additional_headers=headers)  # type: ignore[list-item]


@pytest.mark.parametrize("rules", [f"auth_token: {ANOTHER}", "display_name: B", "identities: [1]"])
def test_whoever_showed_a_token_that_holds_no_more_is_turned_out_and_nobody_else(home: Home, rules: str) -> None:
    with socket(home, "bot", TOKEN) as bot, socket(home, "other", None) as other:
        home.configure(CONFIG.format(bot=rules))
        home.ask("reload")
        with pytest.raises(ConnectionClosed):
            bot.recv(timeout=10)
        other.ping().wait(timeout=10)


def test_a_reload_that_leaves_an_agent_as_it_is_leaves_its_session(home: Home) -> None:
    with socket(home, "bot", TOKEN) as bot:
        home.configure(CONFIG.format(bot=f"display_name: B, auth_token: {TOKEN}"))
        home.ask("reload")
        assert bot.ping().wait(timeout=10)
        with pytest.raises(TimeoutError):
            bot.recv(timeout=0.5)
