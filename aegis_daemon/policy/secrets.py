"""What looks like a credential, or is one of the configuration's, is replaced in a JSON text by the name of its kind.

The text stays JSON, byte for byte but for the strings that hold one; keys are looked at as values are, and what is
looked at is what a string says, however it is escaped, also where that is JSON once more. Texts that were cut off are
taken as far as they go. What cannot be told is not passed: it raises `Unsure`.

`FORMATS` is a table of our own, since no library fits: `detect-secrets` (1.5.0, 2024) knows some twenty formats and has
patterns that are not linear, and the rules of gitleaks reach Python only inside programs of 8 to 30 MB. Each format has
a fixed beginning that its vendor documents or whose tokens all show, so that ordinary texts are not taken for one. All
run on RE2, in time linear in the text: first all at once over the bytes as they are (1.1 us for the 200 bytes
of a usual call), and only where that finds something, or an escape that may hide something, over each string.

These find accidents, and stop nobody who means to get something past them: base64, hex, a token in two halves and a
token of a kind that is not listed are not found. The configuration's own secrets (`Detector(known=…)`) are found as
they are, in percent and in base64 encoding.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Collection, Iterable, Iterator
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final
from urllib.parse import quote

import msgspec

SHORTEST: Final = 8
"""Characters of the shortest secret of the configuration that is looked for."""
SHORTEST_NAMED: Final = 6
"""Characters of the shortest value that is taken for a secret because of what it is called."""
LARGEST: Final = 1 << 20
"""Bytes of the longest text in which anything is replaced."""
MOST: Final = 10_000
"""Strings of one text that may have to be looked at: some 10 us each."""
MOST_PLACES: Final = 4_000
"""Places in one string that may have to be."""
WINDOW: Final = 8192
"""Bytes in which a secret is recognised; it may be longer."""
EFFORT: Final = 16 << 20
"""Bytes that may be gone through for one text, some 5 ns each: most patterns give up only where a word ends."""
TRY: Final = 256
"""What trying costs, in such bytes, however soon it gives up."""
FOUND: Final = 64
"""What each byte of a secret costs: telling where it is takes longer than telling that there is none."""
REMEMBERED: Final = 128 << 20
"""Bytes of texts as people saw them that are kept: what waits for them is shown again and again."""
KNOWN: Final = "configured"
"""The kind of the configuration's own secrets."""
NAMED: Final = "named"
"""The kind of what is called a password or the like, whatever it looks like."""


_INSIDE: Final = r'[^"\\]|\\.'


NEAR: Final = 256
"""How far the beginning of a string is looked for backwards."""


class Unsure(Exception):
    """The text cannot be told to hold no secret, so it must not be shown."""


class Format(msgspec.Struct, frozen=True):
    """One kind of secret. `pattern` begins where the secret is recognised, and has one group, around what is replaced.

    `hint` is the first of what it matches, as short as will do; `near` is the same as it may stand in a JSON text,
    where quotes and slashes are escaped; and `sign` is more of that, to keep ordinary texts from a second look. All are
    RE2 over bytes, without other groups. Where `until` is given, all up to its next match is replaced as well.
    `apart`: it is no part of a longer word. `source` says where the format is from.
    """

    kind: str
    hint: str
    pattern: str
    source: str
    near: str = ""
    sign: str = ""
    until: str = ""
    apart: bool = False


def _token(kind: str, begins: str, rest: str, source: str, hint: str = "") -> Format:
    """A token that begins so and goes on with `rest`."""
    if not hint:
        # A few characters more than the beginning, that ordinary words are not looked at twice. A `/` may be escaped.
        found = _FIRST.match(rest)
        hint = f"{begins}{found[1]}{{{min(int(found[2]), 6)}}}" if found and "/" not in found[1] else begins
    return Format(kind, hint, f"({begins}{rest})", source, apart=True)


