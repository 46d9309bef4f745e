"""What a server tells unasked reaches its own client alone, under the ids and tokens that client knows, or nobody.

A notification must be allowed as what it speaks of is: a backend that is closed to the agent, a resource that is not
its to see, a progress of nothing that is open, a question that is not allowed go nowhere, and are counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from aegis_daemon.core.call import Call
from aegis_daemon.core.session import Open, State
from aegis_daemon.relay import questions
from aegis_daemon.relay.carry import CANCELLED_S, Withdrawn
from aegis_daemon.relay.reasons import UNKNOWN_METHOD
from aegis_daemon.wire.jsonrpc import Answer, Frame, encode, notification_frame
from aegis_daemon.wire.methods import META_SUBSCRIPTION, Direction, Era

if TYPE_CHECKING:
    from aegis_daemon.relay.conversation import Conversation

_ASKED: Final = ("to_client", "nothing, since rules are only observed; it would be: a question in what it says unasked")
"""Counted with what is dropped, and passed on."""


class Notices:
    """The notifications of one conversation's server."""

    __slots__ = ("_lists", "_talk")

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk
        self._lists: tuple[str, ...] = ()
        """the list changes that the server announced"""

    def heard(self, frame: Frame, line: bytes, about: int | None) -> None:
        """One notification as it came; `about` as in `Conversation.server_lines`."""
        talk, method = self._talk, frame.method
        if questions.may_stand_in(frame.params) and not self._may_ask(frame):
            return
        if method == "notifications/progress":
            self._progress(frame, line)
            return
        if method == "notifications/cancelled":
            self._cancelled(frame)
            return
        if not talk.route_open():
            talk.drop("to_client", "a notification of a backend that is not allowed any more")
            return
        params = frame.params
        if method == "notifications/resources/updated":
            uri = params.get("uri")
            if type(uri) is not str or not talk.shell.runtime.pipeline.visible(
                talk.principal, talk.backend, "resource", uri
            ):
                talk.drop("to_client", "an update of a resource that is not allowed")
                return
        elif not method.startswith("notifications/"):
            talk.drop("to_client", "a request without an id")
            return
        elif method in ("notifications/tasks/status", "notifications/tasks"):
            task = params.get("taskId")
            if type(task) is not str or not talk.owns(task):
                talk.drop("to_client", "what it says of a task that this agent did not start")
                return
            transforms = talk.shell.runtime.transforms
            if transforms is not None:
                seen = talk.shell.redacting.task(talk.principal.agent, talk.backend, params, transforms)
                if seen is None:
                    talk.drop("to_client", "what it says of a task cannot be redacted")
                    return
                params = seen
                line = encode({**frame.value, "params": params})
            talk.unsettled.seen(encode(params))
        elif method.endswith("/list_changed"):
            talk.listing.changed(method)
        meta = params.get("_meta")
        if type(meta) is dict and META_SUBSCRIPTION in meta:
            self._subscribed(frame, params, meta)
            return
        general = about is None and method.endswith(("_changed", "/updated"))
        talk.client.tell(line, -1 if general else talk.slot_of(about))

    def _may_ask(self, frame: Frame) -> bool:
        """Whether it asks for nothing that the server may not ask for."""
        talk = self._talk
        call = Call(
            talk.new_id(), "", talk.session, talk.principal, Direction.TO_CLIENT, UNKNOWN_METHOD[Direction.TO_CLIENT],
            None, None, talk.backend, talk.era, frame, handed=talk.handed,
        )  # fmt: skip
        try:
            questions.check(call, questions.within(frame.params), talk.shell.runtime, lambda _: talk.drop(*_ASKED))
        except questions.Withheld:
            talk.drop("to_client", "a question that is not allowed, in what it says unasked")
            return False
        return True

    def _progress(self, frame: Frame, line: bytes) -> None:
        """It shows that the server is at work: the call gets its time anew."""
        talk, params = self._talk, frame.params
        opened = talk.to_server.progressing(params.get("progressToken"))
        if opened is None or opened.state is not State.SENT or opened.cancelled:
            talk.drop("to_client", "progress for no open request")
            return
        more = talk.shell.now() + talk.shell.runtime.backend(talk.backend).timeout
        opened.deadline = max(opened.deadline, more)
        if opened.token is not opened.asked_token:
            line = encode({**frame.value, "params": {**params, "progressToken": opened.asked_token}})
        talk.client.tell(line, opened.slot)

    def _cancelled(self, frame: Frame) -> None:
        """The server takes back a request of its own, or ends a subscription of the client."""
        talk, params = self._talk, frame.params
        opened = talk.to_client.find(params.get("requestId"))
        if opened is None:
            if talk.era is Era.MODERN:
                self._listen_ended(frame)
            return
        if opened.state is State.WAITING and opened.strand is not None:
            opened.strand.interrupt(Withdrawn("cancelled by the server before it was forwarded"))
            return
        already, opened.cancelled = opened.cancelled, True
        if opened.state is State.SENT and not already:
            opened.deadline = talk.shell.now() + CANCELLED_S
            text = encode({**frame.value, "params": {**params, "requestId": opened.number}})
            talk.client.tell(text, opened.slot)

    # --- subscriptions ------------------------------------------------------------------------------------------

    def _subscribed(self, frame: Frame, params: dict[str, Any], meta: dict[str, Any]) -> None:
        """It belongs to a `subscriptions/listen`, which goes on as long as its server has something to say."""
        opened = self._listening(meta[META_SUBSCRIPTION])
        if opened is None or opened.cancelled:
            self._talk.drop("to_client", "a notification for no open subscription")
            return
        opened.deadline = float("inf")
        meta = {**meta, META_SUBSCRIPTION: opened.request_id}
        self._talk.client.tell(encode({**frame.value, "params": {**params, "_meta": meta}}), opened.slot)

    def _listening(self, number: Any) -> Open | None:
        """The open `subscriptions/listen` that went out under this number."""
        opened = self._talk.to_server.peek(number)
        if opened is None or opened.call is None or opened.call.method != "subscriptions/listen":
            return None
        return opened

    def _listen_ended(self, frame: Frame) -> None:
        """A modern server ends a `subscriptions/listen` by cancelling it under the id it knows; no answer follows."""
        talk = self._talk
        opened = self._listening(frame.params.get("requestId"))
        if opened is None:
            return
        if not opened.cancelled:
            params = {**frame.params, "requestId": opened.request_id}
            talk.client.tell(encode({**frame.value, "params": params}), opened.slot)
            opened.cancelled = True
        talk.to_server.answered(opened.number)
        opened.waiter.set(Answer(opened.number, b'{"jsonrpc":"2.0","id":', b',"result":{}}', True, b"{}"))

    # --- list changes -------------------------------------------------------------------------------------------

    def announced(self, body: bytes) -> None:
        """The server's answer to the handshake: which lists it will tell the changes of."""
        try:
            capabilities = msgspec.json.decode(body).get("capabilities")
        except (msgspec.DecodeError, ValueError, AttributeError, RecursionError):
            return
        if type(capabilities) is dict:
            self._lists = tuple(
                f"notifications/{kind}/list_changed"
                for kind in ("tools", "prompts", "resources")
                if type(capabilities.get(kind)) is dict and capabilities[kind].get("listChanged") is True
            )

    def began_anew(self) -> None:
        """There is another server, which announced nothing yet."""
        self._lists = ()

    def reloaded(self) -> None:
        """The rules changed, and so may every list: a client to whom changes were announced hears of one."""
        for method in self._lists:
            self._talk.client.tell(notification_frame(method, {}), -1)
