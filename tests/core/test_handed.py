from __future__ import annotations

import os

import pytest

from aegis_daemon.core.handed import PASSING, SHOWN, differing, handed, shown

ENV = {"PATH": "/usr/bin", "DATABASE_URL": "postgres://dev", "TERM": "xterm"}


def test_a_server_is_another_one_with_another_command_line_directory_or_variable() -> None:
    usual = handed(["python3", "w.py"], "/a", ENV)
    for argv, cwd, env in (
        (["python3", "w.py", "--root", "/"], "/a", ENV),
        (["python3 w.py"], "/a", ENV),
        (["python3", "w.py"], "/b", ENV),
        (["python3", "w.py"], "/a", {**ENV, "DATABASE_URL": "postgres://prod"}),
        (["python3", "w.py"], "/a", {**ENV, "MORE": ""}),
        (["python3", "w.py"], "/a", {"PATH": "/usr/bin"}),
        (["python3", "w.py\udcff"], "/a", ENV),
    ):
        assert handed(argv, cwd, env).mark != usual.mark
    assert handed(("python3", "w.py"), "/a", dict(reversed(ENV.items()))) == usual


def test_another_window_is_no_other_server() -> None:
    one, other = ({**ENV, **dict.fromkeys(PASSING, value)} for value in ("1", "2"))
    assert handed(["s"], "/a", one) == handed(["s"], "/a", other)
    assert not PASSING & {"PATH", "HOME", "PWD", "SSH_AUTH_SOCK", "LD_PRELOAD", "PYTHONPATH", "TMUX", "DISPLAY"}


@pytest.mark.parametrize(
    ("argv", "seen"),
    [
        (["npx", "-y", "@scope/server-x", "/data", "--root", "/"], "npx -y @scope/server-x /data --root /"),
        (["node", "-e", "rm(1); f()"], "node -e 'rm(1); f()'"),
        (["x", "--api-key", "k1", "--token=t1", "API_TOKEN=t2", "X-Key: v"],
         "x --api-key <api-key> --token=<token> API_TOKEN=<API_TOKEN> X-Key: <X-Key>"),
        (["psql", "postgres://u:p/w@h:5432/db?password=s"], "psql 'postgres://<login>@h:5432/db?<query>'"),
        (["x", "--token", "--root", "/"], "x --token --root /"),
        (["x", "", "it's"], "x '' 'it'\"'\"'s'"),
        (["docker", "run", "-e", "GH_TOKEN=p$x"], "docker run -e GH_TOKEN=<GH_TOKEN>"),
        (["x", "--header", "Authorization: Bearer a b"], "x --header Authorization: <Authorization>"),
        (["x", "--password", "correct horse; battery"], "x --password <password>"),
        # code does not become a secret by what it is called
        (["sh", "-c", "token=x; touch /e"], "sh -c 'token=x; touch /e'"),
        (["sh", "-c", "token=x evil"], "sh -c 'token=x evil'"),
        (["python3", "-c", "key=1\nimport e"], "python3 -c 'key=1\nimport e'"),
        (["perl", "-ne", "key: unlink glob q.x."], "perl -ne 'key: unlink glob q.x.'"),
        (["x", "--password-command", "evil"], "x --password-command evil"),
        (["bash", "-passc", "evil"], "bash -passc evil"),
        (["perl", "-e", "KEY:exec+q{/e}"], "perl -e 'KEY:exec+q{/e}'"),
        (["perl", "-e", "KEY:exec+e"], "perl -e KEY:exec+e"),
        (["ruby", "-e", "key=%x{e}"], "ruby -e 'key=%x{e}'"),
        (["env", "GIT_ASKPASS=/tmp/e", "git"], "env GIT_ASKPASS=/tmp/e git"),
    ],
)  # fmt: skip
def test_people_see_what_runs_and_no_secret(argv: list[str], seen: str) -> None:
    assert shown(argv) == seen


def test_what_differs_about_two_servers_is_named_and_never_shown() -> None:
    usual = handed(["db"], "/a", {"URL": "dev", "A": "1"})
    other = handed(["db", "--all"], "/b", {"URL": "prod", "LD_PRELOAD": "x"})
    assert differing(other.parts, usual.parts) == "$A (gone), $LD_PRELOAD (new), $URL, its command line, its directory"
    assert differing(usual.parts, handed(["db"], "/a", {"A": "1", "URL": "dev", "TERM": "x"}).parts) == ""
    many = handed(["db"], "/a", {f"V{at:04}": "1" for at in range(5000)})
    assert differing(many.parts, handed(["db"], "/a", {}).parts).endswith("$V0011 (new) and 988 more")
    assert differing(handed(["db"], "/a", {"x" * 10_000: "1"}).parts, usual.parts).startswith(
        "$A (gone), $URL (gone), $xxx"
    )
    odd = handed(["evil"], "/a", {"its command line": "1", "X, and nothing that matters": "1"})
    assert differing(odd.parts, handed(["db"], "/a", {}).parts) == (
        '"$X, and nothing that matters" (new), "$its command line" (new), its command line'
    )
    for told in (usual, other):
        assert "dev" not in told.parts + told.command
        assert "prod" not in told.parts + told.command


def test_what_is_shown_can_be_written_down_and_is_no_book() -> None:
    made = handed(["x", os.fsdecode(b"\xff"), "y" * 1_000_000, *["a:/" * 100_000] * 9], "/a" + os.fsdecode(b"\xff"), {})
    assert made.cwd == "/a\\udcff"
    assert len(made.command.encode()) < SHOWN + 40
    assert made.command.endswith(" characters)")
