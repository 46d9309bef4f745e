from __future__ import annotations

import re
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_daemon.core import names
from aegis_daemon.core.names import Names, Restricted, bare, effort, legible, meanings, plain_name, plain_uri


@pytest.mark.parametrize(
    ("patterns", "inside", "outside"),
    [
        (["read"], ["read"], ["Read", "rea", "read ", "reader", ""]),
        (["read_*"], ["read_", "read_x", "read_\n"], ["read", "Read_x", "xread_x"]),
        (["*"], ["", "anything", "a\nb", "a.b"], []),
        (["?"], ["a", "é", "\n"], ["", "ab"]),
        (["[ab]x"], ["ax", "bx"], ["cx", "abx", "[ab]x"]),
        (["[!a]x"], ["bx"], ["ax"]),
        (["a[b"], ["a[b"], ["ab"]),
        (["a.b+c|d"], ["a.b+c|d"], ["axbbc", "d"]),
        (["x", "delete_*", "drop?"], ["x", "delete_all", "drops"], ["y", "drop"]),
        (["*_a*", "*_b*"], ["1_a", "2_b", "_a_b"], ["a_", "c"]),
        ([], [], ["", "x"]),
    ],
)
def test_a_name_is_on_the_list_byte_for_byte(patterns: list[str], inside: list[str], outside: list[str]) -> None:
    listed = Names(patterns)
    for _ in range(2):  # the second time from memory
        assert [name for name in inside if name not in listed] == []
        assert [name for name in outside if name in listed] == []
    assert bool(listed) is bool(patterns)


@given(st.lists(st.text("ab*?", max_size=5), max_size=4), st.text("ab*?", max_size=6))
def test_a_list_holds_what_one_of_its_patterns_holds(patterns: list[str], name: str) -> None:
    def one(pattern: str) -> bool:
        return re.fullmatch(re.escape(pattern).replace(r"\*", ".*").replace(r"\?", "."), name, re.DOTALL) is not None

    assert (name in Names(patterns)) is any(map(one, patterns))


def test_an_agent_that_invents_names_costs_us_no_memory() -> None:
    listed = Names(["x*"])
    for number in range(names._REMEMBERED + 100):
        assert f"y{number}" not in listed
        assert f"x{number}" in listed
    assert len(listed._seen) == names._REMEMBERED


@pytest.mark.parametrize("kind", [Names, Restricted])
def test_no_long_name_is_kept_in_mind(kind: type[Names]) -> None:
    listed = kind(["x*"])
    assert "x" * 257 in listed
    assert "x" * 256 in listed
    assert [len(name) for name in listed._seen] == [256]


@pytest.mark.parametrize(
    "name",
    [
        "Pay",
        "PAY",
        "pay.",
        "pay/",
        "pay ",
        " pay",
        "/pay",
        "./pay",
        "p\uff41y",
        "pay\0",
        "p\u200bay",
        "pa%79",
        "pa%2579",
        "pay%2e",
    ],
)
def test_what_restricts_a_name_holds_for_what_a_careless_server_takes_for_it(name: str) -> None:
    assert bare(name) == "pay"
    for patterns in (["pay"], ["PAY"], ["Pay."], ["p*"], ["P?y"], ["[p]ay"], ["x", "*Y"]):
        assert name in Restricted(patterns), patterns
        assert name not in Names(["pay"])
    assert name not in Restricted(["payer", "pa", "x*"])
    assert "pay" in Restricted([name]), "whichever of the two is listed"
    assert "pay_now" in Restricted(["PAY_*"])


def test_what_restricts_holds_for_all_that_a_list_of_names_does() -> None:
    for pattern, name in (
        ("a.b+c|d", "a.b+c|d"),
        ("x/", "x/"),
        ("*/", "x/"),
        (".", "."),
        ("[A-Z]x", "Bx"),
        ("x%2e*", "x%2ey"),
    ):
        assert name in Names([pattern])
        assert name in Restricted([pattern])
    for pattern, name in (("*/", "x"), ("*.", "x"), ("./*", "x")):
        assert name not in Restricted([pattern])


@given(st.lists(st.text("aB*?[.]/% ", max_size=5), max_size=4), st.text("aAbB*?[.]/% ", max_size=6))
def test_a_restriction_never_holds_less_than_the_same_list_would(patterns: list[str], name: str) -> None:
    assert name in Restricted(patterns) or name not in Names(patterns)


