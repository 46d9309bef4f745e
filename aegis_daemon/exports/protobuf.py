"""As much of protobuf as OTLP needs: numbered fields written one after another; zero and empty are left out.

Source: protobuf.dev, "Encoding". The numbers of fields are those of opentelemetry-proto 1.x.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

_fixed = struct.Struct("<Q").pack
_fixed32 = struct.Struct("<I").pack
_double = struct.Struct("<d").pack


def varint(value: int) -> bytes:
    """A whole number, seven bits a byte; negative ones as 64 bits in two's complement."""
    if 0 <= value < 128:
        return bytes((value,))
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def data(field: int, value: bytes) -> bytes:
    """Bytes, or a message; written even if empty."""
    return varint(field << 3 | 2) + varint(len(value)) + value


def text(field: int, value: str) -> bytes:
    """A string; nothing where it is empty."""
    return data(field, value.encode("utf-8", "replace")) if value else b""


def number(field: int, value: int) -> bytes:
    """An enum or integer; nothing for 0."""
    return varint(field << 3) + varint(value) if value else b""


def fixed64(field: int, value: int) -> bytes:
    """An unsigned integer of eight bytes, written even if 0."""
    return varint(field << 3 | 1) + _fixed(value & (1 << 64) - 1)


def fixed32(field: int, value: int) -> bytes:
    """An unsigned integer of four bytes; nothing for 0."""
    return varint(field << 3 | 5) + _fixed32(value) if value else b""


def double(field: int, value: float) -> bytes:
    """A floating-point number, written even if 0."""
    return varint(field << 3 | 1) + _double(value)


def packed64(field: int, values: Sequence[int]) -> bytes:
    """Repeated integers of eight bytes."""
    return data(field, struct.pack(f"<{len(values)}Q", *values))


def doubles(field: int, values: Sequence[float]) -> bytes:
    """Repeated floating-point numbers."""
    return data(field, struct.pack(f"<{len(values)}d", *values))


def attributes(field: int, pairs: Iterable[tuple[str, str | int | bool]]) -> bytes:
    """Repeated `KeyValue`s (key 1, value 2); `AnyValue` has a string in 1, a boolean in 2, an integer in 3."""
    made = []
    for key, value in pairs:
        if value is True or value is False:
            held = varint(2 << 3) + varint(int(value))
        elif isinstance(value, int):
            held = varint(3 << 3) + varint(value)
        else:
            held = data(1, value.encode("utf-8", "replace"))
        made.append(data(field, text(1, key) + data(2, held)))
    return b"".join(made)
