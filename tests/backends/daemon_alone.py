"""A daemon to be killed: starts each of its arguments with sh in a nursery, prints the warden's id, and stays.

The children write to its stdout, so that one pipe tells all their ids, and its end that they are gone.
`--deaf-kernel` first forbids the mark by RLIMIT_LOCKS.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys

import uvloop

from aegis_daemon.backends.children import Command, Nursery


async def main(scripts: list[str]) -> None:
    nursery = Nursery()
    nursery.start()
    os.write(1, f"warden {nursery.warden_pid}\n".encode())
    for script in scripts:
        stdin, ours = os.pipe()
        command = Command(("sh", "-c", script), None, dict(os.environ))
        nursery.spawn(command, stdin, 1, 2, lambda code: None, lambda reason: sys.exit(reason))
        os.close(stdin)
        os.set_inheritable(ours, False)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if arguments[0] == "--deaf-kernel":
        del arguments[0]
        resource.setrlimit(10, (1000, 1000))
    uvloop.run(main(arguments))
