from __future__ import annotations

import asyncio
import json
import random
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from bucket import ACCESS, SECRET, Bucket, issued
from jsonschema import Draft202012Validator
from logbook import HOSTILE, Book, until
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema
from pyarrow import parquet as files

from aegis_daemon.config.load import ConfigFaults, loads
from aegis_daemon.daemon import shipping
from aegis_daemon.exports import event as events_of
from aegis_daemon.exports import object_store, ocsf_1_1, parquet, security_lake, ship, witness_object
from aegis_daemon.exports.cursor import Cursors
from aegis_daemon.exports.job import Job, Target
from aegis_daemon.exports.log import Log
from aegis_daemon.exports.one_export import Shipper
from aegis_daemon.exports.pace import News
from aegis_daemon.exports.sink import Trouble

pytestmark = pytest.mark.anyio
DAY_US = 86_400_000_000


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "audit.db")


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    made = Bucket()
    yield made
    made.close()


def lake(at: Path, **more: Any) -> security_lake.SecurityLake:
    return security_lake.make(security_lake.Settings(path=str(at), **more))


# --- OCSF 1.1.0 -------------------------------------------------------------------------------------------------------


@cache
def known(class_uid: int) -> dict[str, Any]:
    found = next(one for one in get_ocsf_schema(version="1.1.0")["classes"].values() if one.get("uid") == class_uid)
    attributes: dict[str, Any] = found["attributes"]
    return attributes


@cache
def validator(class_uid: int, profiles: tuple[str, ...]) -> Any:
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema(version="1.1.0"))
    name = schema.lookup_class_name_from_uid(class_uid)
    return Draft202012Validator(schema.get_class_schema(class_name=name, profiles=list(profiles)))


def check(made: dict[str, Any]) -> None:
    faults = list(validator(made["class_uid"], tuple(made["metadata"]["profiles"])).iter_errors(made))
    assert faults == [], [(list(fault.path), fault.message[:200]) for fault in faults]
    assert set(made) <= set(known(made["class_uid"]))
    assert made["type_uid"] == made["class_uid"] * 100 + made["activity_id"]
    enums = {name: one["enum"] for name, one in known(made["class_uid"]).items() if "enum" in one}
    assert enums["type_uid"][str(made["type_uid"])]["caption"] == made["type_name"]
    for name in ("severity", "status", "activity"):
        number, text = made[f"{name}_id"], made.get(name, made.get(f"{name}_name"))
        if number != 99:
            assert enums[f"{name}_id"][str(number)]["caption"] == text
    assert all(isinstance(value, str) for value in made["unmapped"].values())


@pytest.mark.parametrize("text", ["plain", HOSTILE, ""])
def test_every_event_is_valid_ocsf_1_1_0(book: Book, text: str) -> None:
    book.of_every_kind(text)
    found = [*book.events(), events_of.gap("c", 3, 9, 1, text), events_of.test("c", 1)]
    for one in [*found, *(one.bare() for one in found)]:
        check(json.loads(ocsf_1_1.encode(one)))
    assert {ocsf_1_1.event(one)["class_uid"] for one in found} == set(ocsf_1_1.SHORT)


def test_the_check_notices_what_is_missing_or_newer(book: Book) -> None:
    book.call(1)
    for spoil in ({"actor": None}, {"action_id": 1}, {"type_uid": 600301}, {"activity_id": 99, "type_uid": 600302}):
        made = {**json.loads(ocsf_1_1.encode(book.events()[0])), **spoil}
        with pytest.raises(AssertionError):
            check({name: value for name, value in made.items() if value is not None})


