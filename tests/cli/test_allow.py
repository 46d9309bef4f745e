"""`aegis allow` shows what it would change, changes that alone, and leaves everything as it was where it cannot."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from typing import Any

import pytest
from manage.memory import MemoryGovernor, Served

from aegis_daemon.config import rewrite
from aegis_daemon.config.load import Fault, digest, load
from aegis_daemon.manage import api, shapes

from .conftest import Aegis
from .terminal import Terminal, strip

FILE = """\
# who may what
backends: {github: {}}
agents:
  claude:
    auth_token: "0123456789abcdef-secret"
    backends:
      github:
        allowed: true
        tool_denylist: [delete_repo]  # too much
        approval_required: [merge]
"""
CALL = "c0ffee" + "0" * 26


class Keeper(MemoryGovernor):
    """One call in its log, and a configuration file of its own."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.call: dict[str, Any] = {}
        self.reloads = 0
        self.digest: str | None = None

    def status(self) -> shapes.Status:
        now = self.digest or digest(load(self.path).config)
        return super().status().model_copy(update={"config": self.path, "config_digest": now})

    async def audit_story(self, id: str) -> shapes.AuditStory:
        if not CALL.startswith(id):
            raise api.NotFound(f"no call `{id}` in the audit log", "`aegis audit search` lists calls")
        row = {
            "seq": 1, "call_id": CALL, "agent_id": "claude", "principal": "claude", "backend_id": "github",
            "method": "tools/call", "tool_name": "delete_repo", "arguments": "{}", "acl_result": "denied",
            "rate_limit_result": "", "approval_result": "", "approver": "", "ticket": "", "exec_status": "denied",
            "exec_duration_us": 0, "queue_wait_ms": 0, "error_code": -32001, "stage": "acl", "rule": "some rule",
            "error_message": "the tool `delete_repo` is not available to this agent", "would": False,
            "created_at": "2026-01-31T08:00:00.000Z",
        }  # fmt: skip
        return shapes.AuditStory(call=shapes.AuditCall(**{**row, **self.call}), records=())

    async def reload(self) -> shapes.Reloaded:
        self.reloads += 1
        return await super().reload()


@pytest.fixture
def keeper(home: str) -> Iterator[Keeper]:
    path = f"{home}/aegis.yaml"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o640), "w") as file:
        file.write(FILE)
    governor = Keeper(path)
    with Served(governor, f"{home}/manage.sock"):
        yield governor


def text(keeper: Keeper) -> str:
    with open(keeper.path) as file:
        return file.read()


def test_the_change_is_shown_made_kept_beside_and_reloaded(keeper: Keeper, aegis: Aegis) -> None:
    done = aegis("allow", "c0ffee", "--yes")
    assert done.exit_code == 0
    assert text(keeper) == FILE.replace("[delete_repo]", "[]")
    assert "-        tool_denylist: [delete_repo]  # too much\n+        tool_denylist: []  # too much" in done.stdout
    assert "`delete_repo` is taken off `agents.claude.backends.github.tool_denylist`" in done.stderr
    assert "reloaded" in done.stderr
    assert "secret" not in done.output
    assert keeper.reloads == 1
    assert stat.S_IMODE(os.stat(keeper.path).st_mode) == 0o640
    kept = keeper.path + rewrite.KEPT
    assert stat.S_IMODE(os.stat(kept).st_mode) == 0o600
    with open(kept) as file:
        assert file.read() == FILE
    assert sorted(name for name in os.listdir(os.path.dirname(keeper.path)) if "aegis.yaml" in name) == [
        "aegis.yaml", "aegis.yaml" + rewrite.KEPT,
    ]  # fmt: skip
    again = aegis("allow", "c0ffee", "--yes")
    assert again.exit_code == 0
    assert "nothing to do" in again.stderr
    assert keeper.reloads == 1


def test_a_change_in_a_line_that_may_hold_a_secret_is_not_left_unsaid(keeper: Keeper, aegis: Aegis) -> None:
    one_line = "{auth_token: secret-secret-secret, backends: {github: {allowed: true, tool_denylist: [delete_repo]}}}"
    with open(keeper.path, "w") as file:
        file.write(f"backends: {{github: {{}}}}\nagents:\n  claude: {one_line}\n")
    done = aegis("allow", "c0ffee", "--dry-run")
    assert "secret-secret" not in done.output
    assert "-  claude: {auth_token: …" in done.stdout
    assert "left out of these lines" in done.stderr
    assert "left out" not in aegis("allow", "c0ffee", "--dry-run", "--config", other(keeper)).stderr


def other(keeper: Keeper) -> str:
    """A second file, in which nothing may be a secret."""
    path = f"{os.path.dirname(keeper.path)}/other.yaml"
    with open(path, "w") as file:
        file.write(FILE)
    return path


