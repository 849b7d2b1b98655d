"""The tests notice: each fault of csrc/proto/mutant.h breaks a law in a scenario of real processes that the ordinary
library passes.

One library is built with all of them; the environment variable MUTANT chooses which one a process has.
"""

import contextlib
import fcntl
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from cluster import Cluster, RemoteError, eventually
from worker import digest

import pccl

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "mutants"
CFLAGS = '-O1 -include stdlib.h \'-DPCCL_MUTANT=(getenv("MUTANT") ? atoi(getenv("MUTANT")) : 0)\''
PATIENCE_S = 8.0
LOST = {"RankConnectionLostError", "RankConnectionFailedError"}


class Broken(Exception):
    """A scenario did not even get to its fault."""


@pytest.fixture(scope="session")
def mutated():
    """Where the mutated library is; built once, also when several workers ask."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with open(OUTPUT / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "setup.py", "-q", "build_libpccl", f"--cflags={CFLAGS}", f"--output={OUTPUT}"]
        subprocess.run(command, cwd=ROOT, check=True)
    return OUTPUT


def loaded_library(peer):
    with open("/proc/self/maps") as maps:
        return next(line.split()[-1] for line in maps if "libpccl" in line)


def reduce_value(peer, value, count=1000, tag=0, retry=False, op_timeout=6.0, announce=False):
    x = np.full(count, value, np.float32)
    before = x.copy()
    if announce:
        peer.emit("posting")
    start = time.monotonic()
    error = None
    try:
        peer.comm.all_reduce(x, tag=tag, retry=retry, op_timeout=op_timeout)
    except pccl.PCCLError as failed:
        error = type(failed).__name__
    return {
        "error": error,
        "digest": digest(x),
        "value": float(x[0]),
        "uniform": bool(np.all(x == x[0])),
        "restored": bool(np.array_equal(x, before)),
        "seconds": time.monotonic() - start,
    }


def all_or_nothing(outcomes):
    """What breaks the law among these survivors' outcomes."""
    if len({outcome["error"] for outcome in outcomes}) != 1:
        return [f"some succeeded, some failed: {outcomes}"]
    if outcomes[0]["error"] is None:
        return [] if len({outcome["digest"] for outcome in outcomes}) == 1 else [f"results differ: {outcomes}"]
    wrong = [f"unexpected error: {outcome}" for outcome in outcomes if outcome["error"] not in LOST]
    return wrong + [f"input changed: {outcome}" for outcome in outcomes if not outcome["restored"]]


def ring(cluster, world, proxied):
    """Peers of which one is behind a proxy, with an operation behind them."""
    peers = [cluster.spawn_behind_proxy() if rank == proxied else cluster.spawn() for rank in range(world)]
    cluster.join_in_order(peers, p2p_connection_pool_size=1)
    outcomes = cluster.call(peers, reduce_value, PATIENCE_S, value=1)
    if [outcome["value"] for outcome in outcomes] != [world] * world:
        raise Broken(f"the first operation: {outcomes}")
    return peers


def one_end_complete(cluster):
    """The last bytes towards the first peer never arrive, while the other has everything; then their link is cut."""
    peers = ring(cluster, 2, proxied=0)
    count = 200_000
    links = peers[0].proxy.connections(peers[1].pid)
    gate = peers[0].proxy.gate("up", links)
    gate.hold(int(1.5 * 4 * count / 2))
    cluster.start(peers, reduce_value, value=2, count=count)
    assert gate.reached.wait(5)
    time.sleep(0.3)
    for link in links:
        link.cut()
    return all_or_nothing([peer.wait(PATIENCE_S) for peer in peers])