def test_what_1_1_0_has_no_place_for_is_told_all_the_same(book: Book) -> None:
    book.call(1, b'{"a":[1]}', result=b"{", policy="rule-7", approval="approved", approver="bea")
    book.denied(2)
    book.of_every_kind()
    found = {one.uid.rpartition("-")[2]: ocsf_1_1.event(one) for one in book.events()}
    done, refused = found["2"], found["3"]
    assert done["actor"]["invoked_by"] == "writer"
    assert done["actor"]["authorizations"][2] == {"decision": "approved", "policy": {"name": "approval"}}
    assert (done["api"]["request"]["data"], done["api"]["response"]["data"]) == ('{"a":[1]}', '"{"')
    assert (done["unmapped"]["action"], done["unmapped"]["disposition"]) == ("Allowed", "Approved")
    assert json.loads(done["unmapped"]["policy"])["uid"] == "rule-7"
    assert done["unmapped"]["approver"] == "bea"
    assert "status_detail" not in done
    assert (refused["status_id"], refused["status_detail"]) == (2, "`delete_all` is denied")
    assert (refused["unmapped"]["action"], refused["unmapped"]["disposition"]) == ("Denied", "Blocked")
    paused = next(one for one in found.values() if one["activity_name"] == "Suspend")
    assert (paused["activity_id"], paused["type_uid"], paused["type_name"]) == (99, 300499, "Entity Management: Other")
    watched = next(one for one in found.values() if one["unmapped"].get("action") == "Observed")
    assert watched["status_detail"] == "Logged"


# --- the files --------------------------------------------------------------------------------------------------------


def bare(value: Any) -> Any:
    """Without what is null, as JSON has it."""
    if isinstance(value, dict):
        return {name: bare(one) for name, one in value.items() if one is not None}
    if isinstance(value, list):
        return [bare(one) for one in value]
    return value


def rows_of(path: Path) -> list[dict[str, Any]]:
    made = []
    for row in files.read_table(path, partitioning=None).to_pylist(maps_as_pydicts="strict"):
        when = row.pop("time_dt")
        row = bare(row)
        row["unmapped"] = row.get("unmapped", {})
        assert when == datetime.fromtimestamp(row["time"] / 1000, UTC)
        row["time_dt"] = row["metadata"]["original_time"]
        made.append(row)
    return made


@pytest.mark.parametrize("text", ["plain", HOSTILE, "\ud800 is no text"])
def test_a_file_holds_all_of_every_event(book: Book, tmp_path: Path, text: str) -> None:
    """So no attribute is without its column, which Arrow would pass over in silence."""
    book.of_every_kind(text if text.isprintable() or text == HOSTILE else "plain")
    found = book.events()
    if text.startswith("\ud800"):
        found = [msgspec.structs.replace(one, record=msgspec.structs.replace(one.record, by=text)) for one in found]
    lake(tmp_path / "lake").write(found)
    written = {row["metadata"]["uid"]: row for path in (tmp_path / "lake").rglob("*.parquet") for row in rows_of(path)}
    assert len(written) == len(found)
    for one in found:
        assert written[one.uid] == bare(ocsf_1_1.event(one))
        check(written[one.uid])


def test_duckdb_opens_it_with_its_partitions(book: Book, tmp_path: Path) -> None:
    book.of_every_kind(HOSTILE)
    found = book.events()
    lake(tmp_path, region="eu-central-1", account="123456789012").write(found)
    counts: dict[str, int] = {}
    for one in found:
        kind = ocsf_1_1.SHORT[ocsf_1_1.event(one)["class_uid"]]
        counts[kind] = counts.get(kind, 0) + 1
    with duckdb.connect() as db:
        for kind, count in counts.items():
            source = f"read_parquet('{tmp_path}/ext/aegis-{kind}/*/*/*/*.parquet', hive_partitioning = true)"
            told = db.sql(
                f'SELECT count(*), any_value(region), any_value("accountId"), min("eventDay"), '
                f"bool_and(strftime(time_dt AT TIME ZONE 'UTC', '%Y%m%d') = \"eventDay\"::VARCHAR), "
                f"count(DISTINCT class_uid), bool_and(epoch_ms(time_dt) = time) FROM {source}"
            ).fetchall()
            assert told == [(count, "eu-central-1", 123456789012, 20260921, True, 1, True)]
        source = f"read_parquet('{tmp_path}/ext/aegis-api/*/*/*/*.parquet', hive_partitioning = true)"
        told = db.sql(f"SELECT actor.invoked_by, unmapped['note'] FROM {source} WHERE api.request.uid = '1'").fetchall()
        assert told == [(HOSTILE, HOSTILE)]
        texts = db.sql(f"SELECT api.request.data FROM {source} WHERE api.request.data IS NOT NULL").fetchall()
        assert all(json.loads(text) is not None for (text,) in texts)
        types = {name: str(kind) for name, kind, *_ in db.sql(f"DESCRIBE SELECT * FROM {source}").fetchall()}
    assert (types["time"], types["time_dt"], types["class_uid"]) == ("BIGINT", "TIMESTAMP WITH TIME ZONE", "INTEGER")
    assert types["unmapped"] == "MAP(VARCHAR, VARCHAR)"


