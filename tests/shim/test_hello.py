from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_shim import hello
from aegis_shim.hello import Hello, backend_name, decode, encode

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)))
NAMES = st.text(st.characters(exclude_characters="\0=", exclude_categories=("Cs",)), min_size=1).filter(
    lambda name: not name.startswith("AEGIS_")
)


@given(
    agent=WORDS.filter(bool),
    backend=WORDS,
    cwd=WORDS,
    resume=st.booleans(),
    args=st.lists(WORDS).map(tuple),
    env=st.dictionaries(NAMES, WORDS),
    umask=st.integers(0, 0o777),
)
def test_whatever_the_shim_says_the_daemon_hears(
    agent: str, backend: str, cwd: str, resume: bool, args: tuple[str, ...], env: dict[str, str], umask: int
) -> None:
    said = Hello(agent, backend, cwd, hello.HANDOVER, resume, args, env, umask)
    assert decode(encode(said)) == said


@given(st.binary(max_size=200))
def test_any_bytes_are_a_greeting_or_a_clear_refusal(body: bytes) -> None:
    greeting = len(body).to_bytes(hello.PREFIX, "big") + body
    with contextlib.suppress(ValueError):
        heard = decode(greeting)
        assert decode(encode(heard)) == heard


def test_bytes_that_are_not_utf8_survive() -> None:
    raw = b"/caf\xe9"
    assert hello.octets(decode(encode(Hello("a", cwd=hello.text(raw)))).cwd) == raw


def test_aegis_variables_never_travel() -> None:
    sent = encode(Hello("a", env={"AEGIS_APPROVER_KEY": "/key", "PATH": "/bin"}))
    assert b"AEGIS_" not in sent
    assert decode(sent).env == {"PATH": "/bin"}
    forged = b"v=1\0agent=a\0backend=\0cwd=/\0way=relay\0resume=0\0umask=022\0env=AEGIS_HOME=/x"
    assert decode(len(forged).to_bytes(4, "big") + forged).env == {}


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "without `=`"),
        (b"v=2\0agent=a", "version `2`"),
        (b"agent=a\0backend=\0cwd=/\0way=relay\0resume=0\0umask=022", "version `none`"),
        (b"v=1\0backend=\0cwd=/\0way=relay\0resume=0\0umask=022", "lacks `agent`"),
        (b"v=1\0agent=\0backend=\0cwd=/\0way=relay\0resume=0\0umask=022", "names no agent"),
        (b"v=1\0agent=a\0agent=b\0backend=\0cwd=/\0way=relay\0resume=0\0umask=022", "repeated key `agent`"),
        (b"v=1\0agent=a\0backend=\0cwd=/\0way=relay\0resume=0\0umask=022\0admin=1", "unknown or repeated key `admin`"),
        (b"v=1\0agent=a\0backend=\0cwd=/\0way=tunnel\0resume=0\0umask=022", "unknown way `tunnel`"),
        (b"v=1\0agent=a\0backend=\0cwd=/\0way=relay\0resume=0\0umask=0x7", "three octal digits"),
        (b"v=1\0agent=a\0backend=\0cwd=/\0way=relay\0resume=0\0umask=8", "three octal digits"),
        (b"v=1\0agent=a\0backend=\0cwd=/\0way=relay\0resume=yes\0umask=022", "neither 0 nor 1"),
        (b"v=1\0agent=a\0backend=\0cwd=/\0way=relay\0resume=0\0umask=022\0env=X", "not `NAME=VALUE`"),
    ],
)
def test_a_greeting_that_no_shim_says_is_refused_with_the_reason(body: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        decode(len(body).to_bytes(4, "big") + body)


def test_a_greeting_that_is_too_long_is_refused_on_both_sides() -> None:
    with pytest.raises(ValueError, match="more than the"):
        encode(Hello("a", args=("x" * hello.CAP,)))
    with pytest.raises(ValueError, match="announces"):
        hello.expected((hello.CAP + 1).to_bytes(4, "big"))
    assert hello.expected(b"\0\0") == 0
    assert hello.expected((hello.CAP).to_bytes(4, "big")) == hello.PREFIX + hello.CAP


def test_a_nul_cannot_add_an_entry() -> None:
    with pytest.raises(ValueError, match="NUL"):
        encode(Hello("a\0agent=b"))
    with pytest.raises(ValueError, match="not a name"):
        encode(Hello("a", env={"A=B": "c"}))


def test_lines_of_the_daemon_are_read_as_they_were_said() -> None:
    assert hello.heard(hello.say_ok("s-1", hello.RELAY)[:-1]) == ("ok", "s-1 relay")
    assert hello.heard(hello.say_no("two\nlines")[:-1]) == ("no", "two lines")
    assert hello.heard(hello.say_exit(-9)[:-1]) == ("exit", "-9")
    assert hello.heard(hello.say_bye(True)[:-1]) == ("bye", "restart")
    assert hello.heard(hello.say_bye(False)[:-1]) == ("bye", "stop")
    assert len(hello.say_no("x" * 9999)) <= hello.MAX_LINE
    with pytest.raises(ValueError, match="does not know"):
        hello.heard(b"run rm")


def test_a_greeting_in_a_log_shows_no_secrets() -> None:
    assert "hunter2" not in repr(Hello("a", args=("--password=hunter2",), env={"TOKEN": "hunter2"}))


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("npx -y @modelcontextprotocol/server-filesystem /data", "filesystem"),
        ("npx -y @modelcontextprotocol/server-filesystem@2026.1.2 /data", "filesystem"),
        ("npx --package=@scope/x -y some-tool", "some-tool"),
        ("uvx mcp-server-git", "git"),
        ("uvx mcp-server-git[extra]==1.0 --repository .", "git"),
        ("uvx --from git+https://example.org/me/repo my-mcp", "my"),
        ("uv run --directory /srv/weather weather.py", "weather"),
        ("uv tool run github-mcp-server", "github"),
        ("pipx run mcp-server-time", "time"),
        ("bunx notion-mcp", "notion"),
        ("python -m mcp_server_git", "git"),
        ("python3.11 -u -m acme.mcp_server", "acme"),
        ("/usr/bin/python3 /opt/tools/Weather_Server.py", "weather"),
        ("node /srv/github-mcp/dist/index.js", "github"),
        ("node --import tsx /srv/thing.ts", "thing"),
        ("docker run -i --rm -m 512m -e TOKEN ghcr.io/github/github-mcp-server:latest", "github"),
        ("docker run -i --rm mcp/fetch@sha256:abc", "fetch"),
        ("env TOKEN=x npx mcp-remote", "remote"),
        ("./server", "server"),
        ("/opt/github/bin/server", "github"),
        ("my_tool", "my_tool"),
        ("C:\\tools\\Fetch.EXE", "fetch"),
        ("npx", "default"),
        ("--", "default"),
        ("", "default"),
        ("Ünïcode", "n-code"),
    ],
)
def test_a_backend_is_named_after_its_server(command: str, name: str) -> None:
    assert backend_name(command.split()) == name


@given(st.lists(WORDS, max_size=6))
def test_any_command_gives_a_name_that_a_configuration_can_hold(command: list[str]) -> None:
    name = backend_name(command)
    assert name
    assert all(c.isascii() and (c.isalnum() or c in "._-") for c in name)
    assert name == name.lower()
