"""The production machines under the simulator: clean schedules, determinism, a readable log."""

from __future__ import annotations

import re
from collections import Counter

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


@pytest.mark.parametrize("first", [1, 201])
def test_payload_that_moves_beside_other_events_keeps_the_laws(simulator: Simulator, first: int) -> None:
    """As with several I/O threads: what a member takes back from one of them is not written or read by it any more."""
    for seed in range(first, first + 200):
        report = simulator.run(seed, 2, 8, 12, io_threads=True)
        assert report.ok, f"seed {seed}: {simulator.verdict(report)}"


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
        options = simulator.ffi.new("pcclSimOptions_t *", [1, low, high, 4, True, False, False, 0, 0])
        assert simulator.library.pcclSimRun(options, simulator.ffi.new("pcclSimReport_t *")) == 3


# Each collective with each algorithm that it has; what has a payload also in fewer bits.
PAYLOAD = {
    "all_reduce": "ring tree direct exchange",
    "reduce": "ring tree direct",
    "reduce_scatter": "ring direct",
    "broadcast": "ring tree direct",
    "all_gather": "ring direct",
    **dict.fromkeys(("gather", "scatter", "all_to_all", "send", "recv from any"), "direct"),
}
KINDS = {
    **PAYLOAD,
    **{f"coded {kind}": algorithms for kind, algorithms in PAYLOAD.items()},
    "barrier": "ring tree direct exchange",
}
LEGAL = {(kind, algorithm) for kind, algorithms in KINDS.items() for algorithm in algorithms.split()}
DONE = re.compile(
    r"tag \d+: done: (.+): (\d+) elements sent, (\d+) received: .* (?:by )?(ring|tree|direct|exchange)(?:ly)?$",
    re.MULTILINE,
)
# The first operations of the two steps go through all of them from seed to seed.
CRASH_SEEDS = range(len(LEGAL) // 2)


@pytest.mark.parametrize("peers", [2, 3, 4, 5])
def test_the_crash_tests_have_every_collective_with_every_algorithm(simulator: Simulator, peers: int) -> None:
    done: Counter[tuple[str, str]] = Counter()
    for seed in CRASH_SEEDS:
        log = simulator.log(simulator.run(seed, peers, peers, 2, faults=False, trace=True))
        for kind, sent, received, algorithm in DONE.findall(log):
            done[kind, algorithm] += int(sent) + int(received) > 0 or kind == "barrier"
    assert {pair for pair, count in done.items() if count > 0} == LEGAL


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("peers", [2, 3, 4, 5])
def test_a_crash_after_every_event_keeps_the_laws(simulator: Simulator, peers: int, half: int) -> None:
    stride = {2: 1, 3: 1, 4: 3, 5: 6}[peers]  # `pccl sim --exhaustive` leaves none out
    for seed in CRASH_SEEDS[half::2]:
        events = simulator.run(seed, peers, peers, 2, faults=False).events
        for event in range(1 + seed % stride, events, stride):
            for victim in range(1, peers + 1):
                report = simulator.run(seed, peers, peers, 2, faults=False, crash=(event, victim))
                assert report.ok, f"seed {seed}, peer {victim} after event {event}: {simulator.verdict(report)}"


@pytest.mark.parametrize(
    ("seed", "low", "high"),
    [
        # It failed for one member alone, and the others' call succeeded together with its next one.
        pytest.param(1372, 2, 5, id="a stale call fails for all, with the same members"),
        # A send had timed out before its receive was called: later ones were never found.
        pytest.param(16291, 2, 5, id="a receive from anybody after a failed send"),
        # Short segments moved on in a circle and left gaps too small for long ones: all waited for credit.
        pytest.param(4329, 3, 5, id="segments of different sizes in a ring"),
        # A member left its step early, and voted against it; others waited in the step until all were stuck.
        pytest.param(14, 2, 5, id="who votes against a step fails it at once"),
        # Others had given up a step; the next failed for them while this member was still in the one before.
        pytest.param(1838, 3, 6, id="a failure of the next step that is heard of in the last"),
        pytest.param(90, 3, 5, id="a late vote's answer says what the next step has come to"),
        pytest.param(767, 3, 4, id="the step after one that was given up begins without its failure"),
        # When a silent peer was removed, groups were frozen anew, and who was in them had no time to answer.
        pytest.param(18, 3, 6, id="a silent peer and those that are frozen with it"),
    ],
)
def test_what_schedules_have_found(simulator: Simulator, seed: int, low: int, high: int) -> None:
    """Each fails without what was mended. A change of what is on the wire changes all schedules: find others then."""
    report = simulator.run(seed, low, high, 12)
    assert report.ok, simulator.verdict(report)


@pytest.mark.parametrize("victim", [1, 2, 3])
def test_a_death_between_some_votes_and_the_step_of_others(simulator: Simulator, victim: int) -> None:
    """One member was through with an empty operation of a step, and had voted; the others did it among fewer."""
    report = simulator.run(10163, 3, 3, 3, faults=False, crash=(142, victim))
    assert report.ok, simulator.verdict(report)