@pytest.mark.parametrize(
    ("uri", "plain"),
    [
        ("file:///etc/passwd", "file:///etc/passwd"),
        ("FILE:///etc/passwd", "file:///etc/passwd"),
        ("file:/etc/passwd", "file:///etc/passwd"),
        ("file:etc/passwd", "file:///etc/passwd"),
        ("file:////etc//passwd", "file:///etc/passwd"),
        ("file://localhost/etc/passwd", "file:///etc/passwd"),
        ("file://LocalHost/etc/passwd", "file:///etc/passwd"),
        ("file://host/etc/passwd", "file://host/etc/passwd"),
        ("file:///x/../etc/./passwd", "file:///etc/passwd"),
        ("file:///../../etc/passwd", "file:///etc/passwd"),
        ("file:///%65tc/p%61sswd", "file:///etc/passwd"),
        ("file:///x/%2e%2E/etc/passwd", "file:///etc/passwd"),
        ("file:///x%2f..%2Fetc/passwd", "file:///etc/passwd"),
        ("file:///x/%252e%252e/etc/passwd", "file:///etc/passwd"),
        ("file:///x\\..\\etc\\passwd", "file:///etc/passwd"),
        ("file:///etc/passwd?x", "file:///etc/passwd"),
        ("file:///etc/passwd#x", "file:///etc/passwd"),
        (" file:///etc/passwd", "file:///etc/passwd"),
        ("file:\\\\\\etc\\passwd", "file:///etc/passwd"),
        ("file:../../etc/passwd", "file:///etc/passwd"),
        ("file://C:/x", "file:///c:/x"),
        ("file:///C|/x", "file:///C:/x"),
        ("file:///etc/", "file:///etc/"),
        ("file:///", "file:///"),
        ("notes:///a/../b", "notes:///b"),
        ("NOTES:///b", "notes:///b"),
        ("notes:///b", "notes:///b"),
        ("notes:/b", "notes:/b"),
        ("notes:b", "notes:b"),
        ("notes://Host/a/../b?q=/./x#f", "notes://host/b?q=/./x#f"),
        ("  NOTES:///a//b", "notes:///a/b"),
        ("notes://@b:/c", "notes://b/c"),
        ("https://EXAMPLE.com/a/../b", "https://example.com/b"),
        ("https://example.com:443/b", "https://example.com/b"),
        ("https://example.com:0443/b", "https://example.com/b"),
        ("https://example.com:/b", "https://example.com/b"),
        ("https://example.com:8443/b", "https://example.com:8443/b"),
        ("http://example.com:443/b", "http://example.com:443/b"),
        ("wss://example.com:443", "wss://example.com/"),
        ("https://example.com", "https://example.com/"),
        ("https://example.com?q", "https://example.com/?q"),
        ("https://example.com/a\\..\\b", "https://example.com/b"),
        ("https://\uff49nternal/b", "https://internal/b"),
        ("https://b\u00fccher.example/b", "https://xn--bcher-kva.example/b"),
        ("https://[::1]:443/b", "https://[::1]/b"),
        ("https://127.0.0.1/b", "https://127.0.0.1/b"),
        ("https://{host}:{port}/b/{id}", "https://{host}:{port}/b/{id}"),
        ("//host/a/../b", "//host/b"),
        ("plain words", "plain words"),
        ("", ""),
    ],
)
def test_a_uri_is_compared_as_what_it_means(uri: str, plain: str) -> None:
    assert plain_uri(uri) == plain
    assert plain_uri(plain) == plain


def test_what_is_no_uri_is_told_so() -> None:
    with pytest.raises(ValueError, match="Invalid IPv6 URL"):
        plain_uri("file://[x/../etc/passwd")


@pytest.mark.parametrize(
    "uri",
    [
        "https:internal/keys",
        "https:/internal/keys",
        "https:///internal/keys",
        "https:\\\\internal\\keys",
        "https://internal\\@pub/keys",
        "https://me@internal/keys",
        "https://%69nternal/keys",
        "https://internal./keys",
        "https://internal:port/keys",
        "https://internal:443:443/keys",
        "https://2130706433/keys",
        "https://127.1/keys",
        "https://0x7f.0.0.1/keys",
        "https://[0::1]/keys",
        "https://in ternal/keys",
        "https://\ufe0e/keys",
        f"https://{'a' * 254}/keys",
        "file:///secret%00",
        "file:///secret\0",
        "file:///secret%2500",
        "fi\nle:///etc/\tpasswd",
        "\x01notes:///a",
        "notes:///a%0a",
        "notes:///a?%00",
        f"notes:///%{'25' * 20}61",
    ],
)
def test_what_readers_take_for_different_things_means_nothing(uri: str) -> None:
    with pytest.raises(ValueError, match=r"host|address|seen|escapes|codepoint|Empty|character|label"):
        meanings(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "file:///tmp/x?/../secret/a",
        "file:///tmp/x#/../secret/a",
        "file:///tmp/x?a#b/../../secret/a",
        "file:///tmp/x?/%2e%2e/secret/a",
        "file:///tmp/x?%2f.%252e%5csecret/a",
        "file:///tmp/x%3f/../secret/a",
        "file:///tmp/x?\\..\\secret",
        "notes://pub/x?/../../secret/a",
        "notes:x#y/..",
        "x?/../../secret",
    ],
)
def test_a_uri_that_goes_up_behind_its_path_means_nothing_outside_the_web(uri: str) -> None:
    with pytest.raises(ValueError, match="goes up"):
        meanings(uri)
    for usual in ("file:///a?b..c", "notes://a/b?to=../c", "notes:///a?...", "https://a.example/x?/../b#/../c"):
        assert meanings(usual)


