"""What becomes of each case of mcp-defense-bench, counted by vector, as Markdown: `scripts/attacks` writes it.

The development part and the benign part are scored; the held-out part is not in the package.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from mcp_defense_bench import __version__ as version
from mcp_defense_bench.bench import Bench
from mcp_defense_bench.scoring import score_benign, score_matched

from .daemon import Gate
from .defence import Aegis

TEXT = "words that a model may obey; no rule tells them from other words"
TAKEN_OUT = "a credential is taken out of the answer; the rest is " + TEXT
ELSEWHERE = "happens outside of what a proxy sees"
WHY = {
    "config-drift": ELSEWHERE,
    "consent-fatigue": ELSEWHERE,
    "credential-token-theft": TAKEN_OUT,
    "delegation-audience-confusion": "no header of a client goes upstream, good tokens neither",
    "delegation-chain-laundering": "as above",
    "delegation-signature-forgery": "as above",
    "delegation-stale-relay": "as above",
    "delegation-subject-mixing": "as above",
    "excessive-permission": ELSEWHERE,
    "false-error-escalation": TEXT,
    "indirect-retrieval-injection": TAKEN_OUT,
    "list-cache-poisoning": "every list leaves Aegis as private and stale at once, the harmless ones too: nothing is left to poison",
    "mcp-app-sandbox-bypass": "how a client shows a page is the client's",
    "mitm-transport": "`aegis config validate` warns of plain http beyond this network",
    "mrtr-input-phishing": "sampling is refused, the harmless one too",
    "multi-tool-split-poisoning": TEXT,
    "package-squatting": ELSEWHERE,
    "requeststate-forgery": "a handle that a server takes from anybody",
    "response-injection": TEXT,
    "server-impersonation": ELSEWHERE,
    "supply-chain-poisoning": ELSEWHERE,
    "system-prompt-leakage": TEXT,
    "task-authz-bypass": "a task of another agent is refused, and so is an id that Aegis never saw",
    "tool-poisoning": TEXT + "; later changes are stopped",
    "tool-shadowing": "`aegis tools list` flags it, and a call goes to the backend that it names",
    "tool-transfer": "a credential is taken out of the answer, of its harmless twin's as well; the rest is words",
    "transport-downgrade": "both eras are served, on purpose",
}


def scored(gate: Gate) -> tuple[dict[str, Any], dict[str, Any], list[Mapping[str, Any]]]:
    """The benchmark's own results of the development part and of the benign part, and the cases of the former."""
    log = logging.getLogger("aegis")
    log.setLevel(logging.CRITICAL)
    try:
        return _scored(gate)
    finally:
        log.setLevel(logging.NOTSET)


def _scored(gate: Gate) -> tuple[dict[str, Any], dict[str, Any], list[Mapping[str, Any]]]:
    bench = Bench.vendored_snapshot()
    aegis = Aegis(gate)
    cases = bench.load_cases("dev")
    matched = asyncio.run(score_matched(aegis, cases, bench.rubric, measured_at=""))
    benign = asyncio.run(score_benign(aegis, bench.load_cases("benign"), bench.rubric, measured_at=""))
    aegis.close()
    return matched, benign, cases


def markdown(gate: Gate) -> str:
    """The whole report."""
    matched, benign, cases = scored(gate)
    found: dict[str, Counter[str]] = defaultdict(Counter)
    judged = {one["id"]: one for one in matched["cases"]}
    for case in cases:
        one = judged.get(case["id"])
        kind = "elsewhere" if one is None else {"enforce": "stopped", "detect": "flagged"}.get(one["level"], "passed")
        if one is not None and one["falsePositive"]:
            kind = "both"
        found[case["vector"]][kind] += 1
    kinds = ("stopped", "flagged", "both", "passed", "elsewhere")
    lines = [
        f"mcp-defense-bench {version}, development part, by `tests/attacks/governed.yaml`:",
        "",
        "| vector | cases | stopped | flagged | refused with its harmless twin | passed | no business of a proxy | why not |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for vector, counts in sorted(found.items()):
        why = WHY.get(vector, "") if counts["stopped"] < counts.total() else ""
        assert why or counts["stopped"] == counts.total(), f"say in WHY why `{vector}` is not stopped"
        lines.append(
            f"| {vector} | {counts.total()} | " + " | ".join(str(counts[kind] or "") for kind in kinds) + f" | {why} |"
        )
    all_of_them = sum(found.values(), Counter[str]())
    lines.append(
        f"| **all** | {all_of_them.total()} | " + " | ".join(str(all_of_them[kind]) for kind in kinds) + " | |"
    )
    summary = benign["summary"]
    wrong = [one["id"].removeprefix("benign/") for one in benign["items"] if one["falsePositive"]]
    interval = summary["fpRate95ci"]
    lines += [
        "",
        f"The benchmark's own score: {matched['summary']['overall']}. Benign part: {summary['falsePositives']} of "
        f"{summary['items']} inputs were refused ({100 * summary['fpRate']:.1f} %, 95 % interval "
        f"{100 * interval['lo']:.1f} to {100 * interval['hi']:.1f} %): {', '.join(f'`{one}`' for one in wrong)}.",
    ]
    return "\n".join(lines) + "\n"
