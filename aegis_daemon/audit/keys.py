"""The key that signs checkpoints: its owner's alone, never in the log's file, followed by keys that it vouches for.

    audit.key        the Ed25519 key (RFC 8032) as PKCS #8 in PEM (RFC 8410), 0600
    audit.key.pub    JSON lines, for everybody: each key there ever was, oldest first, with the note by which the one
                     before it and it itself say that they follow each other
    audit.key.next   a key that is not in use yet

`cryptography` is imported where something is signed or checked, not before. Run as a module, `next KEY` makes a key and
prints the note about it, `use KEY` puts it in the place of the old one, `sign KEY` signs texts (JSON: pairs of name and
text) and prints base64 of key id and signature of each.
"""

from __future__ import annotations

import binascii
import os
import re
import sys
import time
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from aegis_daemon.audit.checkpoint import (
    Note,
    NoteError,
    Signature,
    key_id,
    read_checkpoint,
    read_note,
    read_verifier_key,
    write_note,
)
from aegis_daemon.loop import whole

NAME: Final = "aegis/audit-key"
"""Under this name a key signs what is said of keys; a checkpoint is signed under its origin."""
_ROTATION = "aegis/audit-key/rotation"
_PKCS8 = bytes.fromhex("302e020100300506032b657004220420")
"""RFC 8410: what comes before the 32 bytes of an Ed25519 private key."""
_SPKI = bytes.fromhex("302a300506032b6570032100")
"""The same of a public one."""
_VERIFIER = re.compile(r"[^+\s]+\+[0-9a-f]{8}\+\S+")
_PRIVATE, _PUBLIC = "PRIVATE KEY", "PUBLIC KEY"
WITHIN_S: Final = 5.0
"""How long an order to remove waits for the first key of a log."""


class KeyFault(Exception):
    """A key file cannot be used; the text says why and what to do."""


class Ring(msgspec.Struct, frozen=True):
    """One key: its public half (hex), since when (RFC 3339), and the note by which it followed; empty for the first."""

    public: str
    since: str
    rotation: str = ""


# --- signing ----------------------------------------------------------------------------------------------------------


class Signer:
    """A key in use. `public` is 32 bytes."""

    def __init__(self, seed: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, name: str, text: str) -> Signature:
        """The signature line of a note, under a name."""
        return Signature(name, key_id(name, self.public), self._key.sign(text.encode()))

    def word(self, name: str, text: str) -> str:
        """The same as one word: base64 of the key's id and the signature."""
        made = self.sign(name, text)
        return _b64(made.key_id + made.signature)


