"""A file holds events of one class, sorted by time, and has the same columns whatever the events hold.

Columns are those that `ocsf_1_1` fills, with the types of OCSF 1.1.0: numbers of 64 bits where a value may need them,
`unmapped` a map of texts, `time_dt` a timestamp in UTC. Compressed by Zstandard. What is absent is null.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

from aegis_daemon.core import extras
from aegis_daemon.exports.sink import Trouble

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK: Final = 1000
"""Events that are held as dictionaries at once."""

_TEXT, _INT, _LONG, _TIME = "text", "int", "long", "time"
_Shape = str | dict[str, Any] | list[Any]
_USER: Final = {"name": _TEXT, "type": _TEXT, "type_id": _INT, "uid": _TEXT}
_PRODUCT: Final = {"name": _TEXT, "vendor_name": _TEXT, "version": _TEXT}
_ENDPOINT: Final = {"name": _TEXT, "svc_name": _TEXT}
_ACTOR: Final = {
    "authorizations": [{"decision": _TEXT, "policy": {"name": _TEXT}}],
    "invoked_by": _TEXT,
    "session": {"uid": _TEXT},
    "user": _USER,
}
_FIRST: Final[dict[str, _Shape]] = {
    "time": _LONG,
    "time_dt": _TIME,
    "class_uid": _INT,
    "class_name": _TEXT,
    "category_uid": _INT,
    "category_name": _TEXT,
    "activity_id": _INT,
    "activity_name": _TEXT,
    "type_uid": _LONG,
    "type_name": _TEXT,
    "severity_id": _INT,
    "severity": _TEXT,
    "status_id": _INT,
    "status": _TEXT,
    "status_code": _TEXT,
    "status_detail": _TEXT,
    "message": _TEXT,
    "count": _LONG,
    "start_time": _LONG,
    "end_time": _LONG,
    "duration": _LONG,
    "metadata": {
        "correlation_uid": _TEXT,
        "event_code": _TEXT,
        "log_name": _TEXT,
        "log_provider": _TEXT,
        "original_time": _TEXT,
        "product": _PRODUCT,
        "profiles": [_TEXT],
        "sequence": _LONG,
        "tenant_uid": _TEXT,
        "uid": _TEXT,
        "version": _TEXT,
    },
}
_OWN: Final[dict[int, dict[str, _Shape]]] = {
    2004: {
        "action_id": _INT,
        "action": _TEXT,
        "disposition_id": _INT,
        "disposition": _TEXT,
        "finding_info": {"created_time": _LONG, "desc": _TEXT, "title": _TEXT, "types": [_TEXT], "uid": _TEXT},
    },
    3004: {
        "actor": _ACTOR,
        "comment": _TEXT,
        "entity": {"name": _TEXT, "type": _TEXT, "uid": _TEXT},
    },
    6002: {"app": _PRODUCT},
    6003: {
        "actor": _ACTOR,
        "api": {
            "operation": _TEXT,
            "request": {"data": _TEXT, "uid": _TEXT},
            "response": {"code": _LONG, "data": _TEXT, "error": _TEXT, "error_message": _TEXT},
            "service": {"name": _TEXT},
        },
        "dst_endpoint": _ENDPOINT,
        "resources": [{"name": _TEXT, "namespace": _TEXT, "type": _TEXT}],
        "src_endpoint": _ENDPOINT,
    },
}


def arrow() -> Any:
    """The library. Raises `Trouble` where there is none."""
    try:
        import pyarrow as pa
    except ImportError:
        raise Trouble(
            f"Parquet needs pyarrow, which is not installed: {extras.advice('parquet')}, and restart Aegis"
        ) from None
    pa.set_cpu_count(1)  # whatever is exported, calls come first
    return pa


@cache
def schema(class_uid: int) -> pa.Schema:
    """The columns of a class. Raises `KeyError` for one that there is not, `Trouble` without pyarrow."""
    pa = arrow()
    columns = {**_FIRST, **_OWN[class_uid]}
    fields = [pa.field(name, _type(pa, shape)) for name, shape in columns.items()]
    return pa.schema([*fields, pa.field("unmapped", pa.map_(pa.string(), pa.string()))])


def _type(pa: Any, shape: _Shape) -> Any:
    if isinstance(shape, dict):
        return pa.struct([pa.field(name, _type(pa, part)) for name, part in shape.items()])
    if isinstance(shape, list):
        return pa.list_(_type(pa, shape[0]))
    return {
        _TEXT: pa.string(),
        _INT: pa.int32(),
        _LONG: pa.int64(),
        _TIME: pa.timestamp("ms", tz="UTC"),
    }[shape]


class Sheet:
    """What becomes one file: events are added in the order of their times."""

    def __init__(self, class_uid: int) -> None:
        self._schema = schema(class_uid)
        self._rows: list[dict[str, Any]] = []
        self._batches: list[Any] = []

    def add(self, row: dict[str, Any]) -> None:
        """Adds an event as `ocsf_1_1.event` gives it, which is not to be used any more."""
        row["time_dt"] = row["time"] if "time_dt" in row else None
        row["unmapped"] = list(row["unmapped"].items())
        self._rows.append(row)
        if len(self._rows) >= CHUNK:
            self._fold()

    def data(self) -> bytes:
        """The file."""
        import pyarrow as pa
        from pyarrow import parquet

        self._fold()
        out = pa.BufferOutputStream()
        with parquet.ParquetWriter(out, self._schema, compression="zstd", version="2.6") as writer:
            if self._batches:
                writer.write_table(pa.Table.from_batches(self._batches, self._schema))
        made: bytes = out.getvalue().to_pybytes()
        return made

    def _fold(self) -> None:
        if self._rows:
            import pyarrow as pa

            self._batches.append(pa.RecordBatch.from_pylist(self._rows, schema=self._schema))
            self._rows = []