def late_frame_of_an_older_epoch(cluster):
    """A frame of an operation that a removal has ended arrives while its repetition runs."""
    peers = ring(cluster, 3, proxied=0)
    gate = peers[0].proxy.gate("down", peers[0].proxy.connections(peers[1].pid))
    gate.hold()
    cluster.start(peers[:2], reduce_value, value=1, count=3, tag=5)
    assert gate.reached.wait(5)
    time.sleep(0.2)
    peers[2].kill()
    broken = all_or_nothing([peer.wait(PATIENCE_S) for peer in peers[:2]])
    for peer, value in zip(peers[:2], (100, 10), strict=True):
        peer.start(reduce_value, value=value, count=3, tag=5)
    time.sleep(0.2)
    gate.open()
    outcomes = [peer.wait(PATIENCE_S) for peer in peers[:2]]
    if [(outcome["value"], outcome["uniform"]) for outcome in outcomes] != [(110, True)] * 2:
        broken.append(f"wrong sum: {outcomes}")
    return broken


def poster_after_the_abort(cluster):
    """An operation ends by its time limit before one of the peers has posted it: that post gets the verdict, and then
    all count alike."""
    peers = ring(cluster, 2, proxied=None)
    outcomes = [peers[0].call(reduce_value, PATIENCE_S, value=1, tag=7, op_timeout=0.3)]
    time.sleep(0.2)  # the verdict reaches the other one too
    outcomes.append(peers[1].call(reduce_value, PATIENCE_S, value=1, tag=7, op_timeout=2))
    broken = [f"unexpected end: {o}" for o in outcomes if o["error"] != "OperationTimeoutError" or o["seconds"] > 1]
    outcomes = cluster.call(peers, reduce_value, PATIENCE_S, value=1, tag=7, op_timeout=2)
    return broken + [f"the run is not usable: {o}" for o in outcomes if (o["error"], o["value"]) != (None, 2)]


def killed_in_the_middle(cluster):
    """A peer is killed when half of an operation in place is done."""
    peers = ring(cluster, 3, proxied=0)
    count = 300_000
    links = peers[0].proxy.connections(peers[2].pid)
    gate = peers[0].proxy.gate("up", links)
    gate.hold(int(2.5 * 4 * count / 3))
    cluster.start(peers, reduce_value, value=2, count=count)
    assert gate.reached.wait(5)
    peers[2].kill()
    for link in links:
        link.cut()
    return all_or_nothing([peer.wait(PATIENCE_S) for peer in peers[:2]])


def held_and_lost(peer):
    stats = peer.comm.stats()
    return stats["held_bytes"], stats["links_lost"]


def slow_poster(cluster):
    """One peer posts a large operation long before the other."""
    peers = ring(cluster, 2, proxied=None)
    peers[1].start(reduce_value, value=1, count=2_000_000)
    time.sleep(0.4)
    held, lost = peers[0].call(held_and_lost)
    broken = [] if held <= 64 << 10 else [f"{held} bytes held"]
    broken += [f"{lost} links lost"] if lost else []
    peers[0].start(reduce_value, value=1, count=2_000_000)
    outcomes = [peer.wait(PATIENCE_S) for peer in peers]
    return broken + [f"failed: {o}" for o in outcomes if (o["error"], o["value"]) != (None, 2)]


def all_survivors_done(cluster):
    """A peer dies that alone had not finished: the others have all that they need."""
    peers = ring(cluster, 3, proxied=1)
    count = 150_000
    links = peers[1].proxy.connections(peers[2].pid)
    gate = peers[1].proxy.gate("down", links)
    gate.hold(int(3.5 * 4 * count / 3))
    cluster.start(peers, reduce_value, value=2, count=count)
    assert gate.reached.wait(5)
    time.sleep(0.3)
    peers[2].kill()
    for link in links:
        link.cut()
    outcomes = [peer.wait(PATIENCE_S) for peer in peers[:2]]
    broken = all_or_nothing(outcomes)
    broken += [f"not committed: {o}" for o in outcomes if (o["error"], o["value"]) != (None, 6)]
    return broken + [f"took long: {o}" for o in outcomes if o["seconds"] > 3]


def sync_content(peer, value, size):
    data = np.full(size, value, np.uint8)
    state = pccl.SharedState([pccl.TensorInfo.from_numpy(data, "w")])
    error = None
    try:
        peer.comm.sync_shared_state(state)
    except pccl.PCCLError as failed:
        error = type(failed).__name__
    return {"error": error, "digest": digest(data), "restored": bool(np.all(data == value))}