def test_only_unusual_names_take_effort() -> None:
    for name in ("read_file", "file:///a%20b/c%2Fd?e#f", "https://a.example/b", "notes:///{id}", "100%", ""):
        assert effort(name) == 0
    for name in (
        "https://\u24d0.x/",
        "https://XN--bcher-kva.example/",
        "file:///%2541",
        "file:///%C3%BC",
        "https%3a//%78n--a",
        "l\u00f6schen",
        "a\0",
        "%20" * 17,
    ):
        assert effort(name) == 1
    assert effort("file:///" + "a" * 8000) == 32


_PIECES = (
    "file:",
    "notes:",
    "https:",
    "//",
    "/",
    "..",
    "a",
    " ",
    "?",
    "#",
    "%2e",
    "%2f",
    "%25",
    "%20",
    "%3f",
    "%3a",
    "%",
)


@given(st.lists(st.sampled_from(_PIECES)))
def test_the_cheap_way_leaves_no_meaning_out(parts: list[str]) -> None:
    uri = "".join(parts)
    try:
        made = meanings(uri)
    except ValueError:
        return
    text = uri.strip(" ")
    for one, undo in ((text, unquote), (names._unescaped(text).strip(" "), unquote)):
        assert set(names._forms(one, undo)) <= set(made)


@pytest.mark.parametrize(
    ("uri", "careless"),
    [
        ("file://host/secret/a", "file:///secret/a"),
        ("file://host/secret/a", "file:///host/secret/a"),
        ("file://secret/a", "file:///secret/a"),
        ("file:///%2573ecret/a", "file:///secret/a"),
        ("file:///x/%252e%252e/secret/a", "file:///secret/a"),
        ("https://internal/keys#x", "https://internal/keys"),
        ("https://internal/%256beys", "https://internal/keys"),
        ("https://xn--bcher-kva.example/b", "https://b\u00fccher.example/b"),
        ("notes://x/../secret/a", "notes://secret/a"),
        ("notes://x%2f..%2fsecret/a", "notes://secret/a"),
        ("notes://%73ecret/a", "notes://secret/a"),
        ("notes:%2F/secret/a", "notes://secret/a"),
    ],
)
def test_what_a_careless_server_takes_a_uri_for_is_among_its_meanings(uri: str, careless: str) -> None:
    assert careless in meanings(uri)


def test_no_name_costs_more_than_it_is_worth() -> None:
    for name in ("a" * 1025, "pay" + "." * 1022):
        assert not plain_name(name)
    assert plain_name("a" * 1024)
    assert "\ufdfa" * 300_000 in Restricted(["x*"]), "whatever it may be taken for"
    assert bare("\ufdfa" * 300_000) == "\ufdfa" * 300_000
    for uri in ("file:///" + "a" * 8185, "file:///" + "\ufdfa" * 1000):
        with pytest.raises(ValueError, match="too long"):
            meanings(uri)
    assert legible("data:" + "a" * 500_000)
    assert not legible("%" * 65537)


def test_a_usual_uri_means_one_thing() -> None:
    for uri in ("file:///a/b", "notes://a/b?q#f", "https://a.example/b?q", "ui://x/y", "mem:1", "file:///a%20b"):
        assert len(meanings(uri)) == 1


@pytest.mark.parametrize("uri", ["notes:///a?text=1%0A2", "no uri", "https:x", "file:///a%20b", "", "notes:///\u00e9"])
def test_a_uri_without_what_cannot_be_seen_is_legible(uri: str) -> None:
    assert legible(uri)


@pytest.mark.parametrize("uri", ["a\0", "a%00", "a%2500", "a?%00", "a\n", "a%0D", "a\x7f", f"a%{'25' * 20}41"])
def test_a_uri_that_a_server_could_cut_short_is_not(uri: str) -> None:
    assert not legible(uri)


@pytest.mark.parametrize("name", ["read_file", "a.b/c-d", "read file", "löschen", "発表", ""])
def test_a_name_that_can_only_mean_itself_is_plain(name: str) -> None:
    assert plain_name(name)


@pytest.mark.parametrize(
    "name", ["hid\0", "hid ", " hid", "hid\t", "hid\n", "h\u200bid", "\uff48id", "hid\u00a0", "\ufb01le"]
)
def test_a_name_that_a_server_could_take_for_another_is_not(name: str) -> None:
    assert not plain_name(name)
