from __future__ import annotations

import json
import re
import webbrowser
from pathlib import Path

import pytest
from manage.memory import MemoryGovernor, Served

from aegis_daemon.manage.ui.sessions import Person

from .conftest import Aegis

URL = re.compile(r"http://127\.0\.0\.1:18070/ui/login#([\w-]{43})")


@pytest.fixture(autouse=True)
def screen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A desktop, and the addresses that its browser was given."""
    shown: list[str] = []
    monkeypatch.setenv("DISPLAY", ":7")
    monkeypatch.setattr(webbrowser, "open", lambda url: not shown.append(url))
    return shown


def token(governor: MemoryGovernor, url: str) -> Person | None:
    found = URL.fullmatch(url.strip())
    assert found is not None
    return governor.logins.redeem(found[1])


def test_the_browser_is_led_in_by_a_file_and_never_by_a_command_line(
    governor: MemoryGovernor, aegis: Aegis, home: str, screen: list[str]
) -> None:
    done = aegis("ui")
    assert (done.exit_code, done.stdout) == (0, "")
    assert screen == [Path(home, "inbox.html").as_uri()]
    assert "#" not in screen[0]
    assert not URL.search(done.stderr)
    page = Path(home, "inbox.html")
    assert page.stat().st_mode & 0o777 == 0o600
    found = URL.search(page.read_text(encoding="utf-8"))
    assert found is not None
    assert token(governor, found[0]) is not None
    assert list(Path(home).glob(".inbox-*")) == []


def test_the_next_login_takes_the_files_place(governor: MemoryGovernor, aegis: Aegis, home: str) -> None:
    Path(home, "inbox.html").symlink_to(Path(home, "elsewhere"))
    aegis("ui")
    first = Path(home, "inbox.html").read_text(encoding="utf-8")
    aegis("ui")
    assert Path(home, "inbox.html").read_text(encoding="utf-8") != first
    assert not Path(home, "elsewhere").exists()


def test_the_address_is_printed_where_it_is_wanted(governor: MemoryGovernor, aegis: Aegis, screen: list[str]) -> None:
    done = aegis("ui", "--no-open")
    assert token(governor, done.stdout) is not None
    assert "two minutes" in done.stderr
    row = json.loads(aegis("ui", "--json").stdout)
    assert set(row) == {"url", "by", "expires_at"}
    assert token(governor, row["url"]) == Person(row["by"], f"user:{row['by']}")
    assert screen == []


def test_where_there_is_no_screen_it_is_printed(
    governor: MemoryGovernor, aegis: Aegis, screen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    assert URL.search(aegis("ui").stdout)
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    assert URL.search(aegis("ui").stdout)
    assert screen == []


def test_an_agents_shell_is_refused(
    governor: MemoryGovernor, aegis: Aegis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, screen: list[str]
) -> None:
    governor.refusal = "the request comes from `claude` (pid 7), which is a governed agent"
    for words in ((), ("--json",), ("--no-open",), ("--logout",)):
        done = aegis("ui", *words)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "governed agent" in done.stderr
    assert (len(governor.logins._tokens), screen) == (0, [])
    key = tmp_path / "approver.key"
    key.write_text("the right key\n", encoding="utf-8")
    monkeypatch.setenv("AEGIS_APPROVER_KEY", str(key))
    assert aegis("ui", "--no-open").exit_code == 0


def test_logout_ends_all_sessions(governor: MemoryGovernor, aegis: Aegis) -> None:
    for _ in range(2):
        governor.logins.begin(Person("ann", "user:ann"), "127.0.0.1")
    assert "ended 2 sessions" in aegis("ui", "--logout").stderr
    assert json.loads(aegis("ui", "--logout", "--json").stdout) == {"ended": 0}
    assert len(governor.logins) == 0


def test_without_a_daemon_it_says_how_to_start_one(aegis: Aegis) -> None:
    done = aegis("ui")
    assert done.exit_code == 3
    assert "aegis daemon start" in done.stderr


def test_the_served_governor_is_the_one_that_is_asked(served: Served, aegis: Aegis) -> None:
    assert aegis("ui", "--no-open").exit_code == 0
    assert served.governor.asked[-1][0] is not None, "the kernel said who asks"