def test_a_day_begins_at_midnight_utc_and_a_file_is_in_the_order_of_time(book: Book, tmp_path: Path) -> None:
    for number in range(1, 5):
        book.call(number)
    found = book.events()
    midnight = found[0].ts // DAY_US * DAY_US + DAY_US
    times = (midnight - 1, midnight, midnight - 2000, midnight + 5)
    found = [msgspec.structs.replace(one, ts=ts) for one, ts in zip(found, times, strict=True)]
    lake(tmp_path).write(found)
    days = {path.name.partition("=")[2]: path for path in tmp_path.glob("ext/aegis-api/*/*/eventDay=*")}
    assert sorted(days) == ["20260921", "20260922"]
    told = {
        day: [row["metadata"]["sequence"] for path in at.iterdir() for row in rows_of(path)] for day, at in days.items()
    }
    assert told == {"20260921": [6, 2], "20260922": [4, 8]}
    assert [path.name for path in days["20260921"].iterdir()] == [f"{found[0].uid}.parquet"]


def test_a_time_that_no_calendar_has_loses_no_event(book: Book, tmp_path: Path) -> None:
    book.call(1)
    one = msgspec.structs.replace(book.events()[0], ts=9_000_000_000_000_000_000)
    lake(tmp_path).write([one])
    (path,) = tmp_path.rglob("*.parquet")
    assert "eventDay=19700101" in str(path)
    (row,) = files.read_table(path, partitioning=None).to_pylist()
    assert (row["time"], row["time_dt"], row["metadata"]["uid"]) == (9_000_000_000_000_000, None, one.uid)


def test_files_of_all_times_have_the_same_columns_and_are_zstd(book: Book, tmp_path: Path) -> None:
    book.call(1)
    book.denied(2)
    for number, one in enumerate(book.events()):
        lake(tmp_path / str(number)).write([one])
    found = [files.ParquetFile(path) for path in tmp_path.rglob("*.parquet")]
    assert len(found) == 2
    assert found[0].schema_arrow == found[1].schema_arrow == parquet.schema(6003)
    assert {one.metadata.row_group(0).column(0).compression for one in found} == {"ZSTD"}
    for one in found:
        one.close()


class Dying:
    """A store that is gone after so many objects."""

    def __init__(self, real: object_store.Store, after: int | None) -> None:
        self.real, self.left = real, after

    def put(self, key: str, data: bytes, *, new: bool = False) -> bool:
        if self.left == 0:
            raise Trouble("it is gone")
        if self.left is not None:
            self.left -= 1
        return self.real.put(key, data)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_there_twice_however_often_a_batch_is_begun_anew(tmp_path: Path, book: Book, seed: int) -> None:
    """A batch that does not count comes again from the same place, shorter or longer, until it does."""
    book.of_every_kind()
    chance = random.Random(seed)
    found = book.events()[:20]
    midnight = found[0].ts // DAY_US * DAY_US + DAY_US
    found = [msgspec.structs.replace(one, ts=midnight + chance.randint(-9, 9) * 1000) for one in found]
    sink, place = lake(tmp_path / "lake"), 0
    while place < len(found):
        end = place + chance.randint(1, 12)
        stops = chance.choice([None, None, 0, 1, 2])
        real = sink._store
        sink._store = Dying(real, stops)
        try:
            sink.write(found[place:end])
            if chance.random() < 0.5:
                place = end  # else the cursor was lost
        except Trouble:
            pass
        sink._store = real
    told = [row["metadata"]["uid"] for path in (tmp_path / "lake").rglob("*.parquet") for row in rows_of(path)]
    assert sorted(told) == sorted(one.uid for one in found)


