"""A path is below a root in every reading, or it is refused."""

from __future__ import annotations

from unicodedata import normalize
from urllib.parse import quote, unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aegis_daemon.policy.paths import BadRoot, canonical_root, path_fault

ROOTS = ("/data", "/srv/files")

INSIDE = [
    "/data", "/data/", "/data/x", "/data/x/y.txt", "/data//x", "/data/./x", "/data/.hidden", "/data/a b", "/data/x;1",
    "/data/100%", "/data/100%zz", "/data/a%20b", "/data/é", "/data/" + normalize("NFD", "é"), "/data/日本", "/srv/files/x",
    "/data/x..y", "/data/..x", "/data/x..", "/data/[a]", "/data/~x", "/data/(1)",
]  # fmt: skip
OUTSIDE = [
    "", "x", "./x", "data/x", "~/x", "/", "/etc/passwd", "/dat", "/database", "/data.txt", "/DATA/x", "/Data/x", "//data/x",
    "/data/..", "/data/../etc/passwd", "/data/x/../../etc/passwd", "/data/x/../y", "/../data/x", "/data/x/..", "/data/..;/etc",
    "/data/..;x/etc", "/data/.. /etc", "/data/ ../etc", "/data/.../etc", "/data/... /x", "/data/. ./x", "/data\\..\\etc",
    "\\data\\x", "C:/data/x", "C:\\data", "file:///data/x", "/data/%2e%2e/etc", "/data/%2E%2E%2Fetc", "/data/..%2fetc",
    "/data/%252e%252e/etc", "/data/%25252e%25252e/etc", "/data/%2525252e%2525252e/etc", "/data/%5c..%5cetc", "/data/%00",
    "/data/x\x00.txt", "/data/x%00.txt", "/data/\n", "/data/x\r\ny", "/data/\u200b..", "/data/.\u200b./etc", "/data/\u202ex",
    "/data/\uff0e\uff0e/etc", "/data/\uff0e\uff0e\uff0fetc", "/data/\u2025/etc", "/data/\u2024\u2024/etc", "/data/\u2026/x",
    "/data/%c0%ae%c0%ae/etc", "/data/%ff", "/data/\uff052e\uff052e/etc", "/\uff44ata/x", "%2fdata/x", "/%64ata/x",
    "/data/%2e%2e%5cetc", "/srv/files/../filesx", "/srv", "/srv/", "/" + "a" * 5000, "/data/" + "x" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("path", INSIDE)
def test_a_path_below_a_root_passes(path: str) -> None:
    assert path_fault(path, ROOTS) is None


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_that_may_lead_elsewhere_is_refused(path: str) -> None:
    reason = path_fault(path, ROOTS)
    assert reason is not None
    assert path == "" or len(path) < 4 or path not in reason


def test_a_root_may_be_everything() -> None:
    everything = (canonical_root("/"),)
    assert path_fault("/", everything) is None
    assert path_fault("/etc/passwd", everything) is None
    assert path_fault("/etc/../x", everything) is not None
    assert path_fault("etc", everything) is not None


def test_two_readings_must_lie_below_the_same_root() -> None:
    assert path_fault("/a/%2fx", ("/a", "/b")) is None
    assert path_fault("/a%2fx", ("/a%2fx", "/a")) is not None


@pytest.mark.parametrize(
    "root", ["", "data", "./data", "/data/..", "/data/../x", "\\data", "//host/share", "/da\u200bta"]
)
def test_a_root_that_is_no_plain_directory_is_refused(root: str) -> None:
    with pytest.raises(BadRoot):
        canonical_root(root)


def test_roots_are_compared_in_one_form() -> None:
    assert canonical_root("/data/") == canonical_root("/data//.") == "/data"
    assert canonical_root("/") == ""


_HOW = st.sampled_from(["as it is", "percent", "twice", "upper", "wide", "dot", "slash", "tail", "case"])


def _disguised(path: str, how: str) -> str:
    if how == "percent":
        return "/" + quote(path[1:], safe="").replace(".", "%2E")
    if how == "twice":
        return "/" + quote(quote(path[1:], safe="").replace(".", "%2e"), safe="")
    if how == "upper":
        return path.upper()
    if how == "wide":
        return path.replace(".", "\uff0e")
    if how == "dot":
        return path.replace("/", "/./")
    if how == "slash":
        return path[0] + path[1:].replace("/", "//")
    if how == "tail":
        return path.replace("..", "..;x")
    return path.swapcase() if how == "case" else path


@given(st.sampled_from(OUTSIDE[10:]), st.lists(_HOW, max_size=3))
def test_no_disguise_makes_a_refused_path_pass(path: str, ways: list[str]) -> None:
    if (
        not path.startswith("/")
        or path.startswith("//")
        or (path.upper().startswith("/DATA/") and ".." not in path and "%" not in path)
    ):
        return  # other case, `/./` for `/` and an encoding may make a plain path below a root of these
    for how in ways:
        path = _disguised(path, how)
    assert path_fault(path, ROOTS) is not None


@given(st.text(alphabet=st.sampled_from("/.%2eEfFcC5data;\\~ \uff0e\u2024\u200b\x00é"), max_size=24))
@example("/data/%2e%2e")
def test_whatever_passes_stays_below_its_root_however_it_is_decoded(tail: str) -> None:
    path = "/data/" + tail
    if path_fault(path, ROOTS) is None:
        for _ in range(6):
            for one in (path, normalize("NFKC", path)):
                parts = [part.split(";")[0].strip() for part in one.replace("\\", "/").split("/")]
                assert ".." not in parts
                assert one.startswith("/data")
                assert "\x00" not in one
            path = unquote(path)


@given(st.lists(st.text(alphabet="abcXYZ019_-é", min_size=1, max_size=8), max_size=5))
def test_a_plain_name_below_a_root_always_passes(names: list[str]) -> None:
    assert path_fault("/".join(["/data", *names]), ROOTS) is None
