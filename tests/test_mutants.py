"""Each mutant breaks one rule of the protocol (csrc/proto/mutant.h); the simulator must notice every one of them."""

from __future__ import annotations

import pytest
from simulator import Simulator

NAMES = {
    1: "COMMIT although one DONE is missing",
    2: "verdict decided locally",
    3: "frame of an older epoch accepted",
    4: "seq not consumed on abort",
    5: "undo skipped",
    6: "credit ignored",
    7: "a dead peer's DONE missing for ever",
    8: "block digest not checked",
    9: "a death breaks groups that the dead peer was not in",
    10: "votes on a step of a broken group count for some",
    11: "eager parts without end",
    12: "members that have not done the same in a step",
    13: "a vote on a step that others gave up counts for their next",
}
SEEDS = 1500


@pytest.mark.parametrize("mutant", NAMES, ids=NAMES.get)
def test_the_simulator_catches(mutant: int) -> None:
    simulator = Simulator(mutant)
    for seed in range(1, SEEDS + 1):
        report = simulator.run(seed, 3, 5, 20)
        if not report.ok:
            assert simulator.verdict(report).startswith("L")
            return
    pytest.fail(f"not caught in {SEEDS} schedules: {NAMES[mutant]}")


def test_the_whole_library_is_clean_on_these_seeds() -> None:
    simulator = Simulator()
    for seed in range(1, 301):
        report = simulator.run(seed, 3, 5, 20)
        assert report.ok, f"seed {seed}: {simulator.verdict(report)}"
