"""What is put under a key is there whole or not at all, in a directory as in a bucket.

A bucket is one of S3 or of a store that speaks its protocol, by obstore: signed (Signature Version 4), with a SHA-256
checksum, as a single PUT. Keys come from the settings, else from where AWS's own programs look: the environment, a
container's or a machine's role; a proxy is not taken from there. What a store says in its errors may repeat a key or a
signature, so only codes that we know are told.
"""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from aegis_daemon.core import extras
from aegis_daemon.exports.sink import Trouble, directly
from aegis_daemon.loop.whole import sync_directory

_CODE: Final = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")
_STATUS: Final = re.compile(r"status code: (\d{3})")
_ROLE: Final = re.compile(r"/latest/(api|meta-data)/|169\.254\.|https://sts\.|credential", re.IGNORECASE)
_WORDS: Final = {
    "AccessDenied": "the key may not write there",
    "AuthorizationHeaderMalformed": "it signs for another region; see `region`",
    "ExpiredToken": "the session token has expired",
    "EntityTooLarge": "it is too large for it",
    "InternalError": "it has an internal error",
    "InvalidAccessKeyId": "it does not know the access key",
    "NoSuchBucket": "there is no such bucket",
    "NotImplemented": "it cannot keep what is there from being overwritten; use one that knows `If-None-Match`",
    "PermanentRedirect": "the bucket is in another region; see `region`",
    "RequestTimeout": "it waited too long for what was sent",
    "RequestTimeTooSkewed": "its clock and ours differ too much",
    "ServiceUnavailable": "it is not available",
    "SignatureDoesNotMatch": "the secret key is not the access key's",
    "SlowDown": "it wants fewer requests",
}


class Bucket(msgspec.Struct, frozen=True):
    """Where a bucket is, and who writes to it. `endpoint` is for stores that are not AWS's; `timeout` in seconds."""

    bucket: str
    region: str = "us-east-1"
    endpoint: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    ca_file: str | None = None
    timeout: float = 30.0


class Store(Protocol):
    """Where objects are kept."""

    def put(self, key: str, data: bytes, *, new: bool = False) -> bool:
        """Puts bytes there; with `new`, only where nothing is: whether it did. Blocks. Raises `Trouble`."""
        ...


class Directory:
    """Files (0600) under a directory; a file has its name once it is whole and on disk."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)

    def put(self, key: str, data: bytes, *, new: bool = False) -> bool:
        """See `Store`."""
        aim = self._path / key
        part = aim.with_name(f".{aim.name}.part")
        try:
            aim.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part.unlink(missing_ok=True)  # of one that was killed
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                left = memoryview(data)
                while left:
                    left = left[os.write(fd, left) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            if new:
                try:
                    os.link(part, aim)
                except FileExistsError:
                    return False
                finally:
                    part.unlink()
            else:
                os.rename(part, aim)
            sync_directory(str(aim.parent))
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            try:
                part.unlink(missing_ok=True)
            except OSError:
                pass
            raise Trouble(f"`{aim}` cannot be written: {why}") from None
        return True


class S3:
    """One bucket."""

    def __init__(self, settings: Bucket) -> None:
        try:
            from obstore.store import S3Store
        except ImportError:
            raise Trouble(
                f"a bucket needs obstore, which is not installed: {extras.advice('s3')}, and restart Aegis"
            ) from None
        self._timeout = settings.timeout
        wait = timedelta(seconds=settings.timeout)
        client: dict[str, Any] = {"timeout": wait, "connect_timeout": wait, "user_agent": "aegis"}
        made: dict[str, Any] = {"region": settings.region, "checksum_algorithm": "SHA256", "conditional_put": "etag"}
        if settings.endpoint:
            made["endpoint"] = settings.endpoint.rstrip("/")
            client["allow_http"] = settings.endpoint.startswith("http://")
        for name in ("access_key_id", "secret_access_key", "session_token"):
            if (value := getattr(settings, name)) is not None:
                made[name] = value
        if settings.ca_file is not None:
            try:
                client["root_certificate"] = Path(settings.ca_file).read_bytes()
            except OSError:
                raise Trouble(f"the certificates in `{settings.ca_file}` cannot be read; see `ca_file`") from None
        directly()  # the library would take one
        try:
            self._store = S3Store(
                settings.bucket,
                config=made,  # type: ignore[arg-type]  # the keys are chosen above
                client_options=client,  # type: ignore[arg-type]
                retry_config={"max_retries": 0, "retry_timeout": wait},
            )
        except Exception:  # its texts repeat the settings
            raise Trouble("its settings make no address; see `bucket`, `region`, `endpoint` and `ca_file`") from None

    def put(self, key: str, data: bytes, *, new: bool = False) -> bool:
        """See `Store`."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError

        try:
            obstore.put(self._store, key, data, use_multipart=False, mode="create" if new else "overwrite")
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise Trouble(_told(str(error), self._timeout)) from None
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # the library's own, which is no `Exception`
                raise
            raise Trouble("it cannot be addressed so; see `endpoint` and the keys") from None
        return True


def _told(text: str, timeout: float) -> str:
    """Our own words for what went wrong."""
    code = _CODE.search(text)
    if code is not None and code[1] in _WORDS:
        return f"it answered {code[1]}: {_WORDS[code[1]]}"
    if _ROLE.search(text):
        return "there is no key for it: set `access_key_id` and `secret_access_key`, or give the machine a role"
    status = _STATUS.search(text)
    if status is not None:
        return f"it answered with status {status[1]}"
    if "certificate" in text.lower():
        return "its certificate is not trusted; name its issuer in `ca_file`"
    if "kind: Timeout" in text:
        return f"it did not answer within {timeout:.0f} s"
    return "it cannot be reached"
