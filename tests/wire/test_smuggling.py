"""Frames that two readers take differently: each is refused, with the code and the id that it deserves."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aegis_daemon.wire.jsonrpc import (
    INVALID_REQUEST as INVALID,
)
from aegis_daemon.wire.jsonrpc import (
    MAX_DEPTH,
    MAX_FRAME_IN,
    MAX_FRAME_OUT,
    MAX_ID,
    Answer,
    Frame,
    Kind,
    WireFault,
    parse,
    parse_from_server,
    read,
)
from aegis_daemon.wire.jsonrpc import (
    PARSE_ERROR as UNREADABLE,
)

Case = tuple[str, bytes, int, Any]
CALL = b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"t","arguments":{%s}}}'


def spelled(row: bytes) -> bytes:
    """A row's frame: `*`, `~` and `^` stand in the tables for what nearly all of them have."""
    whole = row.replace(b"{*", b'{"jsonrpc":"2.0"').replace(b"{~", b'{"jsonrpc":"2.0","id":')
    return whole.replace(b",^", b',"method":"tools/call","params":')


def nested(levels: int) -> bytes:
    """A frame nested to `levels` levels: the envelope, `params` and `arguments` are the first three."""
    return CALL.replace(b"%s", b'"a":' + b"[" * (levels - 3) + b"]" * (levels - 3))