def test_files_are_the_owners_alone_and_whole(book: Book, tmp_path: Path) -> None:
    book.call(1)
    sink = lake(tmp_path / "lake")
    sink.write(book.events())
    (path,) = (tmp_path / "lake").rglob("*.parquet")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    whole = path.read_bytes()
    left = path.with_name(f".{path.name}.part")
    left.write_bytes(b"of one that was killed")
    sink.write(book.events())
    assert not left.exists()
    assert path.read_bytes() == whole
    left.symlink_to(tmp_path / "victim")
    sink.write(book.events())
    assert not (tmp_path / "victim").exists()


async def test_a_directory_that_cannot_be_written_is_trouble(book: Book, tmp_path: Path) -> None:
    book.call(1)
    (tmp_path / "lake").write_text("a file")
    with pytest.raises(Trouble, match="cannot be written"):
        await lake(tmp_path / "lake").send(book.events())


def test_only_the_classes_that_are_wanted_are_there(book: Book, tmp_path: Path) -> None:
    book.of_every_kind()
    sink = lake(tmp_path / "lake", classes=("api", "finding"), lake_source="gate")
    sink.write(book.events())
    assert sorted(path.name for path in (tmp_path / "lake/ext").iterdir()) == ["gate-api", "gate-finding"]
    before = len(list((tmp_path / "lake").rglob("*.parquet")))
    sink.write([events_of.test("c", 1_790_000_000_000_000)])
    (added,) = [path for path in (tmp_path / "lake").rglob("*.parquet") if "-test-" in path.name]
    assert before == 2
    assert "gate-api" in str(added)
    assert files.read_table(added, partitioning=None).num_rows == 0


# --- buckets ----------------------------------------------------------------------------------------------------------


def of(there: Bucket, **more: Any) -> security_lake.Settings:
    told: dict[str, Any] = {
        "bucket": "lake", "region": "eu-central-1", "endpoint": there.url, "access_key_id": ACCESS,
        "secret_access_key": SECRET, "timeout": 5.0,
    }  # fmt: skip
    return security_lake.Settings(**{**told, **more})


async def test_a_bucket_gets_the_same_as_a_directory(bucket: Bucket, book: Book, tmp_path: Path) -> None:
    book.of_every_kind(HOSTILE)
    await lake(tmp_path / "lake", region="eu-central-1").send(book.events())
    await security_lake.make(of(bucket)).send(book.events())
    there = {
        str(path.relative_to(tmp_path / "lake")): path.read_bytes() for path in (tmp_path / "lake").rglob("*.parquet")
    }
    assert bucket.objects == there
    assert len(there) == 4


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"secret_access_key": "another-secret"}, "SignatureDoesNotMatch: the secret key is not"),
        ({"access_key_id": "AKIDOTHER"}, "InvalidAccessKeyId: it does not know"),
        ({"region": "us-west-2"}, "AuthorizationHeaderMalformed: it signs for another region"),
        ({"bucket": "none-such"}, "NoSuchBucket: there is no such bucket"),
        ({"endpoint": "http://127.0.0.1:9"}, "it cannot be reached"),
        ({"ca_file": "/none/such.pem"}, "see `ca_file`"),
        ({"access_key_id": "AKID\nX"}, "see `endpoint` and the keys"),
    ],
)
async def test_what_is_wrong_with_a_bucket_is_told_without_its_keys(
    bucket: Bucket, book: Book, wrong: dict[str, Any], why: str
) -> None:
    book.call(1)
    with pytest.raises(Trouble) as caught:
        await security_lake.make(of(bucket, **wrong)).send(book.events())
    assert why in str(caught.value)
    for secret in (SECRET, ACCESS, "another-secret", "AKIDOTHER", "Signature="):
        assert secret not in str(caught.value)
    assert bucket.objects == {}


async def test_a_bucket_that_is_away_gets_it_later(bucket: Bucket, book: Book) -> None:
    book.of_every_kind()
    sink = security_lake.make(of(bucket, timeout=0.3))
    answers: list[tuple[int, str] | str | None] = [(503, "SlowDown"), None, (500, "InternalError"), "silent"]
    bucket.trouble = lambda number: answers[number - 1] if number <= len(answers) else None
    for why in ("SlowDown: it wants fewer", "InternalError", "did not answer within"):
        with pytest.raises(Trouble, match=why):
            await sink.send(book.events())
    await sink.send(book.events())
    assert len(bucket.objects) == 4


