from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from manage.webhouse import open_house

from aegis_daemon.core.ports import AuditUnavailable
from aegis_daemon.manage import api

pytestmark = pytest.mark.anyio
CALLER = api.Caller(uid=os.getuid(), pid=None, permits=api.ALL, present=lambda: True)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_a_store_that_does_not_catch_up_is_no_fault_of_the_daemon(tmp_path: Path) -> None:
    class Late:
        async def flush(self) -> int:
            raise AuditUnavailable("the audit store did not catch up with the journal; try again")

    async with open_house(tmp_path) as house:
        late: Any = Late()
        house.governor._writer = late
        asked: Any = api.call(house.governor, CALLER, b'{"verb":"flush_audit"}')
        with pytest.raises(api.Unavailable) as told:
            await asked
    assert told.value.message == "the audit store did not catch up with the journal; try again"
    assert told.value.hint == "see `aegis status`"