# fmt: off
ENVELOPE: list[Case] = [
    ("method twice",           b'{~7,"method":"ping","method":"tools/call"}',           INVALID, 7),
    ("id twice",               b'{~7,"id":8,"method":"ping"}',                          INVALID, None),
    ("id twice, the same",     b'{~7,"id":7,"method":"ping"}',                          INVALID, None),
    ("id twice, once escaped", rb'{~7,"\u0069d":8,"method":"ping"}',                    INVALID, None),
    ("method, once escaped",   rb'{~7,"method":"ping","m\u0065thod":"tools/call"}',     INVALID, 7),
    ("params twice",           b'{~7,"method":"ping","params":{},"params":{}}',         INVALID, 7),
    ("jsonrpc twice",          b'{*,"jsonrpc":"2.0","id":7,"method":"ping"}',            INVALID, 7),
    ("Method",                 b'{~7,"method":"tools/call","Method":"ping"}',           INVALID, 7),
    ("Method alone",           b'{~7,"Method":"ping"}',                                 INVALID, 7),
    ("METHOD in a notice",     b'{*,"METHOD":"tools/call","method":"ping"}',            INVALID, None),
    ("Id beside id",           b'{~7,"Id":8,"method":"ping"}',                          INVALID, None),
    ("ID instead of id",       b'{*,"ID":7,"method":"ping"}',                           INVALID, None),
    ("Params",                 b'{~7,"method":"ping","Params":{}}',                     INVALID, 7),
    ("Result in a request",    b'{~7,"method":"ping","Result":{}}',                     INVALID, 7),
    ("method with NUL",        rb'{~7,"method":"ping","method\u0000":"tools/call"}',    INVALID, 7),
    ("NUL first",              rb'{~7,"method":"ping","\u0000method":"x"}',             INVALID, 7),
    ("id with NUL",            rb'{~7,"id\u0000":8,"method":"ping"}',                   INVALID, None),
    ("full width method",      '{~7,"\uff4dethod":"x","method":"ping"}'.encode(),       INVALID, 7),
    ("zero width method",      rb'{~7,"met\u200bhod":"x","method":"ping"}',             INVALID, 7),
    ("BOM inside method",      rb'{~7,"\ufeffmethod":"x","method":"ping"}',             INVALID, 7),
    ("soft hyphen in method",  rb'{~7,"meth\u00adod":"x","method":"ping"}',             INVALID, 7),
    ("variation selector",     rb'{~7,"method\ufe0f":"x","method":"ping"}',             INVALID, 7),
    ("Hangul filler",          rb'{~7,"method\u3164":"x","method":"ping"}',             INVALID, 7),
    ("long s in params",       rb'{~7,"method":"ping","param\u017f":{}}',               INVALID, 7),
    ("mathematical id",        rb'{*,"\ud835\udc22\ud835\udc1d":7,"method":"ping"}',    INVALID, None),
    ("method and result",      b'{~7,"method":"tools/call","result":{}}',               INVALID, 7),
    ("method and error",       b'{~7,"method":"ping","error":{"code":1,"message":""}}', INVALID, 7),
    ("result and error",       b'{~7,"result":{},"error":{"code":1,"message":""}}',     INVALID, 7),
    ("neither",                b'{~7}',                                                 INVALID, 7),
    ("nothing to answer",      b'{*,"result":{}}',                                      INVALID, None),
    ("only a version",         b'{"jsonrpc":"2.0"}',                                    INVALID, None),
    ("empty object",           b"{}",                                                   INVALID, None),
    ("no version",             b'{"id":7,"method":"ping"}',                             INVALID, 7),
    ("version 1.0",            b'{"jsonrpc":"1.0","id":7,"method":"ping"}',             INVALID, 7),
    ("version a number",       b'{"jsonrpc":2.0,"id":7,"method":"ping"}',               INVALID, 7),
    ("method a list",          b'{~7,"method":["ping"]}',                               INVALID, 7),
    ("method null",            b'{~7,"method":null}',                                   INVALID, 7),
    ("method null, a result",  b'{~7,"method":null,"result":{}}',                       INVALID, 7),
    ("params a list",          b'{~7,"method":"ping","params":[]}',                     INVALID, 7),
    ("params null",            b'{~7,"method":"ping","params":null}',                   INVALID, 7),
    ("params a string",        b'{~7,"method":"ping","params":"{}"}',                   INVALID, 7),
    ("batch",                  b'[{~7,"method":"ping"}]',                               INVALID, None),
    ("empty batch",            b"[]",                                                   INVALID, None),
    ("a string",               b'"ping"',                                               INVALID, None),
    ("a number",               b"7",                                                    INVALID, None),
    ("null",                   b"null",                                                 INVALID, None),
    ("error without message",  b'{~7,"error":{"code":1}}',                              INVALID, 7),
    ("error with odd code",    b'{~7,"error":{"code":"1","message":""}}',               INVALID, 7),
    ("error code true",        b'{~7,"error":{"code":true,"message":""}}',              INVALID, 7),
    ("error a string",         b'{~7,"error":"no"}',                                    INVALID, 7),
    ("siblings, unknown key",  b'{~7,"method":"ping","x":{"a":1,"A":2}}',               INVALID, 7),
    ("siblings in its list",   b'{~7,"method":"ping","x":[1,{"a":1,"A":2}]}',           INVALID, 7),
    ("siblings, themselves",   b'{~7,"method":"ping","x":1,"X":2}',                     INVALID, 7),
    ("siblings in params",     b'{~7,"method":"ping","params":{"x":1,"X":2}}',          INVALID, 7),
]

IDS: list[Case] = [
    ("null",                  b'{~null,"method":"tools/call"}',                       INVALID, None),
    ("a fraction",            b'{~1.5,"method":"tools/call"}',                        INVALID, None),
    ("a whole fraction",      b'{~1.0,"method":"tools/call"}',                        INVALID, None),
    ("an exponent",           b'{~1e2,"method":"tools/call"}',                        INVALID, None),
    ("true",                  b'{~true,"method":"tools/call"}',                       INVALID, None),
    ("a list",                b'{~[7],"method":"tools/call"}',                        INVALID, None),
    ("an object",             b'{~{},"method":"tools/call"}',                         INVALID, None),
    ("NaN",                   b'{~NaN,"method":"tools/call"}',                        UNREADABLE, None),
    ("1e400",                 b'{~1e400,"method":"tools/call"}',                      INVALID, None),
    ("241 digits",            b'{~%s,"method":"x"}' % (b"1" * (MAX_ID + 1)),          INVALID, None),
    ("5000 digits",           b'{~%s,"method":"x"}' % (b"1" * 5000),                  INVALID, None),
    ("too long",              b'{~"%s","method":"x"}' % (b"a" * (MAX_ID - 1)),        INVALID, None),
    ("too long once encoded", b'{~"%s","method":"x"}' % ("ä".encode() * 120), INVALID, None),
    ("half a surrogate pair", rb'{~"\ud800","method":"x"}',                           INVALID, None),
    ("the same, other fault", rb'{"jsonrpc":"1.0","id":"\udfff","method":"x"}',       INVALID, None),
]