def test_programs_hear_what_was_done(keeper: Keeper, aegis: Aegis) -> None:
    keeper.call = {"tool_name": "merge", "backend_id": "gitlab"}
    tried = json.loads(aegis("allow", CALL, "--dry-run", "--json").stdout)
    assert (tried["changed"], tried["reloaded"], tried["backup"]) == (False, False, None)
    assert text(keeper) == FILE
    done = json.loads(aegis("allow", CALL, "--yes", "--json").stdout)
    assert done["changed"] is done["reloaded"] is True
    assert [change["path"] for change in done["changes"]] == ["backends.gitlab", "agents.claude.backends.gitlab"]
    assert "+      gitlab:" in done["diff"].split("\n")
    assert done["backup"] == keeper.path + rewrite.KEPT


def test_a_person_is_asked_and_may_say_no(keeper: Keeper) -> None:
    with Terminal("allow", "c0ffee") as terminal:
        shown = terminal.expect("make this change? [y/N]")
        assert "\x1b[31m-        tool_denylist: [delete_repo]" in shown
        assert "\x1b[32m+        tool_denylist: []" in shown
        assert "claude github.delete_repo" in strip(shown)
        terminal.send("n\r")
        assert terminal.end() == 1
    assert text(keeper) == FILE
    with Terminal("allow", "c0ffee", NO_COLOR="1") as terminal:
        assert "\x1b[31m" not in terminal.expect("make this change? [y/N]")
        terminal.send("y\r")
        terminal.expect("reloaded")
        assert terminal.end() == 0
    assert text(keeper) != FILE


def test_without_a_terminal_and_without_yes_nothing_is_changed(keeper: Keeper, aegis: Aegis) -> None:
    done = aegis("allow", "c0ffee", input="y\n")
    assert done.exit_code == 2
    assert text(keeper) == FILE


def test_a_governed_agents_shell_is_refused_whatever_it_only_wants_to_see(keeper: Keeper, aegis: Aegis) -> None:
    keeper.refusal = "the request comes from `claude` (pid 7)"
    for more in ("--yes", "--dry-run"):
        done = aegis("allow", "c0ffee", more)
        assert done.exit_code == 1
        assert "`claude`" in done.stderr
        assert not done.stdout
    assert text(keeper) == FILE


def test_a_link_stays_a_link(keeper: Keeper, aegis: Aegis, home: str) -> None:
    os.mkdir(f"{home}/dotfiles")
    os.rename(keeper.path, f"{home}/dotfiles/mine.yaml")
    os.symlink("dotfiles/mine.yaml", keeper.path)
    assert aegis("allow", "c0ffee", "--yes").exit_code == 0
    assert os.readlink(keeper.path) == "dotfiles/mine.yaml"
    assert text(keeper) != FILE
    assert os.path.exists(f"{home}/dotfiles/mine.yaml{rewrite.KEPT}")


def test_a_file_that_changes_while_a_person_reads_is_left_alone(keeper: Keeper) -> None:
    with Terminal("allow", "c0ffee") as terminal:
        terminal.expect("make this change? [y/N]")
        with open(keeper.path, "a") as file:
            file.write("# another hand\n")
        terminal.send("y\r")
        terminal.expect("was changed meanwhile")
        assert terminal.end() == 1
    assert text(keeper) == FILE + "# another hand\n"
    assert keeper.reloads == 0


def test_a_file_that_the_daemon_refuses_is_put_back(keeper: Keeper, aegis: Aegis) -> None:
    keeper.faults = [Fault(keeper.path, 1, 1, "", "a variable is not set", "set it")]
    done = aegis("allow", "c0ffee", "--yes")
    assert done.exit_code == 1
    assert "put back" in done.stderr
    assert text(keeper) == FILE


def test_another_file_is_changed_and_not_reloaded(keeper: Keeper, aegis: Aegis, home: str) -> None:
    with open(f"{home}/other.yaml", "w") as file:
        file.write(FILE)
    done = aegis("allow", "c0ffee", "--yes", "--config", f"{home}/other.yaml")
    assert done.exit_code == 0
    assert "another file" in done.stderr
    assert (text(keeper), keeper.reloads) == (FILE, 0)
    with open(f"{home}/other.yaml") as file:
        assert "tool_denylist: []" in file.read()


def test_changes_that_are_not_in_force_yet_are_told(keeper: Keeper, aegis: Aegis) -> None:
    keeper.digest = "e" * 64
    assert "other changes that are not in force yet" in aegis("allow", "c0ffee", "--dry-run").stderr
    keeper.call = {"tool_name": "read"}
    assert "`aegis daemon reload`" in aegis("allow", "c0ffee", "--dry-run").stderr


