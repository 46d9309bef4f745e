"""Which agent a greeting may speak for, and which server it gets; pure.

In the advisory tier, where agent and daemon are one user, the shim may hand over a command line. In the isolated tier
it names a backend and nothing else, since a command run for another user would run with rights that user lacks.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping

import msgspec

from aegis_daemon.core.handed import Handed, handed
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.runtime import BackendRule, Runtime
from aegis_shim.hello import PRIVATE, Hello, backend_name

UNNAMED = "default"
"""What a shim calls its agent where nobody says."""
MAX_NAME = 128
"""Characters of an agent's or backend's name in a greeting."""


class Plan(msgspec.Struct, frozen=True):
    """What the session is: without `argv` and `rule.url` the agent may not use the backend, so nothing is started."""

    principal: Principal
    backend: str
    rule: BackendRule | None = None
    """the backend's, where the session reaches one"""
    argv: tuple[str, ...] | None = None
    cwd: str | None = None
    env: Mapping[str, str] = {}
    umask: int = PRIVATE
    handed: Handed | None = None
    """the server, where its command line, directory or environment came from the shim; None where nothing of it did"""

    @property
    def serves(self) -> bool:
        """Whether there is a server to be had."""
        return self.rule is not None

    def starts_as(self, other: Plan) -> bool:
        """Whether the server is the same one, begun the same way."""
        return self._server() == other._server()

    def _server(self) -> tuple[object, ...]:
        rule = self.rule
        if rule is None:
            return ()
        where = (self.argv, self.cwd, self.umask) if self.argv is not None else (rule.url, rule.transport)
        return (*where, dict(self.env if self.argv is not None else rule.headers))


class Refused(Exception):
    """The greeting is refused; the text goes to the agent's log, `detail` to the daemon's: what would let it in."""

    def __init__(self, text: str, detail: str = "") -> None:
        super().__init__(text)
        self.detail = detail or text


def plan(
    hello: Hello, uid: int, own_uid: int, runtime: Runtime, daemon_env: Mapping[str, str], door: str | None = None
) -> Plan:
    """What to make of a greeting from a process of user `uid`. Raises `Refused`.

    :param door: the agent whose own socket it came through: it is that one, and a greeting may at most repeat it.
    """
    name = hello.agent if door is None else door
    if name != hello.agent and hello.agent != UNNAMED:
        raise Refused(
            f"this socket is the agent `{name}`'s, and the session says it is `{hello.agent:.{MAX_NAME}}`; leave "
            "`--agent` out, or name that agent's own socket with `--socket`"
        )
    backend = hello.backend or backend_name(hello.args)
    for what, said in (("agent", name), ("backend", backend)):
        # They are written into every record and log line; half a character cannot be written at all.
        if len(said) > MAX_NAME or not said.isprintable():
            raise Refused(
                f"the name of the {what} is over {MAX_NAME} characters long, or holds some that cannot be seen"
            )
    rule = runtime.agents.get(name)
    if rule is None:
        if uid != own_uid:
            raise _not_this_one(uid, name, f"no such agent; add it to `agents` with `identities: [{uid}]`")
        principal = Principal(name, uid)
    else:
        if uid not in (rule.uids if rule.uids is not None else (own_uid,)):
            raise _not_this_one(uid, name, f"list it in `agents.{name}.identities`")
        principal = msgspec.structs.replace(rule.principal, uid=uid)
    if not runtime.reaches(name, backend):
        return Plan(principal, backend)
    settings = runtime.backend(backend)
    if settings.url is not None:
        if hello.args:
            raise Refused(
                f"`backends.{backend}` is reached by its `url`, and the agent's entry names a command; write only "
                f"`aegis-wrap --backend {backend}`, or take the `url` out"
            )
        return Plan(principal, backend, settings)
    same_user = uid == own_uid and not runtime.isolated
    given = hello.env if same_user else daemon_env
    env = {key: value for key, value in given.items() if not key.startswith("AEGIS_")}
    env.update(settings.env)
    umask = hello.umask if same_user else PRIVATE
    if settings.command is not None:
        if hello.args and tuple(hello.args) != settings.command:
            raise Refused(
                f"`backends.{backend}.command` is `{settings.shown}`, and the agent's entry says "
                f"`{shlex.join(hello.args)}`; make them the same, or take the command out of one"
            )
        cwd = settings.cwd or (hello.cwd if same_user else None)
        mark = handed(settings.command, cwd or "", env) if same_user else None
        return Plan(principal, backend, settings, settings.command, cwd, env, umask, mark)
    if not hello.args:
        raise Refused(f"no command for the backend `{backend}`; write it after `aegis-wrap`, or set "
                      f"`backends.{backend}.command`")  # fmt: skip
    if not same_user:
        raise Refused(
            f"a command handed over by another user is not run (isolated tier); set `backends.{backend}.command` and "
            f"use `aegis-wrap --backend {backend}`"
        )
    argv, cwd = tuple(hello.args), settings.cwd or hello.cwd
    return Plan(principal, backend, settings, argv, cwd, env, umask, handed(argv, cwd, env))


def _not_this_one(uid: int, name: str, why: str) -> Refused:
    """In the same words whether there is such an agent or not."""
    text = f"uid {uid} may not be the agent `{name}`"
    return Refused(f"{text}; ask whoever runs Aegis (`aegis logs` says more)", f"{text}: {why}")


def plan_remote(principal: Principal, backend: str, runtime: Runtime, daemon_env: Mapping[str, str]) -> Plan:
    """The same for an agent that came over the network, which hands nothing over. Raises `Refused`."""
    if not runtime.reaches(principal.agent, backend):
        return Plan(principal, backend)
    return plan_own(principal, backend, runtime.backend(backend), daemon_env)


def plan_own(principal: Principal, backend: str, settings: BackendRule, daemon_env: Mapping[str, str]) -> Plan:
    """What the daemon makes of a backend by its configuration alone. Raises `Refused`."""
    if settings.url is not None:
        return Plan(principal, backend, settings)
    if settings.command is None:
        text = f"the server of the backend `{backend}` cannot be reached over the network"
        raise Refused(
            text,
            f"{text}: only `aegis-wrap` can bring it; set a `command` or `url` under `backends.{backend}`",
        )
    env = {key: value for key, value in daemon_env.items() if not key.startswith("AEGIS_")}
    env.update(settings.env)
    return Plan(principal, backend, settings, settings.command, settings.cwd, env)