PARAMS: list[Case] = [
    ("name twice",              b'{~7,^{"name":"a","name":"b"}}',                               INVALID, 7),
    ("arguments twice",         b'{~"x",^{"arguments":{},"arguments":{}}}',                     INVALID, "x"),
    ("Name alone",              b'{~7,^{"Name":"a"}}',                                          INVALID, 7),
    ("Name beside name",        b'{~7,^{"name":"a","NAME":"b"}}',                               INVALID, 7),
    ("name with NUL",           rb'{~7,^{"name":"a","name\u0000":"b"}}',                        INVALID, 7),
    ("full width name",         '{~7,^{"\uff4eame":"b"}}'.encode(),                             INVALID, 7),
    ("zero width joiner",       rb'{~7,^{"na\u200dme":"b"}}',                                   INVALID, 7),
    ("Arguments",               b'{~7,^{"name":"a","Arguments":{}}}',                           INVALID, 7),
    ("URI",                     b'{~7,"method":"resources/read","params":{"URI":"file:///x"}}', INVALID, 7),
    ("_META",                   b'{~7,^{"_META":{}}}',                                          INVALID, 7),
    ("Kelvin sign in taskId",   rb'{~7,"method":"tasks/get","params":{"tas\u212aId":"1"}}',     INVALID, 7),
    ("RequestId in a notice",   b'{*,"method":"notifications/x","params":{"RequestId":1}}',     INVALID, None),
    ("deep inside, twice",      CALL % b'"a":{"b":[{"c":1,"c":2}]}',                            INVALID, 7),
    ("deep inside, only case",  CALL % b'"a":{"b":[{"c":1,"C":2}]}',                            INVALID, 7),
    ("siblings, NFKC",          CALL % rb'"\ufb01le":1,"file":2',                               INVALID, 7),
    ("siblings, composed",      CALL % rb'"e\u0301":1,"\u00e9":2',                              INVALID, 7),
    ("siblings, a joiner gone", CALL % rb'"e\u200d\u0301":1,"\u00e9":2',                        INVALID, 7),
    ("siblings, NUL",           CALL % rb'"path":1,"path\u0000":2',                             INVALID, 7),
    ("siblings, zero width",    CALL % rb'"path":1,"pa\u200bth":2',                             INVALID, 7),
    ("siblings, sharp s",       CALL % rb'"stra\u00dfe":1,"STRASSE":2',                         INVALID, 7),
    ("siblings in _meta",       b'{~7,^{"_meta":{"a":1,"A":2}}}',                               INVALID, 7),
]

