from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aegis_daemon.config.schema import Audit
from aegis_daemon.daemon.shipping import Shipping
from aegis_daemon.loop.helper import Helper

AUDIT = Audit.model_validate(
    {
        "exports": {"file": {"type": "jsonl", "path": "/tmp/log.jsonl"}},
        "witnesses": {"notebook": {"type": "file", "path": "/tmp/notes"}},
    }
)


@pytest.fixture
async def shipping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shipping:
    """With its process away."""
    monkeypatch.setattr(Helper, "begin", lambda self: None)
    made = Shipping(tmp_path / "audit.db", tmp_path / "exports.db", asyncio.get_running_loop(), lambda record: 1)
    made.use(AUDIT)
    return made


async def test_what_never_got_anything_is_behind_by_all_of_the_log(shipping: Shipping) -> None:
    shipping.ring(70)
    assert [row.lag for row in shipping.rows()] == [70, 70]
    shipping._heard("sink file at 0 lag 0 trouble there is no such directory")
    shipping._heard("witness notebook at 60 ok")
    assert [row.lag for row in shipping.rows()] == [70, 10]
    assert shipping.warnings() == ["the export `file` is 70 records behind: there is no such directory"]
    shipping._heard("sink file at 69 lag 1 ok")
    assert [row.lag for row in shipping.rows()] == [1, 10]


async def test_a_test_of_what_gets_none_says_why(shipping: Shipping) -> None:
    assert await shipping.test("notebook") == "`notebook` is a witness; witnesses get no test events"
    shipping._failed("does not start: no memory")
    assert await shipping.test("file") == "its process does not start: no memory"
    with pytest.raises(KeyError):
        await shipping.test("nobody")
