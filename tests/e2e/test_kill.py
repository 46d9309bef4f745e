"""kill -9 of everything there is, under load. `scripts/kill_matrix` does more of it and prints figures."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from .house import WAYS, Home
from .kills import CONFIG, Matrix

FEW = 5
MANY = 100
"""For each way, so twice as many in all; a killed daemon counts for both ways at once."""


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.full)])
@pytest.mark.parametrize("victim", ["shim", "server"])
def test_a_killed_end_leaves_no_orphan_and_no_hung_client(homes: Callable[..., Home], victim: str, count: int) -> None:
    matrix = Matrix(homes(CONFIG % "full"))
    for way in WAYS:
        matrix.kill_ends(victim, way, count)
    print(matrix.check())


@pytest.mark.parametrize(
    ("count", "durability"),
    [(FEW, "process"), pytest.param(2 * MANY, "full", marks=pytest.mark.full)],
)
def test_sessions_go_on_over_killed_daemons(homes: Callable[..., Home], count: int, durability: str) -> None:
    matrix = Matrix(homes(CONFIG % durability))
    matrix.kill_daemons(count)
    print(matrix.check())