def damaged_block(cluster):
    """One bit of the state changes on its way."""
    peers = ring(cluster, 2, proxied=0)
    peers[0].proxy.gate("down", peers[0].proxy.connections(peers[1].pid)).flip_bit(1 << 20)
    for peer, value in zip(peers, (1, 2), strict=True):
        peer.start(sync_content, value=value, size=3 << 20)
    serving, receiving = (peer.wait(PATIENCE_S) for peer in peers)
    if receiving["error"]:
        return [] if receiving["restored"] else ["a failed synchronisation has changed the tensor"]
    return [] if receiving["digest"] == serving["digest"] else ["the tensors differ after a synchronisation"]


def make_group(peer, ranks):
    peer.group = peer.comm.new_group(ranks)


def reduce_in_group(peer, world):
    """As soon as only ``world`` members are left."""
    deadline = time.monotonic() + 5
    while peer.comm.world_size > world and time.monotonic() < deadline:
        time.sleep(0.01)
    x = np.ones(10, np.float32)
    try:
        peer.group.all_reduce(x, op_timeout=3)
    except pccl.PCCLError as failed:
        return type(failed).__name__
    return float(x[0])


def death_outside(cluster):
    """A peer dies that is in no group with the others: theirs goes on."""
    peers = cluster.join(3)
    cluster.call(peers, make_group, ranks=[0, 1])
    peers[2].kill()
    results = cluster.call(peers[:2], reduce_in_group, PATIENCE_S, world=2)
    return [f"not reduced: {result}" for result in results if result != 2.0]


def vote(peer):
    peer.emit("voting")
    try:
        with peer.group.step():
            pass
    except pccl.PCCLError as failed:
        return type(failed).__name__
    return "committed"


def vote_of_a_broken_group(cluster):
    """One has voted, one has not, one dies: the step is lost for all."""
    peers = cluster.join(3)
    cluster.call(peers, make_group, ranks=[0, 1, 2])
    peers[0].start(vote)
    peers[0].event("voting")
    time.sleep(0.3)
    peers[2].kill()
    result = peers[0].wait(PATIENCE_S)
    return [] if result != "committed" else ["a step was committed without the votes of all"]


def send_often(peer, times):
    x = np.zeros(1, np.uint8)
    with peer.comm.step():
        for _ in range(times):
            peer.comm.send(x, 1)
    return peer.comm.stats()["links_lost"]


def receive_late(peer, times):
    x = np.zeros(1, np.uint8)
    with peer.comm.step():
        peer.emit("late")
        time.sleep(1)
        for _ in range(times):
            peer.comm.recv(x, 0)
    return peer.comm.stats()["links_lost"]


def far_ahead(cluster):
    """One sends in a step more than the other may hold, long before that one calls."""
    peers = cluster.join(2)
    peers[1].start(receive_late, times=16_000)
    peers[1].event("late")
    peers[0].start(send_often, times=16_000)
    try:
        lost = [peer.wait(20) for peer in peers]
    except RemoteError as error:
        return [str(error)]
    return [f"links lost: {lost}"] if any(lost) else []


def step_of_broadcasts(peer, values):
    x = np.zeros(5)
    with peer.comm.step():
        for value in values:
            x[:] = value
            peer.comm.broadcast(x)
    return x.tolist()


def broadcast_left_out(cluster):
    """One takes part in fewer broadcasts of a step: its next one would get what it has missed."""
    peers = [cluster.spawn(), cluster.spawn()]
    cluster.join_in_order(peers)
    for peer, values in zip(peers, ([1.0, 2.0], [0.0]), strict=True):
        peer.start(step_of_broadcasts, values=values)
    committed = [not isinstance(peer.outcome(), RemoteError) for peer in peers]
    results = cluster.call(peers, step_of_broadcasts, PATIENCE_S, values=[3.0])
    wrong = [f"broadcast {result}" for result in results if result != [3.0] * 5]
    return wrong + ["a step was committed that is not the same for all"] * any(committed)


