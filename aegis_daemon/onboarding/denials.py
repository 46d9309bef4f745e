"""Every word by which a refused or failed call says why has its meaning and its next step here.

The stages are those of `wire.errors.REFUSALS` (`data.stage`), the reasons those of `data.reason`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from aegis_daemon.wire.errors import REFUSALS


@dataclass(frozen=True, slots=True)
class Denial:
    """One word of an answer."""

    name: str
    when: str
    """goes on after `refused, or failed, since …`"""
    why: str
    fix: str


STAGES: Final = {
    name: Denial(name, REFUSALS[name].meaning, why, fix)
    for name, why, fix in (
        (
            "acl",
            "Lists of the agent decide it: `tool_allowlist`, `tool_denylist`, `allowed`, the same for prompts and "
            "resources. What is denied reads as if it did not exist.",
            "`aegis allow CALL_ID` shows the smallest change that lets it pass; `aegis policy explain` tells "
            "which rule",
        ),
        (
            "policy",
            "A constraint, a deny rule or a `forbid` of a policy applies to the call and its arguments.",
            "`aegis policy explain BACKEND.TOOL --agent A --args JSON` names the rule",
        ),
        (
            "pin",
            "The definition that the agent sees is not the one that was trusted: a server may have been changed "
            "to mislead.",
            "`aegis audit show CALL_ID` names the commands: `aegis tools diff NAME` shows it, `aegis tools trust NAME` "
            "accepts it",
        ),
        (
            "paused",
            "The pause holds until it is lifted, over restarts too.",
            "`aegis resume`, with the agent's id",
        ),
        (
            "rate_limit",
            "`retry_after_ms` says when a call fits again.",
            "wait, raise the limit in the configuration, or let some more through: `aegis limits grant`",
        ),
        (
            "queue",
            "`queue.max_pending` or a bound on calls in flight is reached.",
            "wait for answers; `aegis queue list` shows what stands in line",
        ),
        (
            "approval",
            "Nothing was executed. A repeated call is a new request.",
            "`aegis pending` shows what waits; `aegis audit show CALL_ID` tells who decided",
        ),
        (
            "method",
            "Only methods of the protocol's versions that Aegis knows are forwarded.",
            "the client or server speaks an extension; it cannot be used through Aegis",
        ),
        (
            "params",
            "Without the name of what is called no rule can be asked.",
            "mend the client's request",
        ),
        (
            "version",
            "The answer names the versions that can be spoken.",
            "use a client that speaks one of them",
        ),
        (
            "audit",
            "Without a record nothing is executed.",
            "`aegis doctor` and `aegis status` say why; most often the disk is full",
        ),
        (
            "forward",
            "`reason` says more; the text says whether the call was executed.",
            "`aegis status`, `aegis logs`, and the server's own log",
        ),
        (
            "internal",
            "The fault is in the daemon's log.",
            "`aegis logs`; please report it",
        ),
    )
}
REASONS: Final = {
    row.name: row
    for row in (
        # --- a rule
        Denial(
            "not_allowed",
            "the name is not allowed to this agent, or does not exist",
            "Both read alike, so that nobody learns what is hidden.",
            "see `acl`",
        ),
        Denial(
            "backend_not_allowed",
            "the agent has no access to the server",
            "`agents.A.backends.B` is not there, or says `allowed: false`. At the address of all its servers "
            "(`/agents/A/mcp`): there is none that the daemon itself reaches.",
            "`aegis allow CALL_ID`; over HTTP the server needs a `url` or `command` under `backends`",
        ),
        Denial(
            "server_request_not_allowed",
            "a server asked its client for something that it may not ask for",
            "Sampling, elicitation and roots are let through only where `agents.A.backends.B.server_requests` "
            "names them.",
            "add it there if the server should",
        ),
        Denial(
            "constraint",
            "an argument is not one of those that a constraint takes",
            "The text names the argument.",
            "see `policy`",
        ),
        Denial(
            "policy_denied",
            "a policy forbids the call",
            "`data.policy` names it where it may be told.",
            "see `policy`",
        ),
        Denial(
            "policy_fault",
            "a policy could not be judged",
            "What cannot be judged is denied.",
            "`aegis policy validate`; `aegis audit show CALL_ID` has the fault",
        ),
        Denial(
            "not_judged",
            "an argument cannot be read with certainty, for example SQL of an unknown dialect",
            "What cannot be judged is denied.",
            "write it more plainly, or change the constraint",
        ),
        Denial(
            "changed",
            "the definition of the tool was changed by its server",
            "It is unusable until somebody trusts it.",
            "see `pin`",
        ),
        Denial(
            "not_trusted",
            "the tool is new and waits to be trusted",
            "`pins.first_seen: hold` says so.",
            "`aegis tools trust NAME`",
        ),
        Denial(
            "unchecked",
            "the server's list could not be compared with what was trusted",
            "Nothing was executed: repeat the call.",
            "repeat it; if it stays so, see `aegis logs`",
        ),
        Denial(
            "paused",
            "a person has paused the agent, or all of them",
            "see the stage `paused`.",
            "`aegis resume`",
        ),
        Denial(
            "bad_params",
            "the parameters do not say what the call is about",
            "see the stage `params`.",
            "mend the request",
        ),
        Denial(
            "unknown_method",
            "the method is none of the protocol's version that the client speaks",
            "see the stage `method`.",
            "the client or server speaks an extension; it cannot be used through Aegis",
        ),
        # --- a limit
        Denial(
            "rate_limited",
            "a limit is used up",
            "`retry_after_ms` says when a call fits again.",
            "see `rate_limit`",
        ),
        Denial(
            "budget_exceeded",
            "a budget over an argument is used up, like an amount of money",
            "The text names the argument and what is left.",
            "see `rate_limit`; `aegis limits`",
        ),
        Denial(
            "queue_full",
            "the server's lane is full",
            "Nothing was executed: repeat the call later.",
            "see `queue`",
        ),
        Denial(
            "too_many",
            "too many calls of this session or agent are open",
            "Wait for answers first.",
            "`server.max_in_flight_session` and `max_in_flight_agent` are the bounds",
        ),
        Denial(
            "too_many_pending",
            "too many calls of this agent wait for a person",
            "`approval.max_pending_per_agent`.",
            "decide some: `aegis pending`",
        ),
        # --- a person
        Denial(
            "pending",
            "the call waits for a person",
            "It was not executed. The ticket stays though the client gave up.",
            "`aegis approve ID`, then repeat the identical call",
        ),
        Denial(
            "rejected",
            "a person said no",
            "The text has the reason that was given.",
            "ask them; do not work around it",
        ),
        Denial(
            "approval_timeout",
            "nobody decided in time",
            "`approval.timeout`.",
            "repeat it when somebody is there",
        ),
        Denial(
            "rules_changed",
            "the rules changed while the call waited",
            "What was agreed to was another rule's question.",
            "nothing was executed: repeat the call",
        ),
        Denial(
            "withdrawn",
            "nobody waits for the call any more",
            "It was not executed.",
            "nothing was executed: repeat the call",
        ),
        Denial(
            "replayed",
            "the outcome of an approved call was given again",
            "It ran once; this is its answer.",
            "nothing",
        ),
        # --- Aegis itself
        Denial(
            "audit_unavailable",
            "the record could not be written",
            "see the stage `audit`.",
            "`aegis doctor`",
        ),
        Denial(
            "unproven",
            "Aegis could not prove that its rules hold",
            "Until it can nothing is executed.",
            "`aegis status` says which proof fails",
        ),
        Denial(
            "fault",
            "there was a fault in Aegis itself",
            "The text says whether the call was executed.",
            "`aegis logs`; please report it",
        ),
        Denial(
            "refused",
            "the daemon refused the session, or nothing listens at the server's address",
            "Nothing was executed. The text says which. What would let a session in is not for the agent: "
            "`aegis audit show CALL_ID`, `aegis audit tail` and `aegis logs` have it.",
            "do what the text says; `aegis logs`",
        ),
        Denial(
            "no_daemon",
            "no daemon answers, and none could be started",
            "Nothing was executed.",
            "`aegis doctor`, `aegis daemon start`",
        ),
        Denial(
            "not_executed",
            "the daemon went away before the call was forwarded",
            "Nothing was executed.",
            "nothing was executed: repeat the call",
        ),
        Denial(
            "outcome_unknown",
            "the daemon went away after the call was forwarded",
            "It is not run again by itself.",
            "the server may have carried the call out: check its effect before you repeat it",
        ),
        Denial(
            "not_redacted",
            "the answer could not be cleaned of what the agent must not see",
            "It is withheld.",
            "the server may have carried the call out: check its effect before you repeat it",
        ),
        # --- the server
        Denial(
            "server_not_started",
            "the server's program could not be started",
            "Nothing was executed.",
            "the text has its words; `aegis doctor` looks for the program",
        ),
        Denial(
            "no_server",
            "the server is not running",
            "Nothing was executed.",
            "`aegis logs` has its last words; start the session anew",
        ),
        Denial(
            "no_session",
            "the server did not take up the session that the call was to go through",
            "Nothing was executed. A request over HTTP without a session goes through one that Aegis begins.",
            "the text has the server's own words; see the server's log",
        ),
        Denial(
            "server_replaced",
            "a reload put another server in the place of the one that the call was for",
            "The text says whether the call was executed.",
            "repeat it if it was not; if nobody can tell, look first",
        ),
        Denial(
            "server_exited",
            "the server ended before it answered",
            "Its stderr went to the client's log.",
            "the server may have carried the call out: check its effect before you repeat it",
        ),
        Denial(
            "no_client",
            "the client that a server asked is not there any more",
            "The question is lost.",
            "nothing",
        ),
        Denial(
            "no_answer",
            "the server ended a subscription",
            "It can be made again.",
            "subscribe again",
        ),
        Denial(
            "no_tasks",
            "there are no tasks here",
            "The task is another agent's, or over.",
            "begin the call anew",
        ),
        Denial(
            "timeout",
            "no answer came within `backends.B.timeout`",
            "The server was told to stop.",
            "the server may have carried the call out: check its effect before you repeat it",
        ),
        Denial(
            "cancelled",
            "the call was cancelled",
            "By the client, or with its session.",
            "the server may have carried the call out: check its effect before you repeat it",
        ),
        Denial(
            "busy",
            "too many frames wait for the server",
            "Nothing was executed.",
            "nothing was executed: repeat the call later",
        ),
        Denial(
            "connect",
            "the server cannot be reached",
            "Nothing was executed.",
            "check `backends.B.url` and whether it runs",
        ),
        Denial(
            "connect_timeout",
            "the server's address does not answer",
            "Nothing was executed.",
            "see whether it runs",
        ),
        Denial(
            "dns",
            "the server's name is not known",
            "Nothing was executed.",
            "check `backends.B.url`",
        ),
        Denial(
            "tls",
            "the server's certificate is not accepted",
            "Nothing was executed.",
            "check the certificate, or set `ca_file`",
        ),
        Denial(
            "connection_lost",
            "the connection broke before the answer",
            "It is not sent again by itself.",
            "the server may have carried the call out: check its effect before you repeat it",
        ),
        Denial(
            "session_lost",
            "the server forgot the session",
            "A new one was begun.",
            "nothing was executed: repeat the call",
        ),
        Denial(
            "session_ended",
            "the HTTP session is over",
            "It ended with the daemon, or was unused too long.",
            "initialize again",
        ),
        Denial(
            "http_STATUS",
            "the server answered with an HTTP status instead of a result, as `http_503`",
            "The text says whether the call was executed.",
            "401 and 403: check `backends.B.headers`; else ask who runs it",
        ),
        Denial(
            "bad_answer",
            "the server's answer is not one of the protocol",
            "It is withheld.",
            "the server may have carried the call out: check its effect before you repeat it",
        ),
        Denial(
            "unreadable_answer",
            "the server's answer cannot be read",
            "It is withheld.",
            "the server may have carried the call out: check its effect before you repeat it",
        ),
        Denial(
            "unreadable_list",
            "a list of the server cannot be read, so nobody can tell what of it is hidden",
            "It is withheld.",
            "see the server's own log; update it",
        ),
        Denial(
            "unreadable_roots",
            "the client's answer to `roots/list` cannot be read",
            "It is withheld from the server.",
            "update the client",
        ),
        Denial(
            "answer_too_large",
            "the server's answer is larger than 10 MB",
            "It was dropped.",
            "ask for less",
        ),
        Denial(
            "unsupported_version",
            "the client or server speaks no version of the protocol that Aegis knows",
            "Nothing was executed.",
            "use a newer or older version of it",
        ),
        Denial(
            "no_common_version",
            "client and server have no version of the protocol in common",
            "Nothing was executed.",
            "use a newer client or server",
        ),
        Denial(
            "era_changed",
            "the client changed the protocol's era within a session",
            "Open calls are given up.",
            "the server may have carried the call out: check its effect before you repeat it",
        ),
    )
}
DENIALS: Final = {**REASONS, **STAGES}
"""By name; a word that is both a stage and a reason (`paused`) is told as the stage."""
