"""The real servers that `scripts/servers` installs, and something for each to work on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[2] / ".cache" / "servers"
NODE = CACHE / "node_modules" / "node" / "bin" / "node"
MODULES = CACHE / "node_modules" / "@modelcontextprotocol"
SCRIPTS = CACHE / "python" / "bin"
NAMES = ("everything", "filesystem", "git", "time")
CONFIG = """
backends: {everything: {}, filesystem: {}, git: {}, time: {}, sdk: {}}
agents:
  default:
    backends: &all
      everything: {allowed: true}
      filesystem: {allowed: true}
      git: {allowed: true}
      time: {allowed: true}
      sdk: {allowed: true}
  open:
    backends:
      everything: {allowed: true, server_requests: [roots, sampling, elicitation]}
      filesystem: {allowed: true, server_requests: [roots]}
      sdk: {allowed: true, server_requests: [roots, sampling, elicitation]}
"""


def needed() -> None:
    """Fails where they are not installed."""
    if not (CACHE / "made-from").exists():
        pytest.fail("real servers are not installed; run scripts/servers")


def command(name: str, place: Path) -> list[str]:
    """How a server is run on `place`."""
    if name == "everything":
        return [str(NODE), str(MODULES / "server-everything" / "dist" / "index.js")]
    if name == "filesystem":
        return [str(NODE), str(MODULES / "server-filesystem" / "dist" / "index.js"), str(place / "files")]
    if name == "git":
        return [str(SCRIPTS / "mcp-server-git"), "--repository", str(place / "repository")]
    return [str(SCRIPTS / "mcp-server-time"), "--local-timezone", "Europe/Zurich"]


def make_place(place: Path) -> Path:
    """Files, and a repository with one commit that is the same everywhere."""
    files = place / "files"
    files.mkdir()
    (files / "notes.txt").write_text("ä first line\nline two\u2028still two\n")
    (files / "large.txt").write_text("0123456789abcdef\n" * 10_000)
    repository = place / "repository"
    repository.mkdir()
    (repository / "read.me").write_text("one\n")
    when = "2026-01-02T03:04:05Z"
    who = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org", "GIT_AUTHOR_DATE": when}
    who |= {"GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org", "GIT_COMMITTER_DATE": when}
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=repository, check=True, env={**os.environ, **who})
    (repository / "read.me").write_text("one\ntwo\n")
    return place
