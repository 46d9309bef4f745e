"""A URL leads to an allowed host for every reader, or it is refused; an address is in an allowed domain, or it is."""

from __future__ import annotations

from urllib.parse import urlsplit

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aegis_daemon.policy.urls import BadHost, address_fault, canonical_host, url_fault

HOSTS = frozenset(
    map(canonical_host, ["api.example.com", "*.shop.example", "localhost:8080", "10.0.0.1", "[::1]", "bücher.example"])
)
HTTPS = frozenset({"https"})

GOOD = [
    "https://api.example.com", "https://api.example.com/", "https://API.example.COM/a/b?c=d#e", "https://api.example.com:443/",
    "https://a.shop.example/x", "https://a.b.shop.example", "https://localhost:8080/x", "https://10.0.0.1/", "https://[::1]/x",
    "https://xn--bcher-kva.example/", "https://api.example.com?x", "https://api.example.com#x", "https://api.example.com/@evil",
    "https://api.example.com/?u=https://evil.example", "HTTPS://api.example.com/%2e%2e",
]  # fmt: skip
BAD = [
    "", "api.example.com", "//api.example.com", "https:api.example.com", "https:/api.example.com", "https:///api.example.com",
    "http://api.example.com", "ftp://api.example.com", "javascript:alert(1)", "file:///etc/passwd", "data:text/html,x",
    "https://evil.example", "https://api.example.com.evil.example", "https://evil-api.example.com", "https://example.com",
    "https://xapi.example.com", "https://shop.example", "https://evilshop.example", "https://api.example.com@evil.example",
    "https://api.example.com:x@evil.example", "https://user@api.example.com", "https://user:pw@api.example.com",
    "https://evil.example\\@api.example.com", "https://evil.example#@api.example.com", "https://evil.example?@api.example.com",
    "https://evil.example/@api.example.com", "https://api.example.com\\.evil.example", "https://api.example.com\\@evil.example",
    "https://api.example.com.", "https://api.example.com..", "https://.api.example.com", "https://api..example.com",
    "https://api.example.com:8443", "https://api.example.com:80", "https://api.example.com:", "https://api.example.com:0443x",
    "https://api.example.com:99999", "https://localhost", "https://localhost:8081", "https://api%2eexample.com",
    "https://api.example.com%00.evil.example", "https://api.example.com%2f.evil.example", "https://api.example.com /",
    " https://api.example.com", "https://api.example.com\n", "https://api.example.com\t.evil.example", "ht\ntps://api.example.com",
    "https://api.example.com/\r\nHost: evil", "https://\u0430pi.example.com", "https://api\u3002example\u3002com",
    "https://\uff41pi.example.com", "https://bücher.example", "https://api.example.com\u200b", "https://api.example.com/\u202e",
    "https://167772161/", "https://0x0a000001/", "https://012.0.0.1/", "https://10.1/", "https://10.0.0.1.", "https://10.0.0.01/",
    "https://10.0.0.2", "https://0xa.0.0.1", "https://[::0001]/", "https://[0:0:0:0:0:0:0:1]/", "https://[::ffff:10.0.0.1]/",
    "https://[::1%25eth0]/", "https://[::1", "https://::1/", "https://[::2]/", "https://a.shop.example.evil", "https://*.shop.example",
    "https://api.example.com/" + "x" * 9000, "https://" + "a" * 300 + ".shop.example", "https://-a.shop.example",
]  # fmt: skip


@pytest.mark.parametrize("url", GOOD)
def test_a_url_with_an_allowed_host_passes(url: str) -> None:
    assert url_fault(url, HOSTS, HTTPS) is None


@pytest.mark.parametrize("url", BAD)
def test_a_url_that_may_lead_elsewhere_is_refused(url: str) -> None:
    reason = url_fault(url, HOSTS, HTTPS)
    assert reason is not None
    assert "evil" not in reason


def test_a_scheme_alone_may_be_the_rule_and_the_host_is_read_with_the_same_care() -> None:
    either = frozenset({"http", "https"})
    assert url_fault("http://anything.example/x", frozenset(), either) is None
    for url in ("http://a@b.example", "http://b.example.", "ftp://b.example", "http://0x7f.1"):
        assert url_fault(url, frozenset(), either) is not None


