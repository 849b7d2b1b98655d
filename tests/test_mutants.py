"""Each mutant breaks one rule of the protocol (csrc/proto/mutant.h); the simulator must notice every one of them."""

from __future__ import annotations

import multiprocessing

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
IO_THREADS = {14: "memory is used that an I/O thread still has"}
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


@pytest.mark.parametrize("mutant", IO_THREADS, ids=IO_THREADS.get)
def test_the_simulator_catches_what_several_io_threads_break(mutant: int) -> None:
    """In a process of its own: memory may be destroyed. A crash shows it as well as a broken law."""
    child = multiprocessing.get_context("spawn").Process(target=run_schedules, args=(mutant,))
    child.start()
    child.join(100)
    child.kill()
    assert child.exitcode not in (0, None), f"not caught: {IO_THREADS[mutant]}"
    assert run_schedules(None) is None


def run_schedules(mutant: int | None) -> None:
    simulator = Simulator(mutant)
    for seed in range(280, 320):
        report = simulator.run(seed, 3, 5, 20, io_threads=True)
        assert report.ok, f"seed {seed}: {simulator.verdict(report)}"


def test_the_whole_library_is_clean_on_these_seeds() -> None:
    simulator = Simulator()
    for seed in range(1, 301):
        report = simulator.run(seed, 3, 5, 20)
        assert report.ok, f"seed {seed}: {simulator.verdict(report)}"