async def test_without_any_key_it_says_how_to_give_one(
    bucket: Bucket, book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.call(1)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_WEB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(Trouble, match="set `access_key_id`"):
        await security_lake.make(of(bucket, access_key_id=None, secret_access_key=None)).send(book.events())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    await security_lake.make(of(bucket, access_key_id=None, secret_access_key=None)).send(book.events())
    assert len(bucket.objects) == 1


async def test_a_store_of_ones_own_is_believed_by_its_ca_file(book: Book, tmp_path: Path) -> None:
    book.call(1)
    authority, cert, key = issued(tmp_path)
    made = Bucket(tls=(cert, key))
    try:
        with pytest.raises(Trouble, match="`ca_file`"):
            await security_lake.make(of(made)).send(book.events())
        await security_lake.make(of(made, ca_file=str(authority))).send(book.events())
        assert len(made.objects) == 1
    finally:
        made.close()


# --- a bucket as a witness --------------------------------------------------------------------------------------------

ORIGIN = "aegis/default/0123456789abcdef"


def note(size: int, root: str = "root") -> str:
    return f"{ORIGIN}\n{size}\n{root}\n\n— {ORIGIN} sig{size}\n"


async def test_a_bucket_keeps_every_checkpoint_and_none_is_overwritten(bucket: Bucket) -> None:
    witness = witness_object.make(object_store.Bucket("lake", "eu-central-1", bucket.url, ACCESS, SECRET, timeout=5.0))
    for one in (note(5), note(1005), note(1005), note(1005, "another root"), note(5)):
        await witness.push(ORIGIN, int(one.split("\n")[1]), one)
    assert sorted(bucket.objects.values()) == sorted(
        one.encode() for one in (note(5), note(1005), note(1005, "another root"))
    )
    names = sorted(bucket.objects)
    assert names[0].startswith(f"checkpoints/{ORIGIN}/000000000005-")
    assert all(name.startswith(f"checkpoints/{ORIGIN}/000000001005-") for name in names[1:])
    assert len(bucket.puts) == 5
    for name in bucket.objects:
        bucket.objects[name] = b"somebody else's"
    await witness.push(ORIGIN, 5, note(5))
    assert set(bucket.objects.values()) == {b"somebody else's"}


async def test_a_store_that_cannot_keep_is_no_witness(bucket: Bucket) -> None:
    bucket.trouble = lambda number: (501, "NotImplemented")
    witness = witness_object.make(object_store.Bucket("lake", "eu-central-1", bucket.url, ACCESS, SECRET, timeout=5.0))
    with pytest.raises(Trouble, match="one that knows `If-None-Match`"):
        await witness.push(ORIGIN, 5, note(5))


def test_a_directory_too_keeps_what_is_new_alone(tmp_path: Path) -> None:
    store = object_store.Directory(str(tmp_path))
    assert [store.put("a/b", data, new=True) for data in (b"1", b"2")] == [True, False]
    assert (tmp_path / "a/b").read_bytes() == b"1"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]


# --- as an export -----------------------------------------------------------------------------------------------------


async def test_as_an_export_it_gathers_and_then_says_how_far_it_is(book: Book, tmp_path: Path) -> None:
    sink = lake(tmp_path / "lake", every=3600.0)
    said: list[str] = []
    news, cursors = News(), Cursors(tmp_path / "exports.db")
    shipper = Shipper(Target("lake", "security_lake", {}), Log(book.path), cursors, news, said.append, sink=sink)
    for number in range(1, 1201):
        book.call(number)
    news.heard(book.seq)
    running = asyncio.ensure_future(shipper.run())
    await until(lambda: any(" lag 2400 ok" in line for line in said), "said that it waits")
    assert not (tmp_path / "lake").exists()
    news.end()
    await running
    (path,) = (tmp_path / "lake").rglob("*.parquet")
    assert files.read_table(path, partitioning=None).num_rows == 1200
    assert said[-1] == "sink lake at 2400 lag 0 ok"
    cursors.close()