def signed_by(note: Note, name: str, publics: Iterable[bytes]) -> int | None:
    """Which of the keys signed a note under that name, the last one where several did; None for none.

    None, too, where a line names one of the keys and is not its signature.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    found = None
    for index, public in enumerate(publics):
        id = key_id(name, public)
        for line in note.signatures:
            if line.name != name or line.key_id != id:
                continue
            try:
                Ed25519PublicKey.from_public_bytes(public).verify(line.signature, note.text.encode())
            except (InvalidSignature, ValueError):
                return None
            found = index
    return found


def doubt(path: Path, log: str, size: int, note: str) -> str:
    """Why a note is no checkpoint of that size and log with a signature of a key of `path`'s ring; "" where it is one.

    Raises `OSError`.
    """
    try:
        read = read_note(note)
        point = read_checkpoint(read.text)
    except NoteError as error:
        return f"the store's newest checkpoint cannot be read ({error}) and is not passed on; see `aegis audit verify`"
    if (point.origin, point.size) == (log, size) and signed_by(read, log, follow(read_ring(path))) is not None:
        return ""
    return (
        f"the store's newest checkpoint ({size}) was not signed with the log's key and is not passed on; see "
        "`aegis audit verify`"
    )


# --- keys that follow each other --------------------------------------------------------------------------------------


def rotation(old: Signer, new: Signer, at: str) -> str:
    """The note by which two keys say that one follows the other, signed by both."""
    text = "".join(f"{line}\n" for line in (_ROTATION, _b64(old.public), _b64(new.public), f"at {at}"))
    return write_note(text, [old.sign(NAME, text), new.sign(NAME, text)])


def read_rotation_keys(note: str) -> tuple[bytes, bytes] | None:
    """The old and the new key that such a note names, whoever signed it; None where it is none."""
    try:
        what, old, new, at = read_note(note).text[:-1].split("\n")
        keys = b64decode(old, validate=True), b64decode(new, validate=True)
    except ValueError:
        return None
    return keys if what == _ROTATION and at.startswith("at ") and all(len(key) == 32 for key in keys) else None


def read_rotation(note: str) -> tuple[bytes, bytes] | None:
    """The same; None, too, where either of them did not sign it."""
    keys = read_rotation_keys(note)
    if keys is None:
        return None
    found = read_note(note)
    return keys if all(signed_by(found, NAME, [key]) is not None for key in keys) else None


def follow(ring: Sequence[Ring], trusted: bytes | None = None) -> list[bytes]:
    """The keys that may sign, oldest first: the trusted one (None: the first) and those that follow it.

    Ends before the first one that nothing vouches for.
    """
    keys: list[bytes] = [] if trusted is None else [trusted]
    for row in ring:
        try:
            public = bytes.fromhex(row.public)
        except ValueError:
            break
        if not keys:
            keys.append(public)
        elif public != keys[-1] and row.rotation and (said := read_rotation(row.rotation)) is not None:
            if said == (keys[-1], public):
                keys.append(public)
            elif trusted is None:
                break
        elif public != keys[-1] and trusted is None:
            break
    return keys


# --- files ------------------------------------------------------------------------------------------------------------


def load(path: Path) -> bytes:
    """The private key (32 bytes) of a file. Raises `OSError` (`FileNotFoundError` for none) and `KeyFault`."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        data = os.read(fd, 4096)
    finally:
        os.close(fd)
    if info.st_uid not in (os.geteuid(), 0) or info.st_mode & 0o077:
        raise KeyFault(
            f"`{path}` must be its owner's alone, or it proves nothing; give it back with chown and `chmod 600`"
        )
    found = _from_pem(data, _PRIVATE)
    if not found.startswith(_PKCS8) or len(found) != len(_PKCS8) + 32:
        raise KeyFault(f"`{path}` is no Ed25519 key in PEM; put the right file back")
    return found[len(_PKCS8) :]


def load_or_make(path: Path) -> bytes:
    """The same; makes the key where there is none and there never was one. Raises `OSError`, `KeyFault`."""
    _finish_use(path)
    try:
        return load(path)
    except FileNotFoundError:
        if read_ring(path):
            raise KeyFault(
                f"the key `{path}` is gone; put it back, or move `{public_path(path).name}` away to begin a new one"
            ) from None
    seed = os.urandom(32)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(path, _pem(_PRIVATE, _PKCS8 + seed), 0o600)
    _remember(path, Ring(Signer(seed).public.hex(), now()))
    return seed


def prepare(path: Path) -> str:
    """Makes the next key, beside the one in use; gives the note about the two. Raises `OSError`, `KeyFault`."""
    old = Signer(load_or_make(path))
    seed = os.urandom(32)
    _write(_next_path(path), _pem(_PRIVATE, _PKCS8 + seed), 0o600)
    return rotation(old, Signer(seed), now())


def use(path: Path, note: str) -> None:
    """Puts the next key in the place of the one in use. Raises `OSError`, `KeyFault`."""
    seed = load(_next_path(path))
    said = read_rotation(note)
    if said is None or said != (Signer(load(path)).public, Signer(seed).public):
        raise KeyFault(f"`{_next_path(path)}` is not the key that was meant; rotate again")
    _remember(path, Ring(said[1].hex(), now(), note))
    try:
        os.replace(_next_path(path), path)
    except FileNotFoundError:
        if Signer(load(path)).public != said[1]:  # else whoever signs has done it meanwhile
            raise


def _finish_use(path: Path) -> None:
    """Of a `use` that was killed between its two steps, the second one: the ring says that the next key is in use."""
    coming = _next_path(path)
    if not coming.exists():
        return
    ring = read_ring(path)
    said = read_rotation(ring[-1].rotation) if ring and ring[-1].rotation else None
    try:
        pair = (Signer(load(path)).public, Signer(load(coming)).public)
        if said == pair and ring[-1].public == pair[1].hex():
            os.replace(coming, path)
    except (FileNotFoundError, KeyFault):
        pass  # it was done meanwhile, or the next key is none


