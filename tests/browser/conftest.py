from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from .site import Collector, Site
from .window import Window


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    """The real one. It ends with this folder: its driver holds the thread's event loop for as long as it runs."""
    program = shutil.which(os.environ.get("CHROMIUM") or "chromium")
    assert program, "Chromium is not installed; run scripts/browser"
    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=program)
        yield found
        found.close()


@pytest.fixture
def opens(browser: Browser) -> Iterator[Callable[..., Window]]:
    """Opens windows, each of which is somebody else's browser; what any of them saw wrong fails the test."""
    made: list[Window] = []

    def open_(*options: Any, **more: Any) -> Window:
        made.append(Window(browser, *options, **more))
        return made[-1]

    yield open_
    for window in made:
        window.close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Where approval messages are posted to, and where nothing that a page shows may send anything."""
    with Collector() as found:
        yield found


@pytest.fixture
def sites(collector: Collector) -> Iterator[Callable[..., Site]]:
    """Makes installations that ask for approvals, and ends them."""
    made: list[Site] = []

    def make(**approval: Any) -> Site:
        made.append(Site(collector, **approval))
        return made[-1]

    yield make
    for site in made:
        site.home.close()


@pytest.fixture
def site(sites: Callable[..., Site]) -> Site:
    """One with the usual settings."""
    return sites()


@pytest.fixture
def enters(opens: Callable[..., Window]) -> Callable[..., Window]:
    """Opens a window in which a person is logged in to a site's inbox."""

    def enter(site: Site, *options: Any, script: bool = True, **more: Any) -> Window:
        window = opens(*options, script=script, **more)
        address, _, token = site.login().partition("#")
        window.goes(f"{address}#{token}" if script else address)
        if not script:
            window.page.get_by_label("token", exact=False).fill(token)
            window.presses("Log in")
        window.page.get_by_role("heading", name="Inbox", exact=True).wait_for()
        return window

    return enter


@pytest.fixture(scope="session")
def screens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are put: the directory that SCREENS names, else one of this run's own."""
    named = os.environ.get("SCREENS")
    place = Path(named) if named else tmp_path_factory.mktemp("screens")
    place.mkdir(parents=True, exist_ok=True)
    return place


@pytest.fixture
def thief() -> Iterator[list[str]]:
    """A server on another port: first its address, then the inbox's cookies that browsers have sent it."""
    found: list[str] = []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if "aegis_ui" in self.headers.get("Cookie", ""):
                found.append(self.headers["Cookie"])
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<img src=/ui/x>")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        found.append(f"http://127.0.0.1:{server.server_port}/")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()
