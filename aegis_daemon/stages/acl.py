"""Access: an agent meets only the backends, tools, resources and prompts that its lists leave it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.names import Names, Restricted, legible, meanings, plain_name
from aegis_daemon.core.principal import Principal
from aegis_daemon.core.verdict import PASS, Deny, Opinion, Reason
from aegis_daemon.wire.methods import BadParams, listened_resources

HIDDEN = "is not available to this agent"
UNCONFIGURED = "no agent is configured yet, so nothing is allowed; a person begins with `aegis config init`"
"""How to begin, which is told as long as there is no rule that it could get round."""


class Lists(msgspec.Struct, frozen=True):
    """An allow-list (None: everything) and a deny-list, which wins."""

    allow: Names | None = None
    deny: Restricted | None = None

    def admits(self, name: str) -> bool:
        """Whether the name may be used."""
        if self.deny is not None and name in self.deny:
            return False
        return self.allow is None or name in self.allow

    def admits_uri(self, uri: str) -> bool:
        """Whether the resource may be used: as it is spelt and as it is meant, and not as whatever may be denied."""
        if self.allow is None and self.deny is None:
            return legible(uri)
        try:
            plain, *others = meanings(uri)
        except ValueError:  # nobody can tell what it names
            return False
        if self.deny is not None and any(one in self.deny for one in {uri, plain, *others}):
            return False
        return self.allow is None or (uri in self.allow and plain in self.allow)


class Route(msgspec.Struct, frozen=True):
    """What one agent may do on one backend."""

    tools: Lists = Lists()
    resources: Lists = Lists()
    prompts: Lists = Lists()
    server_requests: frozenset[str] = frozenset()

    def admits(self, subject: str, name: str) -> bool:
        """Whether this kind of thing of this name may be used."""
        if subject == "tool":
            return plain_name(name) and self.tools.admits(name)
        if subject == "resource":
            return self.resources.admits_uri(name)
        if subject == "prompt":
            return plain_name(name) and self.prompts.admits(name)
        if subject == "server_request":
            return name in self.server_requests
        return True  # whose a task is, the conversation knows


class Acl:
    """`routes` maps (agent, backend) to what is allowed there; `deny` and `allow` hold for every agent.

    `open_unlisted` is `defaults.unlisted: observe`: agents and backends that no rule lists pass and are recorded.
    `unconfigured`: there are no agents at all.
    """

    name = "acl"
    by_name = True

    def __init__(
        self,
        routes: Mapping[tuple[str, str], Route],
        *,
        deny: Restricted | None = None,
        allow: Names | None = None,
        open_unlisted: bool = False,
        refused: frozenset[tuple[str, str]] = frozenset(),
        unconfigured: bool = False,
    ) -> None:
        self._routes = dict(routes)
        self._deny = deny if deny else None
        self._allow = allow
        self._open = open_unlisted
        self._refused = refused
        self._unconfigured = unconfigured
        self._wide = Route(server_requests=frozenset())

    def route(self, agent: str, backend: str) -> Route | None:
        """What the agent may do there; None where it may do nothing."""
        route = self._routes.get((agent, backend))
        if route is None and self._open and (agent, backend) not in self._refused:
            return self._wide
        return route

    def _everywhere(self, backend: str, tool: str) -> bool:
        if self._deny is not None and (tool in self._deny or f"{backend}.{tool}" in self._deny):
            return False
        return self._allow is None or tool in self._allow or f"{backend}.{tool}" in self._allow

    def decide(self, call: Call, now: float) -> Opinion:
        """Passes what the lists leave; the text never tells whether a hidden name exists."""
        agent = call.principal.agent
        route = self._routes.get((agent, call.backend)) or self.route(agent, call.backend)
        if route is None:
            text = f"the backend `{call.backend}` {HIDDEN}"
            if self._unconfigured:
                text = UNCONFIGURED
            return Deny(
                Reason(
                    "acl",
                    text,
                    code="backend_not_allowed",
                    detail=f"`agents.{agent}.backends.{call.backend}` does not say `allowed: true`",
                )
            )
        name = call.name
        if name is None:
            if call.method == "subscriptions/listen":
                return self._listen(route, call)
            return PASS
        subject = call.subject
        assert subject is not None
        if not route.admits(subject, name) or (subject == "tool" and not self._everywhere(call.backend, name)):
            return Deny(self._reason(call, subject, name))
        return PASS

    def _listen(self, route: Route, call: Call) -> Opinion:
        try:
            uris = listened_resources(call.frame.params)
        except BadParams as error:
            return Deny(Reason("params", str(error), code="bad_params"))
        for uri in uris:
            if not route.admits("resource", uri):
                return Deny(self._reason(call, "resource", uri))
        return PASS

    def _reason(self, call: Call, subject: str, name: str) -> Reason:
        where = f"agents.{call.principal.agent}.backends.{call.backend}"
        if subject == "server_request":
            return Reason(
                "acl",
                f"the client does not accept `{call.method}` from this server",
                code="server_request_not_allowed",
                detail=f"`{where}.server_requests` does not list `{name}`",
            )
        return Reason(
            "acl",
            f"the {subject} `{name[:200]}` {HIDDEN}",
            code="not_allowed",
            detail=f"`{where}` (or the file's `deny` and `allow`) does not admit the {subject} `{name[:200]}`",
        )

    def visible(self, principal: Principal, backend: str, subject: str, name: str) -> bool:
        """As `decide`; a template is shown unless a list names it."""
        route = self.route(principal.agent, backend)
        if route is None or not route.admits(subject, name):
            return False
        return subject != "tool" or self._everywhere(backend, name)

    def labels(self, principal: Principal, backend: str, tool: str) -> tuple[str, ...]:
        """None: what is not allowed is not shown at all."""
        return ()