def late_at_a_step(peer, late_s):
    results = []
    for value in (1.0, 2.0, 3.0):
        if value == 2.0:
            time.sleep(late_s)
        x = np.full(1, value)
        with contextlib.suppress(pccl.OperationTimeoutError, pccl.StepAbortedError):
            with peer.comm.step():
                peer.comm.broadcast(x)
            results.append(x[0])
    return results


def late_vote(cluster):
    """One comes to a step when the others have given up their votes on it."""
    peers = [cluster.spawn(PCCL_OP_TIMEOUT="1") for _ in range(3)]
    cluster.join_in_order(peers)
    for peer, late_s in zip(peers, (0, 1.5, 0), strict=True):
        peer.start(late_at_a_step, late_s=late_s)
    results = [peer.wait(PATIENCE_S) for peer in peers]
    return [] if results == [[1.0, 3.0]] * 3 else [f"steps {results}"]


SCENARIOS = {
    1: one_end_complete,
    2: one_end_complete,
    3: late_frame_of_an_older_epoch,
    4: poster_after_the_abort,
    5: killed_in_the_middle,
    6: slow_poster,
    7: all_survivors_done,
    8: damaged_block,
    9: death_outside,
    10: vote_of_a_broken_group,
    11: far_ahead,
    12: broadcast_left_out,
    13: late_vote,
}


# What several I/O threads make wrong has a program of its own: tests/c/io_threads.c.
ELSEWHERE = {14}


def violations(scenario, cluster):
    """What the scenario saw broken; a call that never ends counts as well."""
    try:
        return scenario(cluster)
    except (Broken, TimeoutError) as reason:
        return [str(reason)]


def test_every_mutant_has_a_scenario():
    text = (ROOT / "csrc" / "proto" / "mutant.h").read_text()
    assert {int(number) for number in re.findall(r"PC_MUTANT_\w+ = (\d+)", text)} == set(SCENARIOS) | ELSEWHERE


@pytest.mark.parametrize("scenario", dict.fromkeys(SCENARIOS.values()), ids=lambda scenario: scenario.__name__)
def test_the_ordinary_library_passes(scenario):
    with Cluster() as cluster:
        assert violations(scenario, cluster) == []


@pytest.mark.parametrize("mutant", SCENARIOS)
def test_the_mutant_is_noticed(mutated, mutant):
    with Cluster(LD_LIBRARY_PATH=str(mutated), MUTANT=str(mutant)) as cluster:
        assert cluster.spawn().call(loaded_library) == str(mutated / "libpccl.so")
        assert violations(SCENARIOS[mutant], cluster) != []


def reduce_directly(peer, count):
    peer.comm.all_reduce(np.ones(count, np.float32), algorithm="direct", op_timeout=6.0)


def established(peer):
    return sum(c.status == psutil.CONN_ESTABLISHED for c in psutil.Process(peer.pid).net_connections("tcp"))


def test_who_ignores_credit_is_cut_off(mutated):
    """What one peer sends beyond its credit would pile up at a second one, which waits for a third."""
    with Cluster(PCCL_SHM="0", LD_LIBRARY_PATH=str(mutated)) as cluster:
        stopped, faulty, owner = (cluster.spawn(MUTANT=mutant) for mutant in ("0", "6", "0"))
        cluster.join_in_order([stopped, faulty, owner])
        cluster.call([stopped, faulty, owner], reduce_directly, count=1000)
        stopped.send_signal(signal.SIGSTOP)
        owner.start(reduce_directly, count=30_000_000)
        time.sleep(0.5)
        before = established(owner)
        faulty.start(reduce_directly, count=30_000_000)
        eventually(lambda: established(owner) < before)
        stopped.send_signal(signal.SIGCONT)
        outcome = owner.outcome()
        assert isinstance(outcome, RemoteError)
        assert "peer 2 sent more than it had credit for" in str(outcome)
