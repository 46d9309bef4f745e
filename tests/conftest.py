"""What all tests share: this folder is importable, hypothesis knows no deadline, event loops are bounded."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop
from hypothesis import settings

# A runner in the background of a script is started with Ctrl-C ignored, and so would be everything it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("house", deadline=None, print_blob=True)
settings.load_profile("house")

BOUND_S = 60.0


@pytest.fixture(params=[pytest.param("asyncio", marks=pytest.mark.matrix), "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, Any]], Any]:
    """Runs a coroutine on the loop that the daemon has (in the matrix on the plain one, too), for a minute at most; errors in callbacks are errors of the test."""

    def go(coroutine: Coroutine[Any, Any, Any]) -> Any:
        lost: list[dict[str, Any]] = []

        async def bounded() -> Any:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: lost.append(context))
            return await asyncio.wait_for(coroutine, BOUND_S)

        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            result = runner.run(bounded())
        assert lost == []
        return result

    return go