@given(st.sampled_from(GOOD + BAD), st.data())
def test_whatever_passes_has_the_host_that_other_parsers_find(url: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(url)))
    url = (
        url[:at]
        + data.draw(st.sampled_from(["@", "\\", "/", "#", "?", ":", ".", "%", "\t", "evil.example", "[", "é", ""]))
        + url[at:]
    )
    if url_fault(url, HOSTS, HTTPS) is None:
        host = urlsplit(url).hostname
        # It takes no fragment right behind the host; a parser that refuses finds no other host.
        other = httptools.parse_url(url.partition("#")[0].encode()).host.decode().lower()
        assert host == other.strip("[]")
        assert host in ("api.example.com", "localhost", "10.0.0.1", "::1", "xn--bcher-kva.example") or host.endswith(
            ".shop.example"
        )


@given(
    st.sampled_from(
        [url for url in BAD if url.isascii() and "api.example.com" not in url.lower() and ".shop." not in url]
    ),
    st.data(),
)
def test_case_and_what_follows_the_host_never_make_a_refused_url_pass(url: str, data: st.DataObject) -> None:
    for one in (
        url.upper(),
        url.swapcase(),
        url + "/",
        url + "?api.example.com",
        url + "#api.example.com",
        url + ":443",
    ):
        assert url_fault(one, HOSTS - {"[::1]", "localhost:8080"}, HTTPS) is not None


@pytest.mark.parametrize("host", ["", "https://a.example", "a.example/", "a b", "a.example:", "a.example:0", "a.example:70000", "*", "*.", "*.10.0.0.1", "*.*.a", "a.example.", "-a", "010.0.0.1", "1.2.3", "[::0001]", "a@b", "a*.example"])  # fmt: skip
def test_a_rule_names_hosts_in_their_plain_form_alone(host: str) -> None:
    with pytest.raises(BadHost):
        canonical_host(host)


def test_hosts_of_rules_are_compared_in_one_form() -> None:
    assert canonical_host("API.Example.com") == "api.example.com"
    assert canonical_host("bücher.example:0443") == "xn--bcher-kva.example:443"
    assert canonical_host("*.Shop.example") == "*.shop.example"


DOMAINS = frozenset({"example.com", "*.corp.example"})


@pytest.mark.parametrize("address", ["a@example.com", "a.b+c@EXAMPLE.com", "x@mail.corp.example", "o'neil@example.com"])
def test_an_address_in_an_allowed_domain_passes(address: str) -> None:
    assert address_fault(address, DOMAINS) is None


@pytest.mark.parametrize(
    "address",
    [
        "", "a", "@example.com", "a@", "a@evil.example", "a@example.com.evil", "a@notexample.com", "a@corp.example", "a@b@example.com",
        "a@evil.example,b@example.com", "a@evil.example;b@example.com", "a@evil.example b@example.com", "<a@example.com>",
        "Name <a@example.com>", "a@example.com>", '"a@evil.example"@example.com', "a@evil.example(x)@example.com", "a%evil.example@example.com",
        "evil.example!a@example.com", "a@example.com\n", "a@example.com\r\nBcc: b@evil.example", "a\n@example.com", "a@example.com.",
        "a@[10.0.0.1]", "a@10.0.0.1", "\u0430@example.com", "a@ex\u0430mple.com", "a@example\uff0ecom", ".a@example.com", "a.@example.com",
        "a..b@example.com", "-oProxy@example.com", "a@example.com\x00", " a@example.com", "a@example.com ", "x" * 65 + "@example.com",
    ],
)  # fmt: skip
def test_what_may_be_another_or_a_second_address_is_refused(address: str) -> None:
    assert address_fault(address, DOMAINS) is not None


@given(st.text(alphabet="ab@.,;<>\"'() \t\n\\%!:é", max_size=12))
def test_whatever_passes_is_one_address_with_one_at(text: str) -> None:
    address = text + "@example.com"
    if address_fault(address, DOMAINS) is None:
        assert address.count("@") == 1
        assert not set(address) & set(' ,;<>"()\t\n\\%!:é')
