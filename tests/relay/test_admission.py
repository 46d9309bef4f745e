from __future__ import annotations

from typing import Any

import pytest

from aegis_daemon.relay.admission import Refused, plan
from aegis_shim.hello import Hello


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "a\udcff", "a" * 129, "a\u202eb"])
@pytest.mark.parametrize("which", ["agent", "backend"])
def test_a_name_that_could_not_be_recorded_plainly_is_refused(name: str, which: str) -> None:
    greeting = Hello(name) if which == "agent" else Hello("a", backend=name)
    nothing: Any = None  # it is refused before anything is asked
    with pytest.raises(Refused, match="cannot be seen"):
        plan(greeting, 0, 0, nothing, {})