def test_a_call_that_a_person_is_asked_for_all_the_same_says_so(keeper: Keeper, aegis: Aegis) -> None:
    with open(keeper.path, "w") as file:
        file.write(FILE.replace("[delete_repo]", "[merge]"))
    keeper.call = {"tool_name": "merge"}
    assert "waits for a person" in aegis("allow", "c0ffee", "--yes").stderr


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ({"stage": "rate_limit"}, "`aegis limits grant --agent claude --backend github --tool delete_repo`"),
        ({"stage": "rate_limit", "tool_name": "a b; rm"}, "--tool 'a b; rm'"),
        ({"stage": "approval"}, "`aegis pending`"),
        ({"stage": "paused"}, "`aegis resume claude`"),
        ({"stage": "queue"}, "`aegis queue`"),
        ({"stage": "policy"}, "by hand"),
        ({"stage": "method"}, "unknown ones are never passed on"),
        ({"stage": "forward"}, f"`aegis audit show {CALL[:12]}`"),
        ({"stage": "something new"}, "another reason"),
        ({"exec_status": "success", "stage": ""}, "was not refused"),
        ({"exec_status": "pending", "stage": ""}, "waits for a person"),
        ({"method": "completion/complete", "arguments": ""}, "does not tell any more"),
        ({"method": "tasks/get", "tool_name": "t1"}, "the session that began it"),
        ({"tool_name": "re\u202ead"}, "cannot be seen"),
    ],
)
def test_what_no_list_refused_has_another_next_step(
    keeper: Keeper, aegis: Aegis, call: dict[str, Any], told: str
) -> None:
    keeper.call = call
    done = aegis("allow", "c0ffee", "--yes")
    assert done.exit_code == 1
    assert told in done.stderr
    assert text(keeper) == FILE


def test_a_call_that_observe_mode_let_pass_is_allowed_all_the_same(keeper: Keeper, aegis: Aegis) -> None:
    keeper.call = {"exec_status": "success", "would": True}
    assert aegis("allow", "c0ffee", "--yes").exit_code == 0
    assert text(keeper) != FILE


def test_a_pattern_is_left_to_a_person_who_hears_which_line_it_is(keeper: Keeper, aegis: Aegis) -> None:
    with open(keeper.path, "w") as file:
        file.write(FILE.replace("[delete_repo]", '["delete_*"]'))
    done = aegis("allow", "c0ffee", "--yes")
    assert done.exit_code == 1
    assert "line 9 denies it with the pattern `delete_*`" in done.stderr


def test_faults_and_absent_things_are_told(keeper: Keeper, aegis: Aegis) -> None:
    assert "no call `abc`" in aegis("allow", "abc", "--yes").stderr
    with open(keeper.path, "w") as file:
        file.write(FILE + "agnets: 1\n")
    keeper.digest = "e" * 64
    done = aegis("allow", "c0ffee", "--yes")
    assert done.exit_code == 1
    assert "agnets" in done.stderr
    assert "nothing was changed" in done.stderr


def test_without_a_daemon_nobody_is_there_to_say_who_may(home: str, aegis: Aegis) -> None:
    assert aegis("allow", "c0ffee", "--yes").exit_code == 3


# --- the file itself --------------------------------------------------------------------------------------------------


def test_a_directory_that_takes_no_file_leaves_the_old_one(
    keeper: Keeper, aegis: Aegis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr("os.fsync", full)
    done = aegis("allow", "c0ffee", "--yes")
    assert done.exit_code == 1
    assert "no space left on device" in done.stderr
    assert text(keeper) == FILE
    assert sorted(name for name in os.listdir(os.path.dirname(keeper.path)) if "aegis.yaml" in name) == ["aegis.yaml"]


def pinned(name: str) -> shapes.PinRow:
    return shapes.PinRow(
        backend_id="github", kind="tool", name=name, state="trusted", trusted=("a",), offered="a", seen_at="2026-01-31"
    )


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"tool_name": "nonsense"}, ["`github` has no tool `nonsense` (2 are known)", "aegis tools list"]),
        ({"tool_name": "delete_rpo"}, ["`github` has no tool `delete_rpo`", "did you mean `delete_repo`?"]),
        ({"agent_id": "claud"}, ["there is no agent `claud`; did you mean `claude`?", "mend `--agent`"]),
        ({"backend_id": "githb"}, ["there is no backend `githb`; did you mean `github`?", "mend `--backend`"]),
    ],
)
def test_what_an_agent_mistyped_becomes_no_rule(
    keeper: Keeper, aegis: Aegis, call: dict[str, Any], says: list[str]
) -> None:
    keeper.pin_rows += [pinned("delete_repo"), pinned("merge")]
    keeper.call = call
    for words in (["--dry-run"], ["--yes"], []):
        done = aegis("allow", "c0ffee", *words)
        assert done.exit_code == 1
        assert done.stdout == ""
        assert all(text in done.stderr for text in says)
    assert text(keeper) == FILE


def test_of_a_server_that_was_never_listed_any_tool_may_be_allowed(keeper: Keeper, aegis: Aegis) -> None:
    keeper.call = {"backend_id": "gitlab", "tool_name": "nonsense"}
    keeper.pin_rows += [pinned("delete_repo")]
    assert aegis("allow", "c0ffee", "--dry-run").exit_code == 0