NUMBERS_AND_TEXT: list[Case] = [
    ("NaN",                     CALL % b'"a":NaN',                            UNREADABLE, 7),
    ("Infinity",                CALL % b'"a":Infinity',                       UNREADABLE, 7),
    ("-Infinity",               CALL % b'"a":[-Infinity]',                    UNREADABLE, 7),
    ("1e400",                   CALL % b'"a":1e400',                          INVALID, 7),
    ("-1e400",                  CALL % b'"a":-1e400',                         INVALID, 7),
    ("5000 digits",             CALL % (b'"a":' + b"9" * 5000),               INVALID, 7),
    ("01",                      CALL % b'"a":01',                             UNREADABLE, None),
    ("+1",                      CALL % b'"a":+1',                             UNREADABLE, None),
    ("0x10",                    CALL % b'"a":0x10',                           UNREADABLE, None),
    ("first half alone",        CALL % rb'"a":"\ud83d"',                      INVALID, 7),
    ("second half alone",       CALL % rb'"a":"\ude00"',                      INVALID, 7),
    ("halves the wrong way",    CALL % rb'"a":"\ude00\ud83d"',                INVALID, 7),
    ("half a pair in a key",    CALL % rb'"\ud83d":1',                        INVALID, 7),
    ("a surrogate as bytes",    CALL % b'"a":"\xed\xa0\x80"',                 UNREADABLE, None),
    ("a byte that is no UTF-8", CALL % b'"a":"\xff"',                         UNREADABLE, None),
    ("an overlong slash",       CALL % b'"a":"\xc0\xaf"',                     UNREADABLE, None),
    ("a cut character",         CALL % b'"a":"\xe2\x82"',                     UNREADABLE, None),
    ("UTF-16",                  (CALL % b"").decode().encode("utf-16-le"),    UNREADABLE, None),
    ("UTF-16 with its mark",    (CALL % b"").decode().encode("utf-16"),       UNREADABLE, None),
    ("a BOM",                   b"\xef\xbb\xbf" + CALL % b"",                 UNREADABLE, None),
    ("a raw newline in text",   CALL % b'"a":"x\ny"',                         UNREADABLE, None),
    ("a raw NUL in text",       CALL % b'"a":"x\0y"',                         UNREADABLE, None),
    ("single quotes",           b"{'jsonrpc':'2.0','id':7,'method':'ping'}",  UNREADABLE, None),
    ("a comma too many",        b'{~7,"method":"ping",}',                     UNREADABLE, None),
    ("a comment",               b'{~7,/**/"method":"ping"}',                  UNREADABLE, None),
    ("something behind it",     b'{~7,"method":"ping"}x',                     UNREADABLE, None),
    ("a second frame",          b'{~7,"method":"ping"}{"jsonrpc":"2.0"}',     UNREADABLE, None),
    ("NUL behind it",           b'{~7,"method":"ping"}\0',                    UNREADABLE, None),
    ("vertical tab behind it",  b'{~7,"method":"ping"}\x0b',                  UNREADABLE, None),
    ("no-break space before",   b'\xc2\xa0{~7,"method":"ping"}',              UNREADABLE, None),
    ("cut",                     b'{~7,"method":"ping"',                       UNREADABLE, None),
    ("empty",                   b"",                                          UNREADABLE, None),
    ("blank",                   b"  ",                                        UNREADABLE, None),
    ("CR alone",                b"\r",                                        UNREADABLE, None),
    ("65 levels",               nested(MAX_DEPTH + 1),                        INVALID, 7),
    ("500 levels",              nested(500),                                  INVALID, 7),
    ("100000 levels",           nested(100_000),                              INVALID, None),
    ("100000 open brackets",    b"[" * 100_000,                               INVALID, None),
    ("100000 open objects",     b'{"a":' * 100_000,                           INVALID, None),
    ("a byte too many",         CALL % (b'"a":"%s"' % (b"x" * MAX_FRAME_IN)), INVALID, None),
]

# A server's result passes byte for byte; a client's is judged and encoded anew like all that goes to a server.
CLIENT_ANSWERS: list[Case] = [
    ("siblings in a result",   b'{~7,"result":{"a":1,"A":2}}',                          INVALID, 7),
    ("siblings in an error",   b'{~7,"error":{"code":1,"message":"","CODE":2}}',        INVALID, 7),
    ("a deep result",          b'{~7,"result":' + b"[" * 64 + b"]" * 64 + b"}",         INVALID, 7),
]
# fmt: on
EVERY = [
    pytest.param(spelled(raw), code, id, id=f"{group}: {what}")
    for group, cases in (
        ("envelope", ENVELOPE),
        ("ids", IDS),
        ("params", PARAMS),
        ("numbers and text", NUMBERS_AND_TEXT),
        ("client answers", CLIENT_ANSWERS),
    )
    for what, raw, code, id in cases
]


@pytest.mark.parametrize(("raw", "code", "id"), EVERY)
def test_it_is_refused_with_its_code_and_its_id(raw: bytes, code: int, id: Any) -> None:
    with pytest.raises(WireFault) as caught:
        parse(raw)
    assert (caught.value.code, caught.value.id) == (code, id)
    assert caught.value.text == str(caught.value)
    assert caught.value.text.isprintable()
    assert len(caught.value.text) < 500