def load_for_orders(path: Path, within: float = WITHIN_S) -> bytes:
    """The same as `load`; a log that has just begun has its key some seconds later. Raises `OSError`, `KeyFault`."""
    until = time.monotonic() + within
    while True:
        try:
            _finish_use(path)
            return load(path)
        except FileNotFoundError:
            if read_ring(path) or time.monotonic() > until:
                raise KeyFault(f"there is no key `{path}`; put it back, or see `aegis status`") from None
        time.sleep(0.05)


def public_path(path: Path) -> Path:
    """Where the keys are that everybody may know."""
    return path.with_name(f"{path.name}.pub")


def memory_path(path: Path) -> Path:
    """Where the newest checkpoint of each log is remembered."""
    return path.with_name(f"{path.name}.signed")


def signed_size(path: Path, log: str) -> int:
    """How many records of the log of that name (`checkpoint.origin`) the key beside it has signed; 0 for none known."""
    try:
        known = msgspec.json.decode(memory_path(path).read_bytes(), type=dict[str, str])
        return read_checkpoint(read_note(known[log]).text).size
    except (OSError, KeyError, NoteError, msgspec.MsgspecError, UnicodeDecodeError):
        return 0


def read_ring(path: Path) -> list[Ring]:
    """Every key there ever was, oldest first; empty where none was made. Raises `OSError`."""
    try:
        data = public_path(path).read_bytes()
    except FileNotFoundError:
        return []
    rows = []
    for line in data.splitlines():
        try:
            rows.append(msgspec.json.decode(line, type=Ring))
        except (msgspec.MsgspecError, UnicodeDecodeError):
            break
    return rows


def read_public(text: str) -> bytes:
    """A public key (32 bytes) as people have it: PEM, `name+id+base64`, hex or base64. Raises `NoteError`."""
    text = text.strip()
    if text.startswith("{"):
        try:
            text = msgspec.json.decode(text.splitlines()[0], type=Ring).public
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise NoteError("it is no file of keys that `aegis` wrote") from None
    if "-----BEGIN" in text:
        found = _from_pem(text.encode(), _PUBLIC)
        found = found[len(_SPKI) :] if found.startswith(_SPKI) else b""
    elif _VERIFIER.fullmatch(text):
        return read_verifier_key(text)
    else:
        try:
            found = bytes.fromhex(text) if len(text) == 64 else b64decode(text, validate=True)
        except ValueError:
            found = b""
    if len(found) != 32:
        raise NoteError("it is no Ed25519 public key, neither in PEM nor as `name+id+base64`, hex or base64")
    return found


def public_pem(public: bytes) -> str:
    """A public key in PEM."""
    return _pem(_PUBLIC, _SPKI + public).decode()


def now() -> str:
    """RFC 3339, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _remember(path: Path, row: Ring) -> None:
    rows = [known for known in read_ring(path) if known.public != row.public]
    _write(public_path(path), b"".join(msgspec.json.encode(each) + b"\n" for each in (*rows, row)), 0o644)


def _next_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")


def _write(path: Path, data: bytes, mode: int) -> None:
    whole.put(str(path), data, dress=lambda descriptor: os.fchmod(descriptor, mode))


def _b64(data: bytes) -> str:
    return b64encode(data).decode()


def _pem(what: str, der: bytes) -> bytes:
    return f"-----BEGIN {what}-----\n{_b64(der)}\n-----END {what}-----\n".encode()


def _from_pem(data: bytes, what: str) -> bytes:
    text = data.decode("ascii", errors="replace")
    _, begun, rest = text.partition(f"-----BEGIN {what}-----")
    body, ended, _ = rest.partition(f"-----END {what}-----")
    try:
        return b64decode("".join(body.split()), validate=True) if begun and ended else b""
    except binascii.Error:
        return b""


def main(arguments: list[str]) -> None:
    """The process that makes keys, so that the daemon need not hold what that takes."""
    os.umask(0o077)
    word, path = arguments[0], Path(arguments[1])
    try:
        if word == "next":
            sys.stdout.write(prepare(path))
        elif word == "sign":
            texts = msgspec.json.decode(sys.stdin.buffer.read(), type=list[tuple[str, str]])
            signer = Signer(load_for_orders(path))
            sys.stdout.write("".join(f"{signer.word(name, text)}\n" for name, text in texts))
        else:
            use(path, sys.stdin.read())
    except (OSError, KeyFault) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
