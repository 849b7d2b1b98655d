"""The production machines under the simulator: clean schedules, determinism, a readable log."""

from __future__ import annotations

import re

import pytest
from simulator import Simulator


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator()


@pytest.mark.parametrize("first", range(1, 1501, 250))
def test_schedules_with_faults_keep_the_laws(simulator: Simulator, first: int) -> None:
    for seed in range(first, first + 250):
        report = simulator.run(seed, 2, 8, 12)
        assert report.ok, f"seed {seed}: {simulator.verdict(report)}"


@pytest.mark.parametrize(("peers", "ops", "seeds"), [(2, 40, 20), (4, 20, 60), (16, 16, 3), (64, 60, 1)])
def test_schedules_without_faults_keep_the_laws(simulator: Simulator, peers: int, ops: int, seeds: int) -> None:
    for seed in range(seeds):
        report = simulator.run(seed, peers, peers, ops, faults=False)
        assert report.ok, f"seed {seed}: {simulator.verdict(report)}"
        assert report.peers == peers
        assert report.ops_committed > 0


def test_one_seed_is_one_run(simulator: Simulator) -> None:
    one, two, other = (simulator.run(seed, 4, 4, 10) for seed in (5, 5, 6))
    assert (one.trace_hash, one.events, one.virtual_ns) == (two.trace_hash, two.events, two.virtual_ns)
    assert one.trace_hash != other.trace_hash


def test_the_log_of_a_schedule_names_epochs_and_peers(simulator: Simulator) -> None:
    log = simulator.log(simulator.run(3, 3, 3, 4, trace=True))
    assert "master: epoch 1 committed" in log
    assert "peer 02: from master: msg_welcome" in log


def test_a_better_ring_found_later_is_adopted(simulator: Simulator) -> None:
    """Beyond 12 members the ring of a new plan is a first guess; all follow a better one from a later joint call on."""
    report = simulator.run(5, 40, 40, 12, faults=False, trace=True)
    log = simulator.log(report)
    assert report.ok, simulator.verdict(report)
    found = re.findall(r"a better ring of \d+: bottleneck (\d+) after (\d+) \S+, once round (\d+) after (\d+) us", log)
    rings = [tuple(map(int, numbers)) for numbers in found]
    assert len(rings) >= 1
    assert all((-wide, way) < (-wide_before, way_before) for wide, wide_before, way, way_before in rings)


def test_deaths_while_a_better_ring_is_searched(simulator: Simulator) -> None:
    searches = 0
    for seed in range(1, 20, 2):
        report = simulator.run(seed, 13, 20, 6, trace=True)
        searches += "a search of" in simulator.log(report)
        assert report.ok, f"seed {seed}: {simulator.verdict(report)}"
    assert searches > 0


def test_bad_options_are_refused(simulator: Simulator) -> None:
    for low, high in ((1, 4), (4, 65), (5, 4)):
        options = simulator.ffi.new("pcclSimOptions_t *", [1, low, high, 4, True, False, 0, 0])
        assert simulator.library.pcclSimRun(options, simulator.ffi.new("pcclSimReport_t *")) == 3


# Seeds whose short programs hold different collectives: both consistencies, every algorithm, near and far.
@pytest.mark.parametrize(("peers", "seeds"), [(2, range(16)), (3, range(8)), (4, range(5)), (5, range(4))])
def test_a_crash_after_every_event_keeps_the_laws(simulator: Simulator, peers: int, seeds: range) -> None:
    for seed in seeds:
        events = simulator.run(seed, peers, peers, 2, faults=False).events
        stride = 1 if peers < 4 else 3  # `pccl sim --exhaustive` leaves none out
        for event in range(1 + seed % stride, events, stride):
            for victim in range(1, peers + 1):
                report = simulator.run(seed, peers, peers, 2, faults=False, crash=(event, victim))
                assert report.ok, f"seed {seed}, peer {victim} after event {event}: {simulator.verdict(report)}"


@pytest.mark.parametrize("victim", [1, 3])
def test_a_death_between_some_votes_and_the_step_of_others(simulator: Simulator, victim: int) -> None:
    """One member was through with an empty operation of a step, and had voted; the others did it among fewer."""
    report = simulator.run(338, 3, 3, 3, faults=False, crash=(100, victim))
    assert report.ok, simulator.verdict(report)
