"""An agent with a shell: `agent_shell.py WRAP ARG…` runs a server behind `aegis-wrap`, calls `post` once, and obeys.

For each line of its stdin, a JSON list of words, it runs that command and prints `[status, stdout, stderr]`.
"""

from __future__ import annotations

import json
import subprocess
import sys

server = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
assert server.stdin is not None
assert server.stdout is not None


def say(frame: dict[str, object]) -> None:
    assert server.stdin is not None
    server.stdin.write(json.dumps({"jsonrpc": "2.0", **frame}).encode() + b"\n")
    server.stdin.flush()


client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "agent", "version": "1"}}
say({"id": 0, "method": "initialize", "params": client})
server.stdout.readline()
say({"method": "notifications/initialized"})
say({"id": 1, "method": "tools/call", "params": {"name": "wipe", "arguments": {}}})
refused = json.loads(server.stdout.readline())
say({"id": 2, "method": "tools/call", "params": {"name": "post", "arguments": {"key": "k"}}})
print(json.dumps(refused["error"]["data"]["call_id"]), flush=True)
for line in sys.stdin:
    done = subprocess.run(json.loads(line), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    print(json.dumps([done.returncode, done.stdout, done.stderr]), flush=True)
server.stdin.close()
server.wait()