def test_the_process_gets_its_settings_and_nobody_sees_its_keys(tmp_path: Path) -> None:
    told: dict[str, Any] = {
        "type": "security_lake", "bucket": "lake", "region": "eu-central-1", "account": "123456789012", "every": "10m",
        "classes": ["api"], "access_key_id": ACCESS, "secret_access_key": SECRET, "endpoint": "http://127.0.0.1:9",
    }  # fmt: skip
    of_witness = {"type": "s3", "bucket": "kept", "access_key_id": ACCESS, "secret_access_key": SECRET}
    text = json.dumps({"audit": {"exports": {"lake": told}, "witnesses": {"kept": of_witness}}})
    config = loads(text, "aegis.yaml", base="/etc/aegis").config
    assert SECRET not in repr(config)
    assert SECRET not in config.model_dump_json()
    made = shipping.job(config.audit, tmp_path / "audit.db", tmp_path / "exports.db")
    assert made is not None
    job = msgspec.json.decode(msgspec.json.encode(made), type=Job)
    sink = ship.sink_of(job.exports[0])
    assert sink.linger_s == 600.0
    assert sink._settings.classes == ("api",)  # type: ignore[attr-defined]
    assert sink._settings.secret_access_key == SECRET  # type: ignore[attr-defined]
    assert isinstance(ship.witness_of(job.witnesses[0]), witness_object.ObjectWitness)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({}, "needs `path` or `bucket`"),
        ({"path": "a", "bucket": "b"}, "a directory or a bucket, not both"),
        ({"bucket": "b", "format": "aegis"}, "a lake holds OCSF alone"),
        ({"bucket": "b", "access_key_id": ACCESS}, "belong together"),
        ({"bucket": "b", "classes": []}, "classes"),
        ({"bucket": "a/b"}, "cannot be a name"),
        ({"bucket": "b", "url": "https://x"}, "`url` does nothing"),
    ],
)
def test_wrong_settings_are_told(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigFaults) as caught:
        loads(json.dumps({"audit": {"exports": {"lake": {"type": "security_lake", **wrong}}}}), "aegis.yaml")
    assert why in caught.value.render()


@pytest.mark.parametrize(("library", "extra"), [("pyarrow", "parquet"), ("obstore", "s3")])
def test_a_library_that_is_missing_is_told_with_the_fix(
    library: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(Trouble, match=rf"with its extra `{extra}`, like `pipx install"):
        security_lake.make(security_lake.Settings(bucket="b", access_key_id="a", secret_access_key="b"))


def test_the_libraries_are_loaded_where_they_are_used_alone() -> None:
    text = (
        "import sys, aegis_daemon.exports.security_lake, aegis_daemon.exports.witness_object\n"
        "print([name for name in ('pyarrow', 'obstore') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout == "[]\n"


# --- once -------------------------------------------------------------------------------------------------------------


def export(*args: str) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-m", "aegis_daemon.cli.main", "audit", "export", "--format", "parquet", *args]
    return subprocess.run(run, capture_output=True, text=True, timeout=60)


def test_the_log_becomes_parquet_once(book: Book, tmp_path: Path) -> None:
    book.of_every_kind()
    out = tmp_path / "lake"
    done = export("--db", str(book.path), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert f"{len(book.events())} events are in 4 files" in done.stderr
    told = [row["metadata"]["uid"] for path in out.rglob("*.parquet") for row in rows_of(path)]
    assert sorted(told) == sorted(book.uids)
    assert sorted(path.name for path in tmp_path.iterdir() if "lake" in path.name) == ["lake"]
    again = export("--db", str(book.path), "--out", str(out))
    assert again.returncode == 2
    assert "is there already" in again.stderr
    assert "name a new one with `--out`" in export("--db", str(book.path)).stderr


async def test_a_bucket_is_reached_without_the_environments_proxy_and_its_words_are_not_repeated(
    bucket: Bucket, book: Book, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    book.call(1)
    sink = security_lake.make(of(bucket))
    bucket.trouble = lambda number: (500, "OurTokenSaid") if number == 1 else None
    with pytest.raises(Trouble) as caught:
        await sink.send(book.events())
    assert "OurTokenSaid" not in str(caught.value)
    await sink.send(book.events())
    assert len(bucket.objects) == 1
