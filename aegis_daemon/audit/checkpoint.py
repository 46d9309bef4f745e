"""A checkpoint says what the first N records of a log are, in a text that anybody can keep and check (C2SP).

    aegis/<tenant>/<chain id>          origin: the tenant, and 16 hex digits of the hash of the log's first record
    20852163                           how many records
    CsUYapGGPo4dkMgIAUqom/…            root of the Merkle tree over their hashes (`merkle.py`), base64
    at 2026-01-31T08:00:00Z            when it was signed; an extension line

    — aegis/<tenant>/<chain id> Az3g…  Ed25519 over everything above the empty line

c2sp.org/tlog-checkpoint and c2sp.org/signed-note. Pure; what signs and checks is `keys.py`.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from hashlib import sha256
from urllib.parse import quote

import msgspec

ED25519 = b"\x01"
"""The signature type of c2sp.org/signed-note."""
SIGNATURES_MAX = 64
NOTE_MAX = 64 << 10
_DASH = "— "
_SIZE = re.compile(r"0|[1-9][0-9]{0,17}")
_CHAIN = 16


class NoteError(ValueError):
    """A text is no signed note, or no checkpoint; says why."""


class Signature(msgspec.Struct, frozen=True):
    """One signature line: the key's name, its id (4 bytes) and what it made of the text."""

    name: str
    key_id: bytes
    signature: bytes


class Note(msgspec.Struct, frozen=True):
    """A text that ends with a line end, and its signatures."""

    text: str
    signatures: tuple[Signature, ...]


class Checkpoint(msgspec.Struct, frozen=True):
    """A log's size and root (32 bytes); `lines` are the extension lines."""

    origin: str
    size: int
    root: bytes
    lines: tuple[str, ...] = ()

    def text(self) -> str:
        """What is signed."""
        head = (self.origin, str(self.size), b64encode(self.root).decode(), *self.lines)
        return "".join(f"{line}\n" for line in head)

    @property
    def at(self) -> str:
        """When it was signed (RFC 3339), as it says itself; else empty."""
        return next((line[3:] for line in self.lines if line.startswith("at ")), "")


def origin(tenant: str, first: str) -> str:
    """The name of the log of `tenant` whose first record has the hash `first` (hex)."""
    return f"aegis/{quote(tenant, safe='')}/{first[:_CHAIN]}"


def key_id(name: str, public: bytes) -> bytes:
    """The four bytes by which a note names an Ed25519 key."""
    return sha256(name.encode() + b"\n" + ED25519 + public).digest()[:4]


def verifier_key(name: str, public: bytes) -> str:
    """An Ed25519 key as other tools for signed notes take it: `name+id+base64`."""
    return f"{name}+{key_id(name, public).hex()}+{b64encode(ED25519 + public).decode()}"


def read_verifier_key(text: str) -> bytes:
    """The public key (32 bytes) of such a text. Raises `NoteError`."""
    name, _, rest = text.strip().partition("+")
    id, _, encoded = rest.partition("+")
    try:
        found = b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        found = b""
    if not name or len(found) != 33 or found[:1] != ED25519 or key_id(name, found[1:]).hex() != id:
        raise NoteError("it is no Ed25519 key of the form `name+id+base64`")
    return found[1:]


def write_note(text: str, signatures: list[Signature]) -> str:
    """The signed note."""
    lines = (f"{_DASH}{s.name} {b64encode(s.key_id + s.signature).decode()}\n" for s in signatures)
    return f"{text}\n{''.join(lines)}"


def read_note(note: str) -> Note:
    """The parts of a signed note; says nothing of whether its signatures are any good. Raises `NoteError`."""
    if len(note) > NOTE_MAX:
        raise NoteError(f"a note of more than {NOTE_MAX} characters is not read")
    if any(sign < " " and sign != "\n" for sign in note):
        raise NoteError("a note has no control characters")
    text, gap, signed = note.rpartition("\n\n")
    if not gap or not signed.endswith("\n"):
        raise NoteError("a note is a text, an empty line and signatures")
    lines = signed[:-1].split("\n")
    if len(lines) > SIGNATURES_MAX:
        raise NoteError(f"a note of more than {SIGNATURES_MAX} signatures is not read")
    signatures = []
    for line in lines:
        name, space, encoded = line.removeprefix(_DASH).partition(" ")
        try:
            found = b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            found = b""
        if b64encode(found).decode() != encoded:  # else a letter could be changed that nobody misses
            found = b""
        if not line.startswith(_DASH) or not space or not _is_name(name) or len(found) <= 4:
            raise NoteError("a signature is written `— name base64`")
        signatures.append(Signature(name, found[:4], found[4:]))
    return Note(text + "\n", tuple(signatures))


def read_checkpoint(text: str) -> Checkpoint:
    """What the text of a note says. Raises `NoteError`."""
    lines = text.split("\n")
    if len(lines) < 4 or lines.pop() or not all(lines):
        raise NoteError("a checkpoint is three lines or more, none of them empty")
    name, size, encoded, *more = lines
    if not _SIZE.fullmatch(size):
        raise NoteError("a checkpoint's second line is a number")
    try:
        root = b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        root = b""
    if len(root) != 32 or b64encode(root).decode() != encoded:
        raise NoteError("a checkpoint's third line is a SHA-256 in base64")
    return Checkpoint(name, int(size), root, tuple(more))


def split_notes(text: str) -> list[str]:
    """The notes of a file to which one was appended after the other.

    A note's text may hold empty lines, a checkpoint's may not; so a checkpoint begins behind signature lines.
    """
    notes: list[str] = []
    lines: list[str] = []
    signed = False
    for line in text.splitlines():
        if signed and not line.startswith(_DASH):
            notes.append("\n".join(lines) + "\n")
            lines = []
            signed = False
            if not line:
                continue
        if line or lines:
            lines.append(line)
        signed = signed or line.startswith(_DASH)
    if any(lines):
        notes.append("\n".join(lines) + "\n")
    return notes


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and not any(sign.isspace() for sign in name)
