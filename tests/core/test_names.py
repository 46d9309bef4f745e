from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_daemon.core import names
from aegis_daemon.core.names import Names, plain_name, plain_uri


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
        ("file:///x\\..\\etc\\passwd", "file:///etc/passwd"),
        ("file:///etc/passwd?x", "file:///etc/passwd"),
        ("file:///etc/passwd#x", "file:///etc/passwd"),
        (" file:///etc/passwd", "file:///etc/passwd"),
        ("fi\nle:///etc/\tpasswd", "file:///etc/passwd"),
        ("file:///etc/", "file:///etc/"),
        ("file:///", "file:///"),
        ("notes:///a/../b", "notes:///b"),
        ("NOTES:///b", "notes:///b"),
        ("notes:///b", "notes:///b"),
        ("notes:/b", "notes:/b"),
        ("notes:b", "notes:b"),
        ("notes://Host/a/../b?q=/../x#f", "notes://host/b?q=/../x#f"),
        ("\x00 no\rtes:///a//b", "notes:///b".replace("b", "a/b")),
        ("https://EXAMPLE.com/a/../b", "https://example.com/b"),
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


@pytest.mark.parametrize("name", ["read_file", "a.b/c-d", "read file", "löschen", "発表", ""])
def test_a_name_that_can_only_mean_itself_is_plain(name: str) -> None:
    assert plain_name(name)


@pytest.mark.parametrize(
    "name", ["hid\0", "hid ", " hid", "hid\t", "hid\n", "h\u200bid", "\uff48id", "hid\u00a0", "\ufb01le"]
)
def test_a_name_that_a_server_could_take_for_another_is_not(name: str) -> None:
    assert not plain_name(name)
