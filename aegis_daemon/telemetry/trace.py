"""A traced call carries our span as its parent to the backend, and the client's in its record; both before judging.

W3C Trace Context in `params._meta` (SEP-414: `traceparent`, `tracestate`, `baggage`, without a prefix). The ids of our
spans follow from the call's id, which is random, so nobody has to remember them: whoever reads the log later makes the
same ones. A call that belongs to no trace begins one, whose id is the call's.

A call costs 2 us more for it (`scripts/bench --telemetry`). What is forwarded is what was judged: the frame is changed
once, before any gate sees it. `_meta` is no part of what an approval is bound to, of what a policy looks at, or of the
arguments' hash, so none of those changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import msgspec

from aegis_daemon.core.call import Call

_PARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)


def read_parent(text: object) -> tuple[str, str, bool] | None:
    """Trace id, span id and whether it is sampled, of a `traceparent`; None for what is none.

    W3C Trace Context §3.2.2: versions to come are read by their first four fields, ff is none, nor are ids of zeros.
    """
    found = _PARENT.fullmatch(text) if type(text) is str and len(text) <= 512 else None
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or not trace.strip("0") or not span.strip("0"):
        return None
    return trace, span, bool(int(flags, 16) & 1)


def sampled(trace: str, share: float) -> bool:
    """Whether a trace that begins here is sampled: by its last 56 bits, as every other sampler would say."""
    return int(trace[-14:], 16) >= (1.0 - share) * (1 << 56)


def spans(call: str) -> tuple[str, str]:
    """The ids of a call's span here and of its span towards the backend: the halves of the call's id."""
    return call[:16], call[16:]


def tracing(share: float) -> Callable[[Call], Call]:
    """What makes a call a traced one; `share` of those without a parent are sampled."""

    def traced(call: Call) -> Call:
        frame = call.frame
        params = frame.params
        meta = params.get("_meta")
        said = meta if type(meta) is dict else {}
        parent = read_parent(said.get("traceparent"))
        if parent is not None:
            trace, span, on = parent
            record = f"00-{trace}-{span}-{'01' if on else '00'}"
            rest = said
        else:
            trace, on, record = call.id, sampled(call.id, share), ""
            # Without a parent to belong to, the rest of its context means nothing (W3C Trace Context §3.3).
            rest = {key: value for key, value in said.items() if key != "tracestate"}
        ours = f"00-{trace}-{call.id[16:]}-{'01' if on else '00'}"
        params = {**params, "_meta": {**rest, "traceparent": ours}}
        changed = msgspec.structs.replace(frame, params=params, value={**frame.value, "params": params}, text=b"")
        return msgspec.structs.replace(call, frame=changed, trace=record)

    return traced