@pytest.mark.parametrize(("raw", "code", "id"), EVERY)
def test_it_is_refused_when_spaces_hide_it_from_the_fast_way(raw: bytes, code: int, id: Any) -> None:
    spaced = raw.replace(b'{"', b'{ "', 1)
    with pytest.raises(WireFault) as caught:
        parse(spaced)
    assert (caught.value.code, caught.value.id) == (code, id)


@pytest.mark.parametrize(("raw", "code", "id"), EVERY[: -len(CLIENT_ANSWERS)])
def test_a_server_cannot_send_it_as_a_request_either(raw: bytes, code: int, id: Any) -> None:
    with pytest.raises(WireFault):
        parse_from_server(raw, MAX_FRAME_IN)


# --- what looks odd and is one thing only -----------------------------------------------------------------------------

# fmt: off
ACCEPTED: list[tuple[str, bytes, Kind, Any]] = [
    ("the usual",               CALL % b'"a":1',                           Kind.REQUEST, 7),
    ("CR behind it",            CALL % b"" + b"\r",                        Kind.REQUEST, 7),
    ("spaces around it",        b" \t" + CALL % b"" + b" ",                Kind.REQUEST, 7),
    ("id zero",                 b'{~0,"method":"ping"}',                   Kind.REQUEST, 0),
    ("id -0",                   b'{~-0,"method":"ping"}',                  Kind.REQUEST, 0),
    ("negative id",             b'{~-7,"method":"ping"}',                  Kind.REQUEST, -7),
    ("empty id",                b'{~"","method":"ping"}',                  Kind.REQUEST, ""),
    ("id of digits as text",    b'{~"7","method":"ping"}',                 Kind.REQUEST, "7"),
    ("id beyond 64 bits",       b'{~%d,"method":"ping"}' % 10**30,         Kind.REQUEST, 10**30),
    ("id of 240 digits",        b'{~%s,"method":"ping"}' % (b"1" * 240),   Kind.REQUEST, int("1" * 240)),
    ("the longest text",        b'{~"%s","method":"ping"}' % (b"a" * 238), Kind.REQUEST, "a" * 238),
    ("escaped key",             rb'{*,"\u0069d":7,"method":"ping"}',       Kind.REQUEST, 7),
    ("64 levels",               nested(MAX_DEPTH),                         Kind.REQUEST, 7),
    ("unknown envelope key",    b'{~7,"method":"ping","x-trace":1}',       Kind.REQUEST, 7),
    ("unknown params key",      b'{~7,"method":"ping","params":{"x":1}}',  Kind.REQUEST, 7),
    ("known names deeper down", CALL % b'"Name":1,"URI":2,"Method":3',     Kind.REQUEST, 7),
    ("no params",               b'{~7,"method":"ping"}',                   Kind.REQUEST, 7),
    ("a notification",          b'{*,"method":"notifications/x"}',         Kind.NOTIFICATION, None),
    ("a call without an id",    b'{*,"method":"tools/call","params":{}}',  Kind.NOTIFICATION, None),
    ("an answer",               b'{~7,"result":null}',                     Kind.ANSWER, 7),
    ("an error",                b'{~7,"error":{"code":-1,"message":""}}',  Kind.ANSWER, 7),
]
# fmt: on


@pytest.mark.parametrize(
    ("raw", "kind", "id"), [pytest.param(spelled(row[1]), *row[2:], id=row[0]) for row in ACCEPTED]
)
def test_it_is_taken_for_exactly_one_thing(raw: bytes, kind: Kind, id: Any) -> None:
    frame = parse(raw)
    assert (frame.kind, frame.id) == (kind, id)
    assert type(frame.id) is type(id)
    assert json.loads(frame.encoded()) == json.loads(raw)


