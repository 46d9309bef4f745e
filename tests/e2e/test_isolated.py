"""The isolated tier with real users: what an agent's user may do is call what it is allowed, and nothing else.

Root prepares it below a directory that stands for `/`; users and groups are the machine's own, and go again.
"""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .house import HERE, Agent, call, request, tell_of, until

ROOT = HERE.parents[1]
pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="makes users, so it needs root"),
]


def reachable(path: str) -> bool:
    return all(os.stat(part).st_mode & 0o001 for part in (path, *map(str, Path(path).parents)))


def lent(directory: Path, copy: Path) -> Path:
    """The directory, or a copy of it where other users cannot reach it."""
    if reachable(str(directory)):
        return directory
    left_out = shutil.ignore_patterns("__pycache__", ".*", "node_modules")
    return Path(shutil.copytree(directory, copy, symlinks=True, ignore=left_out))


def known(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


class Tier:
    """The machine as root sees it: three people (two agents' users, one who may decide), and Aegis for all of them."""

    def __init__(self, base: Path) -> None:
        self.root = base / "r"
        self.root.mkdir(mode=0o755)
        self.python = str(base / "venv/bin/python")
        self.users = [f"ai{os.getpid() % 100000}{letter}" for letter in "abc"]
        self.one, self.two, self.admin = self.users
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("AEGIS_", "XDG_", "PYTEST_", "SUDO_"))}
        self.env |= {"AEGIS_SYSTEM": str(self.root), "HOME": "/"}
        self.agents: list[Agent] = []
        self.config = self.root / "etc/aegis/aegis.yaml"

    def as_user(self, user: str | None, *argv: str) -> list[str]:
        if user is None:
            return list(argv)
        who = pwd.getpwnam(user)
        # A shell in between: the parent of a shim is its agent, and this test is everybody's ancestor.
        shell = ["/bin/sh", "-c", '"$@"; exit $?', "sh"]
        return ["setpriv", f"--reuid={who.pw_uid}", f"--regid={who.pw_gid}", "--init-groups", *shell, *argv]

    def run(self, user: str | None, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.as_user(user, *argv), env=self.env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip

    def aegis(self, user: str | None, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(user, self.python, "-I", "-m", "aegis_daemon.cli.main", *words)

    def tried(self, user: str, code: str) -> str:
        """What Python says to `code` as this user: the exception's name, or what was printed."""
        program = "import sys\ntry:\n    exec(sys.argv[1])\nexcept OSError as error:\n    print(type(error).__name__)\n"
        done = self.run(user, self.python, "-I", "-c", program, code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def door(self, agent: str) -> str:
        return str(self.root / f"run/aegis/agents/{agent}.sock")

    def wrap(self, user: str, door: str, *words: str) -> Agent:
        shim = [self.python, "-I", "-m", "aegis_shim", "--socket", door, *words]
        self.agents.append(Agent(self.as_user(user, *shim), self.env, "/"))
        return self.agents[-1]

    def status(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.aegis(None, "status", "--json").stdout)
        return found


@pytest.fixture(scope="module")
def tier() -> Iterator[Tier]:
    assert not known("aegis"), "this machine has a user `aegis` of its own: try the isolated tier on another"
    pythons = (os.path.realpath(sys.executable), f"/usr/bin/python3.{sys.version_info[1]}")
    python = next((path for path in pythons if os.path.exists(path) and reachable(path)), None)
    assert python, f"no Python that other users can run: neither of {pythons}"
    base = Path(tempfile.mkdtemp(prefix="ai", dir="/srv" if os.path.isdir("/srv") else "/var/tmp"))
    base.chmod(0o755)
    tier = Tier(base)
    try:
        packages = lent(next(Path(path) for path in sys.path if path.endswith("site-packages")), base / "packages")
        ours = lent(ROOT, base / "ours")
        subprocess.run([python, "-m", "venv", "--without-pip", str(base / "venv")], check=True)
        (site,) = base.glob("venv/lib/python*/site-packages")
        (site / "ours.pth").write_text(f"{ours}\n{packages}\n")
        shutil.copy(HERE / "counting.py", base / "counting.py")
        for user in tier.users:
            subprocess.run(["useradd", "--no-create-home", user], check=True)
        yield tier
    finally:
        for agent in tier.agents:
            agent.bury()
        tier.aegis(None, "daemon", "uninstall", "--system", "--purge", "--yes")
        for user in tier.users:
            subprocess.run(["userdel", user], check=False)
        shutil.rmtree(base)


def ready(tier: Tier) -> Tier:
    """Installed, configured and started; once."""
    if tier.config.exists():
        return tier
    agents = ["--agent", f"one={tier.one}", "--agent", f"two={tier.two}"]
    words = ["daemon", "install", "--system", *agents, "--admin", tier.admin]
    shown = tier.aegis(None, *words, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert list(tier.root.iterdir()) == []
    assert not known("aegis")
    done = tier.aegis(None, *words, "--yes")
    assert done.returncode == 1, done.stderr  # nothing here starts it by itself, which is said
    assert f"AEGIS_SYSTEM={tier.root} aegis daemon start" in done.stderr
    token = tier.config.with_name("token")
    token.write_text("a-secret-of-the-backend\n")
    os.chown(token, 0, grp.getgrnam("aegis").gr_gid)
    token.chmod(0o640)
    uids = [pwd.getpwnam(user).pw_uid for user in (tier.one, tier.two)]
    counting, log = tier.python.replace("venv/bin/python", "counting.py"), tier.root / "var/lib/aegis/server.log"
    tier.config.write_text(f"""
server: {{listen: off}}
backends:
  work:
    command: {tier.python}
    args: [-I, -S, {counting}, {log}]
    env: {{SECRET: "${{file:{token}}}"}}
  private:
    command: {tier.python}
    args: [-I, -S, {counting}, {log}]
agents:
  one: {{identities: [{uids[0]}], backends: {{work: {{allowed: true, approval_required: [post], tool_denylist: [big]}}}}}}
  two: {{identities: [{uids[1]}], backends: {{private: {{allowed: true}}}}}}
""")
    assert tier.aegis(None, "daemon", "install", "--system", "--yes").returncode == 1  # again: what is there stays
    started = tier.aegis(None, "daemon", "start")
    assert started.returncode == 0, started.stderr
    return tier


def test_the_daemon_is_a_user_of_its_own_and_says_so(tier: Tier) -> None:
    status = ready(tier).status()
    assert status["tier"] == "isolated"
    owner = os.stat(f"/proc/{status['pid']}").st_uid
    assert pwd.getpwuid(owner).pw_name == "aegis"
    refused = tier.run(None, tier.python, "-I", "-m", "aegis_daemon.daemon.main")
    assert (refused.returncode, "a user of its own" in refused.stderr) == (1, True)


def test_an_agent_calls_what_it_is_allowed_and_its_server_is_the_daemons(tier: Tier) -> None:
    agent = ready(tier).wrap(tier.one, tier.door("one"), "--backend", "work").handshake()
    assert "result" in agent.asks(call(1, "work", key="one"))
    assert tell_of(agent.asks(call(2, "big", size=1)))[0] == -32001
    (session,) = tier.status()["sessions"]  # type: ignore[misc]
    assert (session["agent_id"], session["backend_id"]) == ("one", "work")
    server = session["server_pid"]
    assert pwd.getpwuid(os.stat(f"/proc/{server}").st_uid).pw_name == "aegis"
    # Neither the server nor the daemon can be looked into, stopped or spoken to around us.
    assert b"SECRET=a-secret-of-the-backend" in Path(f"/proc/{server}/environ").read_bytes()
    for pid in (server, tier.status()["pid"]):
        for name in ("environ", "mem", "fd/0", "maps"):
            assert tier.tried(tier.one, f"open('/proc/{pid}/{name}', 'rb').read(1)") == "PermissionError", name
        assert tier.tried(tier.one, f"import os; os.kill({pid}, 9)") == "PermissionError"
    assert "result" in agent.asks(call(3, "work", key="two"))
    assert agent.close() == 0


@pytest.mark.parametrize(
    "path",
    [
        "etc/aegis/aegis.yaml", "etc/aegis/token", "var/lib/aegis/audit.db", "var/lib/aegis/state.db",
        "var/lib/aegis/approver.key", "var/lib/aegis/audit.key", "var/lib/aegis/links.key", "var/lib/aegis/daemon.log",
        "var/lib/aegis/journal",
    ],
)  # fmt: skip
def test_an_agents_user_reads_and_changes_nothing_of_the_daemons(tier: Tier, path: str) -> None:
    full = ready(tier).root / path
    assert full.exists()
    for user in (tier.one, tier.two):
        assert tier.tried(user, f"import os; os.listdir('{full.parent}')") == "PermissionError"
        for how in ("rb", "ab"):
            assert tier.tried(user, f"open('{full}', '{how}')") == "PermissionError"
        for place in ("etc/aegis", "var/lib/aegis", "run/aegis", "run/aegis/agents"):
            assert tier.tried(user, f"open('{tier.root / place / 'planted'}', 'wb')") == "PermissionError"
    name = full.name
    assert (
        tier.tried(tier.one, f"import os; os.rename('{tier.door('two')}', '{tier.door('two')}x')") == "PermissionError"
    )
    assert full.name == name


def test_an_agents_user_neither_manages_nor_approves(tier: Tier) -> None:
    socket_path = ready(tier).root / "run/aegis/manage.sock"
    assert (
        tier.tried(tier.one, f"import socket; socket.socket(socket.AF_UNIX).connect('{socket_path}')")
        == "PermissionError"
    )
    agent = tier.wrap(tier.one, tier.door("one"), "--backend", "work").handshake()
    agent.says(call("ask", "post", key="asked"))

    def tickets() -> list[dict[str, object]]:
        found: list[dict[str, object]] = json.loads(tier.aegis(None, "pending", "--json").stdout)
        return found

    (ticket,) = until(tickets, "a ticket")
    for words in (("approve", ticket["id"], "--yes"), ("pending",), ("daemon", "stop"), ("mode", "observe", "--yes")):
        done = tier.aegis(tier.one, *map(str, words))
        assert done.returncode == 3, (words, done.stdout, done.stderr)
    assert "ask" not in agent.answers
    assert tier.status()["pending"] == 1
    # A member of the group may, and nobody else of this machine.
    seen = tier.aegis(tier.admin, "pending", "--json")
    assert [row["id"] for row in json.loads(seen.stdout)] == [ticket["id"]]
    done = tier.aegis(tier.admin, "approve", str(ticket["id"]), "--yes")
    assert done.returncode == 0, done.stderr
    assert "result" in agent.answer("ask")
    found = json.loads(tier.aegis(None, "audit", "search", "asked", "--json").stdout)
    assert [row["approver"] for row in found if row["approval_result"] == "approved"] == [tier.admin]
    assert agent.close() == 0


def test_an_agent_is_nobody_but_itself(tier: Tier) -> None:
    door = ready(tier).door("one")
    assert tier.tried(tier.two, f"import socket; socket.socket(socket.AF_UNIX).connect('{door}')") == "PermissionError"
    for user, at, words, why in (
        (tier.two, tier.door("one"), ("--backend", "work"), "permission denied"),
        (tier.two, tier.door("two"), ("--agent", "one", "--backend", "work"), "this socket is the agent `two`'s"),
    ):
        agent = tier.wrap(user, at, *words)
        answer = agent.asks(request(1, "initialize"))
        assert why in answer["error"]["message"].lower() or why in answer["error"]["message"], answer
        agent.close()
    # What the other one may use is not there for it.
    agent = tier.wrap(tier.two, tier.door("two"), "--backend", "work")
    assert tell_of(agent.asks(request(1, "initialize")))[0] == -32001
    agent.close()
    agent = tier.wrap(tier.two, tier.door("two"), "--backend", "private").handshake()
    assert "result" in agent.asks(call(1, "work", key="two"))
    agent.close()


def test_no_command_line_of_an_agents_is_ever_run(tier: Tier) -> None:
    ready(tier)
    mark = tier.root / "var/lib/aegis/ran"
    for backend in ("work", "other"):
        agent = tier.wrap(tier.one, tier.door("one"), "--backend", backend, "--", "/usr/bin/touch", str(mark))
        assert "error" in agent.asks(request(1, "initialize"))
        agent.close()
    assert not mark.exists()


def test_root_finds_sockets_for_exactly_the_users_they_are_for(tier: Tier) -> None:
    run = ready(tier).root / "run/aegis"
    found = {}
    for path in sorted(run.rglob("*.sock")):
        at = path.stat()
        mode = f"{at.st_mode & 0o777:04o}"
        found[path.name] = (pwd.getpwuid(at.st_uid).pw_name, grp.getgrgid(at.st_gid).gr_name if at.st_gid else "", mode)
    assert found == {
        "manage.sock": ("root", "aegis-admin", "0660"),
        "one.sock": (tier.one, "", "0600"),
        "two.sock": (tier.two, "", "0600"),
    }
    for path in (run, run / "agents"):
        assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (0, 0o755)
    with socket.socket(socket.AF_UNIX) as root:  # who may open everything is still no agent
        root.connect(tier.door("one"))
        root.settimeout(10)
        assert root.recv(1) == b""


def test_a_restart_keeps_the_agents_session(tier: Tier) -> None:
    agent = ready(tier).wrap(tier.one, tier.door("one"), "--backend", "work").handshake()
    assert "result" in agent.asks(call(1, "work", key="before"))
    done = tier.aegis(None, "daemon", "restart")
    assert done.returncode == 0, done.stderr
    assert "result" in agent.asks(call(2, "work", key="after"))
    assert tier.status()["tier"] == "isolated"
    assert agent.close() == 0


def test_root_opens_nothing_that_a_server_put_in_the_place_of_the_log(tier: Tier) -> None:
    ready(tier)
    log, aim = tier.root / "var/lib/aegis/daemon.log", tier.root / "cron"
    assert tier.aegis(None, "daemon", "stop").returncode == 0
    log.rename(log.with_name("daemon.log.9"))
    log.symlink_to(aim)
    try:
        done = tier.aegis(None, "daemon", "start")
        assert (done.returncode, "cannot be opened" in done.stderr) == (1, True), done.stderr
        assert not aim.exists()
    finally:
        log.unlink()
        log.with_name("daemon.log.9").rename(log)
    assert tier.aegis(None, "daemon", "start").returncode == 0
    assert "is ready at" in log.read_text()


def test_taking_it_away_leaves_nothing(tier: Tier) -> None:
    ready(tier)
    members = grp.getgrnam("aegis-admin").gr_mem
    assert members == [tier.admin]
    kept = tier.aegis(None, "daemon", "uninstall", "--system", "--yes")
    assert kept.returncode == 0, kept.stderr
    assert tier.config.exists()
    assert (tier.root / "var/lib/aegis/audit.db").exists()
    assert not (tier.root / "run/aegis").exists()
    assert list((tier.root / "etc/systemd/system").iterdir()) == []
    assert known("aegis")
    gone = tier.aegis(None, "daemon", "uninstall", "--system", "--purge", "--yes")
    assert gone.returncode == 0, gone.stderr
    assert [path for path in tier.root.rglob("*") if not path.is_dir()] == []
    assert not any(path.name == "aegis" for path in tier.root.rglob("*"))
    assert not known("aegis")
    for group in ("aegis", "aegis-admin"):
        with pytest.raises(KeyError):
            grp.getgrnam(group)
    until(lambda: not [p for p in os.listdir("/proc") if p.isdigit() and _runs(p, str(tier.root))], "the daemon's end")


def _runs(pid: str, root: str) -> bool:
    try:
        return (
            f"AEGIS_SYSTEM={root}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes() and int(pid) != os.getpid()
        )
    except OSError:
        return False