_FIRST: Final = re.compile(r"(\[[^\]]+\])\{(\d+)")
FORMATS: Final = (
    _token("aws-access-key", r"(?:AKIA|ASIA|ABIA|ACCA)", r"[A-Z2-7]{16}\b", "IAM user guide, unique identifiers"),
    Format(
        "aws-secret-key",
        r"(?i:aws_?secret|secret_?access_?key)",
        r"(?i:aws_?secret_?(?:access_?)?key|secret_?access_?key)[\"']?\s{0,4}(?:=|:|=>)\s{0,4}[\"']?([A-Za-z0-9/+]{40})(?:[^A-Za-z0-9/+=]|\z)",
        "IAM user guide, access keys",
    ),
    _token("aws-bedrock-key", "(?:ABSK|bedrock-api-key-)", r"[A-Za-z0-9+/]{60,}={0,2}", "Bedrock user guide, API keys"),
    _token("google-api-key", "AIza", r"[A-Za-z0-9_-]{35}", "cloud.google.com/docs/authentication/api-keys"),
    _token("google-oauth-token", r"ya29\.", r"[A-Za-z0-9_-]{20,}", "developers.google.com/identity/protocols/oauth2"),
    _token("google-oauth-secret", "GOCSPX-", r"[A-Za-z0-9_-]{28}", "developers.google.com/identity/protocols/oauth2"),
    Format(
        "azure-client-secret", "[0-9]Q~[A-Za-z0-9_~.-]{6}", r"[0-9]Q~([A-Za-z0-9_~.-]{31,34})", "Entra, client secrets"
    ),
    _token("github-token", "gh[pousr]_", r"[A-Za-z0-9]{36,255}", "docs.github.com, about authentication"),
    _token("github-fine-grained", "github_pat_", r"[A-Za-z0-9_]{36,255}", "docs.github.com, about authentication"),
    _token(
        "gitlab-token",
        "gl(?:pat|dt|ptt|rt|rtr|soat|agent|imt|ft|cbt|ffct|oas)-",
        r"[A-Za-z0-9_.=-]{20,300}",
        "docs.gitlab.com/security/tokens, token prefixes",
    ),
    _token("gitlab-runner-registration", "GR1348941", r"[A-Za-z0-9_-]{20}", "docs.gitlab.com/security/tokens"),
    _token("atlassian-token", "AT(?:ATT3|CTT3|BB)", r"[A-Za-z0-9_=-]{24,400}", "Atlassian, manage API tokens"),
    _token(
        "slack-token",
        "xox[abeoprs](?:\\.xox[bp])?-",
        r"[A-Za-z0-9][A-Za-z0-9-]{9,250}",
        "docs.slack.dev/authentication/tokens",
    ),
    _token("slack-app-token", "xapp-", r"[0-9]-[A-Za-z0-9-]{20,250}", "docs.slack.dev/authentication/tokens"),
    Format(
        "slack-webhook",
        r"hooks\.slack\.com",
        r"hooks\.slack\.com/(?:services|workflows|triggers)/([A-Za-z0-9+/]{40,80})",
        "docs.slack.dev, incoming webhooks",
    ),
    Format(
        "discord-webhook",
        r"discord(?:app)?\.com",
        r"discord(?:app)?\.com/api/(?:v[0-9]{1,2}/)?webhooks/[0-9]{17,20}/([A-Za-z0-9_-]{60,80})",
        "discord.com/developers/docs/resources/webhook",
    ),
    Format(
        "telegram-bot-token",
        "[0-9]:AA[A-Za-z0-9_-]{6}",
        r"[0-9]:(AA[A-Za-z0-9_-]{33})(?:[^A-Za-z0-9_-]|\z)",
        "core.telegram.org/bots/api",
    ),
    _token("stripe-key", "(?:sk|rk)_(?:live|test|prod)_", r"[A-Za-z0-9]{10,250}", "docs.stripe.com/keys"),
    _token("stripe-webhook-secret", "whsec_", r"[A-Za-z0-9+/]{24,}={0,2}", "docs.stripe.com/webhooks/signature"),
    _token("square-token", "(?:EAAA|sq0(?:atp|csp|idp)-)", r"[A-Za-z0-9_-]{22,60}", "developer.squareup.com"),
    _token(
        "paypal-braintree-token", r"access_token\$(?:production|sandbox)\$", r"[0-9a-z]{16}\$[0-9a-f]{32}", "Braintree"
    ),
    _token("shopify-token", "shp(?:at|ca|pa|ss)_", r"[a-fA-F0-9]{32}", "shopify.dev, access tokens"),
    _token(
        "openai-key",
        "sk-",
        r"(?:(?:proj|svcacct|admin|None)-)?[A-Za-z0-9_-]{20,200}T3BlbkFJ[A-Za-z0-9_-]{20,200}",
        "platform.openai.com",
    ),
    _token("anthropic-key", "sk-ant-", r"[a-z0-9]{2,12}-[A-Za-z0-9_-]{60,200}", "docs.anthropic.com, API keys"),
    _token("openrouter-key", "sk-or-v1-", r"[0-9a-f]{64}", "openrouter.ai/docs"),
    _token("groq-key", "gsk_", r"[A-Za-z0-9]{52}", "console.groq.com/docs"),
    _token("xai-key", "xai-", r"[A-Za-z0-9]{80}", "docs.x.ai"),
    _token("perplexity-key", "pplx-", r"[A-Za-z0-9]{48}", "docs.perplexity.ai"),
    _token("hugging-face-token", "(?:hf|api_org)_", r"[A-Za-z]{34}\b", "huggingface.co/docs/hub/security-tokens"),
    _token("replicate-token", "r8_", r"[A-Za-z0-9]{37}", "replicate.com/docs"),
    _token("langsmith-key", "lsv2_(?:pt|sk)_", r"[0-9a-f]{32}_[0-9a-f]{10}", "docs.smith.langchain.com"),
    _token("npm-token", "npm_", r"[A-Za-z0-9]{36}", "docs.npmjs.com/about-access-tokens"),
    _token("pypi-token", "pypi-AgE", r"[A-Za-z0-9_-]{50,1000}", "pypi.org/help, API tokens (macaroons)"),
    _token("rubygems-key", "rubygems_", r"[a-f0-9]{48}", "guides.rubygems.org/api-key-scopes"),
    _token("crates-token", "cio", r"[A-Za-z0-9]{32}\b", "crates.io, API tokens"),
    _token("clojars-token", "CLOJARS_", r"[a-z0-9]{60}", "github.com/clojars, deploy tokens"),
    _token("docker-token", "dckr_(?:pat|oat)_", r"[A-Za-z0-9_-]{27,64}", "docs.docker.com/security/access-tokens"),
    _token("digitalocean-token", "do[oprt]_v1_", r"[a-f0-9]{64}", "docs.digitalocean.com/reference/api"),
    _token("heroku-key", "HRKU-", r"(?:AA[A-Za-z0-9_-]{58}|[0-9a-f]{8}-[0-9a-f-]{27})", "devcenter.heroku.com"),
    _token("flyio-token", "fo1_", r"[A-Za-z0-9_-]{43}", "fly.io/docs/security/tokens"),
    _token("flyio-macaroon", "fm[12][ar]?_", r"[A-Za-z0-9+/]{60,}={0,3}", "fly.io/docs/security/tokens"),
    _token("vault-token", r"hv[sbr]\.", r"[A-Za-z0-9_-]{24,300}", "developer.hashicorp.com/vault/docs/concepts/tokens"),
    Format("terraform-token", r"\.atlasv1\.", r"\.atlasv1\.([A-Za-z0-9_=-]{60,70})", "HCP Terraform, API tokens"),
    _token("pulumi-token", "pul-", r"[a-f0-9]{40}", "pulumi.com/docs, access tokens"),
    _token(
        "doppler-token",
        r"dp\.(?:pt|st|ct|sa|scim|audit)\.",
        r"(?:[a-z0-9_-]{2,35}\.)?[A-Za-z0-9]{40,44}",
        "docs.doppler.com/reference",
    ),
    _token("databricks-token", "dapi", r"[a-f0-9]{32}(?:-[0-9])?\b", "docs.databricks.com, personal access tokens"),
    _token("planetscale-token", "pscale_(?:tkn|oauth|pw)_", r"[A-Za-z0-9_=.-]{32,64}", "planetscale.com/docs"),
    _token("supabase-key", "sb(?:p|_secret)_", r"[A-Za-z0-9_]{30,60}", "supabase.com/docs/guides/api/api-keys"),
    _token("grafana-token", "gl(?:c|sa)_", r"[A-Za-z0-9+/_]{32,400}={0,2}", "grafana.com/docs, service accounts"),
    _token("newrelic-key", "NR(?:AK|II|JS|RA|SP)-", r"[A-Za-z0-9_-]{19,32}", "docs.newrelic.com, API keys"),
    _token("sentry-token", "sntry(?:s_eyJ|u_)", r"[A-Za-z0-9+/=_]{60,400}", "docs.sentry.io/account/auth-tokens"),
    _token(
        "dynatrace-token", r"dt0[a-z][0-9]{2}\.", r"[A-Z0-9]{24}\.[A-Z0-9]{64}", "docs.dynatrace.com, access tokens"
    ),
    _token("sendgrid-key", r"SG\.", r"[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}", "docs.sendgrid.com, API keys"),
    _token("brevo-key", "xkeysib-", r"[a-f0-9]{64}-[A-Za-z0-9]{16}", "developers.brevo.com"),
    _token("resend-key", "re_", r"[A-Za-z0-9]{8}_[A-Za-z0-9]{24}\b", "resend.com/docs"),
    _token("mailgun-key", "(?:key|pubkey)-", r"[a-f0-9]{32}\b", "documentation.mailgun.com"),
    _token("mailchimp-key", "[0-9a-f]{32}-us", r"[0-9]{1,2}\b", "mailchimp.com/developer", "[0-9a-f]{32}-us[0-9]"),
    _token("twilio-key", "SK", r"[0-9a-f]{32}\b", "twilio.com/docs/iam/api-keys"),
    _token(
        "notion-token", "(?:ntn_|secret_)", r"(?:[0-9]{11}[A-Za-z0-9]{35}|[A-Za-z0-9]{43})\b", "developers.notion.com"
    ),
    _token("linear-key", "lin_(?:api|oauth)_", r"[A-Za-z0-9]{40,64}", "linear.app/developers"),
    _token("figma-token", "fig[dou]r?_", r"[A-Za-z0-9_-]{40}", "developers.figma.com, access tokens"),
    _token(
        "airtable-token", r"pat[A-Za-z0-9]{14}\.", r"[a-f0-9]{64}", "airtable.com/developers/web/api/authentication"
    ),
    _token("postman-key", "PMAK-", r"[a-fA-F0-9]{24}-[a-fA-F0-9]{34}", "learning.postman.com, API keys"),
    _token("1password-token", "ops_eyJ", r"[A-Za-z0-9+/]{100,}={0,3}", "developer.1password.com/docs/service-accounts"),
    _token("age-secret-key", "AGE-SECRET-KEY-1", r"[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]{58}", "age-encryption.org/v1"),
    _token("jwt", "ey[JK]", r"[A-Za-z0-9_-]{10,}\.ey[JK][A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}", "RFC 7519"),
    _token("facebook-token", "EAA[MC]", r"[A-Za-z0-9]{100,}", "developers.facebook.com, access tokens"),
    _token("alibaba-access-key", "LTAI", r"[A-Za-z0-9]{17,21}\b", "Alibaba Cloud, AccessKey pairs"),
    _token("artifactory-key", "(?:AKCp|cmVmd)", r"[A-Za-z0-9]{59,69}\b", "JFrog, API keys and reference tokens"),
    _token("sourcegraph-token", "sgp_", r"(?:(?:[a-fA-F0-9]{16}|local)_)?[a-fA-F0-9]{40}\b", "sourcegraph.com/docs"),
    _token("octopus-key", "API-", r"[A-Z0-9]{26}\b", "octopus.com/docs, API keys"),
    _token("infracost-key", "ico-", r"[A-Za-z0-9]{32}\b", "infracost.io/docs"),
    _token("adobe-secret", "p8e-", r"[A-Za-z0-9]{32}\b", "developer.adobe.com, credentials"),
    Format(
        "private-key",
        "-----BEGIN[A-Z0-9 ]* PRIVATE KEY",
        "(-----BEGIN(?: [A-Z0-9]{1,20}){0,4} PRIVATE KEY(?: BLOCK)?-----)",
        "RFC 7468, RFC 4880",
        until="-----END[A-Z0-9 ]{1,60}-----",
    ),
    Format(
        "putty-key",
        "PuTTY-User-Key-File-[23]:",
        "(PuTTY-User-Key-File-[23]:)",
        "PuTTY manual, appendix C",
        until="Private-MAC: ?[0-9a-f]+",
    ),
    Format(
        "url-password",
        "://",
        r"://[^\s\"'<>/:@?#]*:([^\s\"'<>/@]{3,})@",
        "RFC 3986, userinfo",
        near=r":\\?/\\?/",
        sign=r":\\?/\\?/[^\s\"/:@]*:[^\s\"]*@",
    ),
    Format(
        "bearer-token",
        r"(?i:authorization|x-api-key|api-?token|apikey)[\"']?\s{0,4}[:=]",
        r"(?i:(?:authorization|x-api-key|api-?token|apikey)[\"']?\s{0,4}[:=]\s{0,4}[\"']?"
        r"(?:(?:bearer|basic|token|api-?token|apikey)\s{1,4})?)([A-Za-z0-9._~+/@=-]{16,})",
        "RFC 6750, RFC 7617, and headers called the like",
        near=r"(?i:authorization|x-api-key|api-?token|apikey)(?:\\?[\"'])?\s{0,4}[:=]",
    ),
    Format(
        "curl-password",
        r"curl\s",
        r"curl\s[^\n]{0,300}?\s?(?:-u|--user)[ =]?[\"']?[^\s:\"'$]{1,256}:[\"']?([^\s\"'$][^\s\"']{2,})",
        "curl(1), -u",
        sign=rf"curl(?:{_INSIDE})*(?:-u|--user)",
    ),
)
"""In this order; where two begin at the same place the first is taken."""
KINDS: Final = frozenset(one.kind for one in FORMATS) | {NAMED}
_NAMES: Final = (
    r"(?i:passw(?:or)?d|passphrase|client[_-]?secret|api[_-]?key|secret[_-]?(?:access[_-]?)?key|"
    r"(?:access|refresh|auth)[_-]?token|private[_-]?key|authorization)"
)
"""How keys end whose values are secrets. Not `token` and `key` alone: they name pages and columns as well."""
_ESCAPED: Final = r"\\\\?u00(?:2[b-fB-F]|3[0-9aAdD]|[46][0-9a-fA-F]|[57][0-9aA]|5[fF]|7[eE])"
"""An escape of a character that tokens are made of, which hardly anybody writes."""
_ASSIGNED: Final = Format(
    NAMED,
    rf"{_NAMES}[\"']?\s{{0,4}}[=:]",
    # JSON within a string; an assignment in quotes; and one without any spaces, as in the environment and in queries.
    rf"{_NAMES}(?:\"\s{{0,4}}:\s{{0,4}}\"((?:{_INSIDE}){{{SHORTEST_NAMED},}})\""
    rf"|[\"']?\s{{0,4}}(?:=|:|=>|:=)\s{{0,4}}[\"']([^\"'\n]{{{SHORTEST_NAMED},}})[\"']"
    rf"|=([^\s\"'`$&<>\x28\x29{{}}\[\],;\\]{{{SHORTEST_NAMED},}})(?:[\s&;,\"'\x29\\]|\z))",
    "how people call them",
    near=rf"{_NAMES}(?:\\?[\"'])?\s{{0,4}}[=:]",
)
_NAMES_A_SECRET: Final = re.compile(rf'{_NAMES}"\Z'.encode())
_TO_ITS_VALUE: Final = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*(?=")')
_REST_OF_STRING: Final = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_HIDING: Final = re.compile(_ESCAPED.encode())
_REPLACED: Final = ("[secret:", "[redacted]", "[withheld:")
"""What stands in the place of something already."""
_WORD: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")
_GROUP: Final = re.compile(rb"(?<!\\)\((?!\?)")
"""What opens a group that is kept; brackets in a class of characters are written as `\\x28`."""
_WORD_OF_ANY: Final = re.compile(rb"[^\s\"'`$&<>(){}\[\],;\\]*")
"""What a pattern may have to go through before it gives up; the others end with the next hint."""
_COSTLY: Final = b"curl"
"""Begins what is looked for in 300 bytes at every place."""
_ACTS: Final = re.compile(rb"[\s;|&`(){}<>*$\\\"']")
"""What lets a text do something, or hold more than one word, where a shell or a database reads it."""
_FREE: Final = frozenset({NAMED, "url-password", "curl-password"})
"""Kinds of which any text may be."""
_OF_A_KEY: Final = re.compile(rb"[A-Za-z0-9+/=]{32,}")
_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_BARE: Final = re.compile(rb"[-+0-9.eE,:\[\]{}\s]+")
"""What JSON may write without quotes, too."""
_NUMBER: Final = re.compile(rb"[-+0-9.eE]*")
_REPLACED_BYTES: Final = tuple(text.encode() for text in _REPLACED)
_OPAQUE: Final = re.compile(rb'"(?:requestState|nextCursor)"[ \t\r\n]{0,8}:[ \t\r\n]{0,8}\Z')


class Detector:
    """Finds and replaces. Made for one configuration; it remembers nothing of what it looks at."""

    def __init__(
        self,
        *,
        kinds: Collection[str] = KINDS,
        known: Iterable[str] = (),
        opaque: bool = False,
        inert: bool = False,
    ) -> None:
        """`kinds` of `KINDS` are looked for, and the `known` secrets; those shorter than `SHORTEST` are not.

        `opaque`: what a client has to give back as it was (`requestState`, `nextCursor`) is left alone. `inert`: what
        stands within a text and could do something there is left as it is, for people who decide about it: whoever
        writes `api_key=';reboot;'` hides nothing from them.
        """
        import re2  # type: ignore[import-untyped]  # here: a daemon that looks for nothing does not pay for it

        options = re2.Options()
        options.log_errors = False
        options.encoding = re2.Options.Encoding.LATIN1  # bytes, whatever they are
        options.max_mem = 64 << 20
        self._opaque = opaque
        self._inert = inert
        self._named = NAMED in kinds
        formats = [one for one in (*FORMATS, _ASSIGNED) if one.kind in kinds]
        signs = [(one.sign or one.near or one.hint).encode() for one in formats]
        near = [(one.near or one.hint).encode() for one in formats]
        hints = [one.hint.encode() for one in formats]
        long = [text for text in known if len(text) >= SHORTEST]
        forms = sorted({form for text in long for form in spellings(text)}, key=_longest_first)
        exact = [re2.escape(form) for form in forms]
        self._bare = any(_BARE.fullmatch(form) for form in forms)
        if exact:
            written = {spelt for form in forms for spelt in (_in_json(form), *_in_ascii(form))}
            spelt = sorted(re2.escape(form) for one in written for form in {one, one.replace(b"/", b"\\/")})
            signs += spelt
            near += spelt
            hints += exact
        anything = re2.Set.SearchSet(options)
        anything.Add(b"|".join([*signs, _ESCAPED.encode()]))
        anything.Compile()
        self._anything = anything.Match
        # Without groups: what has some is slower than an automaton, and runs where a hint was found, and no further.
        self._sign = re2.compile(_plain(b"|".join([*near, _ESCAPED.encode()])), options).search
        self._hint = re2.compile(_plain(b"|".join(hints)), options).search
        self._within = _Places(re2, options, [one for one in formats if not one.apart], exact)
        self._apart = _Places(re2, options, formats, exact)

    def __call__(self, text: bytes) -> bytes:
        """The JSON text with every secret replaced; the same object where there is none. Raises `Unsure`."""
        if not self._anything(text):
            return text
        if len(text) > LARGEST:
            raise Unsure("it is too large to be looked at")
        return self._replaced(text)

    def prose(self, text: str) -> str:
        """The same of a text that is no JSON. Raises `Unsure`."""
        data = text.encode("utf-8", "surrogatepass")
        if not self._anything(data):
            return text
        cleaned = self._cleaned(data, _Effort())
        return text if cleaned is None else cleaned.decode("utf-8", "surrogatepass")

    def _replaced(self, text: bytes) -> bytes:
        parts: list[bytes] = []
        copied = end = count = 0
        effort = _Effort()
        while (sign := self._sign(text, end)) is not None:
            count += 1
            if count > MOST:
                raise Unsure("too much in it looks like a secret")
            if self._bare and (number := _outside(text, end, sign.start())) is not None:
                first, end = number
                if first < end:
                    parts += (text[copied:first], b'"%b"' % _label(KNOWN))
                    copied = end
                else:
                    end = sign.end()
                continue
            start = _opening(text, end, sign.start())
            end = _closing(text, start)
            if not self._anything(text[start : end + 1]):  # with the colon behind a key
                continue
            if self._opaque and _OPAQUE.search(text, max(0, start - 48), start):
                continue
            made, stop = self._literal(text, start, end, effort)
            if made is not None:
                parts += (text[copied:start], made)
                copied = end = stop
        return b"".join((*parts, text[copied:])) if parts else text

    def _literal(self, text: bytes, start: int, end: int, effort: _Effort) -> tuple[bytes | None, int]:
        """What stands instead of a string, None for the same, and up to where: a key may take its value along."""
        literal = text[start:end]
        if self._named and _NAMES_A_SECRET.search(literal):
            value = _TO_ITS_VALUE.match(text, end)
            if value is not None:
                stop = _closing(text, value.end())
                said, _ = _said(text[value.end() : stop], stop == len(text))
                if len(said) >= SHORTEST_NAMED and not said.startswith(_REPLACED):
                    return b'%b%b"%b"' % (literal, value[0], _label(NAMED)), stop
        said, whole = _said(literal, end == len(text))
        cleaned = self._cleaned(said.encode("utf-8", "surrogatepass"), effort)
        if cleaned is None:
            return None, end
        try:
            made = msgspec.json.encode(cleaned.decode())
        except UnicodeDecodeError as error:
            raise Unsure("it cannot be written again") from error
        return made if whole else made[:-1], end

    def _cleaned(self, data: bytes, effort: _Effort) -> bytes | None:
        """What a string says, with every secret replaced; None where there is none."""
        parts: list[bytes] = []
        end = 0
        for start, stop, kind in self._found(data, effort):
            parts += (data[end:start], _label(kind))
            end = stop
        if parts:
            return b"".join((*parts, data[end:]))
        if _HIDING.search(data):  # it may be JSON, and hide something once more
            plain = _HIDING.sub(lambda one: bytes([int(one[0][-2:], 16)]), data)
            for _, _, kind in self._found(plain, effort):
                return _label(kind)
        return None

    def _found(self, data: bytes, effort: _Effort) -> Iterator[tuple[int, int, str]]:
        """Where the secrets are, and of what kind each is. Raises `Unsure`."""
        at = count = word = 0
        while (hint := self._hint(data, at)) is not None:
            count += 1
            if count > MOST_PLACES:
                raise Unsure("too much in it looks like a secret")
            start = hint.start()
            if word <= start:
                ends = _WORD_OF_ANY.match(data, start)
                word = start if ends is None else ends.end()
            effort.spend(8 * TRY if data.startswith(_COSTLY, start) else TRY + min(word - start, WINDOW))
            places = self._within if _goes_on(data, start) else self._apart
            found = places.at(data, start, effort)
            at = start + 1
            if found is None:
                continue
            first, head, stop, kind = found
            if kind == NAMED and data.startswith(_REPLACED_BYTES, first):
                continue
            at = stop
            if not self._inert or kind == KNOWN:
                yield first, stop, kind
            elif head < stop:
                yield first, head, kind
                for line in _OF_A_KEY.finditer(data, head, stop):
                    yield *line.span(), kind
            elif kind not in _FREE or not _ACTS.search(data, first, stop):
                yield first, stop, kind
            else:
                at = start + 1  # there may be something of another kind in it


class _Effort:
    """How much more one text may cost."""

    def __init__(self) -> None:
        self._left = EFFORT

    def spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise Unsure("too much in it looks like a secret")


class _Places:
    """Formats, tried at one place."""

    def __init__(self, re2: Any, options: Any, formats: list[Format], exact: list[bytes]) -> None:
        patterns = [one.pattern.encode() for one in formats]
        self._kinds = [one.kind for one in formats for _ in _GROUP.findall(one.pattern.encode())]
        self._ends = {one.kind: re.compile(one.until.encode()) for one in formats if one.until}
        if exact:  # first: a token that the configuration knows is that
            patterns.insert(0, b"(%b)" % b"|".join(exact))
            self._kinds.insert(0, KNOWN)
        self._match = re2.compile(b"|".join(patterns) or b"(x\\by)", options).match

    def at(self, data: bytes, start: int, effort: _Effort) -> tuple[int, int, int, str] | None:
        """Where the secret is that is recognised here, where what showed it ends, where all of it does, and its kind.

        None where there is none. Raises `Unsure`.
        """
        size = len(data)
        reach = min(size, start + WINDOW)
        found = self._match(data, start, reach)
        if found is not None and found.end() == reach < size:
            effort.spend(size - reach)
            found = self._match(data, start, size) or found
        if found is None:
            return None
        effort.spend(FOUND * (found.end() - start))
        group = found.lastindex
        first, head = found.span(group)
        stop = head
        kind = self._kinds[group - 1]
        until = self._ends.get(kind)
        if until is not None:
            last = until.search(data, stop)
            stop = size if last is None else last.end()
        return first, head, stop, kind


class Guard:
    """What one configuration keeps secret, and from whom.

    `log` cleans what is written down; `servers` what servers say, before anything looks at it; None where there is
    nothing to look for.
    """

    def __init__(
        self,
        *,
        log: Detector | None,
        servers: Detector | None,
        kinds: Detector | None = None,
        asked: Detector | None = None,
        withhold: bool = False,
    ) -> None:
        """`kinds` looks for kinds of secrets in what servers say; with `withhold` what holds one is not passed on.

        `asked` cleans what people decide about, who have to see all that it may do.
        """
        self.log = log
        self._asked = asked
        self._before: dict[bytes, str | None] = {}
        """by the digest of a text, what people saw of it; None for the text itself"""
        self._kept = 0
        self.servers = servers
        self._kinds = kinds
        self._withhold = withhold
        self.listens = servers is not None or kinds is not None

    def written(self, text: bytes) -> bytes:
        """A JSON text as it may be written down; the same object where nothing is replaced. Never raises."""
        return text if self.log is None else _cleaned(self.log, text)

    def shown(self, text: str) -> str:
        """A JSON text as people see it who decide about it. Never raises."""
        if self._asked is None:
            return text
        data = text.encode("utf-8", "surrogatepass")
        key = sha256(data).digest()
        if key not in self._before:
            found = _cleaned(self._asked, data)
            made = None if found is data else found.decode("utf-8", "replace")
            self._kept += 256 + len(made or "")
            if self._kept > REMEMBERED:
                self._before.clear()
                self._kept = 256 + len(made or "")
            self._before[key] = made
        known = self._before[key]
        return text if known is None else known

    def said(self, text: str) -> str:
        """A text that is no JSON, for the daemon's own log. Never raises."""
        if self.log is None:
            return text
        try:
            return self.log.prose(text)
        except Exception:
            return "[withheld: it may hold a secret]"

    def heard(self, line: bytes) -> bytes:
        """One message of a server as clients may have it; the same object where that is all of it. Raises `Unsure`."""
        try:
            if self.servers is not None:
                line = self.servers(line)
            if self._kinds is not None:
                made = self._kinds(line)
                if made is not line and self._withhold:
                    raise Unsure("it holds what looks like a secret")
                return made
            return line
        except Unsure:
            raise
        except Exception as error:
            raise Unsure("it cannot be looked at") from error


def _cleaned(detector: Detector, text: bytes) -> bytes:
    try:
        return detector(text)
    except Exception:
        return WITHHELD


WITHHELD: Final = b'"[withheld: it may hold a secret]"'
"""In place of a JSON text that cannot be told to hold no secret."""


@lru_cache(16)
def detector(
    kinds: frozenset[str], known: frozenset[str], opaque: bool = False, inert: bool = False
) -> Detector | None:
    """One for these, made once (20 ms); None where there is nothing to look for."""
    useful = frozenset(text for text in known if len(text) >= SHORTEST)
    return Detector(kinds=kinds, known=useful, opaque=opaque, inert=inert) if kinds or useful else None


def spellings(secret: str) -> set[bytes]:
    """A secret as it is, and as URLs, JSON and base64 write it, wherever it stands in what is encoded."""
    made = {secret.encode("utf-8", "surrogatepass")}
    if len(secret.strip()) >= SHORTEST:
        made.add(secret.strip().encode("utf-8", "surrogatepass"))
    for plain in tuple(made):
        made |= {_in_json(plain), *_in_ascii(plain)}
        percent = quote(plain, safe="").encode()
        made |= {percent, re.sub(rb"%[0-9A-F]{2}", lambda one: one[0].lower(), percent), quote(plain).encode()}
        for before in range(3):
            text = base64.b64encode(bytes(before) + plain)
            certain = text[-(-before * 8 // 6) : (before + len(plain)) * 8 // 6]
            if len(certain) >= SHORTEST:
                made |= {certain, certain.replace(b"+", b"-").replace(b"/", b"_")}
    return made


def _goes_on(data: bytes, at: int) -> bool:
    """Whether a word goes on there; after `\\n` and the like, in JSON within a string, one begins."""
    if at == 0 or data[at - 1] not in _WORD:
        return False
    return at == 1 or data[at - 2] != 0x5C or data[at - 1] not in b"nrtbf"


def _outside(text: bytes, after: int, at: int) -> tuple[int, int] | None:
    """From where to where the number goes in which that place is, None for one in a string; `after` is in none."""
    for string in _STRING.finditer(text, after):
        if string.start() > at:
            break
        if string.end() > at:
            return None
        after = string.end()
    first = at
    while first > after and _NUMBER.fullmatch(text, first - 1, first):
        first -= 1
    found = _NUMBER.match(text, first)
    assert found is not None
    return first, found.end()


def _opening(text: bytes, after: int, inside: int) -> int:
    """Where the string begins in which that place is; `after` is the end of one before. Raises `Unsure`."""
    at = inside
    for _ in range(NEAR):
        at = text.rfind(b'"', after, at)
        if at < 0:
            raise Unsure("it is not JSON")
        slashes = at - after - len(text[max(after, at - NEAR) : at].rstrip(b"\\")) - max(0, at - NEAR - after)
        if slashes % 2 == 0 and slashes < NEAR:
            return at
    at = after  # so many that it is quicker to begin at the other end
    while 0 <= (at := text.find(b'"', at)) < inside:
        end = _closing(text, at)
        if end > inside:
            return at
        at = end
    raise Unsure("it is not JSON")


def _closing(text: bytes, start: int) -> int:
    """Where the string that begins there ends, its quote included; the end of the text for one that was cut off."""
    rest = _REST_OF_STRING.match(text, start + 1)
    assert rest is not None
    end = rest.end()
    return end + 1 if text[end : end + 1] == b'"' else len(text)


def _label(kind: str) -> bytes:
    return b"[secret:%b]" % kind.encode()


def _longest_first(form: bytes) -> tuple[int, bytes]:
    return -len(form), form


def _in_json(text: bytes) -> bytes:
    return msgspec.json.encode(text.decode("utf-8", "replace"))[1:-1]


def _in_ascii(text: bytes) -> tuple[bytes, bytes]:
    made = json.dumps(text.decode("utf-8", "replace"))[1:-1].encode()
    return made, re.sub(rb"\\u[0-9a-f]{4}", lambda one: b"\\u" + one[0][2:].upper(), made)


def _plain(pattern: bytes) -> bytes:
    """The pattern without groups that are kept."""
    return _GROUP.sub(b"(?:", pattern)


def _said(literal: bytes, cut_off: bool) -> tuple[str, bool]:
    """What a string in JSON says, and whether it is whole; of one that was cut off, what is left. Raises `Unsure`."""
    try:
        return _decode(literal), True
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    for cut in range(13 if cut_off else 0):  # within an escape, or two that belong together
        try:
            return _decode(literal[: len(literal) - cut] + b'"'), False
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    raise Unsure("a string in it cannot be read")


_decode: Final = msgspec.json.Decoder(str).decode
