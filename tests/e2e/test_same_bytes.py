"""Real servers answer through Aegis with the very bytes they answer with alone, in both ways and both eras."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import servers
from .house import INITIALIZE, MARK, WAYS, WRAP, Agent, Home, call, note, request

pytestmark = pytest.mark.real
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "e2e", "version": "1"},
}
LATER = "cancelled-token"
"""The progress token of a call that is cancelled: what its server says of it later never reaches the client."""
WORDS = ("--format", "json", "-q")
LISTS = ("tools/list", "resources/list", "resources/templates/list", "prompts/list")
Step = dict[str, Any] | tuple[dict[str, Any], ...]
"""A frame, and where it is a request its answer; or frames in one write, and the answer to the last of them."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    servers.needed()
    return servers.make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    servers.needed()
    made = Home(servers.CONFIG).launch()
    yield made
    made.close()


def progressing(frame: dict[str, Any], token: int | str) -> dict[str, Any]:
    return {
        **frame,
        "params": {**frame["params"], "_meta": {**frame["params"].get("_meta", {}), "progressToken": token}},
    }


def cancelled(frame: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """A call that is cancelled in the same breath, and something to wait for."""
    return frame, note("notifications/cancelled", requestId=frame["id"], reason="not wanted"), request("after", "ping")


def script(name: str, place: Path) -> list[Step]:
    """What a client of the legacy era says to each server."""
    steps: list[Step] = [request(0, "initialize", **INITIALIZE), note("notifications/initialized")]
    steps += [request(at, method) for at, method in enumerate(LISTS, 1)]
    steps += [
        request("9007199254740991", "ping"),
        request(9007199254740991, "tools/list"),
        call("é\u2028", "no-such-tool"),
    ]
    if name == "everything":
        long = progressing(call("long", "trigger-long-running-operation", duration=0.2, steps=4), "p-1")
        longer = call("longer", "trigger-long-running-operation", duration=1, steps=2)
        steps += [
            call(10, "echo", message='ä "quoted" \u2028 \U0001f600 </script>'),
            call(11, "get-sum", a=2, b=1e2),
            call(12, "get-tiny-image"),
            call(13, "get-structured-content", location="Chicago"),
            call(14, "get-resource-links", count=2),
            request(15, "resources/read", uri="demo://resource/static/document/features.md"),
            request(16, "resources/read", uri="demo://resource/dynamic/text/3"),
            request(17, "prompts/get", name="args-prompt", arguments={"city": "Bern"}),
            request(18, "completion/complete", ref={"type": "ref/prompt", "name": "completable-prompt"},
                    argument={"name": "department", "value": "E"}),
            request(19, "resources/subscribe", uri="demo://resource/static/document/features.md"),
            request(20, "logging/setLevel", level="debug"),
            request(21, "tasks/list"),
            long,
            cancelled(progressing(longer, LATER)),
        ]  # fmt: skip
    elif name == "filesystem":
        files = place / "files"
        steps += [
            call(10, "read_text_file", path=str(files / "notes.txt")),
            call(11, "list_directory", path=str(files)),
            call(12, "read_text_file", path="/etc/passwd"),
            call(13, "search_files", path=str(files), pattern="*.txt"),
            call(14, "read_text_file", path=str(files / "large.txt")),
            cancelled(call("c", "read_text_file", path=str(files / "large.txt"))),
        ]
    elif name == "git":
        repository = str(place / "repository")
        steps += [
            call(10, "git_log", repo_path=repository, max_count=1),
            call(11, "git_diff_unstaged", repo_path=repository),
            call(12, "git_show", repo_path=repository, revision="HEAD"),
            cancelled(call("c", "git_status", repo_path=repository)),
        ]
    else:
        steps += [
            call(10, "convert_time", source_timezone="Etc/UTC", time="12:00", target_timezone="Asia/Tokyo"),
            call(11, "get_current_time", timezone="Asia/Tokyo"),
            call(12, "convert_time", source_timezone="nowhere", time="25:00", target_timezone="Asia/Tokyo"),
            cancelled(call("c", "get_current_time", timezone="Asia/Tokyo")),
        ]
    return steps


def modern(steps: list[Step]) -> list[Step]:
    """The same in the modern era, which has no handshake and no ping."""

    def turn(frame: dict[str, Any]) -> dict[str, Any]:
        if "id" not in frame:
            return frame
        if frame["method"] == "ping":
            frame = {**frame, "method": "server/discover"}
        params = frame.get("params", {})
        return {**frame, "params": {**params, "_meta": {**params.get("_meta", {}), **MODERN}}}

    first: list[Step] = [turn(request(0, "server/discover"))]
    return first + [tuple(map(turn, step)) if isinstance(step, tuple) else turn(step) for step in steps[2:]]


def play(agent: Agent, steps: list[Step]) -> int:
    """Says everything, one step after the other; the exit status."""
    for step in steps:
        frames = step if isinstance(step, tuple) else (step,)
        agent.says(*frames)
        if "id" in frames[-1]:
            agent.answer(frames[-1]["id"], 30)
    return agent.close()


def answers_and_notes(agent: Agent) -> tuple[list[bytes], list[bytes]]:
    """Lines that answer, in their order; and the rest, which comes when it comes."""
    answers, notes = [], []
    for line in bytes(agent.raw).splitlines():
        frame = json.loads(line)
        if frame.get("params", {}).get("progressToken") == LATER:
            continue
        # Times in texts: an ISO date and time of day, or the time of day as a server writes it.
        line = re.sub(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", b"TIME", line)
        line = re.sub(rb"\d{1,2}:\d\d:\d\d [AP]M", b"TIME", line)
        (answers if "method" not in frame else notes).append(line)
    return answers, sorted(notes)


def compared(home: Home, name: str, place: Path, steps: list[Step]) -> Agent:
    """The same steps alone and in both ways at once; the one that was alone."""
    argv = servers.command(name, place)
    agents = [home.run(*argv), *(home.wrap(*argv, backend=name, way=way) for way in WAYS)]
    status: list[object] = [None] * len(agents)

    def run(at: int) -> None:
        try:
            status[at] = play(agents[at], steps)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            status[at] = error

    threads = [threading.Thread(target=run, args=(at,)) for at in range(len(agents))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert status == [0, 0, 0]
    alone, *wrapped = agents
    answers, notes = answers_and_notes(alone)
    asked = [frame for step in steps for frame in (step if isinstance(step, tuple) else (step,)) if "id" in frame]
    given_up = {frame["params"]["requestId"] for step in steps if isinstance(step, tuple) for frame in step[1:2]}
    # Alone, a server may be done before it reads that its answer is not wanted; through Aegis such an answer ends.
    answers = [line for line in answers if json.loads(line).get("id") not in given_up]
    assert len(answers) == len(asked) - len(given_up)
    for each, way in zip(wrapped, WAYS, strict=True):
        theirs, more = answers_and_notes(each)
        assert theirs == answers, way
        assert more == notes, way
        assert not each.broken
    return alone


@pytest.mark.parametrize("name", servers.NAMES)
def test_a_real_server_answers_with_the_same_bytes(home: Home, place: Path, name: str) -> None:
    alone = compared(home, name, place, script(name, place))
    assert "error" not in alone.answers[10], "the script does not fit the server"
    if name == "everything":
        assert len([frame for frame in alone.frames if frame.get("params", {}).get("progressToken") == "p-1"]) == 4


@pytest.mark.parametrize("name", ["git", "time"])
def test_a_real_server_answers_with_the_same_bytes_in_the_modern_era(home: Home, place: Path, name: str) -> None:
    alone = compared(home, name, place, modern(script(name, place)))
    assert alone.answers[10]["result"]["resultType"] == "complete", "the script does not fit the server"


def test_a_real_server_asks_its_client_where_it_may_work_if_the_rules_allow(home: Home, place: Path) -> None:
    other = place / "repository"
    asked = []
    for name in ("open", "default"):
        agent = home.wrap(*servers.command("filesystem", place), backend="filesystem", agent=name)
        agent.handshake(capabilities={"roots": {"listChanged": True}})
        if name == "open":
            question = agent.hears("roots/list")
            root = {"uri": other.as_uri(), "name": "r"}
            agent.says({"jsonrpc": "2.0", "id": question["id"], "result": {"roots": [root]}})
            agent.wait(lambda heard=agent: b"Updated allowed directories" in heard.err, "its own word")
        answer = agent.asks(call(1, "list_allowed_directories"))
        asked.append(answer["result"]["content"][0]["text"])
        assert [frame["method"] for frame in agent.frames if "method" in frame and "id" in frame] == (
            ["roots/list"] if name == "open" else []
        )
        assert agent.close() == 0
    assert str(other) in asked[0]
    assert str(place / "files") in asked[1]


def test_every_call_of_a_real_server_is_in_the_log_with_its_arguments(home: Home, place: Path) -> None:
    agent = home.wrap(*servers.command("time", place), backend="time").handshake()
    asked = {"source_timezone": "Etc/UTC", "time": "01:23", "target_timezone": "Asia/Tokyo"}
    answer = agent.asks(call(1, "convert_time", **asked))
    assert agent.close() == 0
    (row,) = home.json("audit", "search", "01:23")
    assert (row["tool_name"], row["exec_status"], row["backend_id"]) == ("convert_time", "success", "time")
    assert json.loads(row["arguments"]) == asked
    shown = home.json("audit", "show", row["call_id"])
    assert json.loads(shown["result"]) == answer["result"]


def test_a_server_sees_its_clients_environment_without_what_concerns_aegis_alone(home: Home, place: Path) -> None:
    argv = servers.command("everything", place)
    told = {"PATH": "/nowhere:/usr/bin", "ODD": "ä = \t'", "EMPTY": ""}
    seen = []
    for agent in (home.run(*argv, env=told), home.wrap(*argv, backend="everything", env={**told, "AEGIS_AGENT": ""})):
        answer = agent.handshake().asks(call(1, "get-env"))
        seen.append(json.loads(answer["result"]["content"][0]["text"]))
        assert agent.close() == 0
    alone, wrapped = seen
    assert wrapped.pop("_AEGIS_CHILD")
    assert wrapped == {name: value for name, value in alone.items() if not name.startswith("AEGIS_")}
    assert wrapped["ODD"] == told["ODD"]


def test_the_inspector_drives_a_wrapped_server_unmodified(home: Home, place: Path) -> None:
    launcher = servers.MODULES / "inspector" / "clients" / "launcher" / "build" / "index.js"
    argv = servers.command("everything", place)
    env = {**home.env, "PATH": f"{servers.NODE.parent}:{home.env['PATH']}"}
    # It gives a server no more of its environment than it is told to. It offers sampling, elicitation and roots, for
    # which this server has tools of their own: `open` may be asked.
    given = {"AEGIS_HOME": str(home.dir), MARK: home.mark, "AEGIS_AGENT": "open"}
    told = [word for name, value in given.items() for word in ("-e", f"{name}={value}")]

    def inspect(*words: str) -> tuple[Any, Any]:
        """What it prints for the server alone, and behind `aegis-wrap`."""
        started = []
        for prefix in ([], [WRAP]):
            line = [str(servers.NODE), str(launcher), "--cli", *prefix, *argv, "stdio", *told, *WORDS, *words]
            started.append(
                subprocess.Popen(
                    line, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
        said = [process.communicate(timeout=60) for process in started]
        assert [process.returncode for process in started] == [0, 0], said
        return json.loads(said[0][0]), json.loads(said[1][0])

    alone, wrapped = inspect("--method", "tools/list")
    assert wrapped == alone
    assert "echo" in json.dumps(alone)
    alone, wrapped = inspect("--method", "tools/call", "--tool-name", "echo", "--tool-arg", "message=hi")
    assert wrapped == alone
    assert "Echo: hi" in json.dumps(alone)
    assert [row["tool_name"] for row in home.json("audit", "search", "--tool", "echo", "hi")] == ["echo"]