@pytest.mark.parametrize(
    ("written", "forwarded"),
    [
        ("9007199254740993", "9007199254740993"),
        ("-9223372036854775809", "-9223372036854775809"),
        ("18446744073709551616", "18446744073709551616"),
        ("123456789012345678901234567890123456789", "123456789012345678901234567890123456789"),
        ("-0", "0"),
        ("-0.0", "-0.0"),
        ("1.0", "1.0"),
        ("1E2", "100.0"),
        ("0.1", "0.1"),
        ("5e-324", "5e-324"),
        ("1.7976931348623157e308", "1.7976931348623157e308"),
        ('"\\/\\u0041\\n"', '"/A\\n"'),
        ('"\\ud83d\\ude00"', '"😀"'),
        ('"\\u2028\\u2029"', '"\\u2028\\u2029"'),
        ("[ 1 , 2 ]", "[1,2]"),
    ],
)
def test_a_value_is_forwarded_in_our_own_spelling(written: str, forwarded: str) -> None:
    frame = parse(CALL % (b'"a":' + written.encode()))
    assert frame.encoded(1) == (CALL % (b'"a":' + forwarded.encode())).replace(b'"id":7', b'"id":1')


def test_the_bounds_are_those_of_the_contract() -> None:
    assert (UNREADABLE, INVALID) == (-32700, -32600)
    assert (MAX_FRAME_IN, MAX_FRAME_OUT, MAX_DEPTH, MAX_ID) == (1024 * 1024, 10 * 1024 * 1024, 64, 240)


def test_who_sends_a_batch_is_told_so() -> None:
    with pytest.raises(WireFault, match="a batch is refused; send one message a line"):
        parse(b"[]")
    with pytest.raises(WireFault, match="must be a JSON object"):
        parse(b"7")


@pytest.mark.parametrize("text", [b'{"a":[1,{"b":2}]}', b' { "a" : [1, {"b": 2.0}] }', b"[]", b"7", b'"x"'])
def test_any_text_that_is_read_in_one_way_only_can_be_read(text: bytes) -> None:
    assert read(text) == json.loads(text)


@pytest.mark.parametrize(
    "text", [b'{"a":1,"a":2}', b'[{"a":{"b":1, "b":1}}]', b"NaN", b"[1e400]", b"", b'"\\ud800"', b"\xff"]
)
def test_a_text_that_is_read_in_two_ways_is_not(text: bytes) -> None:
    with pytest.raises(WireFault):
        read(text)


def test_a_frame_of_exactly_the_limit_passes() -> None:
    empty = CALL % b'"a":""'
    full = CALL % (b'"a":"%s"' % (b"x" * (MAX_FRAME_IN - len(empty))))
    assert len(full) == MAX_FRAME_IN
    assert parse(full).encoded() == full
    with pytest.raises(WireFault):
        parse(full + b" ")


def test_line_separators_are_escaped_towards_servers() -> None:
    raw = CALL % '"\u2028":"a\u2028b\u2029c\u0085d"'.encode()
    sent = parse(raw).encoded(1)
    assert len(sent.decode().splitlines()) == 1
    assert json.loads(sent) == {**json.loads(raw), "id": 1}


def test_an_agent_that_invents_keys_costs_us_no_memory() -> None:
    from aegis_daemon.wire import jsonrpc

    for number in range(jsonrpc._CLEAN_MAX + 500):
        parse(CALL % (b'"k%d":1' % number))
    for cache in (jsonrpc._clean, jsonrpc._clean_envelopes, jsonrpc._clean_params):
        assert len(cache) <= jsonrpc._CLEAN_MAX


def test_what_was_found_clean_once_is_not_taken_for_clean_elsewhere() -> None:
    keys = b'"Name":1,"uri2":2'
    assert parse(CALL % keys)
    with pytest.raises(WireFault):
        parse(b'{*,"id":7,"method":"ping","params":{%s}}' % keys)


# --- servers' answers -------------------------------------------------------------------------------------------------

# fmt: off
AMBIGUOUS_ANSWERS: list[tuple[str, bytes, Any]] = [
    ("id twice",          b'{~1,"id":2,"result":{}}',                              None),
    ("id twice, apart",   b'{"id":1,"jsonrpc":"2.0","result":{},"id":2}',          None),
    ("result twice",      b'{~1,"result":{"a":1},"result":{"b":2}}',               1),
    ("result, escaped",   rb'{~1,"result":{"a":1},"r\u0065sult":{"b":2}}',         1),
    ("result, then head", b'{"result":{},"result":{},"jsonrpc":"2.0","id":1}',                         1),
    ("result and error",  b'{~1,"result":{},"error":{"code":1,"message":""}}',     1),
    ("Result",            b'{~1,"result":{},"Result":{}}',                         1),
    ("Error",             b'{~1,"result":{},"Error":{}}',                          1),
    ("Method",            b'{~1,"result":{},"Method":"ping"}',                     1),
    ("ID",                b'{~1,"ID":2,"result":{}}',                              1),
    ("NUL",               rb'{~1,"result":{},"result\u0000":{}}',                  1),
    ("zero width",        rb'{~1,"result":{},"re\u200bsult":{}}',                  1),
    ("full width",        '{~1,"result":{},"\uff52esult":{}}'.encode(),            1),
    ("method and result", b'{~1,"method":"ping","result":{}}',                     1),
    ("method null",       b'{~1,"method":null,"result":{}}',                       1),
    ("method a number",   b'{~1,"method":1,"result":{}}',                          1),
    ("neither",           b'{~1}',                                                 1),
    ("no version",        b'{"id":1,"result":{}}',                                 1),
    ("version 1.0",       b'{"jsonrpc":"1.0","id":1,"result":{}}',                 1),
    ("id null",           b'{~null,"result":{}}',                                  None),
    ("id true",           b'{~true,"result":{}}',                                  None),
    ("id 1.0",            b'{~1.0,"result":{}}',                                   None),
    ("id of 5000 digits", b'{~%s,"result":{}}' % (b"1" * 5000),                    None),
    ("no id",             b'{*,"result":{}}',                                      None),
    ("error a string",    b'{~1,"error":"no"}',                                    1),
    ("error, no message", b'{~1,"error":{"code":1}}',                              1),
    ("NaN inside",        b'{~1,"result":{"a":NaN}}',                              1),
    ("half a pair",       rb'{~1,"result":{"a":"\ud800"}}',                        1),
    ("bad UTF-8",         b'{~1,"result":{"a":"\xff"}}',                           1),
    ("cut",               b'{~1,"result":{"a":',                                   1),
    ("cut, id last",      b'{"result":{"a":},"jsonrpc":"2.0","id":12}',                                12),
    ("too deep to read",  b'{~1,"result":' + b"[" * 50_000 + b"]" * 50_000 + b"}", 1),
    ("BOM",               b'\xef\xbb\xbf{~1,"result":{}}',                         1),
    ("batch",             b'[{~1,"result":{}}]',                                   None),
    ("prose",             b"server started on port 8080",                          None),
    ("empty",             b"",                                                     None),
]
# fmt: on


@pytest.mark.parametrize(
    ("raw", "id"), [pytest.param(spelled(row[1]), *row[2:], id=row[0]) for row in AMBIGUOUS_ANSWERS]
)
def test_an_ambiguous_answer_is_refused_and_names_its_call_where_that_is_plain(raw: bytes, id: Any) -> None:
    with pytest.raises(WireFault) as caught:
        parse_from_server(raw)
    assert caught.value.code in (UNREADABLE, INVALID)
    assert caught.value.id == id


def test_an_answer_over_the_limit_is_refused() -> None:
    body = b'"%s"' % (b"x" * MAX_FRAME_OUT)
    with pytest.raises(WireFault):
        parse_from_server(b'{"jsonrpc":"2.0","id":1,"result":%s}' % body)


def test_a_servers_own_requests_and_notifications_are_frames() -> None:
    request = parse_from_server(b'{"jsonrpc":"2.0","id":"s1","method":"roots/list"}')
    note = parse_from_server(b'{"jsonrpc":"2.0","method":"notifications/message","params":{"data":1}}')
    assert isinstance(request, Frame)
    assert isinstance(note, Frame)
    assert (request.kind, request.id, request.method) == (Kind.REQUEST, "s1", "roots/list")
    assert (note.kind, note.params) == (Kind.NOTIFICATION, {"data": 1})


def test_what_two_readers_take_differently_inside_a_result_still_passes_byte_for_byte() -> None:
    body = b'{"a":1,"a":2,"A":1e400,"n":9007199254740993.0}'
    answer = parse_from_server(b'{"jsonrpc":"2.0","id":1,"result":%s}' % body)
    assert isinstance(answer, Answer)
    assert answer.body == body
